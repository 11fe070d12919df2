package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/replica"
	"demarc/gateway/verdict"
)

const second = uint64(1e9)

// grouped is how many sessions the node has of tenants in groups, and of which tenants.
func (w *world) grouped() (n int, by map[string]int) {
	by = map[string]int{}
	for _, sh := range w.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			name := "somebody"
			if t := w.view.Tenant(se.Tenant); t != nil {
				name = t.Name
			}
			if name != "beta" {
				n++
				by[name]++
			}
			return true
		})
	}
	return n, by
}

// serveView has all shards of the node serve a policy.
func (w *world) serveView(policy string) {
	w.view = compileView(w.t, w.node, w.space, w.view, policy)
	for _, sh := range w.shards {
		sh.SetView(w.view)
	}
	w.rejudge()
}

func (w *world) rejudge() {
	for _, sh := range w.shards {
		for !sh.Settled() {
			sh.Rejudge(w.now, 64)
		}
	}
}

// upkeep lets time pass, with as many looks as a worker takes.
func (w *world) upkeep(d uint64) {
	for end := w.now + d; w.now < end; {
		w.now += min(d/8+1, end-w.now)
		for _, sh := range w.shards {
			sh.Maintain(w.now, sh.Sessions.Capacity())
		}
	}
}

// TestACopyEndsByItsOwnersWordAlone: neither time, nor a new policy, nor an operator ends what a node has of a group that it does not serve; the loss of its tenant does, and then all is
// copied again when the tenant is back.
func TestACopyEndsByItsOwnersWordAlone(t *testing.T) {
	c := newCopying(t, 2, 2)
	c.open(rand.New(rand.NewPCG(1, 2)), 700)
	c.carry()
	n := c.equal()
	have := func(when string) {
		t.Helper()
		if got, by := c.b.grouped(); got != n || n < 400 {
			t.Fatalf("%s: %d sessions of %d are left: %v", when, got, n, by)
		}
	}
	c.b.upkeep(40 * 86400 * second)
	have("after forty days")
	c.b.upkeep(40 * 86400 * second)
	have("after eighty days")
	deny := strings.Replace(testPolicy, "service = [\"tcp/25\"]", "service = [\"tcp/25\", \"udp/53\", \"tcp/443\"]", 1)
	if deny == testPolicy {
		t.Fatal("the policy has no such rule")
	}
	c.b.serveView(deny + testGroups)
	have("under a policy that denies them")
	v := c.b.view
	for _, sh := range c.b.shards {
		all := func(*conntrack.Session) bool { return true }
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			if sh.Copied(se) && sh.WouldCut(v, se) {
				t.Error("it says that a copy would end under a policy that has its tenant")
			}
			return true
		})
		if k := sh.Cut(all); k != 0 {
			t.Errorf("Cut has ended %d", k)
		}
		if _, k, _ := sh.CutSome(0, 1<<20, 1<<20, func(uint32, *conntrack.Session) bool { return true }); k != 0 {
			t.Errorf("CutSome has ended %d", k)
		}
	}
	have("after cuts")
	c.carry()
	c.equal()

	// Without gamma: what is of it ends.
	without := deny[:strings.Index(deny, "[[tenant]]\nname = \"gamma\"")]
	_, by := c.b.grouped()
	c.b.serveView(without + testGroups[:strings.Index(testGroups, "[[group]]\nname = \"west\"")])
	c.in.Renew()
	left, byNow := c.b.grouped()
	if byNow["somebody"]+byNow["gamma"] != 0 || left != n-by["gamma"] || by["gamma"] == 0 {
		t.Fatalf("without gamma: %v, before that %v", byNow, by)
	}
	c.carry()
	if ok, why := c.in.Whole(200); ok && by["gamma"] > 0 {
		t.Errorf("what it has is said to be whole: %s", why)
	}
	c.b.serveView(deny + testGroups)
	c.in.Renew()
	for range 40 { // what could not be taken is asked for again after a while
		c.carry()
	}
	have("with gamma again")
	c.equal()
}

