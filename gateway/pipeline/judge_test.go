package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/verdict"
)

// randomPolicy is a policy that differs from its siblings in all that a session can be judged by.
func randomPolicy(rng *rand.Rand) string {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	var b strings.Builder
	b.WriteString("schema = 1\n[backbone]\ninterfaces = [\"backbone\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.254\"\n")
	fmt.Fprintf(&b, "[[tenant]]\nname = \"alpha\"\ninterfaces = [\"alpha\"]\ndefault_out = %q\n", pick("allow", "allow", "deny"))
	fmt.Fprintf(&b, "prefixes = [%s]\n", pick(`"198.18.10.0/24"`, `"198.18.10.0/24"`, `"198.18.10.0/28", "198.18.10.100/32"`))
	if rng.IntN(5) > 0 {
		pool := pick("192.0.2.16", "192.0.2.16", "192.0.2.17")
		fmt.Fprintf(&b, "[tenant.nat]\npool = [%q]\nmapping = %q\nfiltering = %q\nbypass = [%s]\n", pool, pick(ei, ei, ad, apd), pick(ei, ad, apd), pick("", "", `"203.0.113.64/28"`))
		if rng.IntN(2) == 0 {
			fmt.Fprintf(&b, "[[tenant.nat.static]]\npublic = %q\ninside = \"198.18.10.%s\"\n", pick("192.0.2.100", "192.0.2.101"), pick("100", "11"))
		}
		for _, port := range []string{"8080", "4000"} {
			if rng.IntN(2) == 0 {
				fmt.Fprintf(&b, "[[tenant.nat.forward]]\npublic = %q\nproto = \"udp\"\nport = %s\ninside = \"198.18.10.%s\"\ninside_port = %s\n", pool, port, pick("12", "13"), pick("80", "80", "81"))
			}
		}
	}
	for range rng.IntN(6) {
		fmt.Fprintf(&b, "[[tenant.rule]]\ndirection = %q\naction = %q\n", pick("in", "out"), pick("allow", "allow", "deny"))
		fmt.Fprintf(&b, "service = [%s]\n", pick(`"udp"`, `"udp/80"`, `"tcp"`, `"icmp"`, `"udp/53"`, `"any"`))
		if rng.IntN(3) == 0 {
			fmt.Fprintf(&b, "to = [%q]\n", pick("198.18.10.0/28", "203.0.113.65", "198.18.10.100"))
		}
	}
	return b.String()
}

// opening is the first packet of a conversation, and who must have spoken before for it to come in by a mapping.
type opening struct {
	port   int
	frame  []byte
	mapped []byte // with it the mapping is made; nil where none is needed
}

// A session lives through a change of policy exactly if it could be opened anew under the new one with the translation that it has. Only a
// route that is gone is forgiven: it may come back.
func TestAChangedPolicyJudgesAsIfOpenedAnew(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	lived, cut := 0, 0
	for round := range 100 {
		textA, textB := randomPolicy(rng), randomPolicy(rng)
		a := newWorld(t, 1, textA)
		type kept struct {
			key  flow.Key
			open opening
		}
		var all []kept
		try := func(o opening) {
			before := a.shards[0].Sessions.Len()
			hops := a.carry(0, o.port, false, false, o.frame)
			if a.shards[0].Sessions.Len() != before+1 || hops[len(hops)-1].verdict != verdict.Send {
				return
			}
			a.shards[0].Sessions.Each(0, 4096, func(_ uint32, se *conntrack.Session) bool {
				k := se.Key(0)
				for _, x := range all {
					if x.key == k {
						return true
					}
				}
				all = append(all, kept{k, o})
				return true
			})
		}
		far := []string{"203.0.113.65", "203.0.113.11"}
		for _, h := range []string{"11", "12", "100", "200"} {
			for _, f := range far {
				src := "198.18.10." + h
				try(opening{1, udp4(t, 1, src, 4000, f, 53), nil})
				try(opening{1, udp4(t, 1, src, 4001, f, 80), nil})
				try(opening{1, tcp4(t, 1, src, 4000, f, 80, func(tc *layers.TCP) { tc.SYN = true }), nil})
			}
		}
		for _, d := range []string{"192.0.2.16", "192.0.2.17", "192.0.2.100", "192.0.2.101", "198.18.10.12", "198.18.10.100"} {
			for _, p := range []uint16{8080, 4000, 80} {
				try(opening{0, udp4(t, 0, "203.0.113.65", 5000, d, p), nil})
				try(opening{0, udp4(t, 0, "203.0.113.12", 5000, d, p), nil})
			}
		}
		// A stranger at a mapped port.
		for _, x := range append([]kept(nil), all...) {
			ref, _ := a.shards[0].Sessions.Lookup(&x.key, a.shards[0].Sessions.Hash(&x.key))
			if se := a.shards[0].Sessions.At(ref.Slot()); se.Mapping != conntrack.NoMapping && se.Proto == flow.UDP {
				pub := flow.Addr{se.XlatSrc[0], se.XlatSrc[1], se.XlatSrc[2], se.XlatSrc[3]}
				try(opening{0, udp4(t, 0, "203.0.113.99", 7000, pub.Netip(4).String(), se.XlatSPort), x.open.frame})
			}
		}
		vb := compileView(t, a.node, a.space, a.view, textB)
		for _, x := range all {
			sh := a.shards[0]
			ref, ok := sh.Sessions.Lookup(&x.key, sh.Sessions.Hash(&x.key))
			if !ok {
				t.Fatal("a session is gone")
			}
			se := *sh.Sessions.At(ref.Slot())
			b := newWorld(t, 1, textB)
			want := b.couldOpen(se, x.open)
			if want == maybe {
				continue
			}
			if got := !sh.WouldCut(vb, &se); got != (want == yes) {
				t.Fatalf("round %d: session %+v lives: %v, could be opened anew: %v\n--- before\n%s\n--- after\n%s", round, x.key, got, want == yes, textA, textB)
			}
			if want == yes {
				lived++
			} else {
				cut++
			}
		}
		// What diff says is what happens, to sessions that send and to those that do not.
		would := 0
		a.shards[0].Sessions.Each(0, 4096, func(_ uint32, se *conntrack.Session) bool {
			if a.shards[0].WouldCut(vb, se) {
				would++
			}
			return true
		})
		n := a.shards[0].Sessions.Len()
		a.view = vb
		a.shards[0].SetView(vb)
		for !a.shards[0].Settled() {
			a.shards[0].Rejudge(a.now, 7)
		}
		if got := n - a.shards[0].Sessions.Len(); got != would {
			t.Fatalf("round %d: %d sessions were cut, %d foretold", round, got, would)
		}
		a.whole()
	}
	if lived < 100 || cut < 100 {
		t.Fatalf("%d lived, %d were cut: this proves little", lived, cut)
	}
}

