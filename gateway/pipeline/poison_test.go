package pipeline

import (
	"fmt"
	"reflect"
	"runtime/debug"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"demarc/gateway/conntrack"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// contained carries frames in as a worker does, and returns how many panics there were.
func (r *rig) contained(port int, frames ...[]byte) (slots []Slot, panics int) {
	r.t.Helper()
	step := func(fn func()) (done bool) {
		defer func() {
			if recover() != nil {
				panics++
				r.sh.Contain(r.slots[:len(frames)])
			}
		}()
		fn()
		return true
	}
	if !step(func() { r.send(port, frames...) }) {
		for !step(func() { r.sh.Resume(r.slots[:len(frames)]) }) {
			if panics > len(frames)+2 {
				r.t.Fatal("it does not get on")
			}
		}
	}
	r.sh.Meter.Publish()
	return r.slots[:len(frames)], panics
}

// sessionOf is the session that a packet, carried already, belongs to.
func (r *rig) sessionOf(f []byte, port int) *sessionT {
	r.t.Helper()
	s := r.send(port, f)[0]
	for slot := range uint32(r.sh.Sessions.Capacity()) {
		if se := r.sh.Sessions.At(slot); r.sh.Sessions.Live(slot) && se.OrigSPort == s.Key.SPort || r.sh.Sessions.Live(slot) && se.XlatSPort == s.Key.SPort {
			return se
		}
	}
	r.t.Fatal("no session")
	return nil
}

const wild = 60000 // a next hop that there is not: the stage that looks at it panics

func alphaUDP(t *testing.T, sport uint16) []byte {
	return udp4(t, 1, "198.18.10.11", sport, "203.0.113.11", 53)
}

// A frame that makes a stage panic is lost, and nothing else of its burst; its flow is blocked for a minute, and nothing else either.
func TestPoisonCostsItsFrameAndBlocksItsFlow(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	good := r.sessionOf(alphaUDP(t, 4002), 1).NextHop[0]
	poisoned := r.sessionOf(alphaUDP(t, 4002), 1)
	poisoned.NextHop[0] = wild
	burst := [][]byte{alphaUDP(t, 4000), alphaUDP(t, 4001), alphaUDP(t, 4002), alphaUDP(t, 4003), alphaUDP(t, 4004)}
	check := func(when string, panics int, third verdict.Reason) {
		t.Helper()
		slots, n := r.contained(1, burst...)
		if n != panics {
			t.Fatalf("%s: %d panics, want %d", when, n, panics)
		}
		for i := range slots {
			if i == 2 && third != verdict.Pass {
				r.wantDrop(&slots[i], third)
				continue
			}
			r.want(&slots[i], verdict.Send)
		}
	}
	check("first", 1, verdict.InternalError)
	tenant := r.view.TenantByName("alpha").ID
	if n := r.sh.Meter.Drops(tenant, verdict.InternalError); n != 1 {
		t.Fatalf("%d internal errors counted, want 1", n)
	}
	recorded := make([]trace.Drop, 10)
	if _, n, _ := r.sh.Drops().From(0, recorded); n != 1 || recorded[0].Reason != verdict.InternalError || recorded[0].In.SPort != 4002 || recorded[0].In.Zone != tenant || int(recorded[0].Len) != len(alphaUDP(t, 4002)) {
		t.Fatalf("recorded %d drops: %+v", n, recorded[0])
	}
	for range 10 {
		check("blocked", 0, verdict.FlowBlocked)
	}
	if n := r.sh.Meter.Drops(tenant, verdict.FlowBlocked); n != 10 {
		t.Fatalf("%d counted as blocked, want 10", n)
	}
	if r.sh.Poisoned() == 0 {
		t.Fatal("nothing is said to be blocked")
	}
	r.now += 59e9
	check("after 59 s", 0, verdict.FlowBlocked)
	r.now += 2e9
	check("after a minute, still poison", 1, verdict.InternalError)
	poisoned.NextHop[0] = good
	r.now += 61e9
	check("after another, mended", 0, verdict.Pass)
	r.sh.Maintain(r.now, 1)
	if r.sh.Poisoned() != 0 {
		t.Fatalf("%d are kept for ever", r.sh.Poisoned())
	}
}

// While somebody traces, the same.
func TestPoisonUnderATrace(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	r.sessionOf(alphaUDP(t, 4001), 1).NextHop[0] = wild
	tap := trace.NewTracer(trace.All(), 1, 100)
	r.sh.Tap(tap)
	burst := [][]byte{alphaUDP(t, 4000), alphaUDP(t, 4001), alphaUDP(t, 4002)}
	slots, panics := r.contained(1, burst...)
	if panics != 1 {
		t.Fatalf("%d panics", panics)
	}
	r.want(&slots[0], verdict.Send)
	r.wantDrop(&slots[1], verdict.InternalError)
	r.want(&slots[2], verdict.Send)
	slots, panics = r.contained(1, burst...)
	r.wantDrop(&slots[1], verdict.FlowBlocked)
	seen := make([]trace.Journey, 10)
	if n := tap.Journeys(seen); n != 5 || panics != 0 { // not the one that panicked
		t.Fatalf("%d journeys seen, want 5; %d panics", n, panics)
	}
}

// Where the stage before the lookup panics, the others of the burst are still judged.
func TestPoisonWhileParsing(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	f := alphaUDP(t, 4000)
	stray := tagged(f, 99) // of a VLAN that nobody has: dropped before it comes to what is broken
	all := r.view.Ifaces
	r.view.Ifaces = all[:1]
	slots, panics := r.contained(1, stray, f, stray, f, stray)
	if panics != 2 {
		t.Fatalf("%d panics, want 2", panics)
	}
	for i, why := range []verdict.Reason{verdict.UnknownVLAN, verdict.InternalError, verdict.UnknownVLAN, verdict.InternalError, verdict.UnknownVLAN} {
		r.wantDrop(&slots[i], why)
	}
	r.view.Ifaces = all
	r.wantDrop(&r.send(2, f)[0], verdict.ForeignMAC) // elsewhere than where it was poison it is not blocked
}

// Whatever was half made when it happened is put right: session, mapping, permit, counts of host and tenant.
func TestPoisonLeavesNothingHalfMade(t *testing.T) {
	policy := replaceOnce(t, testPolicy, "pool = [\"192.0.2.16\"]", "pool = [\"192.0.2.16\"]\nfiltering = \"address-dependent\"\n[tenant.limits]\nsessions = 100\nhost_sessions = 50")
	empty := func(t *testing.T, r *rig) {
		t.Helper()
		s := r.view.TenantByName("alpha").Shared
		if r.sh.Sessions.Len() != 0 || r.sh.NAT.Len() != 0 || s.Sessions.Load() != 0 || s.Unanswered[0].Load() != 0 || !reflect.DeepEqual(r.sh.held, make([]held, len(r.sh.held))) {
			t.Errorf("left: %d sessions, %d mappings, tenant %d/%d, held %v", r.sh.Sessions.Len(), r.sh.NAT.Len(), s.Sessions.Load(), s.Unanswered[0].Load(), r.sh.held)
		}
		for i := range r.sh.hosts.slots {
			if h := &r.sh.hosts.slots[i]; h.sessions != 0 || r.sh.hosts.in[i] != 0 {
				t.Errorf("a host counts %d sessions, %d of strangers", h.sessions, r.sh.hosts.in[i])
			}
		}
	}
	works := func(t *testing.T, r *rig) {
		t.Helper()
		r.now += 61e9
		r.want(&r.send(1, alphaUDP(t, 4000))[0], verdict.Send)
		r.sh.Cut(func(*sessionT) bool { return true })
		empty(t, r)
	}
	poison := func(t *testing.T, r *rig, f []byte) {
		t.Helper()
		slots, panics := r.contained(1, f)
		if panics == 0 {
			t.Fatal("no panic: the test shows nothing")
		}
		r.wantDrop(&slots[0], verdict.InternalError)
	}
	t.Run("the permit of a new session", func(t *testing.T) {
		r := newRig(t, testNode, policy)
		permits := r.sh.permits
		r.sh.permits = nil
		poison(t, r, alphaUDP(t, 4000))
		r.sh.permits = permits
		empty(t, r)
		works(t, r)
	})
	for from, port := range map[string]int{"inside": 1, "outside": 0} {
		t.Run("the table's memory does not take a new session from "+from, func(t *testing.T) {
			r := newRig(t, testNode, policy)
			first := alphaUDP(t, 4000)
			if port == 0 {
				first = tcp4(t, 0, "203.0.113.11", 40000, "192.0.2.16", 8080, func(t *layers.TCP) { t.SYN = true })
			}
			mem := tableMem(t, conntrack.Bytes(1024))
			table, err := conntrack.New(mem, 1024, 42)
			if err != nil {
				t.Fatal(err)
			}
			r.sh.Sessions = table
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			if err := unix.Mprotect(mem, unix.PROT_READ); err != nil {
				t.Fatal(err)
			}
			slots, panics := func() (s []Slot, n int) {
				defer func() {
					if recover() != nil { // the repair met the same fault
						n = 100
					}
				}()
				return r.contained(port, first)
			}()
			if panics == 0 {
				t.Fatalf("no panic: %v", slots)
			}
			if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE); err != nil {
				t.Fatal(err)
			}
			r.sh.Recover()
			empty(t, r)
			works(t, r)
		})
	}
	t.Run("the end of a session", func(t *testing.T) {
		r := newRig(t, testNode, policy)
		se := r.sessionOf(alphaUDP(t, 4000), 1)
		permits := r.sh.permits
		r.sh.permits = nil
		se.ViewGen--
		r.view.TenantByName("alpha").Prefixes = r.view.TenantByName("beta").Bypass // nothing is in it: the session must end
		slots, panics := r.contained(1, alphaUDP(t, 4000))
		if panics != 1 {
			t.Fatalf("%d panics: %s", panics, slots[0].Reason)
		}
		r.sh.permits = permits
		empty(t, r)
	})
	t.Run("a session that is being written", func(t *testing.T) {
		r := newRig(t, testNode, policy)
		se := r.sessionOf(alphaUDP(t, 4000), 1)
		se.NextHop[0] = wild
		se.BeginWrite()
		poison(t, r, alphaUDP(t, 4000))
		empty(t, r)
		works(t, r)
	})
	t.Run("a whole session stays", func(t *testing.T) {
		r := newRig(t, testNode, policy)
		se := r.sessionOf(alphaUDP(t, 4000), 1)
		se.NextHop[0] = wild
		poison(t, r, alphaUDP(t, 4000))
		if r.sh.Sessions.Len() != 1 || r.sh.NAT.Len() != 1 {
			t.Fatalf("%d sessions, %d mappings", r.sh.Sessions.Len(), r.sh.NAT.Len())
		}
	})
}

