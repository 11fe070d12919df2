package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// host is what one inside host of a tenant with per-host limits holds: one cache line.
type host struct {
	addr     flow.Addr
	tenant   flow.TenantID
	family   uint8 // 0 = free
	sessions uint32
	rate     police.Word    // new sessions
	bits     [2]police.Word // by meter.Out, meter.In
	packets  [2]police.Word
}

// hosts counts sessions, new sessions, packets and bytes per inside host. An inside host belongs to one worker, so this has one writer and
// no shared word. Open addressing with backward shift; memory is taken at start. Slots move only in sweepHosts, never within a burst.
type hosts struct {
	slots []host
	in    []uint32 // by slot: of its sessions those that strangers have begun
	per   []uint32 // slots by tenant
	mask  uint64
	n     int
	seed  uint64
	log   *undo.Log
}

// twin is a table over the same memory that remembers in l what it writes.
func (h *hosts) twin(l *undo.Log) *hosts {
	c := *h
	c.per, c.log = append([]uint32(nil), h.per...), l
	return &c
}

// A slot of 68 bytes for every 20 to 40 sessions, 1.7 to 3.4 bytes a session. More inside hosts than that at once, all of tenants with a
// per-host limit, are refused under a reason.
const sessionsPerHost = 20

func newHosts(sessions, tenants int, seed uint64) *hosts {
	n := 256
	for 2*n <= sessions/sessionsPerHost {
		n *= 2
	}
	return &hosts{slots: make([]host, n), in: make([]uint32, n), per: make([]uint32, tenants), mask: uint64(n - 1), seed: seed}
}

func (h *hosts) at(t flow.TenantID, family uint8, a *flow.Addr) uint64 {
	return flow.HomeHash(t, family, a, h.seed) & h.mask
}

// find returns the host's slot, nil when it has none.
func (h *hosts) find(t flow.TenantID, family uint8, a *flow.Addr) *host {
	for i := h.at(t, family, a); ; i = (i + 1) & h.mask {
		s := &h.slots[i]
		if s.family == 0 {
			return nil
		}
		if s.family == family && s.tenant == t && s.addr == *a {
			undo.Keep(h.log, s) // the caller may write to it
			return s
		}
	}
}

// get finds or makes a slot; nil when the table is seven eighths full, or the tenant has its share of what of that is free: a tenant with
// IPv6 has more addresses than any table.
func (h *hosts) get(t flow.TenantID, family uint8, a *flow.Addr) *host {
	if s := h.find(t, family, a); s != nil {
		return s
	}
	free := len(h.slots)/8*7 - h.n
	if free <= 0 || int(h.per[t]/shareOf) > free {
		return nil
	}
	i := h.at(t, family, a)
	for h.slots[i].family != 0 {
		i = (i + 1) & h.mask
	}
	s := &h.slots[i]
	undo.Keep(h.log, s)
	undo.Keep(h.log, &h.in[i])
	s.addr, s.tenant, s.family, s.sessions, h.in[i] = *a, t, family, 0, 0
	for _, w := range s.words() {
		w.Store(0)
	}
	h.n++
	h.per[t]++
	return s
}

// place is the number of a slot.
func (h *hosts) place(s *host) uint64 {
	i := h.at(s.tenant, s.family, &s.addr)
	for &h.slots[i] != s {
		i = (i + 1) & h.mask
	}
	return i
}

// strangers counts n sessions more that strangers have begun with a host.
func (h *hosts) strangers(s *host, n int) {
	in := &h.in[h.place(s)]
	undo.Keep(h.log, in)
	*in = uint32(max(0, int(*in)+n))
}

// remove frees a slot and closes the gap that it leaves.
func (h *hosts) remove(s *host) {
	i := h.place(s)
	h.n--
	h.per[s.tenant]--
	for j := (i + 1) & h.mask; h.slots[j].family != 0; j = (j + 1) & h.mask {
		x := &h.slots[j]
		if home := h.at(x.tenant, x.family, &x.addr); (j-home)&h.mask >= (j-i)&h.mask {
			d := &h.slots[i]
			d.addr, d.tenant, d.family, d.sessions, h.in[i] = x.addr, x.tenant, x.family, x.sessions, h.in[j]
			from := x.words()
			for k, w := range d.words() {
				w.Store(from[k].Load())
			}
			i = j
		}
	}
	h.slots[i].family = 0
}

func (s *host) words() [5]*police.Word {
	return [5]*police.Word{&s.rate, &s.bits[0], &s.bits[1], &s.packets[0], &s.packets[1]}
}

// rested reports whether nothing would be different if the host came anew.
func (s *host) rested(now uint64) bool {
	if s.sessions > 0 {
		return false
	}
	for _, w := range s.words() {
		if w.Load() > now*police.UnitsPerNs {
			return false
		}
	}
	return true
}

