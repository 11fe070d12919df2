package pipeline

import (
	"math/rand/v2"
	"strings"
	"testing"

	"demarc/gateway/conntrack"
	"demarc/gateway/replica"
)

// TestOwnerOfAnotherGroupHasNoSay: a tenant has come to a group that this node serves, by a policy that the owner of its former group does not serve yet. That one enters, changes and ends nothing
// of the tenant here.
func TestOwnerOfAnotherGroupHasNoSay(t *testing.T) {
	dice := rand.New(rand.NewPCG(7, 8))
	c := newCopying(t, 1, 2)
	c.open(dice, 300)
	c.carry()
	if c.equal() < 100 {
		t.Fatal("nothing was copied")
	}
	_, west, _ := strings.Cut(testGroups, "[[group]]\nname = \"west\"")
	west = "[[group]]\nname = \"west\"" + strings.Replace(west, `["gamma"]`, `["gamma", "alpha"]`, 1)
	c.b.view = compileView(t, c.b.node, c.b.space, c.b.view, testPolicy+west)
	for _, sh := range c.b.shards {
		sh.SetView(c.b.view)
		sh.TakeOver(200)
	}
	c.in.Own(200, 2)
	c.in.Renew()
	alpha := c.b.view.TenantByName("alpha").ID
	has := func() (n int, sum uint64) {
		for _, sh := range c.b.shards {
			sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
				if se.Tenant == alpha {
					var r replica.Record
					Copies{sh}.Fill(slot, &r)
					n, sum = n+1, sum+r.Hash(1, 2)+uint64(se.LastSeen[0])
				}
				return true
			})
		}
		return n, sum
	}
	n, sum := has()
	if n < 50 {
		t.Fatalf("%d sessions of the tenant: nothing is tested", n)
	}
	for _, sh := range c.a.shards {
		for slot := range sh.Sessions.Slots() {
			if sh.Sessions.Live(slot) && dice.IntN(2) == 0 {
				sh.end(slot, sh.Sessions.At(slot))
			}
		}
	}
	c.open(dice, 300)
	c.carry()
	if now, nowSum := has(); now != n || nowSum != sum {
		t.Errorf("%d sessions of a tenant that this node serves, there were %d; as before: %v", now, n, sum == nowSum)
	}
	if ok, why := c.in.Whole(1); ok {
		t.Error("a copy of which nothing was taken is whole")
	} else {
		t.Log(why)
	}
}

// losing is a Sink that a test has lose things, and that counts how often it is swept.
type losing struct {
	*Copied
	lost   uint64
	sweeps int
}

func (l *losing) Lost() uint64 { return l.lost }

func (l *losing) Sweep(group uint8, keep func(replica.Place) bool) {
	l.sweeps++
	l.Copied.Sweep(group, keep)
}

// TestSweptAgainAfterALoss: where a standby's tables have not done what they were to do, what nobody claims may stand there still. It is swept once more before the copy is whole.
func TestSweptAgainAfterALoss(t *testing.T) {
	c := newCopying(t, 1, 1)
	sink := &losing{Copied: &Copied{Shards: c.b.shards}}
	c.in = replica.NewReceiver(sink, 1<<16)
	for i, s := range c.out {
		hello := c.in.Hello("a", uint8(i))
		s.Link(0, &hello)
	}
	c.open(rand.New(rand.NewPCG(9, 1)), 100)
	c.carry()
	c.equal()
	if sink.sweeps != 2 {
		t.Fatalf("swept %d times, there are 2 groups", sink.sweeps)
	}
	sink.lost++
	c.carry()
	c.carry()
	c.equal()
	if sink.sweeps != 4 {
		t.Errorf("swept %d times, want 4: each group once more", sink.sweeps)
	}
}

// TestForsakeEndsAll: what was entered of a damaged file goes, also of groups that this node is yet to take over.
func TestForsakeEndsAll(t *testing.T) {
	c := newCopying(t, 2, 2)
	c.open(rand.New(rand.NewPCG(2, 1)), 300)
	frames := leave(c.a, alone)
	w := newWorld(t, 2, testPolicy+testGroups)
	w.follows()
	resume(t, w, frames, 0, alone)
	_, before, _, _ := w.holds()
	for _, sh := range w.shards {
		sh.Forsake()
	}
	if _, n, mappings, _ := w.holds(); before < 100 || n != 0 || mappings != 0 {
		t.Errorf("%d sessions and %d mappings are left, there were %d sessions", n, mappings, before)
	}
}
