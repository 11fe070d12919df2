package slowpath

import (
	"net/netip"
	"slices"
)

const (
	defendEvery  = 10 * sec // DEFEND_INTERVAL of RFC 5227 section 1.1
	maxConflicts = 16       // addresses that are remembered
)

// Conflict is another station that uses one of our addresses.
type Conflict struct {
	Iface    uint16
	Addr     netip.Addr
	MAC      [6]byte // of who did it last
	Count    uint64  // times
	LastNs   uint64
	Defended uint64 // times that we told everyone whose it is

	at uint64 // ns: when it was defended last; 0 = never
}

// duplicate notes that another station speaks as one of our addresses. RFC 5227 section 2.4 c: whoever must keep his address says so at most once in
// ten seconds, so that two of that kind do not shout at each other for ever. It is never given up.
func (m *machine) duplicate(f *netif, a netip.Addr, mac [6]byte, now uint64) {
	m.stats.Duplicates++
	c := m.conflict(f.Index, a)
	c.MAC, c.LastNs = mac, now
	c.Count++
	m.complain(&f.complained, now, "another station uses our address", "interface", f.Name, "address", a, "mac", macText(mac), "times", c.Count)
	// As many addresses as are remembered, and no more: of others it is not known whether they have been defended.
	tat := &f.defended[0]
	if f.claims(a) == own { // whoever claims many that are only answered for must not have those of ours go undefended
		tat = &f.defended[1]
	}
	if (c.at == 0 || now-c.at >= defendEvery) && allow(tat, now, defendEvery/maxConflicts, maxConflicts) && m.announceOne(f, a) {
		c.at = max(now, 1)
		c.Defended++
		m.stats.Defended++
	}
}

// conflict finds or makes the note about an address; the oldest goes.
func (m *machine) conflict(iface uint16, a netip.Addr) *Conflict {
	at := slices.IndexFunc(m.clashes, func(c Conflict) bool { return c.Iface == iface && c.Addr == a })
	if at >= 0 {
		return &m.clashes[at]
	}
	if len(m.clashes) < maxConflicts {
		m.clashes = append(m.clashes, Conflict{})
		at = len(m.clashes) - 1
	} else {
		at = 0
		for i := range m.clashes {
			if m.clashes[i].LastNs < m.clashes[at].LastNs {
				at = i
			}
		}
	}
	m.clashes[at] = Conflict{Iface: iface, Addr: a}
	return &m.clashes[at]
}

// wanted notes a station that asks whether it may have one of our addresses. The answer that it gets says no; some switches ask so without wanting it.
func (m *machine) wanted(f *netif, a netip.Addr, mac [6]byte, now uint64) {
	m.stats.Probed++
	m.complain(&f.probed, now, "another station asks whether our address is free", "interface", f.Name, "address", a, "mac", macText(mac))
}
