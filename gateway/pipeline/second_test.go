package pipeline

import (
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/verdict"
)

// Another executor hears of each packet that leaves and may be its own, and before anything that it goes by changes.
func TestSecondIsTold(t *testing.T) {
	r := newRig(t, testNode, limitedBeta(t, ""))
	var sent, changed []uint32
	var gens []uint32
	r.sh.SetSecond(&Second{
		Sent: func(slot uint32, _ *sessionT) { sent = append(sent, slot) },
		Changes: func(slot uint32, se *sessionT) {
			if r.sh.Sessions.SlotOf(se) != slot || !r.sh.Sessions.Live(slot) {
				t.Errorf("slot %d is not that of a session", slot)
			}
			changed = append(changed, slot)
		},
		Gen: func(gen uint32) { gens = append(gens, gen) },
	})
	told := func(what string, wantSent, wantChanged, wantGens int) {
		t.Helper()
		if len(sent) != wantSent || len(changed) != wantChanged || len(gens) != wantGens {
			t.Errorf("%s: sent %v, changed %v, generations %v; want %d, %d, %d", what, sent, changed, gens, wantSent, wantChanged, wantGens)
		}
		sent, changed, gens = nil, nil, nil
	}
	out := func(n int) *Slot {
		to, port := strangerAt(n)
		ip := ip4("198.18.10.12", to, layers.IPProtocolUDP)
		ip.Flags = layers.IPv4DontFragment
		return &r.send(1, tagged(frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip, udp(5000, port), gopacket.Payload("payload")), 20))[0]
	}
	for i := range 3 {
		r.want(out(i), verdict.Send)
	}
	told("three sessions", 3, 0, 0)
	r.sh.SetView(compileView(t, r.node, r.space, r.view, limitedBeta(t, "")))
	told("another view", 0, 0, 1)
	r.want(out(0), verdict.Send)
	told("a packet under it", 1, 1, 0)
	for !r.sh.Settled() {
		r.sh.Rejudge(r.now, 64)
	}
	told("the others", 0, 2, 0)
	r.sh.Cut(func(*sessionT) bool { return true })
	told("all are cut", 0, 3, 0)
	r.want(out(1), verdict.Send)
	told("one anew", 1, 0, 0)
	r.now += 3600e9
	r.sh.Maintain(r.now, 1<<20)
	told("its time is over", 0, 1, 0)
	if r.sh.Watches() {
		t.Error("nobody looks")
	}
	r.want(r.betaOut(2), verdict.Send)
	told("translated, without DF", 1, 0, 0)
	r.sh.TakeOver(9)
	told("a group is served", 0, 0, 1)
	r.sh.GiveUp(9)
	told("and no longer: what was handed down meanwhile is nobody's in a later term", 0, 0, 1)
	r.block([2]string{"", "203.0.113.77/32"})
	if !r.sh.Watches() {
		t.Error("an address is blocked, and nothing need be seen")
	}
}

// A connection that begins to close is called back, and once: from then on each of its packets is looked at.
func TestSecondIsToldOfTheEnd(t *testing.T) {
	for name, first := range map[string]string{"the end of one way": "FA", "a reset": "RA"} {
		w := rfcWorld(t)
		changed := 0
		w.shards[0].SetSecond(&Second{Sent: func(uint32, *sessionT) {}, Changes: func(uint32, *sessionT) { changed++ }, Gen: func(uint32) {}})
		p := w.open(hostA, 4000, far, 80)
		w.outTCP(hostA, 4000, far, 80, seg("A", 1001, 5001))
		if changed != 0 {
			t.Fatalf("%s: called back %d times before", name, changed)
		}
		w.outTCP(hostA, 4000, far, 80, seg(first, 1001, 5001))
		if changed != 1 {
			t.Errorf("%s: called back %d times", name, changed)
		}
		if first != "FA" {
			continue
		}
		w.inTCP(far, 80, pub, p, seg("FA", 5001, 1002))
		w.outTCP(hostA, 4000, far, 80, seg("A", 1002, 5002))
		if changed != 1 {
			t.Errorf("%s: called back %d times when all was closed", name, changed)
		}
	}
}
