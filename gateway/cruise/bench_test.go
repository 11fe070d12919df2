package cruise

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
)

// inside finds a session between two interfaces of one tenant, which is not translated, so that a hop may lead its packets back to where they came in.
func (w *world) inside(proto uint8) (se *conntrack.Session, slot uint32) {
	return w.plain(proto, meter.Inside)
}

// plain finds a session of the first tenant that goes this way and is not translated.
func (w *world) plain(proto uint8, dir meter.Dir) (se *conntrack.Session, slot uint32) {
	for _, h := range w.live {
		if x := w.shards[0].Sessions.At(h.slot); x.Proto == proto && x.Tenant == 1 && pipeline.Direction(x, 0) == dir && x.Flags&conntrack.FlagNAT == 0 {
			return x, h.slot
		}
	}
	w.t.Fatal("there is none")
	return nil, 0
}

// BenchmarkCarry is what a packet costs in the program, as the kernel measures it: the same frame goes round until its hop limit is used up. The redirect itself is not in it.
func BenchmarkCarry(b *testing.B) {
	roottest.Require(b)
	for _, c := range []struct {
		name  string
		proto uint8
		dir   meter.Dir
	}{{"udp", flow.UDP, meter.Inside}, {"tcp", flow.TCP, meter.Inside}, {"udp-limited", flow.UDP, meter.Out}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, rand.New(rand.NewPCG(1, 1)), 1, true)
			w.populate(16)
			ps, err := w.load(bpf.LoadCruise)
			defer ps.close(b)
			if err != nil {
				b.Fatal(err)
			}
			se, slot := w.plain(c.proto, c.dir)
			r := &round{form: w.form(se, 0)}
			r.ttl, r.flags, r.payload, r.seq, r.ack, r.mac = 255, 0x4000, 18, se.TCPEnd[0], se.TCPEnd[1], r.iface.MAC
			if err := w.tab.SetHop(200, Hop{Port: 0, VLAN: r.iface.VLAN, MTU: 1400, Dst: r.iface.MAC, Src: r.iface.MAC}, 1); err != nil {
				b.Fatal(err)
			}
			w.tab.HandDownNow(0, slot, se, [2]Way{w.tab.Way(200), w.tab.Way(200)})
			frame, p := w.build(r.form), ps[r.iface.Port]
			perPacket(b, p, frame, 254, Carried) // all but the last of 255
		})
	}
}

// perPacket measures what a program takes for a frame, so many times in a run, and sees that each of them was counted as it should be.
func perPacket(b *testing.B, p *Program, frame []byte, rounds int, what What) {
	b.Helper()
	before, _, err := p.Count(what)
	if err != nil {
		b.Fatal(err)
	}
	ns, n := 0.0, uint64(0)
	for b.Loop() {
		_, each, err := p.prog.Benchmark(frame, rounds, func() {})
		if err != nil {
			b.Fatal(err)
		}
		ns += float64(each.Nanoseconds())
		n++
	}
	after, _, err := p.Count(what)
	if err != nil {
		b.Fatal(err)
	}
	if want := n * uint64(rounds); after-before < want { // a run that a signal has ended begins anew
		b.Fatalf("%d of %d", after-before, want)
	}
	b.ReportMetric(ns/float64(n), "ns/packet")
}

// BenchmarkHandDown is what it costs to hand a session down and to call it back.
func BenchmarkHandDown(b *testing.B) {
	roottest.Require(b)
	w := newWorld(b, rand.New(rand.NewPCG(1, 1)), 1, true)
	w.populate(64)
	sh := w.shards[0]
	n := 0
	for b.Loop() {
		slot := w.live[n%len(w.live)].slot
		w.tab.HandDownNow(0, slot, sh.Sessions.At(slot), [2]Way{w.tab.Way(0), w.tab.Way(1)})
		w.tab.CallBack(0, slot)
		n++
	}
}

// BenchmarkUp is what a packet costs in the program that goes up: of a session that is not handed down, and of none, which is looked up in each worker's table.
func BenchmarkUp(b *testing.B) {
	roottest.Require(b)
	for _, workers := range []int{1, 4, 16} {
		w := newWorld(b, rand.New(rand.NewPCG(1, 1)), workers, true)
		w.populate(16)
		ps, err := w.load(bpf.LoadCruise)
		defer ps.close(b)
		if err != nil {
			b.Fatal(err)
		}
		h := w.live[0]
		se := w.shards[h.worker].Sessions.At(h.slot)
		w.tab.CallBack(h.worker, h.slot)
		for what, port := range map[What]uint16{UpNotDown: 0, UpSession: 1} {
			b.Run(fmt.Sprintf("%s/%d-workers", what, workers), func(b *testing.B) {
				r := &round{form: w.form(se, 0)}
				r.ttl, r.flags, r.payload, r.mac = 64, 0x4000, 18, r.iface.MAC
				r.key.SPort ^= port // another one: it belongs to no session
				frame, p := w.build(r.form), ps[r.iface.Port]
				perPacket(b, p, frame, 1000, what)
			})
		}
	}
}
