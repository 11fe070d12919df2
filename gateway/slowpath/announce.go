package slowpath

import (
	"maps"
	"net/netip"
	"slices"

	"demarc/gateway/packet/build"
)

const (
	announceRounds = 3
	announceGap    = 1 * sec // between the end of a round and the next; doubles
	announcePace   = 10 * ms
	announceBurst  = 8       // frames each pace: 800 a second
	announceMost   = 1 << 16 // addresses of one prefix; what is larger is not announced but found by asking
	announceRetry  = 500     // paces without room to send, after which a job is given up
	moveBurst      = 64      // frames each pace that move switches to where a group is now
)

var (
	allNodes    = [16]byte{0: 0xff, 1: 0x02, 15: 1} // ff02::1
	allNodesMAC = [6]byte{0x33, 0x33, 0, 0, 0, 1}
)

// job announces the addresses of one prefix on one interface, so that neighbours that remember another MAC forget it at once.
type job struct {
	iface  uint16
	group  uint8        // 0 = the node's own
	move   bool         // the first of a group's frames from one of its MACs on an interface: it moves the switches
	prefix netip.Prefix // all of its addresses
	next   netip.Addr
	round  int
	missed int
	due    uint64
}

// wants lists what an interface announces: its own addresses and those it answers for, each as a prefix, then those of groups.
func (f *netif) wants(yield func(netip.Prefix, *Group) bool) {
	one := func(a netip.Addr) bool { return f.shared[a] || yield(netip.PrefixFrom(a, a.BitLen()), nil) }
	for _, p := range f.Addrs {
		if !one(p.Addr().Unmap()) {
			return
		}
	}
	if !one(f.linkLocal) {
		return
	}
	for _, p := range f.Proxy {
		if p.Addr().BitLen()-p.Bits() <= 16 && !yield(p.Masked(), nil) {
			return
		}
	}
	for i := range f.Groups {
		if !f.wantsOf(&f.Groups[i], yield) {
			return
		}
	}
}

// wantsOf lists what a group has here: virtual addresses first, for hosts are waiting.
func (f *netif) wantsOf(g *Group, yield func(netip.Prefix, *Group) bool) bool {
	for _, list := range [][]netip.Addr{g.Addrs, g.Proxy} {
		for _, a := range list {
			if !yield(netip.PrefixFrom(a, a.BitLen()), g) {
				return false
			}
		}
	}
	return true
}

// announced is what identifies a job.
type announced struct {
	iface  uint16
	group  uint8
	prefix netip.Prefix
}

// has reports what an interface announces.
func (f *netif) has() map[announced][6]byte {
	out := map[announced][6]byte{}
	f.wants(func(p netip.Prefix, g *Group) bool {
		mac, id := f.MAC, uint8(0)
		if g != nil {
			_, mac = f.from(p.Addr())
			id = g.ID
		}
		out[announced{f.Index, id, p}] = mac
		return true
	})
	return out
}

// announceNew makes jobs for what is answered for now and was not before, and ends those of what is not any more. Of groups that this node does not serve
// it makes none: who begins to serve one announces all of it.
func (m *machine) announceNew(old map[uint16]*netif, now uint64) {
	was, is := map[announced][6]byte{}, map[announced][6]byte{}
	for _, f := range m.ifaces {
		maps.Copy(is, f.has())
		if o := old[f.Index]; o != nil && sameLink(o, f) {
			maps.Copy(was, o.has())
		}
	}
	same := func(k announced) bool {
		then, ok := was[k]
		mac, still := is[k]
		return ok && still && then == mac
	}
	m.jobs = slices.DeleteFunc(m.jobs, func(j job) bool { return !same(announced{j.iface, j.group, j.prefix}) })
	for _, f := range m.ifaces {
		f.wants(func(p netip.Prefix, g *Group) bool {
			k := announced{iface: f.Index, prefix: p}
			if g != nil {
				k.group = g.ID
			}
			if !same(k) && m.serves(g, now) {
				m.jobs = append(m.jobs, job{iface: f.Index, group: k.group, prefix: p, next: p.Addr(), due: now})
			}
			return true
		})
	}
}

// announceGroup makes one round of jobs for all that a group has anywhere: first, on each interface, a frame from each of its MACs, which moves the switches; then
// its other virtual addresses, then NAT addresses. What is still under way of an earlier round goes on.
func (m *machine) announceGroup(id uint8, now uint64) {
	var first, then, last []job
	under := map[announced]bool{}
	for _, j := range m.jobs {
		if j.group == id {
			under[announced{j.iface, j.group, j.prefix}] = true
		}
	}
	again := map[announced]bool{} // virtual addresses: from the beginning
	for _, n := range slices.Sorted(maps.Keys(m.ifaces)) {
		f := m.ifaces[n]
		for i := range f.Groups {
			g := &f.Groups[i]
			if g.ID != id || !m.serves(g, now) {
				continue
			}
			moved := map[[6]byte]bool{}
			f.wantsOf(g, func(p netip.Prefix, _ *Group) bool {
				_, mac := f.from(p.Addr())
				j := job{iface: n, group: id, move: !moved[mac], prefix: p, next: p.Addr(), round: announceRounds - 1, due: now}
				k := announced{n, id, p}
				switch {
				case j.move:
					first = append(first, j)
					again[k] = true
				case f.virtual[p.Addr()].is == own:
					then = append(then, j)
					again[k] = true
				case !under[k]:
					last = append(last, j)
				}
				moved[mac] = true
				return true
			})
		}
	}
	rest := slices.DeleteFunc(m.jobs, func(j job) bool { return again[announced{j.iface, j.group, j.prefix}] })
	m.jobs = slices.Concat(first, then, rest, last)
	if len(first) > 0 {
		m.pace = min(m.pace, now) // hosts are waiting for these
	}
	m.listenGroup(id, now)
}

// announce sends the next few frames that are due. A frame of a group is sent only while this node serves that, which is looked at for each.
func (m *machine) announce(now uint64) {
	if len(m.jobs) == 0 || now < m.pace {
		return
	}
	keep := m.jobs[:0]
	sent, most := 0, announceBurst
	for _, j := range m.jobs {
		f := m.ifaces[j.iface]
		if j.move {
			most = moveBurst
		} else {
			most = announceBurst
		}
		for sent < most && j.due <= now && j.round < announceRounds {
			g, _ := f.from(j.next)
			if g != nil && (g.ID != j.group || !m.serves(g, now)) || g == nil && j.group != 0 {
				j.round = announceRounds // another node's now
				break
			}
			if !f.shared[j.next] && !m.announceOne(f, j.next) {
				j.missed++
				sent = moveBurst // no room: later
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
	g, mac := f.from(a)
	if a.Is4() {
		// RFC 5227 section 2.3, and section 3 for why it is a request: what everybody handles is a request, while answers to no question are dropped by some.
		// RFC 9568 section 6.4.1 leaves the form of a group's open.
		n = build.ARPRequest(m.out[:], mac, a.As4(), a.As4(), [6]byte{}, f.VLAN)
	} else {
		n = build.NeighborAdvertisement(m.out[:], mac, a.As16(), allNodesMAC, allNodes, a.As16(), false, true, f.VLAN) // RFC 4861 section 7.2.6
	}
	return m.send(f, g, m.out[:n], &m.stats.Announced)
}
