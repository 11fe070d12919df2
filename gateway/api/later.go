package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// laterEvery is how often a socket that could not be made is tried again.
const laterEvery = 3 * time.Second

// openSocket makes the node's own socket, for root alone. A file that nobody serves any more is taken over.
func openSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the interface socket: %w", err)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("interface socket %s: another demarc serves it: stop that one, or give this node its own api.socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the stale interface socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("interface socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("interface socket: %w", err)
	}
	return l, nil
}

// later is a listener that cannot be made for now, since its directory is read-only, or its disk full: no disk may keep a node from serving. Who accepts waits until it is there.
type later struct {
	open  func() (net.Listener, error)
	every time.Duration
	log   *slog.Logger
	name  string

	end  chan struct{}
	once sync.Once
	mu   sync.Mutex
	l    net.Listener // nil until it is there
}

// listenSocket is openSocket, or a listener that waits for it where the disk has no place for it.
func listenSocket(path string, log *slog.Logger) (net.Listener, error) {
	open := func() (net.Listener, error) { return openSocket(path) }
	l, err := open()
	if !slices.ContainsFunc([]error{syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO}, func(e error) bool { return errors.Is(err, e) }) {
		return l, err
	}
	log.Warn("nobody can ask this node by its socket until that can be made; it is tried again", "err", err, "every", laterEvery)
	return newLater(path, open, laterEvery, log), nil
}

func newLater(name string, open func() (net.Listener, error), every time.Duration, log *slog.Logger) *later {
	return &later{open: open, every: every, log: log, name: name, end: make(chan struct{})}
}

// Accept gives the next connection. Before the socket is there it tries to make it.
func (x *later) Accept() (net.Conn, error) {
	for {
		l, err := x.there()
		if l != nil || err != nil {
			if err != nil {
				return nil, err
			}
			return l.Accept()
		}
		select {
		case <-x.end:
			return nil, net.ErrClosed
		case <-time.After(x.every):
		}
	}
}

// there is the socket, made now if that can be; nil = not yet.
func (x *later) there() (net.Listener, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.end:
		return nil, net.ErrClosed
	default:
	}
	if x.l == nil {
		if l, err := x.open(); err == nil {
			x.l = l
			x.log.Info("the interface socket is there", "socket", x.name)
		}
	}
	return x.l, nil
}

// Close ends it, and who waits in Accept.
func (x *later) Close() (err error) {
	x.once.Do(func() {
		close(x.end)
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.l != nil {
			err = x.l.Close()
		}
	})
	return err
}

// Addr is where it is, or will be.
func (x *later) Addr() net.Addr { return &net.UnixAddr{Name: x.name, Net: "unix"} }
