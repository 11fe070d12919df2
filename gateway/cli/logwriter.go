package cli

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// logLines is how many lines wait for a slow reader of the log before lines are lost.
const logLines = 1024

// logWriter writes a node's log so that whoever reads it can never hold the node up: a terminal that was stopped with ^S, a pipe whose reader
// hangs, a file system that is full or gone. What does not fit is lost, and counted where it is missing.
type logWriter struct {
	to    io.Writer
	lines chan []byte
	lost  atomic.Uint64
	ended chan struct{}
	once  sync.Once
}

func newLogWriter(to io.Writer) *logWriter {
	l := &logWriter{to: to, lines: make(chan []byte, logLines), ended: make(chan struct{})}
	go l.run()
	return l
}

// Write takes one line. It never blocks and never fails.
func (l *logWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), line...):
	default:
		l.lost.Add(1)
	}
	return len(line), nil
}

func (l *logWriter) run() {
	defer close(l.ended)
	for line := range l.lines {
		if line == nil {
			return
		}
		if n := l.lost.Swap(0); n > 0 {
			_, _ = fmt.Fprintf(l.to, "demarc: %d log lines were lost here: nobody took them in time\n", n) // nobody to tell
		}
		_, _ = l.to.Write(line)
	}
}

// Close waits until what was logged is written, at most d: a reader that hangs must not keep the process. Lines that come later are lost.
func (l *logWriter) Close(d time.Duration) {
	late := make(chan struct{})
	defer time.AfterFunc(d, func() { close(late) }).Stop()
	l.once.Do(func() {
		select {
		case l.lines <- nil:
		case <-late:
		}
	})
	select {
	case <-l.ended:
	case <-late:
	}
}