// lastly is a copy that has come to where its owner would end it: idle for all its time but so much.
func lastly(t *testing.T, c *copying, left uint64) {
	c.open(rand.New(rand.NewPCG(3, 4)), 200)
	for _, sh := range c.a.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			idle := se.Timeout(&sh.view.Timeouts)
			last := uint32(c.a.now>>20) + uint32((6*second+left)>>20) - idle
			se.LastSeen = [2]uint32{last, last}
			return true
		})
	}
	c.carry()
	c.equal()
}

// TestASessionLivesThirtySecondsAfterATakeover at least, however little time its owner said it had left, whether the walk has come to it or not; and then it ends as any.
func TestASessionLivesThirtySecondsAfterATakeover(t *testing.T) {
	for _, walked := range []bool{false, true} {
		c := newCopying(t, 1, 2)
		lastly(t, c, second)
		c.b.upkeep(60 * second)
		n, _ := c.b.grouped()
		c.b.takesOver()
		if walked {
			c.b.rejudge()
		} else {
			c.b.upkeep(5 * second)
			if got, _ := c.b.grouped(); got != n {
				t.Fatalf("%d of %d are left before the walk has come to them", got, n)
			}
			c.b.rejudge()
		}
		c.b.upkeep(29 * second)
		if got, _ := c.b.grouped(); got != n || n < 100 {
			t.Fatalf("walked at once %v: after 29 seconds %d of %d are left", walked, got, n)
		}
		c.b.upkeep(5 * second)
		if got, _ := c.b.grouped(); got != 0 {
			t.Errorf("walked at once %v: after 34 seconds %d of %d are left", walked, got, n)
		}
	}
}

// TestAWorkerHungThroughATerm: a worker that was told nothing of another node's whole term gives the group up before it takes it over again, so that what it has is brought up to now.
func TestAWorkerHungThroughATerm(t *testing.T) {
	c := newCopying(t, 1, 1)
	c.open(rand.New(rand.NewPCG(7, 8)), 50)
	c.carry()
	sh := c.b.shards[0]
	group := uint8(0)
	for _, g := range sh.view.Groups() {
		group = g.ID
		sh.Hold(group, true, 1)
	}
	c.b.rejudge()
	gen := sh.gen
	sh.Hold(group, true, 1) // the same term
	if sh.gen != gen {
		t.Error("a term that goes on is taken over again")
	}
	sh.Hold(group, true, 2)
	if sh.gen == gen || !sh.serving[group] {
		t.Error("what was another node's in between counts as never given up")
	}
	sh.Hold(group, false, 3)
	sh.Hold(group, false, 3)
	if sh.serving[group] {
		t.Error("it is not given up")
	}
}

// TestTheWalkAfterATakeoverIsBounded: one call looks at as many slots as it may and no more, and taking over itself at none.
func TestTheWalkAfterATakeoverIsBounded(t *testing.T) {
	c := newCopying(t, 1, 1)
	c.open(rand.New(rand.NewPCG(5, 6)), 700)
	c.carry()
	n := c.equal()
	sh := c.b.shards[0]
	behind := func() (k int) {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			if se.ViewGen != sh.gen {
				k++
			}
			return true
		})
		return k
	}
	c.b.takesOver()
	last := behind()
	if last != n {
		t.Fatalf("taking over has brought up %d of %d sessions", n-last, n)
	}
	for calls := 0; !sh.Settled(); calls++ {
		sh.Rejudge(c.b.now, 64)
		now := behind()
		if last-now > 64 || calls > 1+n/32 {
			t.Fatalf("%d sessions in one call, %d calls", last-now, calls)
		}
		last = now
	}
	if last != 0 {
		t.Errorf("%d were left out", last)
	}
}

