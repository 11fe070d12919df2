package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Client talks to a node. The zero value is not usable: see Dial and DialTLS.
type Client struct {
	http *http.Client
	base string // before the path of a request
	name string // of the node's end, for errors
	why  func(error) error
}

const (
	answerTime = 60 * time.Second // how long an answer may take; streams have no such limit
	// changeTime is how long the answer to a change may take: longer than the node itself waits, so that it says what became of it. Of an apply it waits for the replicated state (5 s), for what the others say of the text
	// (4 s, and 8 s for the largest one) and for its own compiling, for who leads (5 s), for the entry to come back (30 s), for the others' workers (10 s) and for its own (30 s); and up to 16 times for the longest
	// cluster.round_trip, 5 s.
	changeTime = 4 * time.Minute
)

// Dial makes a client for the unix socket at path. It connects at the first request.
func Dial(path string) *Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	return &Client{http: &http.Client{Transport: t, Timeout: answerTime}, base: "http://demarc", name: path, why: func(err error) error { return localWhy(path, err) }}
}

// DialTLS makes a client for a node's interface on TCP, server being "https://ADDRESS:PORT". conf shows our certificate and judges the node's. why says
// what is behind an error of the handshake; it may return nil. It connects at the first request.
func DialTLS(server string, conf *tls.Config, why func(error) error) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("server %q: want https://ADDRESS:PORT, the api.listen of its node file", server)
	}
	conf = conf.Clone()
	conf.ServerName = u.Hostname()
	var last atomic.Pointer[hearing]
	t := &http.Transport{DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) { // and no proxy: the node is known by its certificate
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		last.Store(nil)
		var d net.Dialer
		raw, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		h := &hearing{Conn: tls.Client(raw, conf), ended: make(chan struct{})}
		if err := h.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		last.Store(h)
		return h, nil
	}}
	return &Client{http: &http.Client{Transport: t, Timeout: answerTime}, base: "https://" + u.Host, name: server, why: func(err error) error {
		known := why(err)
		if h := last.Load(); known == nil && h != nil {
			if said := h.said(200 * time.Millisecond); said != nil {
				known = why(said)
			}
		}
		if known != nil {
			return turnedAway{fmt.Errorf("%s: %w", server, known)}
		}
		return remoteWhy(server, err)
	}}, nil
}

// hearing keeps what the other side said last. A node judges a certificate when the handshake is over on this side, so its word comes while a request
// is being sent; and then the sending fails first, with an error that says nothing.
type hearing struct {
	*tls.Conn
	once  sync.Once
	ended chan struct{}
	err   error // why reading ended; valid once ended is closed
}

// Read notes the first error.
func (h *hearing) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if err != nil {
		h.once.Do(func() {
			h.err = err
			close(h.ended)
		})
	}
	return n, err
}

// said waits a moment for the end of reading; nil when it has not come.
func (h *hearing) said(wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-h.ended:
		return h.err
	case <-t.C:
		return nil
	}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for path and decodes the answer into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	b, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Text asks for path and returns the answer as it is.
func (c *Client) Text(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, http.MethodGet, path, nil)
}

// Post sends a request and decodes the answer into v.
func (c *Client) Post(ctx context.Context, path string, req, v any) error {
	b, err := c.do(ctx, http.MethodPost, path, req)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func (c *Client) do(ctx context.Context, method, path string, req any) ([]byte, error) {
	h, tells := c.http, tellsOf(method, path)
	if tells != "" {
		h = &http.Client{Transport: c.http.Transport, Timeout: changeTime}
	}
	res, err := c.send(ctx, h, method, path, req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, int64(mostAnswer)+1))
	if err != nil {
		return nil, unheard(fmt.Errorf("read the node's answer: %w", err), tells)
	}
	if len(b) > mostAnswer {
		return nil, unheard(fmt.Errorf("the node's answer is longer than %d MiB: ask for less", mostAnswer>>20), tells)
	}
	return b, nil
}

// mostAnswer is how long an answer may be, bytes; tests make it less.
var mostAnswer = 256 << 20

// tellsOf is the command that shows whether a request has changed something; "" = it would change nothing.
func tellsOf(method, path string) string {
	for _, rt := range routes {
		if rt.method == method && rt.path == path {
			return rt.tells
		}
	}
	return ""
}

// unheard is the error of a request that the node may have carried out.
func unheard(err error, tells string) error {
	if tells == "" {
		return err
	}
	return fmt.Errorf("%w: whether it took effect is not known: `%s` tells", err, tells)
}

// turnedAway is the error of a connection that the other side refused: nothing that was sent on it has been read.
type turnedAway struct{ error }

func (t turnedAway) Unwrap() error { return t.error }

// send returns an answer that is one, its body open.
func (c *Client) send(ctx context.Context, h *http.Client, method, path string, req any) (*http.Response, error) {
	var body io.Reader = http.NoBody
	var sent atomic.Bool // all of it, which a node waits for before it does anything
	if req != nil {
		pr, pw := io.Pipe()
		go func() { // ends when the transport has read it, or closes it
			err := json.NewEncoder(pw).Encode(req)
			sent.Store(err == nil)
			pw.CloseWithError(err)
		}()
		body = pr
	}
	hr, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if req != nil {
		hr.Header.Set("Content-Type", mediaJSON)
	}
	res, err := h.Do(hr)
	if err != nil {
		err = c.why(err)
		if t := (turnedAway{}); sent.Load() && !errors.As(err, &t) {
			err = unheard(err, tellsOf(method, path))
		}
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		return nil, faultOf(res, b)
	}
	return res, nil
}

// open is send for a stream: it ends with ctx alone.
func (c *Client) open(ctx context.Context, path string, req any) (*http.Response, error) {
	return c.send(ctx, &http.Client{Transport: c.http.Transport}, http.MethodPost, path, req)
}

// faultOf is what the node said instead of an answer.
func faultOf(res *http.Response, b []byte) error {
	f := &Fault{Status: res.StatusCode}
	var e Error
	if json.Unmarshal(b, &e) == nil && e.Error != "" {
		f.Err, f.Problems = errors.New(e.Error), e.Problems
	} else {
		f.Err = fmt.Errorf("the node answered %s", res.Status)
	}
	return f
}

// localWhy says why a request did not get to the node on this machine.
func localWhy(path string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no demarc runs here: there is no socket %s: start `demarc run`, or name its socket with --socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no demarc runs here: nobody serves the socket %s any more: start `demarc run`", path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("socket %s: %w: only root may talk to the node", path, os.ErrPermission)
	}
	return fmt.Errorf("ask the node at %s: %w", path, err)
}

// remoteWhy is the same for a node elsewhere.
func remoteWhy(server string, err error) error {
	var plain tls.RecordHeaderError
	var e *url.Error
	if errors.As(err, &e) {
		err = e.Err // the rest of its text names the request
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: does demarc run there, and is it api.listen in its node file?", server)
	case errors.As(err, &plain):
		return fmt.Errorf("%s does not speak TLS: is it api.listen in its node file?", server)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return fmt.Errorf("%s does not answer in time: %w", server, err)
	}
	return fmt.Errorf("ask the node at %s: %w", server, err)
}
