package api

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A socket whose directory is read-only is made when that can be written to; who accepts waits, and is let go when the server ends.
func TestASocketThatComesLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var log bytes.Buffer
	tries := 0
	l := newLater(path, func() (net.Listener, error) {
		if tries++; tries < 3 {
			return nil, &fs.PathError{Op: "remove", Path: path, Err: syscall.EROFS}
		}
		return openSocket(path)
	}, time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		got <- err
	}()
	var c net.Conn
	var err error
	for range 2000 {
		if c, err = net.Dial("unix", path); err == nil {
			c.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		t.Fatalf("behind %d tries: %v", tries, err)
	}
	if err := <-got; err != nil || tries != 3 || !strings.Contains(log.String(), "the interface socket is there") {
		t.Errorf("%v, %d tries: %s", err, tries, log.String())
	}
	if err := l.Close(); err != nil || l.Addr().String() != path {
		t.Errorf("%v, %s", err, l.Addr())
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept behind the end: %v", err)
	}
	never := newLater(path, func() (net.Listener, error) { return nil, syscall.EROFS }, time.Hour, slog.New(slog.DiscardHandler))
	go func() {
		_, err := never.Accept()
		got <- err
	}()
	time.Sleep(5 * time.Millisecond)
	if err := never.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-got:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("who accepts still waits, 5 s behind the end")
	}
}