// TestCopiesAreJudgedBeforeTheirFirstPacket: what the policy of this node does not allow does not go on after a takeover, though the owner, under another revision, allowed it.
func TestCopiesAreJudgedBeforeTheirFirstPacket(t *testing.T) {
	c := newCopying(t, 1, 1)
	dns := udp4(t, 1, "198.18.10.21", 4000, "203.0.113.40", 53)
	ntp := udp4(t, 1, "198.18.10.21", 4001, "203.0.113.40", 123)
	for _, f := range [][]byte{dns, ntp} {
		if h := c.a.carry(0, 1, false, false, f); h[len(h)-1].verdict != verdict.Send {
			t.Fatal(h)
		}
	}
	c.b.view = compileView(t, c.b.node, c.b.space, c.b.view, strings.Replace(testPolicy, "service = [\"tcp/25\"]", "service = [\"tcp/25\", \"udp/53\"]", 1)+testGroups)
	c.b.view.Text = 2
	c.b.shards[0].SetView(c.b.view)
	c.in.Renew()
	c.carry()
	c.equal()
	c.b.takesOver()
	last := func(f []byte) hop { h := c.b.carry(0, 1, false, false, f); return h[len(h)-1] }
	if h := last(dns); h.verdict != verdict.Drop || h.reason != verdict.SessionCut {
		t.Errorf("what is denied here: %s (%s)", h.verdict, h.reason)
	}
	if h := last(ntp); h.verdict != verdict.Send {
		t.Errorf("what is allowed: %s (%s)", h.verdict, h.reason)
	}
	if n, _ := c.b.grouped(); n != 1 {
		t.Errorf("%d sessions are left", n)
	}
}

// tcpOf sends one TCP segment through a node, from inside (a host of alpha) or from outside (to its public port), and returns what became of it.
func tcpOf(w *world, inside bool, port uint16, set func(*layers.TCP)) hop {
	var h []hop
	if inside {
		h = w.carry(0, 1, false, false, tcp4(w.t, 1, "198.18.10.21", 4000, "203.0.113.40", 443, set))
	} else {
		h = w.carry(0, 0, false, false, tcp4(w.t, 0, "203.0.113.40", 443, "192.0.2.16", port, set))
	}
	return h[len(h)-1]
}

// TestTCPGoesOnAfterATakeover by gigabytes that the copy was not told of; what is not of it is refused again once both ends were heard; an RST from off the path ends nothing; and the same
// when the group comes back to a node that once served it.
func TestTCPGoesOnAfterATakeover(t *testing.T) {
	c := newCopying(t, 1, 1)
	flags := func(seq, ack uint32, f string) func(*layers.TCP) {
		return func(t *layers.TCP) {
			t.Seq, t.Ack = seq, ack
			t.SYN, t.ACK, t.RST = strings.Contains(f, "S"), strings.Contains(f, "A"), strings.Contains(f, "R")
		}
	}
	want := func(what string, h hop, v verdict.Verdict) {
		t.Helper()
		if h.verdict != v {
			t.Fatalf("%s: %s (%s), want %s", what, h.verdict, h.reason, v)
		}
	}
	first := tcpOf(c.a, true, 0, flags(1000, 0, "S"))
	want("SYN", first, verdict.Send)
	pub := readWire(t, first.frame).sport
	want("SYN/ACK", tcpOf(c.a, false, pub, flags(5000, 1001, "SA")), verdict.Send)
	want("ACK", tcpOf(c.a, true, pub, flags(1001, 5001, "A")), verdict.Send)
	c.carry()
	c.equal()
	state := func(w *world) (s uint8) {
		w.shards[0].Sessions.Each(0, 4096, func(_ uint32, se *conntrack.Session) bool { s = se.State; return true })
		return s
	}
	at := uint32(5001)
	for turn := range 3 {
		at += 1 << 30
		from, to := c.a, c.b
		if turn == 1 {
			from, to = c.b, c.a
		}
		from.follows()
		want("before it serves", tcpOf(to, true, pub, flags(1001, at, "A")), []verdict.Verdict{verdict.Drop, verdict.Drop, verdict.Drop}[turn])
		to.takesOver()
		want("RST off the path", tcpOf(to, false, pub, flags(at+9, 0, "R")), verdict.Send)
		if s := state(to); s != conntrack.TCPEstablished {
			t.Fatalf("turn %d: an RST from anywhere has made it %s", turn, conntrack.TCPStateText(s))
		}
		want("the client's", tcpOf(to, true, pub, flags(1001, at, "A")), verdict.Send)
		want("the server's", tcpOf(to, false, pub, flags(at, 1001, "A")), verdict.Send)
		want("something else", tcpOf(to, false, pub, flags(at+1<<30, 1001, "A")), verdict.Drop)
		want("the server's again", tcpOf(to, false, pub, flags(at, 1001, "A")), verdict.Send)
		if s := state(to); s != conntrack.TCPEstablished {
			t.Fatalf("turn %d: it is %s", turn, conntrack.TCPStateText(s))
		}
	}
}

