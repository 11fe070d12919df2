package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// MaxPolicy is the largest policy text that is taken, bytes.
const MaxPolicy = 8 << 20

// Backend answers requests. Errors may be a *Fault, whose status and problems are passed on; others are status 500.
type Backend interface {
	Status(ctx context.Context, rules bool) (*Status, error)
	Sessions(ctx context.Context, f SessionFilter) (*Sessions, error)
	Drops(ctx context.Context) (*Drops, error)
	Routes(ctx context.Context) (*Routes, error)
	Neighbours(ctx context.Context) (*Neighbours, error)
	Ports(ctx context.Context) (*Ports, error)
	Policy(ctx context.Context) ([]byte, error)
	Diff(ctx context.Context, r DiffRequest) (*Diff, error)
	Apply(ctx context.Context, r ApplyRequest) (*Applied, error)
	Actor
	Prober
	Supporter
}

// Fault is an error with its HTTP status.
type Fault struct {
	Status   int
	Problems []Problem
	Err      error
}

// Error is the text of the wrapped error.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap gives the wrapped error.
func (f *Fault) Unwrap() error { return f.Err }

// ServerConfig is what Listen needs.
type ServerConfig struct {
	Socket  string // path of the unix socket; only root may connect
	Metrics string // TCP address for /metrics alone; empty = only on the socket
	Backend Backend
	Handler http.Handler // serves /metrics
	Log     *slog.Logger
}

// Server serves the interface.
type Server struct {
	cfg     ServerConfig
	unix    net.Listener
	tcp     net.Listener
	servers []*http.Server
}

// Listen opens the sockets. A socket file that nobody serves any more is taken over; one that is served is an error.
func Listen(c ServerConfig) (*Server, error) {
	s := &Server{cfg: c}
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the interface socket: %w", err)
	}
	if conn, err := net.DialTimeout("unix", c.Socket, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("interface socket %s: another demarc serves it: stop that one, or give this node its own api.socket", c.Socket)
	}
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the stale interface socket: %w", err)
	}
	var err error
	if s.unix, err = net.Listen("unix", c.Socket); err != nil {
		return nil, fmt.Errorf("interface socket: %w", err)
	}
	if err := os.Chmod(c.Socket, 0o600); err != nil {
		s.unix.Close()
		return nil, fmt.Errorf("interface socket: %w", err)
	}
	if c.Metrics != "" {
		if s.tcp, err = net.Listen("tcp", c.Metrics); err != nil {
			s.unix.Close()
			return nil, fmt.Errorf("metrics address %s: %w", c.Metrics, err)
		}
	}
	return s, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	errs := make(chan error, 2)
	serve := func(l net.Listener, h http.Handler) {
		// Only the header has a read deadline of its own: an apply may wait for its workers.
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 16 << 10}
		s.servers = append(s.servers, srv)
		go func() { errs <- srv.Serve(l) }()
	}
	serve(s.unix, s.routes())
	n := 1
	if s.tcp != nil {
		mux := http.NewServeMux()
		mux.Handle("GET "+PathMetrics, s.cfg.Handler)
		serve(s.tcp, mux)
		n++
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
		n--
	}
	stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, srv := range s.servers {
		if srv.Shutdown(stop) != nil {
			srv.Close()
		}
	}
	for range n {
		<-errs
	}
	return err
}

