package gateway

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
)

// What is exported comes back as it was, whatever people wrote about it.
func TestExportComesBack(t *testing.T) {
	for _, text := range []string{"schema = 1\n", "", "no line end", "\r\n\n", exportEnd + "\n", exportFirst + "another\n# x\n"} {
		r := &command.Revision{Number: 5, Digest: command.Digest([]byte(text)), Author: "eve\nname = 1", From: "gw\r1", Comment: "a\nb = 2\u2028c\n" + exportEnd, Back: 3,
			Time: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
		out := export("c1", r, []byte(text))
		if got := withoutHeader(out); string(got) != text {
			t.Errorf("%q came back as %q", text, got)
		}
		head := string(bytes.TrimSuffix(out, []byte(text)))
		for l := range strings.Lines(head) {
			if !strings.HasPrefix(l, "#") {
				t.Errorf("a line of the header is no comment: %q", l)
			}
		}
		for _, want := range []string{"revision 5 of cluster c1", "digest sha256:" + r.Digest, "2026-03-04T05:06:07Z", "revision 3"} {
			if !strings.Contains(head, want) {
				t.Errorf("no %q in %q", want, head)
			}
		}
	}
	// What only begins like one stays.
	for _, text := range []string{"schema = 1\n", "# exported by somebody\n", exportFirst + "x\nschema = 1\n" + exportEnd + "\n", exportFirst + "x", exportFirst + strings.Repeat("x\n#", 30) + "\n" + exportEnd + "\n"} {
		if got := withoutHeader([]byte(text)); string(got) != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestConfirmTime(t *testing.T) {
	for in, want := range map[float64]time.Duration{0: 0, 1: time.Second, 1.5: 1500 * time.Millisecond, 86400: 24 * time.Hour} {
		if got, err := confirmTime(in); err != nil || got != want {
			t.Errorf("%g s: %s, %v", in, got, err)
		}
	}
	for _, in := range []float64{-1, 0.5, 86401, math.Inf(1), math.NaN(), 1e300} {
		if got, err := confirmTime(in); err == nil || !strings.Contains(err.Error(), "want 1s to 24h") {
			t.Errorf("%g s: %s, %v", in, got, err)
		}
	}
}
