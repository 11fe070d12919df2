package gateway

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// A goroutine of the node's own that panics, or ends with an error, gives an error that says which; a panic's stack is in the log. Run ends in
// order with it.
func TestContained(t *testing.T) {
	var log bytes.Buffer
	l := slog.New(slog.NewTextHandler(&log, nil))
	if err := contained(l, "upkeep", func() error { return nil }); err != nil {
		t.Errorf("no error gave %v", err)
	}
	cause := errors.New("cause")
	if err := contained(l, "upkeep", func() error { return cause }); !errors.Is(err, cause) || err.Error() != "upkeep: cause" {
		t.Errorf("an error gave %v", err)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log.String())
	}
	err := contained(l, "watch links", func() error {
		var p *port
		p.asked = 1
		return nil
	})
	if err == nil || !strings.HasPrefix(err.Error(), "watch links: panic: runtime error: invalid memory address") {
		t.Errorf("a panic gave %v", err)
	}
	if s := log.String(); !strings.Contains(s, "gateway_test.go") || !strings.Contains(s, `in="watch links"`) {
		t.Errorf("the log has no stack: %s", s)
	}
}
