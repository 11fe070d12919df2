package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// allowed applies what the ACL said, counts it for the rule and logs it if the rule wants that.
func (sh *Shard) allowed(s *Slot, t *snapshot.Tenant, d meter.Dir, se *conntrack.Session, j snapshot.Decision) bool {
	s.Tenant = t.ID
	if sh.watch.tr != nil {
		sh.watch.tr.Ruled(uint8(d), j.Rule, j.Allow, j.Allow && j.Rule == flow.NoRule && d == meter.In)
	}
	t.HitsOf(d, j.Rule).Add(sh.Worker)
	se.Rule = j.Rule
	if j.Rule != flow.NoRule {
		r := &t.Rules[d][j.Rule]
		if r.Voice {
			se.Class = classVoice
		}
		if r.Log {
			sh.event(Event{Tick: sh.tick, Tenant: t.ID, Dir: d, Rule: j.Rule, Allow: j.Allow, Key: s.Key})
		}
	}
	if !j.Allow {
		r := verdict.ACLDeny
		if j.Rule == flow.NoRule {
			r = verdict.ACLDefault
		}
		sh.drop(s, r)
	}
	return j.Allow
}

// admit checks the first packet itself and the tenant's limits on sessions.
func (sh *Shard) admit(s *Slot, t *snapshot.Tenant, se *conntrack.Session) verdict.Reason {
	if r := extra(s, t.Extra); r != verdict.Pass {
		return r
	}
	if s.Flags&packet.FlagICMPReply != 0 {
		return verdict.ICMPNoSession // an answer to nothing
	}
	if (s.Key.Proto == flow.ICMP || s.Key.Proto == flow.ICMPv6) && s.Flags&packet.FlagICMPQuery == 0 {
		return verdict.ICMPNoSession
	}
	if unfinished(&s.Packet) {
		return verdict.UnfinishedChecksum
	}
	if se.Proto == flow.TCP {
		seg := segment(&s.Packet)
		if r := conntrack.First(se, &seg); r != verdict.Pass {
			return r
		}
	}
	if r := sh.room(t, se); r != verdict.Pass {
		return r
	}
	// The tenant's rate is looked at first and taken last: a host that is over its own limit takes nothing of the others'.
	inbound := began(se) == meter.In
	if !sh.mayTakeSession(t, inbound) {
		return verdict.TenantSessionRate
	}
	if r := sh.admitHost(t, se, inbound); r != verdict.Pass {
		return r
	}
	if !sh.takeSession(t, inbound) {
		sh.unadmitHost(t, se)
		return verdict.TenantSessionRate
	}
	return verdict.Pass
}

// takeSession takes a new session from the tenant's rate. What comes in leaves half of the burst to what goes out, so that no flood from outside keeps the inside from beginning anything; but for a quarter of the rate, which
// what goes out leaves it, so that an inside host that begins too much does not shut the others to the outside.
func (sh *Shard) takeSession(t *snapshot.Tenant, inbound bool) bool {
	w, in := &t.Shared.SessionRate, &t.Shared.SessionRateIn
	switch {
	case t.SessionRate.Unlimited():
		return true
	case !inbound:
		return t.SessionRate.Take(w, sh.now, 1)
	case t.SessionRate.TakeLow(w, sh.now, 1):
		return true
	case t.SessionRateIn.Unlimited() || !t.SessionRateIn.Take(in, sh.now, 1):
		return false
	}
	if t.SessionRate.TakeHigh(w, sh.now, 1) {
		return true
	}
	t.SessionRateIn.Refund(in, 1)
	return false
}

// mayTakeSession reports whether takeSession would, if nobody else takes meanwhile.
func (sh *Shard) mayTakeSession(t *snapshot.Tenant, inbound bool) bool {
	w := &t.Shared.SessionRate
	switch {
	case t.SessionRate.Unlimited():
		return true
	case !inbound:
		return t.SessionRate.Wait(w, sh.now, 1) == 0
	}
	return t.SessionRate.WaitLow(w, sh.now) == 0 || !t.SessionRateIn.Unlimited() && t.SessionRateIn.Wait(&t.Shared.SessionRateIn, sh.now, 1) == 0
}

// takeHostSession takes a new session from the rate of an inside host, of which strangers leave half of the burst.
func takeHostSession(r *police.Rate, w *police.Word, now uint64, inbound bool) bool {
	if inbound {
		return r.TakeLow(w, now, 1)
	}
	return r.Take(w, now, 1)
}

// create puts the session into the table and sends its first packet on. What it had taken is given back if the table refuses.
func (sh *Shard) create(s *Slot, t *snapshot.Tenant, se *conntrack.Session) verdict.Verdict {
	se.ViewGen = sh.gen
	se.LastSeen = [2]uint32{sh.tick, sh.tick}
	se.Flags |= conntrack.FlagUnanswered
	sh.countHost(t, se)
	slot, r := uint32(0), verdict.Blocked
	if sh.blocks == nil || !sh.barredOut(se, 0) {
		r = verdict.SessionCollision
		k := se.Key(1)
		h := sh.Sessions.Hash(&k)
		if _, taken := sh.Sessions.Lookup(&k, h); !taken { // and find has just found none of the first key
			slot, r = sh.Sessions.Begin(se, s.hash, h, sh.tick, se.Look(&sh.view.Timeouts))
		}
	}
	sh.counted = nil
	if r != verdict.Pass {
		if se.Mapping != conntrack.NoMapping {
			sh.NAT.Drop(se.Mapping)
			sh.making = conntrack.NoMapping
		}
		if se.Flags&conntrack.FlagCounted != 0 {
			sh.uncountHost(se)
		}
		return sh.drop(s, r)
	}
	sh.unborn, sh.bornTo = slot, 0
	if se.Mapping != conntrack.NoMapping {
		sh.NAT.Ref(se.Mapping)
		sh.making = conntrack.NoMapping
		sh.bornTo = 1
		sh.permit(se)
		sh.bornTo = 2
	}
	sh.countSession(t, se)
	sh.unborn = noSlot
	t.Shared.Created.Add(1)
	sh.begun++
	sh.changed(slot, se)
	return sh.forward(s, t, sh.Sessions.At(slot), 0)
}
