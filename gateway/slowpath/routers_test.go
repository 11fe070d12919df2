package slowpath

import (
	"net/netip"
	"strings"
	"testing"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
)

// routed gives the machine routers that routes name, and returns their states.
func (r *rig) routed(shared bool, addrs ...string) (states []*fib.HopState) {
	var list []NextHop
	for _, a := range addrs {
		states = append(states, &fib.HopState{})
		list = append(list, NextHop{Iface: 1, Addr: netip.MustParseAddr(a), Often: shared, State: states[len(states)-1]})
	}
	r.m.setNextHops(list, r.now)
	return states
}

// answering lets d go by in small steps; who is in alive answers what he is asked.
func (r *rig) answering(d uint64, alive ...string) {
	for end := r.now + d; r.now < end; {
		r.pass(min(50*ms, end-r.now))
		for _, b := range r.sent {
			for _, a := range alive {
				if s := describe(r.t, b); strings.Contains(s, " ask ") && strings.HasSuffix(s, " "+a) {
					if strings.Contains(a, ":") {
						r.learn(na(hostMAC, a, "2001:db8::1", true, true))
					} else {
						r.learn(arpReply(hostMAC, a, "192.0.2.1"))
					}
				}
			}
		}
		r.sent = nil
	}
}

// Routers are asked without any packet. Of those that share a route a dead one is known within three seconds, its return
// within one and a half; one that is alone is asked as seldom as any neighbour in use.
func TestRoutersAreLookedAfter(t *testing.T) {
	r := newRig(t, nil)
	s := r.routed(true, "192.0.2.2", "192.0.2.3", "2001:db8::2")
	if s[0].Rank() != fib.HopAsked {
		t.Fatalf("before any answer: %s", s[0])
	}
	r.answering(300*ms, "192.0.2.2", "2001:db8::2")
	if s[0].Rank() != fib.HopUp || s[1].Rank() != fib.HopAsked || s[2].Rank() != fib.HopUp {
		t.Fatalf("%s, %s, %s", s[0], s[1], s[2])
	}
	r.answering(4*sec, "192.0.2.2", "2001:db8::2")
	if s[0].Dead() || !s[1].Dead() || s[1].String() != "no answer" || s[2].Dead() {
		t.Fatalf("%s, %s, %s", s[0], s[1], s[2])
	}
	r.answering(30*sec, "192.0.2.2", "2001:db8::2") // nothing is sent there, and they are asked all the same
	dies := r.now
	for !s[0].Dead() && r.now < dies+10*sec {
		r.answering(50*ms, "2001:db8::2")
	}
	if took := r.now - dies; took > 3*sec || took < 1*sec {
		t.Errorf("a dead router was known after %d ms", took/ms)
	}
	r.answering(20*sec, "2001:db8::2")
	back := r.now
	for s[0].Dead() && r.now < back+10*sec {
		r.answering(50*ms, "192.0.2.2", "2001:db8::2")
	}
	if took := r.now - back; took > 1500*ms {
		t.Errorf("its return was known after %d ms", took/ms)
	}
	if s[2].Dead() || r.m.stats.Died != 2 || r.m.stats.Returned != 1 {
		t.Errorf("%s, %+v", s[2], r.m.stats)
	}
	for _, want := range []string{"next hop does not answer", "next hop answers again", "address=192.0.2.3"} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("no %q in the log:\n%s", want, r.log.String())
		}
	}

	r = newRig(t, nil)
	s = r.routed(false, "192.0.2.2")
	r.answering(300*ms, "192.0.2.2")
	before := r.m.stats.Solicited
	r.answering(300*sec, "192.0.2.2")
	if n := r.m.stats.Solicited - before; n < 300/45 || n > 300/14 || s[0].Rank() != fib.HopUp {
		t.Errorf("a router that is alone was asked %d times in five minutes (%s)", n, s[0])
	}
	for dies = r.now; !s[0].Dead() && r.now < dies+60*sec; {
		r.answering(50*ms, "nobody")
	}
	if !s[0].Dead() {
		t.Error("it never died")
	}
}

// A router that moves to another MAC is found by its announcement, or by the last question, which is to everyone: it never counts as dead.
func TestRouterChangesItsMAC(t *testing.T) {
	for _, announced := range []bool{true, false} {
		r := newRig(t, nil)
		s := r.routed(true, "192.0.2.2")
		r.answering(5*sec, "192.0.2.2")
		if announced {
			r.learn(announcement(evilMAC, "192.0.2.2"))
		}
		for end := r.now + 10*sec; r.now < end; {
			r.pass(50 * ms)
			for _, b := range r.sent {
				d := describe(t, b)
				if !strings.Contains(d, " ask 192.0.2.2") && !strings.HasSuffix(d, " 192.0.2.2") {
					continue
				}
				if [6]byte(b[:6]) == evilMAC || b[0]&1 != 0 { // the old MAC is nobody's now
					r.learn(arpReply(evilMAC, "192.0.2.2", "192.0.2.1"))
				}
			}
			r.sent = nil
		}
		if s[0].Dead() || r.m.stats.Died != 0 {
			t.Fatalf("announced %v: it counted as dead", announced)
		}
		k := keyOf(1, netip.MustParseAddr("192.0.2.2"))
		if mac, ok := r.m.cfg.Neighbors.Lookup(1, 4, &k.addr); !ok || mac != evilMAC {
			t.Errorf("announced %v: workers send to %x (%v)", announced, mac, ok)
		}
	}
}

