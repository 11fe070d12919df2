package pipeline

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/verdict"
)

const inbound = `
[[tenant.nat.forward]]
public = "192.0.2.32"
proto = "tcp"
port = 80
inside = "198.18.10.11"
[[tenant.nat.forward]]
public = "192.0.2.32"
proto = "udp"
port = 53
inside = "198.18.10.11"
[[tenant.rule]]
direction = "in"
action = "allow"
`

// limitedBeta is the test policy with a tenant beta that has forwards and further settings.
func limitedBeta(t *testing.T, more string) string {
	return replaceOnce(t, testPolicy, "pool = [\"192.0.2.32\"]\n", "pool = [\"192.0.2.32\"]\n"+inbound+more)
}

// strangerAt is the n-th address and port outside, always another.
func strangerAt(n int) (string, uint16) {
	return fmt.Sprintf("203.0.%d.%d", 112+n/250%2, 2+n%250), uint16(1000 + n/500)
}

// out and in are a first packet of beta's, and one to its forwarded ports.
func (r *rig) betaOut(n int) *Slot {
	to, port := strangerAt(n)
	return &r.send(1, tagged(udp4(r.t, 1, "198.18.10.12", 5000, to, port), 20))[0]
}

func (r *rig) betaSyn(n int) *Slot {
	from, port := strangerAt(n)
	return &r.send(0, tcp4(r.t, 0, from, port, "192.0.2.32", 80, func(l *layers.TCP) { l.SYN = true }))[0]
}

func (r *rig) betaQuery(n int) *Slot {
	from, port := strangerAt(n)
	return &r.send(0, udp4(r.t, 0, from, port, "192.0.2.32", 53))[0]
}

func (r *rig) betaReply(n int) *Slot {
	to, port := strangerAt(n)
	return &r.send(1, tagged(udp4(r.t, 1, "198.18.10.11", 53, to, port), 20))[0]
}

// Of a limit of 100, unanswered sessions fill a quarter in each direction and what comes from outside three quarters, whoever floods; and
// what is answered makes room.
func TestFloodsFillOnlyTheirPartOfALimit(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsessions = 100\n"))
	beta := r.view.TenantByName("beta")
	n := 0
	fill := func(first func(int) *Slot, why verdict.Reason) (made int) {
		for ; ; made++ {
			n++
			if s := first(n); s.Verdict == verdict.Drop {
				r.wantDrop(s, why)
				return made
			}
			if made > 200 {
				t.Fatal("no limit")
			}
		}
	}
	if made := fill(r.betaSyn, verdict.TenantUnanswered); made != 25 {
		t.Fatalf("a SYN flood made %d sessions of 100, want 25", made)
	}
	if made := fill(r.betaOut, verdict.TenantUnanswered); made != 25 {
		t.Fatalf("a flood from inside made %d sessions of 100, want 25", made)
	}
	if got := beta.Shared.Sessions.Load(); got != 50 {
		t.Fatalf("%d sessions, want 50: half of the limit", got)
	}
	// A SYN/ACK alone is no answer: the server sends it to whatever address the SYN bore.
	from, port := strangerAt(1)
	synack := tagged(tcp4(t, 1, "198.18.10.11", 80, from, port, func(l *layers.TCP) { l.SYN, l.ACK, l.Seq, l.Ack = true, true, 7000, 1001 }), 20)
	r.want(&r.send(1, synack)[0], verdict.Send)
	n++
	r.wantDrop(r.betaSyn(n), verdict.TenantUnanswered)
	// The third step is.
	r.want(&r.send(0, tcp4(t, 0, from, port, "192.0.2.32", 80, func(l *layers.TCP) { l.ACK, l.Seq, l.Ack = true, 1001, 7001 }))[0], verdict.Send)
	if got := beta.Shared.Unanswered[meter.In].Load(); got != 24 {
		t.Fatalf("%d half open after a handshake, want 24", got)
	}
	n++
	r.want(r.betaSyn(n), verdict.Send)
	// Sessions that live: those of the flood end, and as many as there may be come from outside, each with an answer and a second query.
	r.sh.Cut(func(*sessionT) bool { return true })
	for range 75 {
		n++
		r.want(r.betaQuery(n), verdict.Send)
		r.want(r.betaReply(n), verdict.Send)
		r.want(r.betaQuery(n), verdict.Send)
	}
	if got := beta.Shared.Unanswered[meter.In].Load(); got != 0 {
		t.Fatalf("%d unanswered of 75 that spoke twice", got)
	}
	n++
	r.wantDrop(r.betaQuery(n), verdict.TenantInbound)
	for range 25 {
		n++
		r.want(r.betaOut(n), verdict.Send)
		to, port := strangerAt(n)
		s := r.send(0, udp4(t, 0, to, port, "192.0.2.32", r.slots[0].Key.SPort))
		r.want(&s[0], verdict.Send)
	}
	n++
	r.wantDrop(r.betaOut(n), verdict.TenantSessions)
	r.sh.Cut(func(*sessionT) bool { return true })
	if s := beta.Shared; s.Sessions.Load() != 0 || s.Inbound.Load() != 0 || s.Unanswered[0].Load() != 0 || s.Unanswered[1].Load() != 0 {
		t.Fatalf("after the end: %d sessions, %d from outside, %d and %d unanswered", s.Sessions.Load(), s.Inbound.Load(), s.Unanswered[0].Load(), s.Unanswered[1].Load())
	}
	if !reflect.DeepEqual(r.sh.held, make([]held, len(r.sh.held))) {
		t.Fatalf("held: %+v", r.sh.held)
	}
}

