package pipeline

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"demarc/gateway/block"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// block blocks addresses for ten minutes: on every side, or as "tenant address" or "backbone address".
func (r *rig) block(list ...[2]string) (hits []*block.Hits) {
	r.t.Helper()
	var entries []block.Entry
	for _, x := range list {
		e := block.Entry{Prefix: netip.MustParsePrefix(x[1]), Any: x[0] == "", Until: r.now + 600e9, Hits: block.NewHits(1)}
		if t := r.view.TenantByName(x[0]); t != nil {
			e.Zone = t.ID
		}
		entries, hits = append(entries, e), append(hits, e.Hits)
	}
	l, err := block.Compile(entries)
	if err != nil {
		r.t.Fatal(err)
	}
	r.sh.SetBlocks(l)
	return hits
}

// A blocked address sends nothing and gets nothing, from the next packet on, in new conversations and in those that live, on the side that is
// named or on every one; and no session or port is left behind by what is refused.
func TestBlocks(t *testing.T) {
	const inside, other, outside = "198.18.10.11", "198.18.10.12", "203.0.113.11"
	out := func(r *rig) *Slot { return &r.send(1, udp4(t, 1, inside, 4000, outside, 53))[0] }
	var port uint16
	reply := func(r *rig) *Slot { return &r.send(0, udp4(t, 0, outside, 53, "192.0.2.16", port))[0] }
	forwarded := func(r *rig) *Slot {
		return &r.send(0, tcp4(t, 0, outside, 5555, "192.0.2.16", 8080, func(l *layers.TCP) { l.SYN = true }))[0]
	}
	fromOther := func(r *rig) *Slot { return &r.send(1, udp4(t, 1, other, 4000, outside, 53))[0] }
	fromBeta := func(r *rig) *Slot { return &r.send(1, tagged(udp4(t, 1, inside, 4000, outside, 53), 20))[0] }
	all := map[string]func(*rig) *Slot{"out": out, "reply": reply, "forwarded": forwarded, "other host": fromOther, "beta": fromBeta}
	for _, c := range []struct {
		name  string
		entry [2]string
		stops string
	}{
		{"an outside address", [2]string{"", "203.0.113.11/32"}, "out reply forwarded other host beta"},
		{"an outside prefix on the backbone", [2]string{"backbone", "203.0.113.0/28"}, "out reply forwarded other host beta"},
		{"an inside address, as every side sees it", [2]string{"", "198.18.10.11/32"}, "out reply forwarded beta"},
		{"an inside address of one tenant", [2]string{"alpha", "198.18.10.11/32"}, "out reply forwarded"},
		{"an inside address on the backbone, which does not see it", [2]string{"backbone", "198.18.10.11/32"}, ""},
		{"a public address", [2]string{"backbone", "192.0.2.16/32"}, "out reply forwarded other host"},
		{"a public address in a tenant, which does not see it", [2]string{"beta", "192.0.2.16/32"}, ""},
		{"the other tenant's", [2]string{"beta", "198.18.10.0/24"}, "beta"},
	} {
		for _, live := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, live %v", c.name, live), func(t *testing.T) {
				r := newRig(t, testNode, testPolicy)
				r.t = t
				if live {
					for _, send := range all {
						send(r)
					}
					r.want(out(r), verdict.Send)
					port = r.slots[0].Key.SPort
					r.want(reply(r), verdict.Send)
				}
				sessions, mappings := r.sh.Sessions.Len(), r.sh.NAT.Len()
				hits := r.block(c.entry)
				refused := uint64(0)
				for name, send := range all {
					if name == "reply" && !live {
						continue
					}
					stops := len(c.stops) > 0 && contains(c.stops, name)
					s := send(r)
					if stops {
						refused++
						if s.Verdict != verdict.Drop || s.Reason != verdict.Blocked {
							t.Errorf("%s: %s (%s)", name, s.Verdict, s.Reason)
						}
					} else if s.Verdict != verdict.Send {
						t.Errorf("%s: %s (%s), though nobody blocked it", name, s.Verdict, s.Reason)
					}
				}
				if hits[0].Sum() != refused {
					t.Errorf("%d counted of %d", hits[0].Sum(), refused)
				}
				if live && (r.sh.Sessions.Len() != sessions || r.sh.NAT.Len() != mappings) {
					t.Errorf("%d sessions and %d mappings, were %d and %d", r.sh.Sessions.Len(), r.sh.NAT.Len(), sessions, mappings)
				}
				if !live && c.stops == "out reply forwarded other host beta" && r.sh.Sessions.Len()+r.sh.NAT.Len() != 0 {
					t.Errorf("%d sessions, %d mappings of what was refused", r.sh.Sessions.Len(), r.sh.NAT.Len())
				}
				// It ends by itself, to the nanosecond of the clock that packets are given.
				r.now += 600e9 - 1
				if len(c.stops) > 0 {
					r.wantDrop(all[first(c.stops)](r), verdict.Blocked)
				}
				r.now++
				r.want(out(r), verdict.Send)
			})
		}
	}
}

func contains(list, name string) bool {
	for len(list) >= len(name) {
		if list[:len(name)] == name {
			return true
		}
		list = list[1:]
	}
	return false
}

func first(list string) string {
	for _, name := range []string{"out", "beta"} {
		if contains(list, name) {
			return name
		}
	}
	return list
}