// TestNotToldIsNotServed: a lease alone serves nothing. Only a shard that was told to take over does, and until then it drops.
func TestNotToldIsNotServed(t *testing.T) {
	w := newWorld(t, 1, testPolicy+testGroups)
	f := udp4(t, 1, "198.18.10.21", 4000, "203.0.113.40", 53)
	last := func() hop { h := w.carry(0, 1, false, false, f); return h[len(h)-1] }
	w.follows()
	if h := last(); h.verdict != verdict.Drop || h.reason != verdict.NotOwner || w.shards[0].Sessions.Len() != 0 {
		t.Fatalf("not told: %s (%s), %d sessions", h.verdict, h.reason, w.shards[0].Sessions.Len())
	}
	w.takesOver()
	if h := last(); h.verdict != verdict.Send {
		t.Fatalf("told: %s (%s)", h.verdict, h.reason)
	}
	w.follows()
	if h := last(); h.verdict != verdict.Drop || h.reason != verdict.NotOwner || w.shards[0].Sessions.Len() != 1 {
		t.Fatalf("given up: %s (%s), %d sessions", h.verdict, h.reason, w.shards[0].Sessions.Len())
	}
	w.upkeep(86400 * second)
	if w.shards[0].Sessions.Len() != 1 {
		t.Error("what it has given up has ended by time")
	}
}

// TestATenantComesFromAnotherGroup: what was a copy becomes this node's own also when the policy gives the tenant to a group that it serves, or to none; and the other way round.
func TestATenantComesFromAnotherGroup(t *testing.T) {
	w := newWorld(t, 1, testPolicy+testGroups)
	f := udp4(t, 1, "198.18.10.21", 4000, "203.0.113.40", 53)
	last := func() hop { h := w.carry(0, 1, false, false, f); return h[len(h)-1] }
	if h := last(); h.verdict != verdict.Send {
		t.Fatal(h)
	}
	w.follows()
	w.upkeep(86400 * second)
	w.serveView(testPolicy) // no groups at all
	if n := w.shards[0].Sessions.Len(); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	w.upkeep(25 * second)
	if h := last(); h.verdict != verdict.Send || w.shards[0].Sessions.Len() != 1 {
		t.Fatalf("in no group: %s (%s), %d sessions", h.verdict, h.reason, w.shards[0].Sessions.Len())
	}
	w.serveView(testPolicy + testGroups)
	if h := last(); h.verdict != verdict.Drop || h.reason != verdict.NotOwner {
		t.Fatalf("in a group that is not served: %s (%s)", h.verdict, h.reason)
	}
	w.upkeep(86400 * second)
	w.serveView(testPolicy)
	w.upkeep(86400 * second)
	if n := w.shards[0].Sessions.Len(); n != 0 {
		t.Errorf("in no group any more, and it does not end: %d sessions", n)
	}
}

// BenchmarkTakeOver is what the walk costs a session, and the order itself a shard.
func BenchmarkTakeOver(b *testing.B) {
	w := newWorld(b, 1, testPolicy+testGroups)
	sh := w.shards[0]
	for i := range 4000 {
		r := replica.Record{Kind: replica.KindSession, Tenant: uint16(w.view.TenantByName("alpha").ID), Revision: sh.view.Text}
		s := &r.Session
		s.OrigSrc, s.OrigDst = flow.AddrFrom(netip4(fmt.Sprintf("198.18.10.%d", 20+i%200))), flow.AddrFrom(netip4("203.0.113.9"))
		s.XlatSrc, s.XlatDst = [4]byte{192, 0, 2, 16}, [4]byte{203, 0, 113, 9}
		s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort, s.Proto, s.State = uint16(2000+i), 443, uint16(2000+i), 443, flow.TCP, conntrack.TCPEstablished
		s.Flags, s.Left = replica.FlagToBackbone|replica.FlagNAT|replica.FlagReplied|replica.FlagMapped, 7200000
		if _, out := sh.enterNew(&r); out != replica.Taken {
			b.Fatal(out)
		}
	}
	for b.Loop() {
		w.follows()
		w.takesOver()
		w.rejudge()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4000, "ns/session")
}

func netip4(s string) netip.Addr { return netip.MustParseAddr(s) }
