package pipeline

import (
	"testing"
	"time"

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
