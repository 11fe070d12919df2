package pipeline

import (
	"math/rand/v2"
	"sync"
	"testing"

	"demarc/gateway/replica"
)

// apart is a Copied whose shards are written by goroutines of their own, all at once, as workers do it.
type apart struct{ *Copied }

func (a apart) Do(ops []replica.Op, ctx *replica.Context) {
	leave, enter := a.Plan(ops, ctx)
	each := func(has []bool, fn func(int, []replica.Op, *replica.Context)) {
		var wg sync.WaitGroup
		for w := range has {
			if has[w] {
				wg.Go(func() { fn(w, ops, ctx) })
			}
		}
		wg.Wait()
	}
	each(leave, a.Leave)
	each(enter, a.Enter)
}

// TestShardsAreWrittenApart: workers that write their shards at the same time, under the race detector too, have the same in the end as one that has all to himself; also where places, ports
// and tuples go from one shard to another in one batch.
func TestShardsAreWrittenApart(t *testing.T) {
	dice := rand.New(rand.NewPCG(3, 4))
	c := newCopying(t, 2, 3)
	c.in = replica.NewReceiver(apart{&Copied{Shards: c.b.shards, View: c.b.view}}, 1<<16)
	for i, s := range c.out {
		hello := c.in.Hello("a", uint8(i))
		s.Link(0, &hello)
	}
	most := 0
	for range 6 {
		c.open(dice, 300)
		c.carry()
		most = max(most, c.equal())
		for _, sh := range c.a.shards {
			for slot := range sh.Sessions.Slots() { // what was told before, and something else in its place
				if sh.Sessions.Live(slot) && dice.IntN(3) == 0 {
					sh.end(slot, sh.Sessions.At(slot))
				}
			}
		}
	}
	if most < 300 {
		t.Errorf("%d sessions: nothing was tested", most)
	}
}

// TestDeafGroupTakesNothing: from the moment at which a group is this node's, no record of it changes a table, also not one that was on its way to a worker.
func TestDeafGroupTakesNothing(t *testing.T) {
	dice := rand.New(rand.NewPCG(5, 6))
	c := newCopying(t, 1, 2)
	deaf := false
	sink := &Copied{Shards: c.b.shards, View: c.b.view, Deaf: func(g uint8) bool { return deaf && g == 1 }}
	c.in = replica.NewReceiver(sink, 1<<16)
	for i, s := range c.out {
		hello := c.in.Hello("a", uint8(i))
		s.Link(0, &hello)
	}
	c.open(dice, 300)
	c.carry()
	if c.equal() < 100 {
		t.Fatal("nothing was copied")
	}
	before := func(group uint8) (n int, sum uint64) {
		for _, sh := range c.b.shards {
			for slot := range sh.Sessions.Slots() {
				if sh.Sessions.Live(slot) && (Copies{sh}).Look(slot).Group == group {
					var r replica.Record
					Copies{sh}.Fill(slot, &r)
					n, sum = n+1, sum+r.Hash(1, 2)
				}
			}
		}
		return n, sum
	}
	n, sum := before(1)
	other, otherSum := before(200)
	deaf = true
	for _, sh := range c.a.shards {
		for slot := range sh.Sessions.Slots() {
			if sh.Sessions.Live(slot) && dice.IntN(2) == 0 {
				sh.end(slot, sh.Sessions.At(slot))
			}
		}
	}
	c.open(dice, 300)
	c.carry()
	if now, nowSum := before(1); now != n || nowSum != sum {
		t.Errorf("%d sessions of the group that is this node's, there were %d", now, n)
	}
	if _, nowSum := before(200); nowSum == otherSum {
		t.Errorf("%d sessions of the other group as before: it was to be copied on", other)
	}
}
