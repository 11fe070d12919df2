package pipeline

import (
	"bytes"
	"flag"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"demarc/gateway/archtest/cputime"
	"demarc/gateway/nat"
	"demarc/gateway/police"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// fingerprint is a hash of everything that v reaches: every field, also of others' packages, also behind pointers. Nothing is left out, so
// what somebody adds to a shard tomorrow is in it.
func fingerprint(roots ...any) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	seen := map[uintptr]bool{}
	num := func(n uint64) { h = bits.RotateLeft64(h^n, 29)*0xd6e8feb86659fd93 + 1 }
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() || seen[v.Pointer()] {
				return
			}
			seen[v.Pointer()] = true
			walk(v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i))
			}
		case reflect.Slice, reflect.Array:
			num(uint64(v.Len()))
			if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
				for _, b := range v.Bytes() {
					num(uint64(b))
				}
				return
			}
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Map:
			num(uint64(v.Len())) // maps of a View do not change
		case reflect.Bool:
			if v.Bool() {
				num(1)
			} else {
				num(0)
			}
		case reflect.String:
			num(maphash.String(fingerprintSeed, v.String()))
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			num(uint64(v.Int()))
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
			num(v.Uint())
		}
	}
	for _, r := range roots {
		walk(reflect.ValueOf(r))
	}
	return h
}

var fingerprintSeed = maphash.MakeSeed()

// state is the fingerprint of a whole node.
func (w *world) state() uint64 {
	roots := []any{w.space}
	for _, sh := range w.shards {
		roots = append(roots, sh)
	}
	for _, t := range w.view.Tenants {
		roots = append(roots, t)
	}
	return fingerprint(roots...)
}

// passage is what one pass of a packet came to.
type passage struct {
	worker int
	slot   Slot
	frame  []byte
}

// passages takes a frame through the node as a driver would, with run as Process, until it leaves or ends.
func passages(worker int, f stormFrame, now uint64, run func(worker int, s *Slot)) (all []passage) {
	next := Slot{Port: f.port}
	data := f.data
	for len(all) < 8 {
		s := Slot{Port: next.Port, Looped: next.Looped, Handed: next.Handed}
		s.Buf, s.Off = make([]byte, 2048), 256
		s.Len = copy(s.Buf[256:], data)
		run(worker, &s)
		all = append(all, passage{worker, s, bytes.Clone(s.Frame())})
		switch s.Verdict {
		case verdict.Hand:
			worker, next = int(s.Home), Slot{Port: s.Port, Looped: s.Looped, Handed: true}
		case verdict.Loop:
			next = Slot{Looped: true}
		default:
			return all
		}
		data = all[len(all)-1].frame
	}
	return all
}

var trialTime = flag.Duration("trial", 0, "TestATrialIsWhatThenHappens: for how long; 0 = five seconds in CI, else one and a half")