func (s *Server) routes() http.Handler {
	mux, b := http.NewServeMux(), s.cfg.Backend
	get := func(path string, fn func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, fn) })
	}
	get(PathStatus, func(r *http.Request) (any, error) { return b.Status(r.Context(), r.URL.Query().Get("rules") == "1") })
	get(PathSessions, func(r *http.Request) (any, error) {
		f, err := filterOf(r)
		if err != nil {
			return nil, err
		}
		return b.Sessions(r.Context(), f)
	})
	get(PathDrops, func(r *http.Request) (any, error) { return b.Drops(r.Context()) })
	get(PathRoutes, func(r *http.Request) (any, error) { return b.Routes(r.Context()) })
	get(PathNeighbours, func(r *http.Request) (any, error) { return b.Neighbours(r.Context()) })
	get(PathPorts, func(r *http.Request) (any, error) { return b.Ports(r.Context()) })
	mux.HandleFunc("GET "+PathPolicy, func(w http.ResponseWriter, r *http.Request) {
		text, err := b.Policy(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(text)
	})
	mux.HandleFunc("POST "+PathDiff, func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(r *http.Request) (any, error) {
			var q DiffRequest
			if err := body(w, r, &q); err != nil {
				return nil, err
			}
			return b.Diff(r.Context(), q)
		})
	})
	mux.HandleFunc("POST "+PathApply, func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(r *http.Request) (any, error) {
			var q ApplyRequest
			if err := body(w, r, &q); err != nil {
				return nil, err
			}
			return b.Apply(r.Context(), q)
		})
	})
	s.lookRoutes(mux)
	mux.Handle("GET "+PathMetrics, s.cfg.Handler)
	s.acts(mux)
	s.probes(mux)
	s.support(mux)
	return mux
}

func filterOf(r *http.Request) (f SessionFilter, err error) {
	q := r.URL.Query()
	f = SessionFilter{Tenant: q.Get("tenant"), Address: q.Get("address"), Proto: q.Get("proto")}
	for name, to := range map[string]*int{"port": &f.Port, "limit": &f.Limit} {
		if v := q.Get(name); v != "" {
			if *to, err = strconv.Atoi(v); err != nil || *to < 0 {
				return f, &Fault{Status: http.StatusBadRequest, Err: fmt.Errorf("%s=%q is not a number from 0", name, v)}
			}
		}
	}
	return f, nil
}

func body(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 2*MaxPolicy)) // JSON may write a byte as two
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return &Fault{Status: http.StatusBadRequest, Err: fmt.Errorf("request body: %w: want one JSON object with policy and source", err)}
	}
	return nil
}

func answer(w http.ResponseWriter, r *http.Request, fn func(*http.Request) (any, error)) {
	v, err := fn(r)
	if err != nil {
		refuse(w, err)
		return
	}
	write(w, http.StatusOK, v)
}

func refuse(w http.ResponseWriter, err error) {
	e, status := Error{Error: err.Error()}, http.StatusInternalServerError
	var f *Fault
	if errors.As(err, &f) {
		status, e.Problems = f.Status, f.Problems
	}
	write(w, status, e)
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone: nobody to tell
}

// Client talks to a node. The zero value is not usable: see Dial.
type Client struct {
	http *http.Client
	path string
}

// Dial makes a client for the unix socket at path. It connects at the first request.
func Dial(path string) *Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	return &Client{http: &http.Client{Transport: t, Timeout: 60 * time.Second}, path: path}
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
	pr, pw := io.Pipe()
	if req == nil {
		pw.Close()
	} else {
		go func() { pw.CloseWithError(json.NewEncoder(pw).Encode(req)) }()
	}
	hr, err := http.NewRequestWithContext(ctx, method, "http://demarc"+path, pr)
	if err != nil {
		return nil, err
	}
	if req == nil {
		hr.Body = http.NoBody
	}
	res, err := c.http.Do(hr)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 256<<20))
	if err != nil {
		return nil, fmt.Errorf("read the node's answer: %w", err)
	}
	if res.StatusCode/100 != 2 {
		return nil, faultOf(res, b)
	}
	return b, nil
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

// unreachable says why a request did not get to the node.
func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no demarc runs here: there is no socket %s: start `demarc run`, or name its socket with --socket", c.path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no demarc runs here: nobody serves the socket %s any more: start `demarc run`", c.path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("socket %s: %w: only root may talk to the node", c.path, os.ErrPermission)
	}
	return fmt.Errorf("ask the node at %s: %w", c.path, err)
}