// A connection that is refused is not answered: the refusal goes to the source, which may be false, inside as well. But it hurries when there are many, also where it was begun inside, so that a browser before a closed
// port waits seconds and not minutes; while there are few it stays (RFC 7857 section 2.2).
func TestRefusedConnectionsHurry(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsessions = 100\n"))
	beta := r.view.TenantByName("beta")
	pass := func(seconds int) {
		for range seconds {
			r.now += 1e9
			r.sh.Maintain(r.now, r.sh.Sessions.Capacity())
		}
	}
	refused := func(n int) *Slot {
		to, port := strangerAt(n)
		s := &r.send(1, tagged(tcp4(t, 1, "198.18.10.12", 5000, to, port, func(l *layers.TCP) { l.SYN = true }), 20))[0]
		if s.Verdict == verdict.Send {
			from, port := strangerAt(n)
			r.want(&r.send(0, tcp4(t, 0, from, port, "192.0.2.32", s.Key.SPort, func(l *layers.TCP) { l.RST, l.ACK, l.Seq, l.Ack = true, true, 0, 1001 }))[0], verdict.Send)
		}
		return s
	}
	for n := range 10 {
		r.want(refused(n), verdict.Send)
	}
	pass(60)
	if got := beta.Shared.Sessions.Load(); got != 10 {
		t.Fatalf("a minute later there are %d of 10: few are to stay", got)
	}
	for n := 10; n < 25; n++ {
		r.want(refused(n), verdict.Send)
	}
	r.wantDrop(refused(25), verdict.TenantUnanswered)
	pass(13)
	if got := beta.Shared.Unanswered[meter.Out].Load(); got > 13 {
		t.Errorf("13 s later %d are in the way", got)
	}
	r.want(refused(26), verdict.Send)
}

// Who sends under a false source and guesses nothing is answered by no sequence of segments, whatever they do to the state: a RST beside its place, SYNs, and what the server says by itself.
func TestAFalseSourceIsNeverAnswered(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsessions = 100\n"))
	beta := r.view.TenantByName("beta")
	to, port := strangerAt(7)
	outside := func(set func(*layers.TCP)) { r.send(0, tcp4(t, 0, to, port, "192.0.2.32", 80, set)) }
	inside := func(set func(*layers.TCP)) { r.send(1, tagged(tcp4(t, 1, "198.18.10.11", 80, to, port, set), 20)) }
	syn := func(seq uint32) func(*layers.TCP) { return func(l *layers.TCP) { l.SYN, l.Seq = true, seq } }
	accepted := func(l *layers.TCP) { l.SYN, l.ACK, l.Seq, l.Ack, l.Window = true, true, 7000, 1001, 3000 }
	for name, steps := range map[string][]func(){
		"RST beside its place": {func() { outside(func(l *layers.TCP) { l.RST, l.Seq = true, 1001+3000+1 }) }, func() { outside(syn(1000)) }, func() { inside(accepted) }, func() { outside(syn(5)) }},
		"the server has said all (RFC 7413), and a RST beside its place": {func() {
			inside(func(l *layers.TCP) { l.FIN, l.ACK, l.Seq, l.Ack, l.Window = true, true, 7001, 1001, 3000 })
		},
			func() { outside(func(l *layers.TCP) { l.RST, l.Seq = true, 1001+3000 }) }, func() { inside(func(l *layers.TCP) { l.ACK, l.Seq, l.Ack, l.Window = true, 7002, 1001, 3000 }) }},
		"the server has said all (RFC 7413)": {func() {
			inside(func(l *layers.TCP) { l.FIN, l.ACK, l.Seq, l.Ack, l.Window = true, true, 7001, 1001, 3000 })
		},
			func() { outside(syn(1000)) }, func() { outside(syn(3_000_000)) }, func() { outside(syn(5)) }},
	} {
		r.want(r.betaSyn(7), verdict.Send)
		inside(accepted)
		r.want(&r.slots[0], verdict.Send)
		for i, step := range steps {
			if step(); beta.Shared.Unanswered[meter.In].Load() != 1 {
				t.Errorf("%s, step %d: %d unanswered, want 1", name, i, beta.Shared.Unanswered[meter.In].Load())
			}
		}
		r.sh.Cut(func(*sessionT) bool { return true })
	}
}

