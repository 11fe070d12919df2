package pipeline

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/verdict"
)

func TestHostsAgainstAMap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	h := newHosts(0, 3, seed)
	model := map[string]uint32{}
	for range 20000 {
		var a flow.Addr
		a.SetV4(rng.Uint32N(300))
		id := flow.TenantID(rng.IntN(3))
		key := fmt.Sprint(id, " ", a)
		switch rng.IntN(4) {
		case 0, 1, 2:
			s := h.get(id, 4, &a)
			if s == nil {
				mine := 0
				for k := range model {
					if strings.HasPrefix(k, fmt.Sprint(id, " ")) {
						mine++
					}
				}
				if free := len(h.slots)/8*7 - len(model); free > 0 && mine/shareOf <= free {
					t.Fatalf("refused with %d hosts, %d of the same tenant", len(model), mine)
				}
				continue
			}
			if in := h.in[h.place(s)]; s.sessions != model[key] || in != model[key]/2 {
				t.Fatalf("%s has %d, %d of strangers, want %d", key, s.sessions, in, model[key])
			}
			if s.sessions++; s.sessions%2 == 0 {
				h.strangers(s, 1)
			}
			for _, w := range s.words() {
				if w.Load()%1e6 != uint64(model[key]) || w.Load() != 0 && w.Load()/1e6 != uint64(a.V4())+1 {
					t.Fatalf("%s: word %d", key, w.Load())
				}
				w.Store(uint64(a.V4()+1)*1e6 + uint64(s.sessions))
			}
			model[key]++
		default:
			s := h.find(id, 4, &a)
			if _, ok := model[key]; ok != (s != nil) {
				t.Fatalf("%s: found %v, want %v", key, s != nil, ok)
			}
			if s != nil {
				h.remove(s)
				delete(model, key)
			}
		}
		if h.n != len(model) {
			t.Fatalf("%d hosts, want %d", h.n, len(model))
		}
	}
}

func TestLimitsPerInsideHost(t *testing.T) {
	limited := replaceOnce(t, testPolicy, "[[tenant.nat.static]]", "[tenant.limits]\nhost_sessions = 3\nhost_session_rate = 2\n[[tenant.nat.static]]")
	r := newRig(t, testNode, limited)
	next := uint16(2000)
	open := func(src string) *Slot {
		next++
		return &r.send(1, udp4(t, 1, src, next, "203.0.113.11", 53))[0]
	}
	// The rate: two and what a second's burst allows, then no more at once.
	n := 0
	for open("198.18.10.11").Verdict == verdict.Send {
		if n++; n > 10 {
			t.Fatal("no limit")
		}
	}
	if r.slots[0].Reason != verdict.HostSessionRate && r.slots[0].Reason != verdict.HostSessions {
		t.Fatalf("refused as %s", r.slots[0].Reason)
	}
	r.want(open("198.18.10.12"), verdict.Send) // another host is not touched by it
	for range 10 {
		r.now += 2e9
		open("198.18.10.11")
	}
	if s := open("198.18.10.11"); s.Verdict != verdict.Drop || s.Reason != verdict.HostSessions {
		t.Fatalf("fourth session: %s (%s)", s.Verdict, s.Reason)
	}
	// When sessions end the host may open new ones, and hosts without any are forgotten.
	r.sh.Cut(func(*sessionT) bool { return true })
	r.now += 2e9
	r.want(open("198.18.10.11"), verdict.Send)
	r.sh.Cut(func(*sessionT) bool { return true })
	r.now += 60e9
	for range 4 {
		r.sh.Maintain(r.now, 1024)
	}
	if r.sh.hosts.n != 0 {
		t.Fatalf("%d hosts are remembered for nothing", r.sh.hosts.n)
	}
}

// A session costs at most 192 bytes, all included: entry, index, deadline, mapping and its index, port tables, hosts.
func TestMemoryPerSessionAllIncluded(t *testing.T) {
	const n = 1 << 20
	space := nat.NewSpace(16)
	for i := range 16 {
		if _, err := space.Register([4]byte{192, 0, 2, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	hosts := len(newHosts(n, 1, 1).slots) * (int(reflect.TypeFor[host]().Size()) + 4)
	each := float64(conntrack.Bytes(n)+nat.Bytes(n)+space.Bytes()+hosts) / n
	t.Logf("%.1f bytes a session, %.1f of them for hosts", each, float64(hosts)/n)
	if each > 192 {
		t.Errorf("%.1f bytes a session, want at most 192", each)
	}
}

// A tenth of the table's upkeep is a tenth of the blocks' and the hosts', however few they are beside the table.
func TestUpkeepIsInProportion(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, "[tenant.limits]\nhost_sessions = 100\n"))
	for i := range 120 {
		r.want(&r.send(1, tagged(udp4(t, 1, fmt.Sprintf("198.18.10.%d", 20+i), uint16(4000+i), "203.0.113.9", 53), 20))[0], verdict.Send)
	}
	r.sh.Cut(func(*sessionT) bool { return true })
	r.now += 600e9
	blocks, hosts := r.sh.NAT.Blocks(), r.sh.hosts.n
	if blocks < 8 || hosts != 120 {
		t.Fatalf("%d blocks, %d hosts", blocks, hosts)
	}
	tenth := r.sh.Sessions.Capacity() / 10
	r.sh.Maintain(r.now, tenth)
	if b, h := r.sh.NAT.Blocks(), r.sh.hosts.n; b < blocks-blocks/10-1 || h < hosts*3/4 || h == hosts {
		t.Errorf("after a tenth of a round %d of %d blocks and %d of %d hosts are left", b, blocks, h, hosts)
	}
	for range 16 { // a host that is forgotten counts as one that was looked at
		r.sh.Maintain(r.now, tenth)
	}
	if b, h := r.sh.NAT.Blocks(), r.sh.hosts.n; b != 0 || h != 0 {
		t.Errorf("after a round %d blocks and %d hosts are left", b, h)
	}
}