// A trial says what then really happens, over random packets, policies and workers: verdict, reason, tuple and every byte, also where a packet
// changes the worker or comes round by one of our own addresses. And it leaves the whole node as it was.
func TestATrialIsWhatThenHappens(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	limit := 1500 * time.Millisecond
	if os.Getenv("CI") != "" {
		limit = 5 * time.Second
	}
	if *trialTime > 0 {
		limit = *trialTime
	}
	used := cputime.Spent(t)
	s := newStorm(t, seed)
	trials, loops, hands, made, whole := 0, 0, 0, 0, 0
	var reasons [verdict.NumReasons]int
	for round := 0; used() < limit; round++ {
		s.begin(t, 3-round%3)
		for n := 0; n < 500 && used() < limit; n++ {
			f := s.g.next()
			if f.data = bytes.Clone(f.data); q(f.data).Flags&inPieces != 0 { // a trial knows no fragments but its own
				continue
			}
			s.now += s.g.rng.Uint64N(2e5)
			worker := s.g.rng.IntN(len(s.shards))
			deep := n%37 == 3 && whole < 24
			var before uint64
			if deep {
				before = s.state()
			}
			tr := NewTrial(s.view)
			var js []trace.Journey
			said := passages(worker, f, s.now, func(w int, sl *Slot) {
				var j trace.Journey
				if err := tr.Run(s.shards[w], sl, s.now, &j); err != nil {
					t.Fatal(err)
				}
				js = append(js, j)
			})
			tr.End()
			if deep {
				if whole++; s.state() != before {
					t.Fatalf("seed %d, packet %d of round %d: the trial left something behind\nport %d: %x\n%s (%s)", seed, n, round, f.port, f.data, said[0].slot.Verdict, said[0].slot.Reason)
				}
			}
			did := passages(worker, f, s.now, func(w int, sl *Slot) {
				one := []Slot{*sl}
				s.shards[w].Process(one, s.now)
				*sl = one[0]
			})
			if len(said) != len(did) {
				t.Fatalf("seed %d, packet %d: %d passes, said %d", seed, n, len(did), len(said))
			}
			for i := range did {
				a, b := &said[i], &did[i]
				if a.worker != b.worker || a.slot.Verdict != b.slot.Verdict || a.slot.Reason != b.slot.Reason || a.slot.Tenant != b.slot.Tenant || a.slot.Key != b.slot.Key ||
					a.slot.OutPort != b.slot.OutPort || a.slot.OutIface != b.slot.OutIface || a.slot.NextHop != b.slot.NextHop || a.slot.Home != b.slot.Home || !bytes.Equal(a.frame, b.frame) {
					t.Fatalf("seed %d, packet %d of round %d, pass %d, worker %d:\nsaid %s (%s) %+v\ndid  %s (%s) %+v\nsaid %x\ndid  %x", seed, n, round, i, a.worker,
						a.slot.Verdict, a.slot.Reason, a.slot.Key, b.slot.Verdict, b.slot.Reason, b.slot.Key, a.frame, b.frame)
				}
				j := &js[i]
				if j.Verdict != b.slot.Verdict || j.Reason != b.slot.Reason || j.Tenant != b.slot.Tenant {
					t.Fatalf("seed %d, packet %d: the journey ends with %s (%s)", seed, n, j.Verdict, j.Reason)
				}
				switch b.slot.Verdict {
				case verdict.Loop:
					loops++
				case verdict.Hand:
					hands++
				case verdict.Send, verdict.Queue, verdict.Neighbor:
					if j.Out != b.slot.Key {
						t.Fatalf("seed %d, packet %d: the journey leaves as %+v", seed, n, j.Out)
					}
					s.g.left(b.slot.OutPort, b.frame)
				case verdict.Drop:
					reasons[b.slot.Reason]++
				}
				if j.Made {
					made++
				}
			}
			for _, sh := range s.shards {
				sh.Shaper.FlushQueue(s.g.rng.IntN(8), func(*police.Item) {})
			}
			trials++
			if n%128 == 127 {
				for _, sh := range s.shards {
					sh.Maintain(s.now, 4096)
				}
				if s.g.rng.IntN(2) == 0 {
					s.policy ^= 1
					s.view = compileView(t, s.node, s.space, s.view, s.policies[s.policy])
					for _, sh := range s.shards {
						sh.SetView(s.view)
					}
				}
			}
		}
	}
	kinds := 0
	for _, n := range reasons {
		if n > 0 {
			kinds++
		}
	}
	t.Logf("%d trials, %d of them held against the whole state; %d sessions made, %d hand-overs, %d loops, %d reasons of drops", trials, whole, made, hands, loops, kinds)
	if trials > 2000 && (loops == 0 || hands == 0 || made == 0 || kinds < 15 || whole < 8) {
		t.Fatal("too little was met")
	}
}

