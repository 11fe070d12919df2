package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// MaxPolicy is the largest policy text that is taken, bytes.
const MaxPolicy = 8 << 20

// Changer is the part of Backend that a node without ports has too.
type Changer interface {
	Policy(ctx context.Context) ([]byte, error)
	Apply(ctx context.Context, r ApplyRequest) (*Applied, error)
}

// Stater is the part of Backend that every node has.
type Stater interface {
	Status(ctx context.Context, rules bool) (*Status, error)
}

// Backend answers requests. Errors may be a *Fault, whose status and problems are passed on; others are status 500.
type Backend interface {
	Stater
	Sessions(ctx context.Context, f SessionFilter) (*Sessions, error)
	Drops(ctx context.Context) (*Drops, error)
	Routes(ctx context.Context) (*Routes, error)
	Neighbours(ctx context.Context) (*Neighbours, error)
	Ports(ctx context.Context) (*Ports, error)
	Diff(ctx context.Context, r DiffRequest) (*Diff, error)
	Actor
	Prober
	Supporter
	Changer
	Historian
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
	Socket  string       // path of the unix socket; only root may connect
	Metrics string       // TCP address for /metrics alone; empty = only on the socket
	Remote  *Remote      // the interface on TCP; nil = only on the socket
	Lacks   string       // why the backend does not have every route, and who has; empty = they are as if there were none
	Backend any          // a Backend, or what has some of its parts: of the others there are no paths
	Handler http.Handler // serves /metrics
	Log     *slog.Logger

	Listen func(address string) (net.Listener, error) // by TCP; nil = net.Listen
}

// Server serves the interface.
type Server struct {
	cfg     ServerConfig
	unix    net.Listener
	metrics net.Listener // nil where there is none
	door    *door        // nil where there is none
	servers []*http.Server

	turns     turns
	crowded   atomic.Uint64 // connections on the socket and to the metrics that were closed at once, because there were too many
	forbidden atomic.Uint64 // requests beyond their sender's role
	said      atomic.Int64  // unix seconds of the last one that was logged
	refused   refusedChanges
}

// Listen opens the sockets. A socket file that nobody serves any more is taken over; one that is served is an error. One in a directory that is read-only is made as soon as that can be written to.
func Listen(c ServerConfig) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Listen == nil {
		c.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	s := &Server{cfg: c}
	var err error
	if s.unix, err = listenSocket(c.Socket, c.Log); err != nil {
		return nil, err
	}
	if c.Metrics != "" {
		if s.metrics, err = c.Listen(c.Metrics); err != nil {
			s.unix.Close()
			return nil, fmt.Errorf("metrics address %s: %w", c.Metrics, err)
		}
	}
	if c.Remote != nil {
		if s.door, err = openDoor(c.Remote, c.Listen, remoteLimits, c.Log); err != nil {
			s.unix.Close()
			if s.metrics != nil {
				s.metrics.Close()
			}
			return nil, fmt.Errorf("interface address %s: %w", c.Remote.Listen, err)
		}
	}
	return s, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	errs, n := make(chan error, 3), 0
	serve := func(l net.Listener, srv *http.Server) {
		n++
		s.servers = append(s.servers, srv)
		go func() { errs <- srv.Serve(l) }()
	}
	local := func(h http.Handler) *http.Server {
		// Only the header has a read deadline of its own: an apply may wait for its workers.
		return &http.Server{Handler: h, ConnContext: unixPeer, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn)}
	}
	routes := s.handler()
	serve(&bounded{Listener: s.unix, most: localConns, refused: &s.crowded}, local(routes))
	if s.metrics != nil {
		mux := http.NewServeMux()
		mux.Handle("GET "+PathMetrics, s.cfg.Handler)
		serve(&bounded{Listener: s.metrics, most: localConns, refused: &s.crowded}, local(mux))
	}
	if s.door != nil {
		serve(s.door, s.door.server(routes))
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

// State is what status shows of the server itself.
func (s *Server) State() APIState {
	a := APIState{Refused: map[string]uint64{}}
	if s.door != nil {
		a = s.door.state()
	}
	a.Forbidden = s.forbidden.Load()
	a.Refused[KindBusy] += s.crowded.Load()
	return a
}

// localConns is how many connections the unix socket takes at a time, and the metrics' address: each is a descriptor and a goroutine of the node's.
const localConns = 256

// bounded is a listener that closes what is too much.
type bounded struct {
	net.Listener
	most    int64
	open    atomic.Int64
	refused *atomic.Uint64
}

// Accept gives the next connection that there is a place for.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		leave := sync.OnceFunc(func() { b.open.Add(-1) })
		if b.open.Add(1) <= b.most {
			return &place{c, leave}, nil
		}
		leave()
		b.refused.Add(1)
		c.Close()
	}
}

// place is a connection that gives its place back.
type place struct {
	net.Conn
	leave func()
}

// Close ends the connection.
func (p *place) Close() error {
	p.leave()
	return p.Conn.Close()
}
