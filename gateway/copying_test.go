package gateway

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
)

// copyGateway is a node without ports that serves a group which gw-b may take over.
func copyGateway(t *testing.T, workers int) *Gateway {
	t.Helper()
	g := walkGatewayOf(t, workers, walkPolicy+`
[[group]]
name = "east"
id = 1
nodes = ["test", "gw-b"]
tenants = ["alpha"]
[[group.address]]
interface = "backbone"
addresses = ["203.0.113.250/24"]
`)
	g.copying, g.agreed = newCopying(), newAgreed()
	g.openStandby(t.Context())
	return g
}

// TestAHungWorkerGetsNoFurtherStreams: while a worker hangs no set of streams is made, however often that is tried: each has tables in memory until that worker lets go of it. Status says why; when the
// worker goes on sessions are copied.
func TestAHungWorkerGetsNoFurtherStreams(t *testing.T) {
	roottest.MostlyWaits(t)
	g := copyGateway(t, 2)
	g.copying.serving(1, 5, true)
	hang, hangs := make(chan struct{}), make(chan struct{})
	go func() {
		_ = g.workers[1].Do(context.Background(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	g.arrange(ctx, &wg) // takes orderTime: what is shorter may be over before worker 0, which is asked first, has a processor, and then that one is said to hang
	marked := 0
	if err := g.workers[0].Do(t.Context(), func(sh *pipeline.Shard) { marked = sh.Copying() }); err != nil || marked != 0 {
		t.Errorf("worker 0 marks for %d standbys, beside one that hangs: %v", marked, err)
	}
	if c := g.copiesOf("east"); len(c) != 1 || !strings.HasPrefix(c[0].Why, "worker 1 does not take up a stream of its sessions: ") {
		t.Errorf("status says %+v", c)
	}
	close(hang)
	g.arrange(ctx, &wg)
	if err := g.workers[1].Do(t.Context(), func(sh *pipeline.Shard) { marked = sh.Copying() }); err != nil || marked != 1 {
		t.Errorf("when it goes on it marks for %d standbys: %v", marked, err)
	}
	if c := g.copiesOf("east"); len(c) != 1 || strings.Contains(c[0].Why, "worker") {
		t.Errorf("status says %+v", c)
	}
	for _, o := range g.copying.sets {
		g.endSet("gw-b", o)
	}
}

// TestAnotherPolicyDelaysNoTakeover: who makes a group ready does not take up another policy of what workers have in common; that is done as soon as there is one, by who has the time.
func TestAnotherPolicyDelaysNoTakeover(t *testing.T) {
	g := copyGateway(t, 1)
	g.common.with(func(*pipeline.Common, int64) {})
	first := g.view.Load()
	second := *first
	g.view.Store(&second)
	g.common.serving(1, 5, true, pipeline.Known{All: true}, nil)
	g.common.mu.Lock()
	if g.common.at != first {
		t.Error("it was taken up on the way of a takeover")
	}
	g.common.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.common.run(ctx) }()
	defer func() { cancel(); <-done }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		g.common.mu.Lock()
		at := g.common.at
		g.common.mu.Unlock()
		if at == &second {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody takes it up")
		}
	}
}