// Without limits, one tenant's flood leaves the table to the others: a third of it in one direction, half in both, four fifths with
// sessions that are answered.
func TestOneTenantCannotFillTheTable(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, ""))
	size := r.sh.Sessions.Capacity()
	n := 0
	flood := func(first func(int) *Slot) (refused verdict.Reason) {
		for range 2 * size {
			n++
			if s := first(n); s.Verdict == verdict.Drop {
				refused = s.Reason
				break
			}
		}
		return refused
	}
	share := func(what string, want float64) {
		t.Helper()
		if got := float64(r.sh.Sessions.Len()) / float64(size); math.Abs(got-want) > 0.01 {
			t.Errorf("%s: %.3f of the table, want %.3f", what, got, want)
		}
	}
	if why := flood(r.betaSyn); why != verdict.TenantUnanswered {
		t.Errorf("SYN flood refused as %s", why)
	}
	share("SYN flood", 1./3)
	if why := flood(r.betaOut); why != verdict.TenantUnanswered {
		t.Errorf("flood from inside refused as %s", why)
	}
	for range 20 { // what one direction gave up by filling later, the other takes
		flood(r.betaSyn)
		flood(r.betaOut)
	}
	if got := float64(r.sh.Sessions.Len()) / float64(size); got > 0.56 {
		t.Errorf("both floods: %.3f of the table", got)
	}
	r.sh.Cut(func(*sessionT) bool { return true })
	why := flood(func(n int) *Slot {
		if s := r.betaQuery(n); s.Verdict == verdict.Drop {
			return s
		}
		r.betaReply(n)
		return r.betaQuery(n)
	})
	if why != verdict.TableShare {
		t.Errorf("answered sessions refused as %s", why)
	}
	share("answered sessions", 4./5)
	// Another tenant has room for a good many, of both kinds.
	for i := range 30 {
		to, port := strangerAt(i)
		r.want(&r.send(2, udp4(t, 2, "198.18.30.5", 4000, to, port))[0], verdict.Send)
	}
}

// Half-open sessions live as long as ever while they fill no more than half of their part. Beyond, those that were silent for 10 s end; those that are
// answered, and those that were begun inside, are never hurried.
func TestHalfOpenSessionsHurryWhenThereAreMany(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsessions = 80\n"))
	pass := func(seconds int) {
		for range seconds {
			r.now += 1e9
			r.sh.Maintain(r.now, r.sh.Sessions.Capacity())
		}
	}
	count := func(want int, when string) {
		t.Helper()
		if got := r.sh.Sessions.Len(); got != want {
			t.Fatalf("%s: %d sessions, want %d", when, got, want)
		}
	}
	r.betaQuery(1)
	r.betaReply(1)
	r.betaQuery(1) // answered
	for i := range 15 {
		r.betaOut(100 + i) // begun inside
	}
	for i := range 10 {
		r.betaSyn(200 + i) // a half of their part
	}
	pass(60)
	count(26, "a minute later")
	for i := range 10 {
		r.betaSyn(300 + i)
	}
	r.wantDrop(r.betaSyn(400), verdict.TenantUnanswered)
	count(36, "their part is full")
	pass(13) // those that are silent go until the half is left: there is room again
	count(26, "13 s later")
	r.want(r.betaSyn(400), verdict.Send)
	if r.view.TenantByName("beta").Shared.Unanswered[meter.Out].Load() != 15 {
		t.Fatal("sessions begun inside ended early")
	}
}

