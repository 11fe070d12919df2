package host

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// body is the file called seed: the same bytes for the server that sends it and the client that knows what it should be.
func body(seed uint64, size int64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), size)
}

// HTTPServed is what the server saw. Peers are source addresses without ports.
type HTTPServed struct {
	Requests int            `json:"requests"`
	Bytes    int64          `json:"bytes"`
	Peers    map[string]int `json:"peers"`
}

func httpServe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", ":80", "listen address")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	served := HTTPServed{Peers: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) {
		seed, err1 := strconv.ParseUint(r.FormValue("seed"), 10, 64)
		size, err2 := strconv.ParseInt(r.FormValue("size"), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		mu.Lock()
		served.Requests++
		served.Peers[host]++
		mu.Unlock()
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		w.Header().Set("X-Seen-As", r.RemoteAddr)
		rate, _ := strconv.ParseFloat(r.FormValue("rate"), 64)
		n := paced(r.Context(), w, body(seed, size), rate) // a client that leaves is the client's finding
		mu.Lock()
		served.Bytes += n
		mu.Unlock()
	})
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	end, err := serving(ctx, ln.Addr().String())
	if err != nil {
		return nil, err
	}
	select {
	case err := <-failed:
		return nil, err
	case <-end.Done():
	}
	srv.Close()
	mu.Lock()
	defer mu.Unlock()
	return served, nil
}

// paced copies at a rate in bit/s, in small pieces so that no burst of it is larger than a few packets; 0 = as fast as it goes.
func paced(ctx context.Context, w http.ResponseWriter, from io.Reader, rate float64) (n int64) {
	if rate <= 0 {
		n, _ = io.Copy(w, from)
		return n
	}
	const piece = 4096
	start := time.Now()
	for sleepUntil(ctx, start.Add(time.Duration(float64(n)*8/rate*1e9))) {
		m, err := io.CopyN(w, from, piece)
		n += m
		if err != nil {
			break
		}
		http.NewResponseController(w).Flush() // an error shows at the next write
	}
	return n
}

// Download is one HTTP transfer.
type Download struct {
	URL     string  `json:"url"`
	Bytes   int64   `json:"bytes"`
	SHA256  string  `json:"sha256"`  // of what came
	Want    string  `json:"want"`    // of what was asked for, computed here
	OK      bool    `json:"ok"`      // complete and the same
	SeenAs  string  `json:"seen_as"` // our address and port as the server saw them
	Local   string  `json:"local"`
	Seconds float64 `json:"seconds"`
	Mbits   float64 `json:"mbits"` // payload, Mbit/s
	Error   string  `json:"error,omitempty"`
}

func httpGet(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	base := fs.String("url", "", "http://HOST:PORT")
	seed := fs.Uint64("seed", 1, "names the file")
	size := fs.Int64("size", 1<<20, "bytes")
	rate := fs.Float64("rate", 0, "ask the server to pace itself, bit/s; 0 = full speed")
	timeout := fs.Duration("timeout", 30*time.Second, "for the whole transfer")
	part := fs.Bool("part", false, "who is told to end before it is complete has what came until then, if it is right")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	told := ctx
	want := sha256.New()
	if !*part {
		io.Copy(want, body(*seed, *size)) // neither end can fail
	}
	d := Download{URL: fmt.Sprintf("%s/file?seed=%d&size=%d&rate=%.0f", *base, *seed, *size, *rate), Want: hex.EncodeToString(want.Sum(nil))}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	start := time.Now()
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.URL, nil)
		if err != nil {
			return err
		}
		transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				d.Local = c.LocalAddr().String()
			}
			return c, err
		}}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		d.SeenAs = resp.Header.Get("X-Seen-As")
		sum := sha256.New()
		d.Bytes, err = io.Copy(sum, resp.Body)
		if *part && told.Err() != nil { // what it should have been so far
			io.Copy(want, body(*seed, d.Bytes))
			d.Want, *size, err = hex.EncodeToString(want.Sum(nil)), d.Bytes, nil
		}
		d.SHA256 = hex.EncodeToString(sum.Sum(nil))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return err
	}()
	d.Seconds = time.Since(start).Seconds()
	d.Mbits = float64(d.Bytes) * 8 / 1e6 / d.Seconds
	d.OK = err == nil && d.Bytes == *size && d.SHA256 == d.Want
	if err != nil {
		d.Error = err.Error()
	}
	return d, nil
}
