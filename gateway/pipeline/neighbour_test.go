package pipeline

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/police"
	"demarc/gateway/verdict"
)

// What waits for its next hop's MAC has had its part of the tenant's rate: packets to silent addresses are no way round it, and take from it what they
// would take if somebody answered.
func TestWaitingForANeighbourIsWithinTheRate(t *testing.T) {
	r := newRig(t, testNode, replaceOnce(t, testPolicy, "[[tenant]]\nname = \"beta\"", "[tenant.rates.out]\nbits = \"800k\"\nqueue = \"30ms\"\n[[tenant]]\nname = \"beta\""))
	known := r.sh.Neighbors
	id := r.view.TenantByName("alpha").ID
	f := bigUDP(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53, 972) // 1000 bytes of IP: a hundred of them a second
	second := func() (waits, sent, late int) {
		for range 1000 {
			r.now += uint64(time.Millisecond)
			r.sh.Shaper.Release(r.now, func(q int) (*police.Dir, *police.Words) {
				tn := r.view.Tenant(flow.TenantID(q / 2))
				return &tn.Dir[q%2], &tn.Shared.Words[q%2]
			}, func(*police.Item) bool { return true })
			s := &r.send(1, f)[0]
			switch {
			case s.Verdict == verdict.Neighbor:
				waits++
			case s.Verdict == verdict.Send:
				sent++
			case s.Verdict == verdict.Queue:
				late++
			case s.Reason != verdict.TenantRateBits && s.Reason != verdict.TenantQueueFull:
				t.Fatalf("%s (%s)", s.Verdict, s.Reason)
			}
		}
		return waits, sent, late
	}
	r.sh.Neighbors = fib.NewNeighbors(64, 1)
	if waits, sent, late := second(); waits < 98 || waits > 105 || sent+late != 0 {
		t.Errorf("in a second of a rate of 100 packets %d went to wait for the next hop, %d were sent, %d queued", waits, sent, late)
	}
	r.sh.Meter.Publish()
	if v, o := r.sh.Meter.Volume(id, meter.Out), r.sh.Meter.Offered(id, meter.Out); v.Packets < 98 || v.Packets > 105 || o.Packets != 1000 {
		t.Errorf("%d packets counted as passed, %d as offered", v.Packets, o.Packets)
	}
	if r.sh.Shaper.Held() != 0 {
		t.Errorf("%d packets wait for their rate, and for a next hop that may never answer", r.sh.Shaper.Held())
	}
	r.sh.Neighbors = known
	if waits, sent, late := second(); waits != 0 || sent+late < 98 || sent+late > 110 {
		t.Errorf("then %d wait, %d were sent, %d queued", waits, sent, late)
	}
}

// In one burst, packets to many neighbours of two families, in any order: each goes to its own. What has changed holds from the next burst on.
func TestABurstGoesToManyNeighbours(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	rng := rand.New(rand.NewPCG(1, 2))
	macOf := map[flow.Addr][6]byte{}
	change := func(family uint8, i int) {
		a := flow.Addr{203, 0, 113, byte(i)}
		if family == 6 {
			a = flow.Addr{0x20, 1, 0xd, 0xb8, 0, 0xff, 15: byte(i)}
		}
		if delete(macOf, a); rng.IntN(4) == 0 {
			r.sh.Neighbors.Delete(1, family, &a)
			return
		}
		mac := [6]byte{2, family, byte(i), byte(rng.IntN(256)), byte(rng.IntN(256)), 1}
		if err := r.sh.Neighbors.Set(1, family, &a, mac, fib.Reachable, 0); err != nil {
			t.Fatal(err)
		}
		macOf[a] = mac
	}
	for i := 11; i < 20; i++ {
		change(4, i)
		change(6, i)
	}
	sent, waits := 0, 0
	for range 200 {
		var frames [][]byte
		for range 1 + rng.IntN(Burst) {
			i := 11 + rng.IntN(9)
			if rng.IntN(3) > 0 {
				frames = append(frames, udp4(t, 1, "198.18.10.5", 4000, fmt.Sprintf("203.0.113.%d", i), 53))
				continue
			}
			ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: flow.Addr{0x20, 1, 0xd, 0xb8, 0, 0xa, 15: 5}.Netip(6).AsSlice(), DstIP: flow.Addr{0x20, 1, 0xd, 0xb8, 0, 0xff, 15: byte(i)}.Netip(6).AsSlice()}
			frames = append(frames, frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, udp(4000, 53), gopacket.Payload("x")))
		}
		for i, s := range r.send(1, frames...) {
			mac, known := macOf[s.NextHop]
			switch {
			case s.NextHop != s.Key.Dst:
				t.Fatalf("packet %d to %s goes to %s", i, s.Key.Dst.Netip(s.Key.Family), s.NextHop.Netip(s.Key.Family))
			case !known:
				if waits++; s.Verdict != verdict.Neighbor {
					t.Fatalf("packet %d to %s, which nobody knows: %s (%s)", i, s.NextHop.Netip(s.Key.Family), s.Verdict, s.Reason)
				}
			default:
				if sent++; s.Verdict != verdict.Send || [6]byte(s.Frame()) != mac {
					t.Fatalf("packet %d to %s: %s (%s), MAC %x, want %x", i, s.NextHop.Netip(s.Key.Family), s.Verdict, s.Reason, s.Frame()[:6], mac)
				}
			}
		}
		if change(4, 11+rng.IntN(9)); rng.IntN(2) == 0 {
			change(6, 11+rng.IntN(9))
		}
	}
	if sent < 1000 || waits < 200 {
		t.Fatalf("%d sent, %d waited: too little was met", sent, waits)
	}
}
