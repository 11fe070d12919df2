package replica

import (
	"errors"
	"fmt"
	"time"
)

// slot takes in a record about a slot of the sender.
func (r *Receiver) slot(in *inbound, g *inGroup, k Kind, group uint8, body []byte) error {
	rec := &r.rec
	rec.Reset()
	rec.Kind, rec.Group = k, group
	bad := decode(body, rec)
	if len(body) < coreGone {
		return fmt.Errorf("kind %d: %d bytes, want at least %d", k, len(body), coreGone)
	}
	if bad != nil {
		rec.Slot, rec.Gen = le.Uint32(body), le.Uint32(body[4:])
	}
	it := r.item(in, rec.Slot)
	if it == nil {
		if k != KindGone && k != KindTouch {
			g.missing[Full]++ // until the next round: it has no item
		}
		return nil
	}
	if it.how == itemPending {
		r.flush()
	}
	if it.how != itemNone && in.of(it) == nil {
		*it = item{}
	}
	if it.how != itemNone && it.round == g.Round && it.era == g.era && int32(rec.Gen-it.gen) < 0 && !r.plant.anyOrder {
		r.Stats.Older++
		return nil
	}
	switch k {
	case KindGone:
		if it.how != itemNone && it.gen == rec.Gen {
			r.drop(in, it, rec.Slot)
		}
		return nil
	case KindTouch:
		if it.how == itemPlaced && it.gen == rec.Gen && bad == nil {
			r.op(in, it, Live, rec)
		}
		return bad
	}
	if it.how != itemNone && (it.gen != rec.Gen || it.era != g.era || it.how >= itemMissing) {
		r.drop(in, it, rec.Slot)
		r.flush()
	}
	if why := r.translate(in, rec, bad); why != Taken {
		r.drop(in, it, rec.Slot) // what it was must not stand in for what it has become
		r.flush()
		*it = item{gen: rec.Gen, era: g.era, round: g.Round, how: itemMissing + uint8(why)}
		g.number++
		r.miss(in, it, 1)
		return bad
	}
	fresh := it.how == itemNone || it.round != g.Round
	it.gen, it.era, it.round = rec.Gen, g.era, g.Round
	if fresh {
		g.number++
	}
	r.op(in, it, Put, rec).fresh = fresh
	return nil
}

// translate turns numbers of the stream into this node's.
func (r *Receiver) translate(in *inbound, rec *Record, bad error) Outcome {
	switch {
	case errors.Is(bad, errUnknownField):
		return NotKnown
	case bad != nil:
		return Malformed
	}
	tenant, ok := in.local(NameTenant, rec.Tenant)
	if !ok {
		return NoTenant
	}
	rec.Tenant = tenant
	for d := range rec.Session.Hop {
		rec.Session.Hop[d], _ = in.local(NameHop, rec.Session.Hop[d]) // one that is not known here is found anew
	}
	return Taken
}

func (r *Receiver) miss(in *inbound, it *item, n int) {
	if g := in.of(it); g != nil && g.Round == it.round {
		g.missing[it.how-itemMissing] += uint32(n)
	}
}

// drop ends what an item stands for.
func (r *Receiver) drop(in *inbound, it *item, slot uint32) {
	g := in.of(it)
	if it.how >= itemMissing {
		r.miss(in, it, -1)
		if g != nil && g.Round == it.round {
			g.number--
		}
		*it = item{}
		return
	}
	if it.how == itemPlaced {
		gone := &r.gone // not the record that is under way: it may be of another group
		gone.Slot, gone.Group = slot, 0
		if g != nil {
			gone.Group = g.id
		}
		r.op(in, it, Drop, gone)
	}
}

// op puts one more op into the batch.
func (r *Receiver) op(in *inbound, it *item, a Action, rec *Record) *Op {
	if len(r.ops) == batch {
		r.flush()
	}
	at := NoPlace
	if it.how == itemPlaced {
		at = it.place()
	}
	r.ops = r.ops[:len(r.ops)+1] // there is room for a batch; what stands there is of an earlier one
	op := &r.ops[len(r.ops)-1]
	op.Do, op.At, op.Outcome, op.Old, op.New, op.From, op.To, op.in, op.slot, op.fresh = a, at, Outcome(0), 0, 0, 0, 0, in, rec.Slot, false
	op.Rec = *rec
	if a != Live {
		it.how = itemPending
	}
	return op
}