// Of one host, strangers may fill three quarters, and what is half open there hurries when the host is half full, however far the tenant is from its own limit: seventeen SYNs a second had shut a server for good.
func TestAFloodDoesNotShutOneHost(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsessions = 10000\nhost_sessions = 40\n"))
	n := 0
	for r.betaSyn(n).Verdict == verdict.Send {
		n++
	}
	if r.wantDrop(&r.slots[0], verdict.HostSessions); n != 30 {
		t.Fatalf("strangers fill %d of 40", n)
	}
	to, port := strangerAt(900)
	r.want(&r.send(1, tagged(udp4(t, 1, "198.18.10.11", 6000, to, port), 20))[0], verdict.Send) // the host itself has room
	for range 13 {
		r.now += 1e9
		r.sh.Maintain(r.now, r.sh.Sessions.Capacity())
	}
	r.want(r.betaSyn(500), verdict.Send)
	// What it has begun itself is no part of what strangers may.
	r = newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsessions = 10000\nhost_sessions = 40\n"))
	for i := range 32 {
		r.want(&r.send(1, tagged(udp4(t, 1, "198.18.10.11", uint16(6000+i), to, port), 20))[0], verdict.Send)
	}
	for n := range 8 {
		r.want(r.betaSyn(n), verdict.Send)
	}
	r.wantDrop(r.betaSyn(8), verdict.HostSessions)
	r.sh.Cut(func(*sessionT) bool { return true })
	family, host := uint8(4), flow.AddrFrom(netip.MustParseAddr("198.18.10.11"))
	if h := r.sh.hosts.find(r.view.TenantByName("beta").ID, family, &host); h == nil || h.sessions != 0 || r.sh.hosts.in[r.sh.hosts.place(h)] != 0 {
		t.Errorf("after the end it has %+v", h)
	}
}

// Whoever is over a limit of its own takes nothing of what all others of the tenant have, and what comes in leaves half of a burst to what goes out.
func TestSessionRatesOfOthers(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsession_rate = 20\nhost_session_rate = 4\n"))
	refused := 0
	for n := range 50 {
		if s := r.betaOut(n); s.Verdict == verdict.Drop {
			r.wantDrop(s, verdict.HostSessionRate)
			refused++
		}
	}
	if refused < 45 {
		t.Fatalf("%d of 50 at once were refused, with 4 a second", refused)
	}
	to, port := strangerAt(900)
	r.want(&r.send(1, tagged(udp4(t, 1, "198.18.10.13", 6000, to, port), 20))[0], verdict.Send)

	for limit, half := range map[string]int{"session_rate": 8, "host_session_rate": 21} { // of a burst of a quarter of a second, and of one of a second, and the one that begins it; and beside it what strangers have of the tenant's in any case
		r = newRig(t, testNode, limitedBeta(t, "[tenant.limits]\n"+limit+" = 40\n"))
		in := 0
		for n := range 50 {
			if r.betaSyn(n).Verdict == verdict.Send {
				in++
			}
		}
		if in != half {
			t.Fatalf("%s: %d of 50 at once from outside, want %d", limit, in, half)
		}
		for i := range 3 { // of the host that is flooded
			r.want(&r.send(1, tagged(udp4(t, 1, "198.18.10.11", uint16(6000+i), to, port), 20))[0], verdict.Send)
		}
		// Over time what comes in has all of the rate.
		in = 0
		r.now += 1e9
		for n := range 500 {
			r.now += 1e7
			if r.betaSyn(1000+n).Verdict == verdict.Send {
				in++
			}
		}
		if in < 195 || in > 225 {
			t.Errorf("%s: %d of 500 within 5 s, with 40 a second", limit, in)
		}
	}
}