// insideOf is the inside host of a session.
func insideOf(se *conntrack.Session) (family uint8, a flow.Addr) {
	v6, in := se.Flags&conntrack.FlagV6 != 0, se.Flags&conntrack.FlagFromBackbone != 0
	switch {
	case v6 && in:
		return 6, se.OrigDst
	case v6:
		return 6, se.OrigSrc
	case in:
		copy(a[:4], se.XlatDst[:])
		return 4, a
	}
	return 4, se.OrigSrc
}

// inboundOf is how many of a host's sessions strangers may have begun: three quarters, as of a tenant's.
func inboundOf(sessions uint32) uint32 {
	return max(1, sessions-(sessions+3)/4)
}

// admitHost checks the limits of the inside host.
func (sh *Shard) admitHost(t *snapshot.Tenant, se *conntrack.Session, inbound bool) verdict.Reason {
	if !t.HostLimits {
		return verdict.Pass
	}
	family, a := insideOf(se)
	h := sh.hosts.get(t.ID, family, &a)
	switch {
	case h == nil:
		return verdict.HostTableFull
	case t.HostSessions > 0 && (h.sessions >= t.HostSessions || inbound && sh.hosts.in[sh.hosts.place(h)] >= inboundOf(t.HostSessions)):
		return verdict.HostSessions
	case !takeHostSession(&t.HostRate, &h.rate, sh.now, inbound):
		return verdict.HostSessionRate
	}
	return verdict.Pass
}

// unadmitHost gives back what admitHost took, for a session that was refused after all.
func (sh *Shard) unadmitHost(t *snapshot.Tenant, se *conntrack.Session) {
	if !t.HostLimits {
		return
	}
	family, a := insideOf(se)
	if h := sh.hosts.find(t.ID, family, &a); h != nil {
		t.HostRate.Refund(&h.rate, 1)
	}
}

// countHost notes that the session lives. It is done only where a limit needs it, so the session says whether it was.
func (sh *Shard) countHost(t *snapshot.Tenant, se *conntrack.Session) {
	if !t.HostLimits {
		return
	}
	family, a := insideOf(se)
	if h := sh.hosts.get(t.ID, family, &a); h != nil {
		h.sessions++
		if sh.countedIn = began(se) == meter.In; sh.countedIn {
			sh.hosts.strangers(h, 1)
		}
		sh.counted = h
		se.Flags |= conntrack.FlagCounted
	}
}

// uncountHost is called when a counted session ends. A host without sessions keeps its slot, and with it its rate, until sweepHosts.
func (sh *Shard) uncountHost(se *conntrack.Session) {
	family, a := insideOf(se)
	if h := sh.hosts.find(se.Tenant, family, &a); h != nil && h.sessions > 0 {
		h.sessions--
		if began(se) == meter.In {
			sh.hosts.strangers(h, -1)
		}
	}
}

// takeHost takes one packet of n IP bytes from the rates of the session's inside host in direction d. The host is returned for giveHost.
func (sh *Shard) takeHost(t *snapshot.Tenant, se *conntrack.Session, d meter.Dir, n int, voice bool) (*host, verdict.Reason) {
	take := (*police.Rate).Take
	if voice {
		take = (*police.Rate).TakeVoice
	}
	family, a := insideOf(se)
	h := sh.hosts.get(t.ID, family, &a)
	switch {
	case h == nil: // of a session from before the limit, and the table is full: what was to be limited does not pass unlimited
		return nil, verdict.HostTableFull
	case !take(&t.HostPackets[d], &h.packets[d], sh.now, 1):
		return nil, verdict.HostRatePackets
	case !take(&t.HostBits[d], &h.bits[d], sh.now, n):
		t.HostPackets[d].Refund(&h.packets[d], 1)
		return nil, verdict.HostRateBits
	}
	return h, verdict.Pass
}

// giveHost gives back what takeHost took, for a packet that did not leave.
func (sh *Shard) giveHost(h *host, t *snapshot.Tenant, d meter.Dir, n int) {
	t.HostPackets[d].Refund(&h.packets[d], 1)
	t.HostBits[d].Refund(&h.bits[d], n)
}

// sweepHosts forgets hosts without sessions whose rate words lie in the past: nothing would be different if they came anew.
func (sh *Shard) sweepHosts(budget int) {
	h := sh.hosts
	if h.n == 0 {
		return
	}
	for range min(budget, len(h.slots)) {
		s := &h.slots[sh.hostAt&h.mask]
		if s.family != 0 && s.rested(sh.now) {
			h.remove(s) // another may have moved into this slot: look at it again
			continue
		}
		sh.hostAt++
	}
}
