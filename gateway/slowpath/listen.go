package slowpath

import (
	"container/heap"
	"maps"
	"net/netip"
	"slices"

	"demarc/gateway/packet/build"
)

// A switch that prunes what nobody listens to (MLD snooping, RFC 4541 section 3) must know that the solicited-node groups of our addresses are listened to here: else it keeps hosts' first question for them from us.
// It is told when an address comes to be ours, and from time to time, whether anybody asks or not. Of addresses that the kernel has too it is told here as well: no query reaches the kernel on a port of ours.
const (
	listenEvery  = 40 * sec    // by a random factor of 0.5 to 1.5: what a switch has noted ends after 260 s (RFC 3810 section 9.4), and somewhat over a minute where its querier is as fast as they get
	listenAgain  = 2 * sec / 3 // likewise: Unsolicited Report Interval (section 9.11)
	listenTwice  = 2           // Robustness Variable (section 9.1)
	listenFull   = 100 * ms    // until the next try where a port has no room
	listenBurst  = 8           // frames each announcePace
	listenGroups = 50          // records of a frame: it fits the least MTU of IPv6
)

// listener is what an interface's switches are told, and when.
type listener struct {
	at    uint64    // ns: next
	joins int       // how often more as news
	part  int       // what comes next then: 0 = as the node, else as Groups[part-1]
	told  [4]uint64 // ids of groups that were told as served, a bit each
	place int       // in listeners
}

// listeners is a heap of interfaces, who is due first in front.
type listeners []*netif

func (l listeners) Len() int           { return len(l) }
func (l listeners) Less(i, j int) bool { return l[i].listen.at < l[j].listen.at }
func (l listeners) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].listen.place, l[j].listen.place = i, j
}
func (l *listeners) Push(x any) {
	f := x.(*netif)
	f.listen.place = len(*l)
	*l = append(*l, f)
}
func (l *listeners) Pop() any {
	last := len(*l) - 1
	f := (*l)[last]
	*l = (*l)[:last]
	return f
}

// addresses6 lists the IPv6 addresses that are answered for on an interface as the node, by whomever, or as a group.
func (f *netif) addresses6(g *Group) (list []netip.Addr) {
	if g != nil {
		for _, a := range g.Addrs {
			if a.Is6() {
				list = append(list, a)
			}
		}
		return list
	}
	for _, p := range f.Addrs {
		if a := p.Addr().Unmap(); a.Is6() {
			list = append(list, a)
		}
	}
	for _, a := range f.HostShared {
		if a.Is6() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	if !slices.Contains(list, f.linkLocal) {
		list = append(list, f.linkLocal)
	}
	return list
}

// listening says which IPv6 addresses an interface answers for, and as which group: 0 = as the node.
func (f *netif) listening() map[netip.Addr]uint8 {
	out := map[netip.Addr]uint8{}
	for i := range f.Groups {
		for _, a := range f.addresses6(&f.Groups[i]) {
			out[a] = f.Groups[i].ID
		}
	}
	for _, a := range f.addresses6(nil) {
		out[a] = 0
	}
	return out
}

// listenAnew has an interface's switches be told where it answers for other addresses than it did before, nil = for none.
func (m *machine) listenAnew(f, old *netif, now uint64) {
	if old != nil && sameLink(old, f) && old.MAC == f.MAC && maps.Equal(old.listening(), f.listening()) {
		f.listen = old.listen
		f.listen.part = 0 // groups may stand in another order
	} else {
		f.listen = listener{at: now, joins: listenTwice}
	}
	heap.Push(&m.listeners, f)
}

// listenGroup has switches be told of a group's addresses where this node has begun to serve it since they were told last.
func (m *machine) listenGroup(id uint8, now uint64) {
	for _, f := range m.ifaces {
		for i := range f.Groups {
			g := &f.Groups[i]
			if g.ID == id && f.listen.told[id/64]>>(id%64)&1 == 0 && m.serves(g, now) && len(f.addresses6(g)) > 0 {
				f.listen.at, f.listen.joins, f.listen.part = now, listenTwice, 0
				heap.Fix(&m.listeners, f.listen.place)
			}
		}
	}
}

// listen tells switches what is due, a few frames at a time.
func (m *machine) listen(now uint64) {
	if now < m.listenPace {
		return
	}
	for left := listenBurst; left > 0 && len(m.listeners) > 0 && m.listeners[0].listen.at <= now; {
		left -= m.listens(m.listeners[0], left, now)
		heap.Fix(&m.listeners, 0)
		m.listenPace = now + announcePace
	}
}

// listens sends at most so many frames of what there is to say on an interface, from where it stopped: as the node, and as each group that is served here. It says how many, and sets when it is the interface's turn again.
func (m *machine) listens(f *netif, most int, now uint64) (sent int) {
	l := &f.listen
	for ; l.part <= len(f.Groups); l.part++ {
		var g *Group
		if l.part > 0 {
			g = &f.Groups[l.part-1]
			word, bit := &l.told[g.ID/64], uint64(1)<<(g.ID%64)
			if !m.serves(g, now) {
				*word &^= bit
				continue
			}
			*word |= bit
		}
		m.records = m.records[:0]
		for _, a := range f.addresses6(g) {
			if to, _ := build.SolicitedNode(a.As16()); !slices.Contains(m.records, to) {
				m.records = append(m.records, to)
			}
		}
		frames := (len(m.records) + listenGroups - 1) / listenGroups
		if sent > 0 && sent+frames > most {
			l.at = now + announcePace
			return sent
		}
		for list := range slices.Chunk(m.records, listenGroups) {
			if sent++; !m.report(f, g, list) {
				l.at = now + listenFull // this part again
				return sent
			}
		}
	}
	l.part = 0
	if l.joins > 1 {
		l.joins--
		l.at = now + m.jitter(listenAgain)
	} else {
		l.joins = 0
		l.at = now + m.jitter(listenEvery)
	}
	return max(sent, 1)
}

// report tells of multicast groups as a group, nil = as the node.
func (m *machine) report(f *netif, g *Group, list [][16]byte) bool {
	src, mac := f.linkLocal, f.MAC
	if g != nil {
		src, mac = netip.IPv6Unspecified(), g.MAC6 // RFC 3810 section 5.2.13, where it has no link-local address
		if i := slices.IndexFunc(g.Addrs, netip.Addr.IsLinkLocalUnicast); i >= 0 {
			src = g.Addrs[i]
		}
	}
	n := build.MLDReport(m.out[:], mac, src.As16(), list, f.listen.joins > 0, f.VLAN)
	return m.send(f, g, m.out[:n], &m.stats.Listens)
}