// flush has the batch carried out, and takes in what became of it.
func (r *Receiver) flush() {
	if len(r.ops) == 0 {
		return
	}
	if r.stale {
		r.reclaim(false)
	}
	ops := r.ops
	r.ops = r.ops[:0]
	r.sink.Do(ops, &ops[0].in.ctx) // a batch is of one stream
	for i := range ops {
		op := &ops[i]
		if op.Do == Live {
			continue
		}
		it := r.item(op.in, op.slot)
		g := op.in.of(it)
		if it == nil || g == nil {
			continue
		}
		now := it.round == g.Round // an item of an earlier round is in no sum
		switch op.Do {
		case Drop:
			if now {
				g.sum -= op.Old
				g.number--
			}
			*it = item{}
		case Put:
			if !op.fresh {
				g.sum -= op.Old
			}
			if op.Outcome != Taken {
				it.how = itemMissing + uint8(op.Outcome)
				r.miss(op.in, it, 1)
				continue
			}
			it.how, it.shard, it.slot, it.at = itemPlaced, op.At.Shard(), op.At.Slot(), op.At.Gen()
			g.sum += op.New
		}
	}
}

// mark takes in the beginning and the end of a copy, and a digest.
func (r *Receiver) mark(now int64, peer string, in *inbound, seq uint64, k Kind, group uint8, m *marker) {
	st, g := &r.groups[group], in.groups[group]
	if k == KindBegin {
		if g == nil {
			g = &inGroup{id: group}
			in.groups[group] = g
		}
		if g.era == 0 || m.Epoch != g.Epoch {
			r.eras++
			g.era = r.eras
			g.ended, g.wait, g.refused, g.counted = false, 0, "", false
		}
		g.marker = *m
		r.allow(now, peer, g)
		g.active = !st.own && g.refused == "" && (m.Epoch >= st.epoch || r.plant.anyEpoch)
		if !g.active {
			r.Stats.Outdated++
			return
		}
		r.raise(group, m.Epoch)
		r.stale = true
		if in.ctx.key != m.Key {
			in.ctx.key = m.Key
			in.tenantHashes()
		}
		g.copying, g.want, g.sum, g.number, g.missing, g.strange, g.equal = true, false, 0, 0, [numOutcomes]uint32{}, 0, 0
		g.retry = 0 // this is it
		r.Stats.Copies++
		return
	}
	if g == nil || !g.active || m.Epoch < st.epoch && !r.plant.anyEpoch || m.Round != g.Round {
		return
	}
	if k == KindEnd {
		r.leftover(in, g)
		g.copying, g.ended = false, true
		r.sweep(group)
	}
	if lost, _ := g.lost(); lost > 0 {
		g.equal = 0
		if g.retry == 0 || k == KindEnd {
			g.wait = min(max(2*g.wait, time.Second), time.Minute)
			g.retry = now + int64(g.wait)
		}
		return
	}
	g.retry, g.wait = 0, 0
	if g.sum == m.Sum && g.number == m.Number {
		g.equal, g.equalAt = seq, now
		return
	}
	if !g.want {
		r.Stats.Mismatches++
	}
	g.want, g.equal = true, 0
}

// leftover removes what the copy that has ended did not bring again.
func (r *Receiver) leftover(in *inbound, g *inGroup) {
	in.each(func(slot uint32, it *item) {
		if it.era == g.era && it.round != g.Round {
			r.drop(in, it, slot)
		}
	})
	r.flush()
}

// sweep removes what no stream has, once all streams of the owner have copied the group.
func (r *Receiver) sweep(group uint8) {
	st := &r.groups[group]
	n, of := 0, 0
	for _, streams := range r.peers {
		for _, in := range streams {
			if g := in.groups[group]; g != nil && g.active && g.Epoch == st.epoch {
				of = max(of, int(g.Of))
				if g.ended {
					n++
				}
			}
		}
	}
	if !st.swept && of > 0 && n >= of {
		st.swept = true
		r.reclaim(true)
		r.sink.Sweep(group, r.claims.has)
		r.stale = true
	}
}

// answer is what the owner is told.
func (in *inbound) answer(r *Receiver, now int64) Answer {
	a := Answer{Life: in.life, Stream: in.stream, Seq: in.next}
	for group, g := range in.groups {
		n, why := g.lost()
		ga := GroupAnswer{Group: group, Round: g.Round, Equal: g.equal, Missing: n, Why: why}
		ga.Want = !r.groups[group].own && g.refused == "" && g.Epoch >= r.groups[group].epoch && (g.want || g.retry > 0 && now >= g.retry)
		a.Groups = append(a.Groups, ga)
	}
	return a
}
