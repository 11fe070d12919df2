package host

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"
)

// TCPServed is who connected. Peers are source addresses without ports.
type TCPServed struct {
	Accepted int            `json:"accepted"`
	Peers    map[string]int `json:"peers"`
}

func tcpServe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", ":8080", "listen address")
	banner := fs.String("banner", "host", "what to say first: who this is")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	r := TCPServed{Peers: map[string]int{}}
	err := accepting(ctx, *addr, func(c net.Conn) {
		mu.Lock()
		r.Accepted++
		if p, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			r.Peers[p.Addr().Unmap().String()]++
		}
		mu.Unlock()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		c.Write([]byte(*banner + " " + c.RemoteAddr().String() + "\n")) // the client says whether it came
		c.Read(make([]byte, 1))
	})
	mu.Lock()
	defer mu.Unlock()
	return r, err
}

// accepting serves TCP at addr until it is told to end. serve has each connection to itself, and it is closed after that.
func accepting(ctx context.Context, addr string, serve func(net.Conn)) error {
	ln, err := listenSilent(ctx, addr)
	if err != nil {
		return err
	}
	end, err := serving(ctx, ln.Addr().String())
	if err != nil {
		return err
	}
	context.AfterFunc(end, func() { ln.Close() })
	for {
		c, err := ln.Accept()
		if end.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// Attempt is one try to connect.
type Attempt struct {
	Dst       string  `json:"dst"`
	Connected bool    `json:"connected"`
	Banner    string  `json:"banner"`  // first word of the server
	SeenAs    string  `json:"seen_as"` // our address as the server saw it
	How       string  `json:"how"`     // connected, timeout, refused, reset, unreachable, or the error
	Seconds   float64 `json:"seconds"`
}

func tcpConnect(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT")
	timeout := fs.Duration("timeout", 2500*time.Millisecond, "to give up after")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddrPort(*dst); err != nil {
		return nil, err
	}
	r := Attempt{Dst: *dst, How: "connected"}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", *dst)
	if err == nil {
		defer c.Close()
		r.Connected = true
		c.SetDeadline(start.Add(*timeout))
		var line string
		if line, err = bufio.NewReader(c).ReadString('\n'); err == nil {
			r.Banner, r.SeenAs, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
	}
	r.Seconds = time.Since(start).Seconds()
	if err != nil {
		r.How = howFailed(err)
	}
	return r, nil
}

func howFailed(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
