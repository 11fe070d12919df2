package gateway

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/block"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/worker"
)

// TestVirtualAddressesAreOwn: an address of a group is the gateway's own where it is, whether or not this node serves the group.
func TestVirtualAddressesAreOwn(t *testing.T) {
	g := pairGateway(t)
	acme := g.view.Load().TenantByName("acme").ID
	for _, c := range []struct {
		prefix string
		any    bool
		zone   flow.TenantID
		want   string
	}{
		{"203.0.113.2/32", true, 0, "203.0.113.2 is the gateway's own address on interface transit"},
		{"203.0.113.4/32", true, 0, "203.0.113.4 is the virtual address of group east on interface transit"},
		{"203.0.113.4/32", false, flow.Backbone, "203.0.113.4 is the virtual address of group east on interface transit"},
		{"203.0.113.4/32", false, acme, ""},
		{"198.18.10.1/32", false, acme, "198.18.10.1 is the virtual address of group east on interface acme"},
		{"198.18.10.1/32", false, flow.Backbone, ""},
		{"2001:db8:a::1/128", false, acme, "2001:db8:a::1 is the virtual address of group east on interface acme"},
		{"fe80::200:5eff:fe00:201/128", false, acme, "fe80::200:5eff:fe00:201 is the virtual address of group east on interface acme"},
		{"203.0.113.6/32", true, 0, ""},
	} {
		if got := g.mistake(netip.MustParsePrefix(c.prefix), c.any, c.zone); got != c.want {
			t.Errorf("%s, every side %v, zone %d: %q, want %q", c.prefix, c.any, c.zone, got, c.want)
		}
	}
}

// TestPolicyBringsABlockedAddress: what becomes the gateway's own while it is blocked stays blocked, and is told once; the list goes on saying it.
func TestPolicyBringsABlockedAddress(t *testing.T) {
	g := pairGateway(t)
	var err error
	if g.clock, err = worker.NewClock(); err != nil {
		t.Fatal(err)
	}
	now := g.view.Load()
	b, err := os.ReadFile("../configs/examples/pair.policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("203.0.113.4/29", "203.0.113.6/29", "198.18.10.1/24", "198.18.10.3/24").Replace(string(b))
	p, err := configs.DecodePolicy("before.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	was, err := snapshot.Compile(snapshot.Input{Policy: p, Node: g.o.Node, HomeSeed: 1, Links: []snapshot.Link{{MAC: [6]byte{2, 1}, MTU: 1500}, {MAC: [6]byte{2, 2}, MTU: 1500}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := was.Register(nat.NewSpace(64)); err != nil {
		t.Fatal(err)
	}
	until := g.clock.Now() + uint64(time.Hour)
	for _, x := range []blocked{
		{prefix: netip.MustParsePrefix("203.0.113.4/32")},                                    // new
		{prefix: netip.MustParsePrefix("198.18.10.1/32"), side: api.Side{Tenant: "bolt"}},    // new
		{prefix: netip.MustParsePrefix("203.0.113.2/32"), side: api.Side{Backbone: true}},    // by force: it was its own before
		{prefix: netip.MustParsePrefix("203.0.113.4/32"), side: api.Side{Tenant: "acme"}},    // it is nobody's there
		{prefix: netip.MustParsePrefix("198.18.10.1/32"), side: api.Side{Tenant: "nobody"}},  // idle
		{prefix: netip.MustParsePrefix("198.51.100.0/24"), side: api.Side{Tenant: "nobody"}}, // neither
	} {
		x.until, x.hits = until, block.NewHits(1)
		g.blocks.list = append(g.blocks.list, &x)
	}
	got := strings.Join(g.warnOwn(was, now), "\n")
	want := "203.0.113.4 is blocked on every side for 1h0m0s still, and 203.0.113.4 is the virtual address of group east on interface transit: demarc unblock 203.0.113.4\n" +
		"198.18.10.1 is blocked on bolt for 1h0m0s still, and 198.18.10.1 is the virtual address of group west on interface bolt: demarc unblock 198.18.10.1 --tenant bolt"
	if got != want {
		t.Errorf("warned of\n%s\nwant\n%s", got, want)
	}
	if again := g.warnOwn(now, now); len(again) > 0 {
		t.Errorf("warned again: %q", again)
	}
	list, err := backend{g}.Blocks(t.Context())
	if err != nil || len(list.Blocks) != 6 {
		t.Fatal(list, err)
	}
	for i, own := range []bool{true, true, true, false, false, false} {
		if b := list.Blocks[i]; (b.Own != "") != own {
			t.Errorf("%s on %s: %q", b.Address, b.Side, b.Own)
		}
	}
}

// TestNoBlockIsHalfTakenBack: where one worker does not take a list up, the others go by the list that stands again, although who asked has gone.
func TestNoBlockIsHalfTakenBack(t *testing.T) {
	g := walkGateway(t, 2)
	g.chunk, g.o.Node.DataDir = 2048, t.TempDir()
	b := backend{g}
	g.startBlocks()
	if _, err := b.Block(t.Context(), api.BlockRequest{Address: "198.51.100.9", Seconds: 3600}); err != nil {
		t.Fatal(err)
	}
	blocked := func() bool { // by the first worker; no route leads there
		t.Helper()
		x, err := b.Explain(t.Context(), api.ExplainRequest{Tenant: "alpha", Proto: "udp", From: "198.18.10.11:5000", To: "198.51.100.9:53"})
		if err != nil {
			t.Fatal(err)
		}
		return x.Reason == "blocked"
	}
	if !blocked() {
		t.Fatal("what is blocked is let through")
	}
	began, goOn := make(chan struct{}), make(chan struct{})
	go func() {
		_ = g.workers[1].Do(context.Background(), func(*pipeline.Shard) { close(began); <-goOn })
	}()
	<-began
	before := g.workers[0].Stats().Orders
	go func() { // the second one hangs until the first was told of both lists
		for end := time.Now().Add(5 * time.Second); g.workers[0].Stats().Orders < before+2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		close(goOn)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.Unblock(ctx, api.UnblockRequest{Address: "198.51.100.9"}); err == nil || !strings.Contains(err.Error(), "worker 1 does not answer") {
		t.Fatalf("unblocked with a worker that hangs: %v", err)
	}
	if !blocked() {
		t.Error("the unblocking failed, and the first worker lets through what is blocked")
	}
	if list, err := b.Blocks(t.Context()); err != nil || len(list.Blocks) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := b.Unblock(t.Context(), api.UnblockRequest{Address: "198.51.100.9"}); err != nil || blocked() {
		t.Errorf("the second time: %v", err)
	}
}
