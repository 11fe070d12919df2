package slowpath

import (
	"net/netip"

	"demarc/gateway/packet/build"
)

const (
	announceRounds = 3
	announceGap    = 1 * sec // between the end of a round and the next; doubles
	announcePace   = 10 * ms
	announceBurst  = 8       // frames each pace: 800 a second
	announceMost   = 1 << 16 // addresses of one prefix; what is larger is not announced but found by asking
	announceRetry  = 500     // paces without room to send, after which a job is given up
)

var (
	allNodes    = [16]byte{0: 0xff, 1: 0x02, 15: 1} // ff02::1
	allNodesMAC = [6]byte{0x33, 0x33, 0, 0, 0, 1}
)

// job announces the addresses of one prefix on one interface, so that neighbours that remember another MAC forget it at once.
type job struct {
	iface  uint16
	prefix netip.Prefix // all of its addresses
	next   netip.Addr
	round  int
	missed int
	due    uint64
}

// wants lists what an interface announces: its own addresses and those it answers for, each as a prefix.
func (f *netif) wants(yield func(netip.Prefix) bool) {
	one := func(a netip.Addr) bool { return f.shared[a] || yield(netip.PrefixFrom(a, a.BitLen())) }
	for _, p := range f.Addrs {
		if !one(p.Addr().Unmap()) {
			return
		}
	}
	if !one(f.linkLocal) {
		return
	}
	for _, p := range f.Proxy {
		if p.Addr().BitLen()-p.Bits() <= 16 && !yield(p.Masked()) {
			return
		}
	}
}

// announceNew makes jobs for what is answered for now and was not before, and ends those of what is not any more.
func (m *machine) announceNew(old map[uint16]*netif, now uint64) {
	keep := m.jobs[:0]
	for _, j := range m.jobs {
		o, f := old[j.iface], m.ifaces[j.iface]
		if f != nil && o != nil && f.MAC == o.MAC && sameLink(f, o) && f.has(j.prefix) {
			keep = append(keep, j)
		}
	}
	m.jobs = keep
	for _, f := range m.ifaces {
		o := old[f.Index]
		f.wants(func(p netip.Prefix) bool {
			if o == nil || o.MAC != f.MAC || !sameLink(o, f) || !o.has(p) {
				m.jobs = append(m.jobs, job{iface: f.Index, prefix: p, next: p.Addr(), due: now})
			}
			return true
		})
	}
}

func (f *netif) has(p netip.Prefix) (found bool) {
	f.wants(func(q netip.Prefix) bool { found = p == q; return !found })
	return found
}

// announce sends the next few frames that are due.
func (m *machine) announce(now uint64) {
	if len(m.jobs) == 0 || now < m.pace {
		return
	}
	keep := m.jobs[:0]
	sent := 0
	for _, j := range m.jobs {
		f := m.ifaces[j.iface]
		for sent < announceBurst && j.due <= now && j.round < announceRounds {
			if !f.shared[j.next] && !m.announceOne(f, j.next) {
				j.missed++
				sent = announceBurst // no room: later
				break
			}
			sent++
			if j.next = j.next.Next(); !j.next.IsValid() || !j.prefix.Contains(j.next) {
				j.due = now + announceGap<<j.round
				j.next, j.round, j.missed = j.prefix.Addr(), j.round+1, 0
			}
		}
		if j.round < announceRounds && j.missed < announceRetry {
			keep = append(keep, j)
		}
	}
	m.jobs = keep
	if sent > 0 {
		m.pace = now + announcePace
	}
}

func (m *machine) announceOne(f *netif, a netip.Addr) bool {
	var n int
	if a.Is4() {
		n = build.ARPRequest(m.out[:], f.MAC, a.As4(), a.As4(), [6]byte{}, f.VLAN) // RFC 5227 section 2.3
	} else {
		n = build.NeighborAdvertisement(m.out[:], f.MAC, a.As16(), allNodesMAC, allNodes, a.As16(), false, true, f.VLAN) // RFC 4861 section 7.2.6
	}
	return m.send(f, m.out[:n], &m.stats.Announced)
}
