package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/cruise"
	"demarc/gateway/hostnet"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
	"demarc/gateway/xsk"
)

// Where workers carry everything the port says why, and a start is refused where it was to be otherwise. Where programs may carry, they do without being asked to.
func TestOffloadIsJudged(t *testing.T) {
	kernel := func(f hostnet.XDPFeatures, err error, queues int) offloadAsk {
		return offloadAsk{func(int) (hostnet.XDPFeatures, error) { return f, err }, func(string) (int, int, error) { return queues, 4, nil }}
	}
	const target = hostnet.XDPBasic | hostnet.XDPRedirect | hostnet.XDPTarget
	old, broken := fmt.Errorf("before 6.3: %w", hostnet.ErrNotSupported), errors.New("broken")
	for _, c := range []struct {
		asked string
		ask   offloadAsk
		why   string // "" = it is on
		fails bool
	}{
		{"", kernel(target, nil, 4), "", false},
		{"auto", kernel(target, nil, 8), "", false},
		{"always", kernel(target, nil, 1), "", false},
		{"auto", kernel(target, nil, 3), "3 queues for 4 CPUs", false},
		{"auto", offloadAsk{kernel(target, nil, 4).features, func(string) (int, int, error) { return 4, 4, broken }}, "whether each CPU has a queue of the device cannot be told", false},
		{"auto", kernel(hostnet.XDPBasic|hostnet.XDPRedirect, nil, 4), "the driver takes no redirected frames", false},
		{"always", kernel(hostnet.XDPBasic|hostnet.XDPRedirect, nil, 4), "the driver takes no redirected frames", true},
		{"auto", kernel(0, old, 4), "takes redirected frames cannot be told", false},
		{"always", kernel(0, old, 4), "", false},
		{"always", kernel(0, broken, 4), "takes redirected frames cannot be told", true},
	} {
		g := &Gateway{o: Options{Node: &configs.Node{}}}
		p := &port{cfg: configs.Port{Name: "wan", Offload: c.asked}}
		p.mode, p.native, p.link.Driver = xsk.Copy, true, "virtio_net"
		on, why, err := g.judgeOffload(p, c.ask)
		if on != (c.why == "") || !strings.Contains(why, c.why) || on && why != "" || (err != nil) != c.fails {
			t.Errorf("%q of a NIC: on %v, %q, %v; want %q, fails %v", c.asked, on, why, err, c.why, c.fails)
		}
	}
	// A veth says whether its far end takes what is redirected to it, and has no queue of its own that may be missing.
	for _, c := range []struct {
		asked string
		ask   offloadAsk
		why   string
		fails bool
	}{
		{"", kernel(target, nil, 1), "", false},
		{"auto", kernel(hostnet.XDPBasic|hostnet.XDPRedirect, nil, 4), "the far end of the veth takes no redirected frames: ethtool -K FAR-END gro on, there", false},
		{"always", kernel(hostnet.XDPBasic|hostnet.XDPRedirect, nil, 4), "the far end of the veth takes no redirected frames", true},
		{"auto", kernel(0, old, 4), "takes redirected frames cannot be told", false},
	} {
		g := &Gateway{o: Options{Node: &configs.Node{}}}
		p := &port{cfg: configs.Port{Name: "wan", Offload: c.asked}}
		p.mode, p.native, p.link.Driver = xsk.Copy, true, "veth"
		on, why, err := g.judgeOffload(p, c.ask)
		if on != (c.why == "") || !strings.Contains(why, c.why) || on && why != "" || (err != nil) != c.fails {
			t.Errorf("%q of a veth: on %v, %q, %v; want %q, fails %v", c.asked, on, why, err, c.why, c.fails)
		}
	}
	for _, c := range []struct {
		asked  string
		change func(*Gateway, *port)
		why    string
		fails  bool
	}{
		{"never", func(*Gateway, *port) {}, "the node file says never", false},
		{"auto", func(_ *Gateway, p *port) { p.mode = xsk.ZeroCopy }, "the port is zero-copy", false},
		{"always", func(_ *Gateway, p *port) { p.mode = xsk.ZeroCopy }, "the port is zero-copy", true},
		{"auto", func(_ *Gateway, p *port) { p.mode, p.native = xsk.Generic, false }, "no native XDP", false},
		{"always", func(_ *Gateway, p *port) { p.mode, p.native = xsk.Generic, false }, "no native XDP", true},
		{"always", func(g *Gateway, _ *port) { g.o.Break = "nat" }, "switched off for a test", true},
		{"always", func(g *Gateway, _ *port) { g.o.Node.Workers.Count = 17 }, "more than 16 workers", true},
		// No device has this number: what cannot be told is no.
		{"auto", func(_ *Gateway, p *port) { p.link.Driver, p.link.Index = "virtio_net", 1<<30 }, "takes redirected frames cannot be told", false},
		{"always", func(_ *Gateway, p *port) { p.link.Driver, p.link.Index = "virtio_net", 1<<30 }, "takes redirected frames cannot be told", true},
	} {
		g := &Gateway{o: Options{Node: &configs.Node{}}}
		p := &port{cfg: configs.Port{Name: "wan", Offload: c.asked}}
		p.mode, p.native, p.link.Driver = xsk.Copy, true, "veth"
		c.change(g, p)
		on, why, err := g.judgeOffload(p, askKernel)
		if on || !strings.Contains(why, c.why) || (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "port wan") {
			t.Errorf("%q: on %v, %q, %v; want %q", c.asked, on, why, err, c.why)
		}
	}
}