// announcement is an announcement (RFC 5227 section 2.3).
func announcement(mac [6]byte, a string) []byte {
	return arpAsk(mac, a, a)
}

// A link that goes takes its routers with it at once, and who is behind it when it comes back is asked before it counts as alive.
func TestLinkTakesItsRouters(t *testing.T) {
	other := plainIface()
	other.Index, other.Name, other.Port, other.Addrs = 2, "sat", 3, []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}
	first := plainIface()
	r := newRig(t, nil, first, other)
	s := r.routed(true, "192.0.2.2", "192.0.2.3")
	r.answering(sec, "192.0.2.2", "192.0.2.3")
	r.m.setInterfaces([]Interface{first}, r.now) // another one's
	if s[0].Dead() {
		t.Fatal("another port's link killed it")
	}
	r.m.setInterfaces(nil, r.now)
	if !s[0].Dead() || !s[0].NoLink() || s[0].String() != "no link" {
		t.Fatalf("%s", s[0])
	}
	r.answering(10*sec, "nobody")
	if !s[0].NoLink() {
		t.Fatalf("%s", s[0])
	}
	r.m.setInterfaces([]Interface{first, other}, r.now)
	if s[0].NoLink() {
		t.Fatalf("%s", s[0])
	}
	r.answering(1500*ms, "192.0.2.2")
	if s[0].Rank() != fib.HopUp || s[1].Rank() == fib.HopUp {
		t.Errorf("%s, %s", s[0], s[1])
	}
}

// What routes name has a place in the table whatever packets want, and gives it back when no route names it any more.
func TestRoutersKeepTheirPlace(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Capacity = 16 })
	s := r.routed(true, "192.0.2.2", "192.0.2.3")
	r.answering(sec, "192.0.2.2") // .3 is dead
	for i := range 4000 {
		r.by = flow.TenantID(i % 7)
		a := v6("2001:db8::6:0:0")
		a[14], a[15] = byte(i>>8), byte(i)
		r.resolve(1, netip.AddrFrom16(a).String(), 1)
		r.learn(arpAsk([6]byte{2, 1, 0, byte(i >> 8), byte(i), 1}, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i%100)}).String(), "192.0.2.1"))
		r.answering(2*ms, "192.0.2.2")
		if i > 2500 && (s[0].Rank() != fib.HopUp || !s[1].Dead()) {
			t.Fatalf("at %d: %s, %s", i, s[0], s[1])
		}
	}
	r.m.setNextHops(nil, r.now)
	for i := range 200 {
		r.learn(arpAsk([6]byte{2, 1, 0, byte(i >> 8), byte(i), 1}, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i%100)}).String(), "192.0.2.1"))
	}
	r.pass(400 * sec)
	if n := r.m.t.len(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// A router that comes and goes is logged now and then, not each time.
func TestFlappingRouterDoesNotFloodTheLog(t *testing.T) {
	r := newRig(t, nil)
	s := r.routed(true, "192.0.2.2", "192.0.2.3")
	r.answering(sec, "192.0.2.2", "192.0.2.3")
	for range 20 {
		for !s[0].Dead() {
			r.answering(50*ms, "192.0.2.3")
		}
		for s[0].Dead() {
			r.answering(50*ms, "192.0.2.2", "192.0.2.3")
		}
	}
	if r.m.stats.Died != 20 || r.m.stats.Returned != 20 {
		t.Fatalf("%+v", r.m.stats)
	}
	if n := strings.Count(r.log.String(), "next hop "); n > 12 {
		t.Errorf("%d lines for 40 changes:\n%s", n, r.log.String())
	}
}

// Who scans alone takes no more places than he leaves.
func TestAScanLeavesRoomForOthers(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Neighbors = fib.NewNeighbors(4096, 1)
		c.Capacity, c.MaxPending = 4096, 512
	})
	most := 0
	for n := range 3000 {
		r.by = 1
		r.resolve(1, netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 8: 1, 14: byte(n >> 8), 15: byte(n)}).String(), 1)
		r.pass(1 * ms)
		most = max(most, r.m.t.unanswered)
	}
	if most > 512/2+1 || most < 512/4 {
		t.Errorf("one tenant had %d of 512 places", most)
	}
}