const (
	no = iota
	yes
	maybe // the mapping cannot be made under the new policy: nothing to compare with
)

// couldOpen opens se anew in w and compares the translation; of a dynamic one the port may differ, if the old one may be had.
func (w *world) couldOpen(se conntrack.Session, o opening) int {
	sh := w.shards[0]
	f := o.frame
	if o.mapped != nil {
		k := se.Key(0)
		hops := w.carry(0, 1, false, false, o.mapped)
		if last := hops[len(hops)-1]; last.verdict != verdict.Send {
			return maybe
		} else if x := readWire(w.t, last.frame); x.src.As4()[0] == 198 {
			return maybe // that far end is bypassed now
		} else if x.src == k.Dst.Netip(4) {
			f = udp4(w.t, 0, k.Src.Netip(4).String(), k.SPort, x.src.String(), x.sport)
		}
	}
	before := sh.Sessions.Len()
	hops := w.carry(0, o.port, false, false, f)
	if last := hops[len(hops)-1]; last.verdict != verdict.Send || sh.Sessions.Len() != before+1 {
		return no
	}
	var now conntrack.Session
	sh.Sessions.Each(uint32(before), 4096, func(_ uint32, x *conntrack.Session) bool { now = *x; return true })
	same := now.XlatSrc == se.XlatSrc && now.XlatDst == se.XlatDst && now.XlatDPort == se.XlatDPort && now.Flags&conntrack.FlagNAT == se.Flags&conntrack.FlagNAT &&
		(now.Mapping == conntrack.NoMapping) == (se.Mapping == conntrack.NoMapping)
	pub, port := se.XlatSrc, se.XlatSPort
	if o.mapped != nil {
		pub, port = [4]byte(se.OrigDst[:4]), se.OrigDPort
	}
	if se.Mapping != conntrack.NoMapping {
		id, ok := w.space.Find(pub)
		same = same && ok && !w.space.Reserved(id, classOf(se.Proto), port)
	} else {
		same = same && now.XlatSPort == se.XlatSPort
	}
	if same {
		return yes
	}
	return no
}

// Direction is a table: here is what it says in words.
func TestDirection(t *testing.T) {
	for flags := range 256 {
		for dir := range 2 {
			se := conntrack.Session{Flags: uint8(flags)}
			from, to := se.Flags&conntrack.FlagFromBackbone != 0, se.Flags&conntrack.FlagToBackbone != 0
			want := meter.Out
			switch {
			case !from && !to:
				want = meter.Inside
			case from == (dir == 0):
				want = meter.In
			}
			if got := Direction(&se, dir); got != want {
				t.Fatalf("flags %08b, direction %d: %v, want %v", flags, dir, got, want)
			}
		}
	}
}