// What a shard has by reference a twin must have of its own, or know why not.
func TestATwinKnowsWhatAShardRefersTo(t *testing.T) {
	known := []string{"Sessions", "NAT", "permits", "Neighbors", "Shaper", "Meter", "view", "echo", "held", "tenures", "hosts", "eventLog", "blocks", "asked", "frags", "idents",
		"copies",         // the twin has none, so a trial marks nothing
		"second",         // nor hands anything down
		"Want",           // nor asks for anybody
		"until", "parts", // only read
		"Space",           // shared by all workers: what the twin takes of it NAT.Twin gives back
		"counted", "frag", // nil between packets
		"watch.drops", "watch.taps", "watch.tr", "watch.before"} // the twin has none
	var found []string
	var walk func(path string, x reflect.Type)
	walk = func(path string, x reflect.Type) {
		switch x.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface, reflect.Chan, reflect.Func:
			found = append(found, path)
		case reflect.Struct:
			for i := range x.NumField() {
				p := x.Field(i).Name
				if path != "" {
					p = path + "." + p
				}
				walk(p, x.Field(i).Type)
			}
		case reflect.Array:
			walk(path+"[]", x.Elem())
		}
	}
	walk("", reflect.TypeFor[Shard]())
	for _, f := range found {
		if !slices.Contains(known, f) {
			t.Errorf("Shard.%s is a reference: give the twin its own in Shard.twin, and then name it here", f)
		}
	}
}

// A panic in a trial is told, and nothing is left behind.
func TestATrialSurvivesAPanic(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	r.sh.Shaper = nil
	tr := NewTrial(r.view)
	var j trace.Journey
	s := Slot{Port: 1}
	f := udp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53)
	s.Buf, s.Off, s.Len = make([]byte, 2048), 256, len(f)
	copy(s.Buf[256:], f)
	before := fingerprint(r.sh, r.space, r.view.Tenants)
	err := tr.Run(r.sh, &s, r.now, &j)
	tr.End()
	if err == nil {
		t.Fatal("no error")
	}
	if fingerprint(r.sh, r.space, r.view.Tenants) != before {
		t.Fatal("something was left behind")
	}
}

func TestATrialIsOfOneView(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	tr := NewTrial(r.view)
	r.sh.SetView(compileView(t, r.node, r.space, r.view, testPolicy))
	var j trace.Journey
	if err := tr.Run(r.sh, &Slot{}, r.now, &j); err != ErrViewChanged {
		t.Fatal(err)
	}
}

// The fingerprint sees what it must see: each of these is one word.
func TestTheFingerprintSeesEverything(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(1, udp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53))
	k := s[0].Key.Reverse(0)
	ref, _ := r.sh.Sessions.Lookup(&k, r.sh.Sessions.Hash(&k))
	se := r.sh.Sessions.At(ref.Slot())
	ten := r.view.TenantByName("alpha")
	state := func() uint64 { return fingerprint(r.sh, r.space, r.view.Tenants) }
	was := state()
	if state() != was {
		t.Fatal("it is not the same twice")
	}
	for what, change := range map[string]func(){
		"a counter of a session":    func() { se.Packets[1]++ },
		"its deadline":              func() { r.sh.Sessions.SetDeadline(ref.Slot(), 77) },
		"a mapping":                 func() { r.sh.NAT.Ref(se.Mapping) },
		"a rate word":               func() { ten.Shared.Words[0].Bits.Add(1) },
		"a count of sessions":       func() { ten.Shared.Sessions.Add(1) },
		"hits of a rule":            func() { ten.Rules[0][0].Hits.Add(0) },
		"a dropped packet":          func() { r.sh.Meter.Drop(1, verdict.Land) },
		"a host":                    func() { r.sh.hosts.get(1, 4, &se.OrigSrc) },
		"who owns a block of ports": func() { _, _ = r.sh.NAT.Map(&nat.Request{Tenant: 1, Class: nat.ICMP, Pool: ten.Pool, Port: 9}, 5) },
		"that a neighbour was used": func() { r.sh.Neighbors.Used(1, 4, &s[0].NextHop, true) },
		"an event":                  func() { r.sh.event(Event{}) },
		"a recorded drop":           func() { r.sh.Record(1, verdict.Land, 0, []byte{1}, false) },
	} {
		change()
		now := state()
		if now == was {
			t.Errorf("%s is not in it", what)
		}
		was = now
	}
}
