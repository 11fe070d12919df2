package block

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
)

// Max is how many entries a List may have.
const Max = 1024

// Hits counts dropped packets: one word a worker, each on its own line.
type Hits struct{ per []hit }

type hit struct {
	n atomic.Uint64 // worker: rw, others: ro
	_ [56]byte
}

// NewHits makes counters for so many workers.
func NewHits(workers int) *Hits { return &Hits{per: make([]hit, workers)} }

// Sum is the hits of all workers.
func (h *Hits) Sum() (n uint64) {
	for i := range h.per {
		n += h.per[i].n.Load()
	}
	return n
}

// Entry is one address or prefix that is blocked, as source and as destination.
type Entry struct {
	Prefix netip.Prefix
	Any    bool          // on every side, else
	Zone   flow.TenantID // as this side sees it
	Until  uint64        // ns of the clock that Match is given
	Hits   *Hits
}

// List answers whether an address is blocked.
type List struct {
	entries []Entry
	any     *fib.Table // of entries with Any, all in zone 0; nil = none
	zoned   *fib.Table // of the others
	quiet   bool       // counts nothing
}

// Compile makes a List. No entries give nil, which is what readers compare with. Of equal prefixes on one side the last is taken.
func Compile(entries []Entry) (*List, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	if len(entries) > Max {
		return nil, fmt.Errorf("%d blocks, at most %d", len(entries), Max)
	}
	l := &List{entries: append([]Entry(nil), entries...)}
	hops := make([]fib.NextHop, len(entries))
	var any, zoned []fib.Route
	for i := range l.entries {
		e := &l.entries[i]
		hops[i].Discard = true
		// The longest prefix answers for those that contain it, so it must last as long as the longest-lived of them.
		for _, o := range entries {
			if o.Any == e.Any && o.Zone == e.Zone && o.Prefix.Bits() <= e.Prefix.Bits() && o.Prefix.Contains(e.Prefix.Addr()) {
				e.Until = max(e.Until, o.Until)
			}
		}
		r := fib.Route{Zone: e.Zone, Prefix: e.Prefix, NextHop: uint16(i)}
		to := &zoned
		if e.Any {
			r.Zone, to = 0, &any
		}
		*to = append(*to, r)
	}
	var err error
	if len(any) > 0 {
		if l.any, err = fib.Compile(any, hops); err != nil {
			return nil, err
		}
	}
	if len(zoned) > 0 {
		if l.zoned, err = fib.Compile(zoned, hops); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Quiet is the same list for who only asks: it counts nothing.
func (l *List) Quiet() *List {
	if l == nil {
		return nil
	}
	q := *l
	q.quiet = true
	return &q
}

// Match reports whether a is blocked in zone at now, and counts it for worker w.
func (l *List) Match(zone flow.TenantID, family uint8, a *flow.Addr, now uint64, w int) bool {
	if l.any != nil {
		if i, ok := l.any.Lookup(0, family, a); ok && l.hit(i, now, w) {
			return true
		}
	}
	if l.zoned != nil {
		if i, ok := l.zoned.Lookup(zone, family, a); ok && l.hit(i, now, w) {
			return true
		}
	}
	return false
}

func (l *List) hit(i uint16, now uint64, w int) bool {
	e := &l.entries[i]
	if e.Until <= now {
		return false
	}
	if !l.quiet {
		e.Hits.per[w].n.Add(1)
	}
	return true
}