// An inside host that begins more than the tenant may does not shut the tenant to the outside: a quarter of the rate is shared by all.
func TestAFloodFromInsideLeavesTheOutsideAPart(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nsession_rate = 40\n"))
	in, out := 0, 0
	to, port := strangerAt(900)
	for n := range 400 { // 4 s: 100 a second from inside, as many from outside
		r.now += 1e7
		if r.send(1, tagged(udp4(t, 1, "198.18.10.13", uint16(6000+n), to, port), 20))[0].Verdict == verdict.Send {
			out++
		}
		if r.betaSyn(n).Verdict == verdict.Send {
			in++
		}
	}
	if in < 20 || in > 60 || in+out < 150 || in+out > 190 {
		t.Errorf("%d from outside and %d from inside, with 40 a second for both", in, out)
	}
}

// Each inside host has its rate, both ways, in bits and in packets, within 2 % and without taking from the next host or the next tenant.
func TestRatesPerInsideHost(t *testing.T) {
	for _, c := range []struct {
		dir, limit string
		want       float64 // packets per second
	}{
		{"out", `bits = "2M"`, 2e6 / 8 / 35}, {"out", "packets = 3000", 3000},
		{"in", `bits = "3M"`, 3e6 / 8 / 35}, {"in", "packets = 500", 500},
	} {
		t.Run(c.dir+" "+c.limit, func(t *testing.T) {
			r := newRig(t, testNode, limitedBeta(t, fmt.Sprintf("[tenant.rates.host.%s]\n%s\n", c.dir, c.limit)))
			hosts := []string{"198.18.10.21", "198.18.10.22"}
			var forth, back [2][]byte
			for i, h := range hosts {
				forth[i] = tagged(udp4(t, 1, h, 4000, "203.0.113.9", 7000), 20) // 35 bytes of IP
				r.want(&r.send(1, forth[i])[0], verdict.Send)
				back[i] = udp4(t, 0, "203.0.113.9", 7000, "192.0.2.32", r.slots[0].Key.SPort)
			}
			other := udp4(t, 2, "198.18.30.5", 4000, "203.0.113.9", 7000)
			step := uint64(1e9 / (3 * c.want)) // three times as much as is allowed
			var got [2]int
			reasons := map[verdict.Reason]int{}
			start, seconds := r.now+1e9, 5.0
			for r.now < start+uint64(seconds*1e9) {
				r.now += step
				for i := range hosts {
					port, f := 1, forth[i]
					if c.dir == "in" {
						port, f = 0, back[i]
					}
					switch s := &r.send(port, f)[0]; {
					case s.Verdict != verdict.Drop:
						if r.now >= start {
							got[i]++
						}
					default:
						reasons[s.Reason]++
					}
				}
				r.want(&r.send(2, other)[0], verdict.Send)
			}
			for i := range hosts {
				if rate := float64(got[i]) / seconds; math.Abs(rate-c.want) > 0.02*c.want {
					t.Errorf("host %d got %.1f packets/s, want %.1f", i, rate, c.want)
				}
			}
			want := verdict.HostRatePackets
			if strings.HasPrefix(c.limit, "bits") {
				want = verdict.HostRateBits
			}
			if len(reasons) != 1 || reasons[want] == 0 {
				t.Errorf("dropped as %v, want %s", reasons, want)
			}
		})
	}
}

// A telephone on a computer that sends as fast as it can loses nothing to the rate of its host, and the host has no more than its rate.
func TestAHostsCallGoesBeforeItsBulk(t *testing.T) {
	for limit, most := range map[string]float64{`bits = "2M"`: 2e6 / 8 / 35, "packets = 1000": 1000} {
		r := newRig(t, testNode, limitedBeta(t, "[tenant.rates.host.out]\n"+limit+"\n[tenant.rates.out]\nbits = \"100M\"\n[tenant.rates.voice]\ndscp = [\"ef\"]\n"))
		bulk := tagged(udp4(t, 1, "198.18.10.21", 4000, "203.0.113.9", 7000), 20)
		marked := ip4("198.18.10.21", "203.0.113.9", layers.IPProtocolUDP)
		marked.TOS = 46 << 2
		call := tagged(frame(t, eth(macs[1], layers.EthernetTypeIPv4), marked, udp(4002, 7002), gopacket.Payload("payload")), 20)
		passed, lost := 0, 0
		for step := range 100_000 {
			r.now += 50_000 // 20,000 packets a second for five
			if r.send(1, bulk)[0].Verdict != verdict.Drop {
				passed++
			}
			if step%400 == 0 { // one call
				if s := &r.send(1, call)[0]; s.Verdict == verdict.Drop {
					lost++
				}
			}
		}
		t.Logf("%s: %d of the bulk, %d of 250 of the call lost", limit, passed, lost)
		if all := float64(passed + 250 - lost); lost > 0 || all > most*5.05+10 || all < most*4.9 { // 5 s and a burst of 50 ms
			t.Errorf("%s: %d packets of 250 of the call were lost, and %d of the bulk passed, of %.0f a second", limit, lost, passed, most)
		}
	}
}

