package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/cluster/beat"
	"demarc/cluster/command"
	"demarc/cluster/failover"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/hostnet"
	"demarc/gateway/nat"
	"demarc/gateway/snapshot"
)

// pairGateway is gw1 of the example of a pair, without workers: what it knows of its ports a test says.
func pairGateway(t *testing.T) *Gateway {
	t.Helper()
	decode := func(name string) []byte {
		b, err := os.ReadFile("../configs/examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	node, err := configs.DecodeNode("node.toml", decode("pair.node.toml"))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := configs.DecodePolicy("policy.toml", decode("pair.policy.toml"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := snapshot.Compile(snapshot.Input{Policy: policy, Node: node, HomeSeed: 1, Links: []snapshot.Link{{MAC: [6]byte{2, 1}, MTU: 1500}, {MAC: [6]byte{2, 2}, MTU: 1500}}})
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{o: Options{Node: node, Wall: time.Now}, log: slog.New(slog.DiscardHandler), space: nat.NewSpace(64), agreed: newAgreed()}
	for i := range node.Ports {
		p := &port{cfg: node.Ports[i]}
		p.state, p.link = portOpen, hostnet.Link{Index: i + 1, Up: true, Carrier: true}
		g.ports = append(g.ports, p)
	}
	if err := v.Register(g.space); err != nil {
		t.Fatal(err)
	}
	v.Activate(g.space)
	g.view.Store(v)
	if err := g.openGroups(); err != nil {
		t.Fatal(err)
	}
	g.tellGroups(policy, v)
	return g
}

// driven has its driver run.
func driven(t *testing.T, g *Gateway) *Gateway {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.groups.driver.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

// TestNothingIsTheHostsOnAVLAN: an address that the host has too is the gateway's to answer for on a VLAN of the port, whose frames never come to the host.
func TestNothingIsTheHostsOnAVLAN(t *testing.T) {
	g := pairGateway(t)
	own := map[string]netip.Addr{"transit": netip.MustParseAddr("203.0.113.2"), "acme": netip.MustParseAddr("198.18.10.252")}
	g.ports[0].cfg.Host.Shared, g.ports[1].cfg.Host.Shared = []netip.Addr{own["transit"]}, []netip.Addr{own["acme"]}
	seen := 0
	for _, f := range g.slowInterfaces(g.view.Load()) {
		if a, ok := own[f.Name]; ok {
			seen++
			if slices.Contains(f.HostShared, a) != (f.VLAN == 0) {
				t.Errorf("%s, VLAN %d: the host answers for %v", f.Name, f.VLAN, f.HostShared)
			}
		}
	}
	if seen != len(own) {
		t.Errorf("%d interfaces of %d", seen, len(own))
	}
}

// TestConditionsAreTold: a port that carries nothing counts against the groups that are on it, and no more once it does again; a group that the policy loses counts for nothing.
func TestConditionsAreTold(t *testing.T) {
	g := driven(t, pairGateway(t))
	against := func() (east, west string) {
		t.Helper()
		x, err := groupsOf(t.Context(), "gw1", g.groups.driver, g.membership().group)
		if err != nil || len(x.Groups) != 2 || x.Groups[0].Name != "east" || x.Groups[0].ID != 1 || x.Groups[1].ID != 2 {
			t.Fatalf("%+v, %v", x, err)
		}
		for _, g := range x.Groups { // the figures are those of the words, and every cause is there
			sum := 0
			for _, c := range failover.Conditions {
				n, ok := g.Conditions[string(c)]
				if sum += min(n, 1); !ok {
					t.Errorf("%s has no figure for %s", g.Name, c)
				}
			}
			if sum != len(g.Against) || len(g.Conditions) != len(failover.Conditions) {
				t.Errorf("%s: %v and %v", g.Name, g.Conditions, g.Against)
			}
		}
		return strings.Join(x.Groups[0].Against, "; "), strings.Join(x.Groups[1].Against, "; ")
	}
	for _, c := range []struct {
		name string
		do   func()
		want string // of both: all their interfaces are on the two ports
	}{
		{"sound", func() {}, ""},
		{"no carrier", func() { g.ports[1].link.Carrier = false }, "1 of its ports carry nothing"},
		{"the other one gone too", func() { g.ports[0].state = portGone }, "2 of its ports carry nothing"},
		{"one is back", func() { g.ports[1].link.Carrier = true }, "1 of its ports carry nothing"},
		{"a lease ended there with frames queued", func() { g.ports[1].state, g.ports[1].fenced = portClosed, time.Now() }, "1 of its ports carry nothing"},
		{"and it does not open again", func() { g.ports[1].fenced = time.Now().Add(-2 * reopenTime) }, "2 of its ports carry nothing"},
		{"it is open again", func() { g.ports[1].state, g.ports[1].fenced = portOpen, time.Time{} }, "1 of its ports carry nothing"},
		{"a fault on a packet", func() { g.groups.panicked = time.Now() }, "1 of its ports carry nothing; packets have met faults of the gateway's own within the last minute"},
		{"long ago", func() { g.groups.panicked = time.Now().Add(-2 * panicRest); g.ports[0].state = portOpen }, ""},
	} {
		c.do()
		g.conditions(t.Context())
		if east, west := against(); east != c.want || west != c.want {
			t.Errorf("%s: east %q, west %q, want %q", c.name, east, west, c.want)
		}
	}
}

// TestLinksDoNotWaitForAPolicy: while a policy is looked at, however long that takes, a port that goes down counts, whatever else was said of the machine before; and so does one that is back.
func TestLinksDoNotWaitForAPolicy(t *testing.T) {
	g := driven(t, pairGateway(t))
	g.ready.Store(true)
	against := func() string {
		g.conditions(t.Context())
		x, err := groupsOf(t.Context(), "gw1", g.groups.driver, g.membership().group)
		if err != nil || len(x.Groups) != 2 {
			t.Fatalf("%+v, %v", x, err)
		}
		return strings.Join(x.Groups[0].Against, "; ")
	}
	event := func(up bool) hostnet.Event {
		return hostnet.Event{Kind: hostnet.LinkEvent, Link: hostnet.Link{Index: g.ports[1].link.Index, Up: true, Carrier: up}}
	}
	g.mu.Lock()
	g.noteLink(event(false))
	if got := against(); got != "1 of its ports carry nothing" {
		t.Errorf("it has lost its carrier: %q", got)
	}
	select {
	case <-g.groups.links:
	default:
		t.Error("nobody is told to look")
	}
	g.noteLink(event(true))
	if got := against(); got != "" {
		t.Errorf("it has its carrier again: %q", got)
	}
	e := event(false)
	e.Link.Index += 40
	g.noteLink(e)
	if got := against(); got != "" {
		t.Errorf("another device has lost its carrier: %q", got)
	}
	g.mu.Unlock()
}

// TestLinksAreLookedAtOnce: who tells the workers that a port carries nothing, or something again, has it be looked at once what that means to groups.
func TestLinksAreLookedAtOnce(t *testing.T) {
	g := driven(t, pairGateway(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); g.lookAtGroups(ctx, time.Hour) }() // no turn comes
	defer func() { cancel(); <-done }()
	for _, up := range []bool{false, true} {
		g.change(g.ports[1], func() { g.ports[1].link.Up = up })
		g.carrier(1, g.ports[1])
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			x, err := groupsOf(t.Context(), "gw1", g.groups.driver, g.membership().group)
			if err == nil && len(x.Groups) == 2 && (len(x.Groups[0].Against) == 0) == up {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("up %v: nobody has looked: %+v, %v", up, x, err)
			}
		}
	}
}

// TestGroupsAreAnswered: a node whose log is not open says so and serves nothing; what cannot be asked of it is refused in words.
func TestGroupsAreAnswered(t *testing.T) {
	g := driven(t, pairGateway(t))
	m := g.membership()
	x, err := m.Groups(t.Context())
	if err != nil || !strings.Contains(x.Problem, "the replicated state is not open") || slices.ContainsFunc(x.Groups, func(g api.Group) bool { return g.Serving || len(g.Why) == 0 }) {
		t.Errorf("%+v, %v", x, err)
	}
	if _, err := m.TakeGroup(t.Context(), api.TakeRequest{Group: "east"}); err == nil || !strings.Contains(err.Error(), "by force alone") {
		t.Error(err)
	}
	if _, err := m.TakeGroup(t.Context(), api.TakeRequest{Force: true}); err == nil || !strings.Contains(err.Error(), "name a group") {
		t.Error(err)
	}
	if _, err := m.MoveGroup(t.Context(), api.MoveRequest{Group: "east"}); err == nil || !strings.Contains(err.Error(), "name a group, and the node") {
		t.Error(err)
	}
	if w := m.named(t.Context(), "gw2"); len(w) != 2 || !strings.Contains(w[0]+w[1], "group east names gw2 still, which takes nothing over any more") {
		t.Errorf("a node that two groups name is gone: %q", w)
	}
	if w := m.named(t.Context(), "gw3"); len(w) != 0 {
		t.Errorf("a node that no group names is gone: %q", w)
	}
	e, err := m.GroupEvents(t.Context())
	if err != nil || e.Events == nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestNoDatagramsNoGroups: a node that cannot bind the address for datagrams serves no group, and says why; it goes on with everything else, tries again, and takes part as soon as
// it works.
func TestNoDatagramsNoGroups(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g := pairGateway(t)
	g.o.Node.Cluster.Listen, g.o.Node.Cluster.Advertise = taken.LocalAddr().String(), taken.LocalAddr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	end := g.runGroups(func(what string, fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(ctx); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	})
	defer func() { cancel(); wg.Wait(); end() }()
	x, err := g.membership().Groups(t.Context())
	if err != nil || !strings.Contains(x.Problem, "address already in use") || slices.ContainsFunc(x.Groups, func(g api.Group) bool { return g.Serving }) || len(x.Groups) != 2 {
		t.Errorf("%+v, %v", x, err)
	}
	take := func() error { return g.groups.driver.Take(t.Context(), "east", command.Who{}) }
	if err := take(); err == nil || !strings.Contains(err.Error(), "takes no part") {
		t.Error(err)
	}
	if g.groups.carrier.Load() != nil {
		t.Error("there is a carrier")
	}
	taken.Close()
	for end := time.Now().Add(10 * time.Second); take() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not take part though the address is free")
		}
	}
	if x, err := g.membership().Groups(t.Context()); err != nil || strings.Contains(x.Problem, "in use") || g.groups.carrier.Load() == nil {
		t.Errorf("%+v, %v", x, err)
	}
}

// TestLeavesAlsoWithNothing: a node that serves nothing leaves too: it may have claimed something.
func TestLeavesAlsoWithNothing(t *testing.T) {
	g := driven(t, pairGateway(t))
	g.leaveGroups()
	if err := g.groups.driver.Take(t.Context(), "east", command.Who{}); err == nil || !strings.Contains(err.Error(), "about to end") {
		t.Error(err)
	}
}

// TestLeasesFindTheirGroup: a deadline is written by the id that the group has in the data path, also when the policy does not have it any more; a group that no policy of this
// process had is nobody's.
func TestLeasesFindTheirGroup(t *testing.T) {
	g := driven(t, pairGateway(t))
	if id := g.groups.ids["west"]; id != 2 {
		t.Errorf("west has the id %d", id)
	}
	g.groups.driver.Policy(nil)
	stopped := make(chan struct{})
	leases{g}.Write("north", 1, 0, 0, func() { close(stopped) })
	<-stopped
	leases{g}.Write("north", 1, failover.Time(1<<62), 0, nil) // is written nowhere
	if id, ok := g.groups.ids["west"]; !ok || id != 2 {
		t.Error("a group that the policy has lost could not be closed")
	}
}

// TestPathsAreTold: whoever cannot be spoken with is there too, with the reason.
func TestPathsAreTold(t *testing.T) {
	paths, dropped := pathsOf(beat.Status{Dropped: map[beat.Drop]uint64{beat.DropForged: 2}, Peers: []beat.PeerStatus{
		{Name: "gw2", Keyed: true, Paths: []beat.PathStatus{{Local: "192.0.2.1:7400", Remote: "192.0.2.2:7400", Heard: 20 * time.Millisecond, RoundTrip: time.Millisecond, Loss: 0.5}, {Heard: -1}}},
		{Name: "gw3", Problem: "refused", Paths: []beat.PathStatus{{Heard: -1}}},
		{Name: "wit"}, {Name: "new", Keyed: true}}})
	want := []api.GroupPath{{Member: "gw2", Local: "192.0.2.1:7400", Remote: "192.0.2.2:7400", Heard: 0.02, RoundTrip: 0.001, Loss: 0.5}, {Member: "gw2", Heard: -1},
		{Member: "gw3", Heard: -1, Problem: "refused"}, {Member: "wit", Heard: -1, Problem: "no keys yet"}, {Member: "new", Heard: -1, Problem: "it has told no address yet"}}
	if !slices.Equal(paths, want) || dropped["forged"] != 2 {
		t.Errorf("%+v, %v", paths, dropped)
	}
}