// A program asks for the deadline of a group, and not whether its worker serves it by now: from before the deadline opens until the last worker has taken over all goes up, also where one is late. Who gives
// a group up holds nothing up.
func TestNothingIsCarriedBeforeTheLastWorkerHasTakenOver(t *testing.T) {
	roottest.Require(t)
	g := copyGateway(t, 2)
	tables, err := cruise.Open(cruise.Config{Seeds: []uint64{1, 2}, Sessions: cruise.SessionUnit, Ports: 1, Interfaces: 1, Tenants: 1, Hops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	g.off = &offload{tables: tables, log: slog.New(slog.DiscardHandler)}
	gen := func(worker int) (n uint32) { // it is another one behind a takeover
		t.Helper()
		if err := g.workers[worker].Do(t.Context(), func(sh *pipeline.Shard) { n = sh.Gen() }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	free := func(when string) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); g.off.isHeld(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: all goes up still", when)
			}
		}
	}
	g.takeOver(1, true, false)
	free("both workers have taken over")

	g.takeOver(1, false, false)
	if g.off.isHeld() {
		t.Error("all goes up because a group is given up")
	}

	first, second := gen(0), gen(1)
	hang, hangs := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(goOn)
	go func() {
		_ = g.workers[1].Do(context.Background(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	g.takeOver(1, true, false) // what comes behind it opens the deadline
	if gen(0) == first || !g.off.isHeld() {
		t.Fatalf("worker 1 hangs; worker 0 has taken over: %v, all goes up: %v", gen(0) != first, g.off.isHeld())
	}
	time.Sleep(5 * roleWait)
	if !g.off.isHeld() {
		t.Error("programs carry what worker 1 has not looked at")
	}
	goOn()
	free("the last worker has taken over")
	if gen(1) == second {
		t.Error("programs carry, and worker 1 has not taken over")
	}
}

// told has the lines of a log.
type told chan string

func (c told) Write(b []byte) (int, error) {
	c <- string(b)
	return len(b), nil
}

// A worker that is late for longer than anybody waits for it keeps programs from carrying until it has come round, and not until the node is restarted.
func TestALateWorkerHoldsProgramsNoLongerThanItIsLate(t *testing.T) {
	roottest.MostlyWaits(t)
	g := walkGatewayOf(t, 2, walkPolicy)
	lines := make(told, 16)
	g.log = slog.New(slog.NewTextHandler(lines, nil))
	hang, hangs := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(goOn)
	go func() {
		_ = g.workers[1].Do(context.Background(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	next := *g.view.Load()
	next.Gen++
	for _, w := range g.workers {
		w.Publish(&next)
	}
	released := make(chan struct{})
	go g.carryAgain(next.Gen, func() { close(released) })
	select {
	case line := <-lines:
		if !strings.Contains(line, "worker 1 has not taken up view") {
			t.Fatal(line)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nobody says that worker 1 is late")
	}
	select {
	case <-released:
		t.Fatal("programs carry, and worker 1 goes by the view before")
	case <-time.After(50 * time.Millisecond):
	}
	goOn()
	select {
	case <-released:
	case <-time.After(10 * time.Second):
		t.Error("worker 1 has come round, and all goes up still")
	}
}

// Who waits for workers ends with them.
func TestNobodyWaitsForWorkersThatHaveEnded(t *testing.T) {
	roottest.MostlyWaits(t)
	released, ended := false, make(chan struct{})
	t.Run("workers", func(t *testing.T) {
		g := walkGatewayOf(t, 2, walkPolicy)
		go func() {
			defer close(ended)
			g.carryAgain(g.view.Load().Gen+1, func() { released = true })
		}()
	})
	select {
	case <-ended:
		if released {
			t.Error("programs carry by a view that no worker has taken up")
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits still")
	}
}

// A device that refuses redirected frames is none, whoever opens it, until it has been seen to take them by a look that began behind its last refusal.
func TestARefusedDeviceStaysShut(t *testing.T) {
	roottest.Require(t)
	tables, err := cruise.Open(cruise.Config{Seeds: []uint64{1}, Sessions: cruise.SessionUnit, Ports: 2, Interfaces: 1, Tenants: 1, Hops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tables.Close(); err != nil {
			t.Error(err)
		}
	}()
	send, err := tables.OpenTransmit()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := send.Close(); err != nil {
			t.Error(err)
		}
	}()
	const lo = 1
	o := &offload{tables: tables, send: send, refuses: make([]uint64, 2), log: slog.New(slog.DiscardHandler)}
	is := func(what string, want bool) {
		t.Helper()
		if got := send.Takes(1); got != want {
			t.Errorf("%s: open %v, want %v", what, got, want)
		}
	}
	put := func(index int) {
		t.Helper()
		if err := o.setDevice(1, index); err != nil {
			t.Fatal(err)
		}
	}
	refuse := func() {
		t.Helper()
		if err := o.refused(1); err != nil {
			t.Fatal(err)
		}
	}
	put(lo)
	is("opened", true)
	if o.takes(1, o.known(1)) {
		t.Error("it had refused nothing, and is said to take again")
	}
	refuse()
	is("refused", false)
	put(lo)
	is("opened while it refuses", false)
	known := o.known(1)
	refuse()
	if o.takes(1, known) {
		t.Error("what was seen before the last refusal counts")
	}
	put(lo)
	is("opened by what was seen before", false)
	if !o.takes(1, o.known(1)) {
		t.Error("what was seen behind the last refusal does not count")
	}
	is("seen, and not opened yet", false)
	put(lo)
	is("opened again", true)
	put(0)
	is("closed", false)
}