// What of voice finds room in its own rate is counted, and what does not; a rate counts what a packet has on the line beside its IP bytes, and the counters do not.
func TestVoiceIsCounted(t *testing.T) {
	const size, seconds = 35, 5
	for _, c := range []struct {
		overhead, within int
		rates            string
		dropped          bool // beyond voice's own rate nothing passes
	}{
		{0, 100_000 / 8 / size * seconds, "[tenant.rates.out]\nbits = \"1M\"\nmode = \"police\"\n", false},
		{38, 100_000 / 8 / (size + 38) * seconds, "[tenant.rates.out]\nbits = \"1M\"\nmode = \"police\"\n", false},
		{38, 100_000 / 8 / (size + 38) * seconds, "[tenant.rates.out]\nbits = \"100k\"\nmode = \"police\"\n", true},
		{0, 5000, "", false}, // nothing bounds it
	} {
		voice := "[tenant.rates.voice]\ndscp = [\"ef\"]\n"
		if c.rates != "" {
			voice += "bits = \"100k\"\n" + fmt.Sprintf("[tenant.rates]\noverhead = %d\n", c.overhead)
		}
		r := newRig(t, testNode, limitedBeta(t, c.rates+voice))
		marked := ip4("198.18.10.21", "203.0.113.9", layers.IPProtocolUDP)
		marked.TOS = 46 << 2
		call := tagged(frame(t, eth(macs[1], layers.EthernetTypeIPv4), marked, udp(4002, 7002), gopacket.Payload("payload")), 20)
		passed := 0
		for range seconds * 1000 {
			r.now += 1_000_000
			if r.send(1, call)[0].Verdict != verdict.Drop {
				passed++
			}
		}
		r.sh.Meter.Publish()
		beta := r.view.TenantByName("beta").ID
		v, all := r.sh.Meter.VoiceOf(beta, meter.Out), r.sh.Meter.Volume(beta, meter.Out)
		within, above, lost := int(v[meter.VoiceWithin].Packets), int(v[meter.VoiceAbove].Packets), int(v[meter.VoiceLost].Packets)
		if d := within - c.within; d < -c.within/50 || d > c.within/50+c.within/(seconds*20) { // a burst of 20 ms more
			t.Errorf("%+v: %d of %d within voice's rate, want %d", c, within, seconds*1000, c.within)
		}
		if within+above+lost != seconds*1000 || all.Packets != uint64(passed) || (passed < seconds*1000) != c.dropped || !c.dropped && lost > 0 {
			t.Errorf("%+v: %d, %d and %d of %d, and %d passed (%d)", c, within, above, lost, seconds*1000, passed, all.Packets)
		}
		if v[meter.VoiceWithin].Bytes != uint64(within*size) || v[meter.VoiceAbove].Bytes != uint64(above*size) || v[meter.VoiceLost].Bytes != uint64(lost*size) {
			t.Errorf("%+v: bytes %+v", c, v)
		}
		if o := r.sh.Meter.VoiceOf(beta, meter.In); o != (meter.Voice{}) {
			t.Errorf("the other direction has %+v", o)
		}
	}
}

// A host's rate counts what a packet has on the line as the tenant's does.
func TestAHostsRateCountsTheLine(t *testing.T) {
	for overhead, each := range map[int]int{0: 35, 38: 73} {
		r := newRig(t, testNode, limitedBeta(t, fmt.Sprintf("[tenant.rates]\noverhead = %d\n[tenant.rates.host.out]\nbits = \"100k\"\n", overhead)))
		f := tagged(udp4(t, 1, "198.18.10.21", 4000, "203.0.113.9", 7000), 20)
		passed := 0
		for range 5000 {
			r.now += 1_000_000
			if r.send(1, f)[0].Verdict != verdict.Drop {
				passed++
			}
		}
		if want := 100_000 / 8 / each * 5; passed < want*98/100 || passed > want*102/100+want/100 { // a burst of 50 ms more
			t.Errorf("overhead %d: %d packets passed, want %d", overhead, passed, want)
		}
	}
}