// One tenant's scan leaves the others' questions alone, on the same interface too, and what waits for it; so do scans of many.
func TestOneTenantsScanLeavesTheOthersTheirQuestions(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Neighbors = fib.NewNeighbors(4096, 1)
		c.Capacity, c.MaxPending = 4096, 512
	})
	r.known("192.0.2.9", hostMAC)
	const victim = 40
	asked := 0
	for i := range 20 * 1000 { // 20 s
		for k := range 12 { // six tenants scan at 2000 a second each
			r.by = flow.TenantID(1 + k%6)
			n := 12*i + k
			a := v6("2001:db8::6:0:0")
			a[13], a[14], a[15] = byte(n>>16), byte(n>>8), byte(n)
			r.resolve(1, netip.AddrFrom16(a).String(), 1)
		}
		if i%200 == 0 { // the victim wants a new neighbour five times a second, each of which answers after half a second
			r.by = victim
			asked++
			r.resolve(1, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + asked%100)}).String(), 1)
		}
		if i%200 == 100 && i > 500 {
			r.learn(arpReply(hostMAC, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + (asked-2)%100)}).String(), "192.0.2.1"))
		}
		r.pass(1 * ms)
		r.use(1, "192.0.2.9")
		for _, b := range r.sent {
			if d := describe(t, b); strings.HasSuffix(d, " 192.0.2.9") {
				r.learn(arpReply(hostMAC, "192.0.2.9", "192.0.2.1"))
			}
		}
		r.sent = r.sent[:0]
		if r.m.t.unanswered > 512 {
			t.Fatalf("%d are unanswered", r.m.t.unanswered)
		}
	}
	if got := int(r.m.stats.Forwarded); got < asked-4 || got > asked {
		t.Errorf("%d of the victim's %d packets found their neighbour", got, asked)
	}
	if !r.use(1, "192.0.2.9") {
		t.Error("a neighbour in use was lost")
	}
	t.Logf("%d questions in 20 s, %d unanswered at the end, victim %d of %d", r.m.stats.Solicited, r.m.t.unanswered, r.m.stats.Forwarded, asked)
}

// A flood on one link empties that link's own unused neighbours, not another's.
func TestFloodOnOneLinkLeavesAnothersUnused(t *testing.T) {
	other := plainIface()
	other.Index, other.Name, other.Addrs, other.Proxy = 2, "beta", []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}, nil
	r := newRig(t, nil, plainIface(), other)
	for i := range 10 { // beta's stations have asked for us, and are silent now
		r.m.learn(2, arpAsk([6]byte{2, 9, 0, 0, 0, byte(i)}, netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}).String(), "198.51.100.1"), r.now)
	}
	for i := range 5000 {
		r.learn(ns([6]byte{2, 1, 0, byte(i >> 8), byte(i), 1}, netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 14: byte(1 + i>>8), 15: byte(i)}).String(), "2001:db8::1", [6]byte{}))
		r.pass(1 * ms)
	}
	left := 0
	for i := range 10 {
		k := keyOf(2, netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}))
		if r.m.t.find(&k) != none {
			left++
		}
	}
	if left != 10 || r.m.t.len() != 64 {
		t.Errorf("%d of beta's 10 are left, %d entries", left, r.m.t.len())
	}
}

// One that was dead is settled when it has answered for ten seconds, whatever falls due otherwise, and one that dies in between is not. One that has never been dead is settled at once.
func TestRouterSettles(t *testing.T) {
	r := newRig(t, nil)
	var told []string
	r.m.cfg.Settled = func(iface uint16, a netip.Addr) { told = append(told, a.String()) }
	s := r.routed(true, "192.0.2.2", "192.0.2.3")
	r.answering(300*ms, "192.0.2.2", "192.0.2.3")
	if len(told) != 2 || !s[0].Settled() || !s[1].Settled() {
		t.Fatalf("at first: %v", told)
	}
	told = nil
	r.answering(5*sec, "192.0.2.3")
	if s[0].Settled() || !s[0].Dead() || len(told) != 0 {
		t.Fatalf("dead: %v", told)
	}
	r.answering(5*sec, "192.0.2.2", "192.0.2.3")
	if s[0].Settled() || s[0].Rank() != fib.HopUp || len(told) != 0 {
		t.Fatalf("just back: %v", told)
	}
	r.answering(5*sec, "192.0.2.3")
	r.answering(1500*ms, "192.0.2.2", "192.0.2.3") // and once more
	up := s[0].Since()
	if s[0].Rank() != fib.HopUp {
		t.Fatal(s[0])
	}
	for !s[0].Settled() && r.now < up+20*sec {
		r.answering(50*ms, "192.0.2.2", "192.0.2.3")
	}
	if took := r.now - up; took < restoreAfter || took > restoreAfter+100*ms || len(told) != 1 || told[0] != "192.0.2.2" || s[0].Since() != up {
		t.Errorf("settled after %d ms, told %v, up since %d, then %d", took/ms, told, up, s[0].Since())
	}
	r.m.routers[keyOf(1, netip.MustParseAddr("192.0.2.2"))].State.Link(false, r.now)
	s[0].Link(true, r.now)
	if s[0].Settled() {
		t.Error("settled with a new link")
	}
	r.answering(2*restoreAfter, "192.0.2.2", "192.0.2.3")
	if !s[0].Settled() {
		t.Errorf("not settled behind a new link: %s", s[0])
	}
}