// A blocked router is still found: ARP and neighbour discovery go on. ICMP errors about a blocked conversation do not.
func TestBlocksLeaveNeighboursAlone(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	r.want(&r.send(1, udp4(t, 1, "198.18.10.11", 4000, "203.0.113.11", 53))[0], verdict.Send)
	sent := append([]byte(nil), r.slots[0].Frame()...)
	r.block([2]string{"", "203.0.113.11/32"}, [2]string{"", "fe80::/10"}, [2]string{"alpha", "198.18.10.11/32"})
	r.wantDrop(&r.send(0, icmpError(t, 0, "203.0.113.99", "192.0.2.16", sent[14:]))[0], verdict.Blocked)
	ns := frame(t, eth(macs[1], layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: netip.MustParseAddr("fe80::99").AsSlice(), DstIP: netip.MustParseAddr("fe80::20").AsSlice()},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}, &layers.ICMPv6NeighborSolicitation{TargetAddress: netip.MustParseAddr("fe80::20").AsSlice()})
	if s := &r.send(1, ns)[0]; s.Verdict != verdict.Punt {
		t.Fatalf("a neighbour solicitation: %s (%s)", s.Verdict, s.Reason)
	}
}

// explain asks about a blocked address without counting.
func TestATrialMeetsBlocksAndDoesNotCountThem(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	hits := r.block([2]string{"", "203.0.113.11/32"})
	tr := NewTrial(r.view)
	s, f := Slot{Port: 1}, alphaUDP(t, 4000)
	s.Buf, s.Off, s.Len = make([]byte, 2048), 256, len(f)
	copy(s.Buf[256:], f)
	var j trace.Journey
	if err := tr.Run(r.sh, &s, r.now, &j); err != nil || j.Verdict != verdict.Drop || j.Reason != verdict.Blocked {
		t.Errorf("%s (%s), %v", j.Verdict, j.Reason, err)
	}
	tr.End()
	if n := hits[0].Sum(); n != 0 {
		t.Errorf("counted %d", n)
	}
}

// CutSome in pieces ends what a filter meets, no more, and gives back ports and counts.
func TestCutSomeInPieces(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	for i := range 200 {
		r.send(1, alphaUDP(t, uint16(4000+i)))
	}
	before := r.sh.NAT.Len()
	from, pieces, n, done := uint32(0), 0, 0, false
	for !done {
		var k int
		from, k, done = r.sh.CutSome(from, 64, 10, func(_ uint32, se *conntrack.Session) bool { return se.OrigSPort%2 == 0 })
		if k > 10 {
			t.Fatalf("%d in one piece", k)
		}
		n += k
		pieces++
	}
	if n != 100 || r.sh.Sessions.Len() != 100 || r.sh.NAT.Len() != before-100 || pieces < 10 {
		t.Fatalf("%d cut in %d pieces, %d sessions, %d of %d mappings", n, pieces, r.sh.Sessions.Len(), r.sh.NAT.Len(), before)
	}
	if got := r.view.TenantByName("alpha").Shared.Sessions.Load(); got != 100 {
		t.Fatalf("the tenant counts %d", got)
	}
}

// BenchmarkBlocked is what a packet of a blocked source costs beside an established one, and what a list of blocks costs those who are not on it.
func BenchmarkBlocked(b *testing.B) {
	for _, c := range []struct {
		name string
		n    int
		hit  bool
	}{{"none", 0, false}, {"1-others", 1, false}, {"1024-others", 1024, false}, {"1-blocked", 1, true}, {"1024-blocked", 1024, true}} {
		b.Run(c.name, func(b *testing.B) {
			f := newFlood(b, 64<<10, 1000)
			f.establish(b)
			var list []block.Entry
			for i := range c.n {
				var a flow.Addr
				a.SetV4(0xc6336400 + uint32(i)*7) // outside addresses that nobody sends to
				list = append(list, block.Entry{Prefix: netip.PrefixFrom(a.Netip(4), 32), Any: true, Until: f.r.now + 1e15, Hits: block.NewHits(1)})
			}
			if c.hit {
				list[0].Prefix = netip.MustParsePrefix("198.18.0.0/15")
			}
			l, err := block.Compile(list)
			if err != nil {
				b.Fatal(err)
			}
			f.r.sh.SetBlocks(l)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range Burst {
					n = n*1103515245 + 12345
					f.put(i, n>>8&0xffff)
				}
				f.r.now += 10000
				f.r.sh.Process(f.r.slots[:], f.r.now)
				f.r.sh.Meter.Publish()
			}
			want := verdict.Send
			if c.hit {
				want = verdict.Drop
			}
			for i := range f.r.slots {
				if v := f.r.slots[i].Verdict; v != want {
					b.Fatalf("%s (%s)", v, f.r.slots[i].Reason)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
		})
	}
}

// BenchmarkCut is a cut of a table of a million sessions, in the pieces in which a node does it: what the longest piece takes is how long a worker
// moves no packet.
func BenchmarkCut(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		f := newFlood(b, 1<<20, 10)
		f.establish(b)
		b.StartTimer()
		var longest time.Duration
		from, done, pieces, began := uint32(0), false, 0, time.Now()
		for !done {
			at := time.Now()
			from, _, done = f.r.sh.CutSome(from, 2048, 256, func(uint32, *conntrack.Session) bool { return true })
			longest = max(longest, time.Since(at))
			pieces++
		}
		b.ReportMetric(float64(time.Since(began).Microseconds())/float64(pieces), "µs/piece")
		b.ReportMetric(float64(longest.Microseconds()), "µs-longest")
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-all")
	}
}
