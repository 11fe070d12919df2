package gateway

import (
	"testing"
	"time"
)

// TestFlushHoldsUpNobody: the thread of the leases asks for a flush, and goes on while somebody else looks at how copies stand.
func TestFlushHoldsUpNobody(t *testing.T) {
	g := &Gateway{copying: newCopying()}
	g.groups.ids = map[string]uint8{"east": 1}
	g.copying.mu.Lock()
	returned, done := make(chan struct{}), make(chan struct{})
	go func() {
		g.flushGroup("east", "gw-b", func() { close(done) })
		close(returned)
	}()
	select {
	case <-returned:
	case <-time.After(10 * time.Second):
		t.Error("it waits for who looks at how copies stand")
	}
	g.copying.mu.Unlock()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("nobody was told that there is nothing to flush")
	}
}
