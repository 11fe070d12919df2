package netlab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/host"
)

// Run runs one of the built-in clients inside a namespace and decodes what it measured into result. When ctx ends the client is told to
// stop and still reports what it has.
func (l *Lab) Run(ctx context.Context, ns string, result any, args ...string) error {
	c := l.Host(ns, args...)
	var out, bad bytes.Buffer
	c.Stdout, c.Stderr = &out, &bad
	if err := c.Start(); err != nil {
		return fmt.Errorf("%s in %s: %w", args[0], ns, err)
	}
	stop := context.AfterFunc(ctx, func() { c.Process.Signal(unix.SIGTERM) })
	defer stop()
	if err := c.Wait(); err != nil {
		return fmt.Errorf("%s in %s: %w: %s", args[0], ns, err, strings.TrimSpace(bad.String()))
	}
	if err := json.Unmarshal(out.Bytes(), result); err != nil {
		return fmt.Errorf("%s in %s: %w", args[0], ns, err)
	}
	return nil
}

// Server is a built-in server that runs inside a namespace.
type Server struct {
	Addr string // that it listens on, as it says itself

	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
	bad   *bytes.Buffer
	once  sync.Once
	line  []byte
	err   error
}

// Serve starts a built-in server and returns once it listens.
func (l *Lab) Serve(ns string, args ...string) (*Server, error) {
	return l.ServeWithin(10*time.Second, ns, args...)
}

// ServeWithin is Serve for one that has much to do first.
func (l *Lab) ServeWithin(d time.Duration, ns string, args ...string) (*Server, error) {
	return serve(args[0]+" in "+ns, l.Host(ns, args...), d)
}

// WatchMachine starts to look at how far the machine's processors are there, for as long as the server is not stopped: see host.Machine, which Stop decodes. It needs no lab.
func WatchMachine() (*Server, error) {
	if !initialised {
		return nil, errNotInit
	}
	return serve("machine", exec.Command("/proc/self/exe", hostCommand, "machine"), 10*time.Second)
}

func serve(name string, c *exec.Cmd, d time.Duration) (*Server, error) {
	s := &Server{name: name, cmd: c, bad: &bytes.Buffer{}}
	s.cmd.Stderr = s.bad
	var err error
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	// A server that neither listens nor fails within this time is ended, which ends the read below.
	guard := time.AfterFunc(d, func() { s.cmd.Process.Kill() })
	line, err := s.out.ReadBytes('\n')
	guard.Stop()
	var ready host.Ready
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		return nil, fmt.Errorf("%s did not start: %w: %s", s.name, err, strings.TrimSpace(s.bad.String()))
	}
	s.Addr = ready.Ready
	return s, nil
}

// Stop ends the server and decodes what it saw into result, which may be nil. Calling it again decodes the same.
func (s *Server) Stop(result any) error { return s.StopWithin(5*time.Second, result) }

// StopWithin is Stop for one that takes its time at the end.
func (s *Server) StopWithin(d time.Duration, result any) error {
	s.once.Do(func() {
		s.stdin.Close()
		guard := time.AfterFunc(d, func() { s.cmd.Process.Kill() })
		defer guard.Stop()
		s.line, _ = s.out.ReadBytes('\n') // Wait has the error that counts
		if err := s.cmd.Wait(); err != nil {
			s.err = fmt.Errorf("%s: %w: %s", s.name, err, strings.TrimSpace(s.bad.String()))
		}
	})
	if s.err != nil || result == nil {
		return s.err
	}
	if err := json.Unmarshal(s.line, result); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}
