package gateway

import (
	"bytes"
	"sync"
)

// LogLines is a writer that keeps the last lines of a log in bounded memory, for `support`. Any goroutine.
type LogLines struct {
	mu   sync.Mutex
	buf  []byte // whole lines, but for the last write
	size int
}

// NewLogLines keeps at most size bytes.
func NewLogLines(size int) *LogLines { return &LogLines{size: size} }

// Write takes what a log handler writes. It never fails: a log must not end because nobody can keep it.
func (l *LogLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, b...)
	if len(l.buf) > 2*l.size { // seldom, so that a line costs its own bytes
		keep := l.buf[len(l.buf)-l.size:]
		if i := bytes.IndexByte(keep, '\n'); i >= 0 {
			keep = keep[i+1:]
		}
		l.buf = append(make([]byte, 0, 2*l.size+4096), keep...)
	}
	return len(b), nil
}

// Last is what is kept, whole lines, at most size bytes.
func (l *LogLines) Last() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf
	if len(b) > l.size {
		b = b[len(b)-l.size:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return bytes.Clone(b)
}
