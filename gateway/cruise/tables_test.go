package cruise

import (
	"strings"
	"testing"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/snapshot"
)

// Each thing that the program does not ask keeps a session with the worker.
func TestSuits(t *testing.T) {
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, false)
	w.populate(16) // each of them suits, or the test ends here
	met := map[string]int{}
	for _, h := range w.live {
		se := w.shards[0].Sessions.At(h.slot)
		tn := w.view.Tenant(se.Tenant)
		never := func(why string, change func() (undo func())) {
			t.Helper()
			met[why]++
			undo := change()
			if Suits(w.view, se) {
				t.Errorf("suits, but for: %s", why)
			}
			undo()
			if !Suits(w.view, se) {
				t.Fatalf("after %s it suits no longer", why)
			}
		}
		session := func(why string, change func(*conntrack.Session)) {
			t.Helper()
			never(why, func() func() {
				was := *se
				change(se)
				return func() { *se = was }
			})
		}
		session("not answered", func(s *conntrack.Session) { s.Flags &^= conntrack.FlagReplied })
		session("counted as unanswered", func(s *conntrack.Session) { s.Flags |= conntrack.FlagUnanswered })
		session("no tenant", func(s *conntrack.Session) { s.Tenant = 9999 })
		session("icmp", func(s *conntrack.Session) { s.Proto = flow.ICMP })
		session("no way there", func(s *conntrack.Session) { s.NextHop[0] = snapshot.NoHop })
		session("no way back", func(s *conntrack.Session) { s.NextHop[1] = snapshot.NoHop })
		if se.Proto == flow.TCP {
			session("half closed", func(s *conntrack.Session) { s.State = conntrack.TCPFinReply })
			session("half open", func(s *conntrack.Session) { s.State = conntrack.TCPSynRecv })
		}
		never("limits of single hosts", func() func() {
			tn.HostRates = true
			return func() { tn.HostRates = false }
		})
		for nh := range uint16(len(w.view.Hops)) {
			if w.view.Hops[nh].Kind != snapshot.HopForward {
				session("leads round", func(s *conntrack.Session) { s.NextHop[1] = nh })
			}
		}
		for dir := range 2 {
			if hop := w.view.Hop(se.NextHop[dir]); hop.State != nil {
				never("dead router", func() func() {
					hop.State.Silent(1)
					return func() { hop.State.Answered(2) }
				})
			}
		}
	}
	for _, why := range []string{"leads round", "dead router", "half closed"} {
		if met[why] == 0 {
			t.Errorf("%s was not met", why)
		}
	}
}

// What does not fit is refused, and nothing is changed by it.
func TestTablesRefuse(t *testing.T) {
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, false)
	fine := Hop{Port: 2, VLAN: 30, MTU: 1400}
	if err := w.tab.SetHop(5, fine, 7); err != nil {
		t.Fatal(err)
	}
	for why, c := range map[string]struct {
		n   int
		hop Hop
		gen uint32
	}{
		"no generation": {5, fine, 0}, "the generation that it has": {5, fine, 7}, "below": {-1, fine, 8}, "beyond": {256, fine, 8}, "no such port": {5, Hop{Port: 3}, 8},
		"no such vlan": {5, Hop{VLAN: 4095}, 8}, "too large": {5, Hop{MTU: 65536}, 8},
	} {
		if err := w.tab.SetHop(c.n, c.hop, c.gen); err == nil {
			t.Errorf("%s: taken", why)
		}
	}
	if x := &w.tab.hops[5]; x.gen.Load() != 7 || x.port != 2 || x.vlan != 30 || x.mtu != 1400 {
		t.Errorf("the hop is %+v", x)
	}
	if err := w.tab.SetDevice(ports, 1); err == nil || !strings.Contains(err.Error(), "of port 3") {
		t.Errorf("a device of a port that is not there: %v", err)
	}
	if err := w.tab.SetDevice(0, 0); err != nil {
		t.Error(err)
	}
	if err := w.tab.SetDevice(0, 0); err != nil {
		t.Errorf("taken out twice: %v", err)
	}
	v := *w.view
	v.Ifaces = append(v.Ifaces[:len(v.Ifaces):len(v.Ifaces)], make([]snapshot.Iface, 8)...)
	if err := w.tab.SetView(&v); err == nil {
		t.Error("more interfaces than there is room for: taken")
	}
	v = *w.view
	v.Ifaces = append([]snapshot.Iface(nil), v.Ifaces...)
	v.Ifaces[1].Port = ports
	if err := w.tab.SetView(&v); err == nil || !strings.Contains(err.Error(), "interface backbone on port 3") {
		t.Errorf("an interface on a port that is not there: %v", err)
	}
	spec, err := bpf.LoadCruise()
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.tab.load(spec, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if n := w.tab.maps[bpf.CruiseMapVlans].MaxEntries(); n != ports*vlansOf {
		t.Errorf("%d VLANs", n)
	}
	for range 2 {
		if err := w.tab.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// A call of Settle that was under way when a session was called back may have waited for no program that saw it handed down.
func TestASettleUnderWayDoesNotCount(t *testing.T) {
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, false)
	w.populate(4)
	h, other := w.live[0], w.live[1]
	if w.tab.Rest(h.worker, h.slot) {
		t.Error("a place rests whose session was never called back")
	}
	under := w.tab.begun.Add(1)
	w.tab.CallBack(h.worker, h.slot)
	w.tab.settled.Store(under) // and returns
	if !w.tab.Rest(h.worker, h.slot) || w.tab.Resting() != 1 {
		t.Fatal("the place does not rest")
	}
	if slot, ok := w.tab.Rested(h.worker); ok {
		t.Errorf("%d has rested for long enough, and no call began behind the session's end", slot)
	}
	w.tab.CallBack(h.worker, other.slot)
	if err := w.tab.Settle(); err != nil {
		t.Fatal(err)
	}
	if slot, ok := w.tab.Rested(h.worker); !ok || slot != h.slot || w.tab.Resting() != 0 {
		t.Errorf("%d has rested (%v), want %d", slot, ok, h.slot)
	}
	if w.tab.Rest(h.worker, other.slot) {
		t.Error("a place rests whose session was called back before the last call")
	}
	if _, ok := w.tab.Rested(h.worker); ok {
		t.Error("one more has rested")
	}
}