// A source that brings another poisonous conversation each time is blocked as a whole, and nobody beside it.
func TestPoisonOfOneSourceBlocksTheSource(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	panics := 0
	for i := range 40 {
		f := alphaUDP(t, uint16(4000+i))
		if i < poisonSource {
			r.sessionOf(f, 1).NextHop[0] = wild
		}
		slots, n := r.contained(1, f)
		panics += n
		if i >= poisonSource {
			r.wantDrop(&slots[0], verdict.FlowBlocked)
		}
	}
	if panics != poisonSource {
		t.Fatalf("%d panics, want %d", panics, poisonSource)
	}
	r.want(&r.send(1, udp4(t, 1, "198.18.10.12", 4000, "203.0.113.11", 53))[0], verdict.Send)
	// All of them in one burst: those that were parsed already are stopped too.
	other := func(n int) []byte { return udp4(t, 1, "198.18.10.13", uint16(4000+n), "203.0.113.11", 53) }
	var burst [][]byte
	for i := range 40 {
		r.sessionOf(other(i), 1).NextHop[0] = wild
		burst = append(burst, other(i))
	}
	slots, n := r.contained(1, burst...)
	if n != poisonSource {
		t.Fatalf("%d panics in one burst, want %d", n, poisonSource)
	}
	for i := range slots {
		why := verdict.InternalError
		if i >= poisonSource {
			why = verdict.FlowBlocked
		}
		r.wantDrop(&slots[i], why)
	}
	r.now += 61e9
	r.want(&r.send(1, alphaUDP(t, 5000))[0], verdict.Send)
}

// However many flows and sources are poison, memory is fixed and the latest are blocked.
func TestPoisonIsBounded(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	for i := range 10 * poisonSets * poisonWays {
		src := fmt.Sprintf("203.0.%d.%d", 112+i>>8&1, i&255)
		f := udp4(t, 0, src, uint16(i), "192.0.2.16", 9)
		r.send(0, f)
		k := r.slots[0].Key
		r.sh.poisons.add(&k, r.now)
		r.now += 1e6
		r.wantDrop(&r.send(0, f)[0], verdict.FlowBlocked)
	}
	if n := r.sh.Poisoned(); n > poisonSets*poisonWays {
		t.Fatalf("%d kept, room for %d", n, poisonSets*poisonWays)
	}
	k := r.slots[0].Key
	if n := testing.AllocsPerRun(100, func() { r.sh.poisons.has(&k, r.now); r.sh.poisons.add(&k, r.now) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