// What the tenant's own line drops is not charged to the host.
func TestADropOfTheLineGivesTheHostItsTokensBack(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.rates.host.out]\nbits = \"64k\"\npackets = 100\n[tenant.rates.out]\nbits = \"64k\"\nmode = \"police\"\nburst = \"1ms\"\n"))
	f := tagged(udp4(t, 1, "198.18.10.21", 4000, "203.0.113.9", 7000), 20)
	r.want(&r.send(1, f)[0], verdict.Send)
	h := r.sh.hosts.find(r.view.TenantByName("beta").ID, 4, at("198.18.10.21"))
	before := [2]uint64{h.bits[meter.Out].Load(), h.packets[meter.Out].Load()}
	r.wantDrop(&r.send(1, f)[0], verdict.TenantRateBits)
	if now := [2]uint64{h.bits[meter.Out].Load(), h.packets[meter.Out].Load()}; now != before {
		t.Errorf("the host's words went from %d to %d", before, now)
	}
}

// Sessions from before a per-host limit count once they were judged under it, and their packets obey the host's rate at once.
func TestALimitPerHostCountsWhatWasThere(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, ""))
	for i := range 5 {
		r.want(r.betaOut(i), verdict.Send)
	}
	limited := compileView(t, r.node, r.space, r.view, limitedBeta(t, "[tenant.limits]\nhost_sessions = 5\n[tenant.rates.host.out]\npackets = 20\n"))
	r.sh.SetView(limited)
	for !r.sh.Settled() {
		r.sh.Rejudge(r.now, 64)
	}
	r.wantDrop(r.betaOut(100), verdict.HostSessions)
	for range 3 {
		if s := r.betaOut(1); s.Verdict == verdict.Drop {
			r.wantDrop(s, verdict.HostRatePackets)
			break
		}
	}
	r.now += 10e9
	r.sh.Cut(func(se *sessionT) bool { return se.Flags&conntrack.FlagCounted == 0 })
	if got := r.sh.Sessions.Len(); got != 5 {
		t.Fatalf("%d of 5 sessions are counted for their host", got)
	}
	r.sh.Cut(func(*sessionT) bool { return true })
	r.want(r.betaOut(101), verdict.Send)
}

// A tenant whose hosts are without number (IPv6) leaves room in the table of hosts for another's.
func TestOneTenantsHostsLeaveRoomForAnothers(t *testing.T) {
	h := newHosts(0, 3, 1)
	a := [16]byte{0x20, 1, 0xd, 0xb8}
	n := 0
	for ; n < 1000; n++ {
		a[14], a[15] = byte(n>>8), byte(n)
		if h.get(1, 6, (*flow.Addr)(&a)) == nil {
			break
		}
	}
	if all := len(h.slots) / 8 * 7; n < all*78/100 || n > all*82/100 {
		t.Errorf("one tenant has %d of %d", n, all)
	}
	for i := range 20 {
		a[13], a[15] = 1, byte(i)
		if h.get(2, 6, (*flow.Addr)(&a)) == nil {
			t.Fatalf("another tenant has room for %d", i)
		}
	}
}

func TestAHostIsOneLine(t *testing.T) {
	if n := reflect.TypeFor[host]().Size(); n != 64 {
		t.Errorf("a host takes %d bytes", n)
	}
}

func at(s string) *flow.Addr {
	a := flow.AddrFrom(netip.MustParseAddr(s))
	return &a
}

// With one tenant only there is nobody to leave room for, but for its own other direction.
func TestTheOnlyTenantMayFillTheTable(t *testing.T) {
	only := testPolicy[:strings.Index(testPolicy, "[[tenant]]\nname = \"beta\"")]
	r := newRig(t, testNode, only)
	n := 0
	for ; n < 2000; n++ {
		to, port := strangerAt(n)
		s := &r.send(1, udp4(t, 1, "198.18.10.12", 5000, to, port))[0]
		if s.Verdict == verdict.Drop {
			r.wantDrop(s, verdict.SessionTableFull)
			break
		}
		r.want(&r.send(0, udp4(t, 0, to, port, "192.0.2.16", s.Key.SPort))[0], verdict.Send)
	}
	if n != r.sh.Sessions.Capacity() {
		t.Errorf("%d sessions fit in a table of %d", n, r.sh.Sessions.Capacity())
	}
}
