package gateway

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestLogLinesKeepsTheLastWholeLines(t *testing.T) {
	l := NewLogLines(1000)
	for i := range 10_000 {
		fmt.Fprintf(l, "line %d\n", i)
		if cap(l.buf) > 20_000 {
			t.Fatalf("%d bytes of memory", cap(l.buf))
		}
		got := l.Last()
		if len(got) > 1000 || !bytes.HasSuffix(got, fmt.Appendf(nil, "line %d\n", i)) || !bytes.HasPrefix(got, []byte("line ")) {
			t.Fatalf("after %d lines: %q", i, got)
		}
	}
	if n := strings.Count(string(l.Last()), "\n"); n < 90 {
		t.Errorf("%d lines of 10 bytes in 1000", n)
	}
	l.Write(bytes.Repeat([]byte("x"), 5000)) // longer than all
	if n := len(l.Last()); n > 1000 {
		t.Errorf("%d bytes", n)
	}
}
