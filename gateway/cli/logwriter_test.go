package cli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// hanging is a reader of the log that takes nothing until it is let go.
type hanging struct {
	bytes.Buffer
	let chan struct{}
}

func (h *hanging) Write(b []byte) (int, error) {
	<-h.let
	return h.Buffer.Write(b)
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// A log that nobody takes costs lines and says how many; it never holds up who logs, nor the end of the process.
func TestLogNeverHoldsUp(t *testing.T) {
	h := &hanging{let: make(chan struct{})}
	l := newLogWriter(h)
	fmt.Fprint(l, "line -\n")
	for len(l.lines) > 0 { // until the writer holds it: what comes now fills the queue and no more
		time.Sleep(time.Millisecond)
	}
	for i := range 3*logLines - 1 {
		if n, err := fmt.Fprintf(l, "line %d\n", i); err != nil || n == 0 {
			t.Fatal(n, err)
		}
	}
	begin := time.Now()
	l.Close(20 * time.Millisecond)
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the end waited %v for a reader that hangs", d)
	}
	close(h.let)
	for len(l.lines) > 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Fprint(l, "after\n")
	l.lines <- nil
	<-l.ended
	out := h.String()
	var lost int
	for line := range strings.Lines(out) {
		if _, err := fmt.Sscanf(line, "demarc: %d log lines were lost here", &lost); err == nil {
			break
		}
	}
	if kept := strings.Count(out, "line "); kept+lost != 3*logLines || kept < logLines || lost == 0 || !strings.HasSuffix(out, "after\n") {
		t.Errorf("%d lines kept, %d told as lost, of %d; the end is %q", kept, lost, 3*logLines, out[max(0, len(out)-40):])
	}

	b := newLogWriter(broken{})
	fmt.Fprint(b, "x\n")
	begin = time.Now()
	b.Close(time.Minute)
	if time.Since(begin) > 10*time.Second {
		t.Error("an error of the log holds up the end")
	}
}
