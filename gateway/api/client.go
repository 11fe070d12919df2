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

// answerTime is how long an answer may take; streams have no such limit.
const answerTime = 60 * time.Second

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
			return fmt.Errorf("%s: %w", server, known)
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
	res, err := c.send(ctx, c.http, method, path, req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 256<<20))
	if err != nil {
		return nil, fmt.Errorf("read the node's answer: %w", err)
	}
	return b, nil
}

// send returns an answer that is one, its body open.
func (c *Client) send(ctx context.Context, h *http.Client, method, path string, req any) (*http.Response, error) {
	var body io.Reader = http.NoBody
	if req != nil {
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(json.NewEncoder(pw).Encode(req)) }() // ends when the transport has read it, or closes it
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
		return nil, c.why(err)
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
