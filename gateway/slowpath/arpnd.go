package slowpath

import (
	"net/netip"

	"demarc/gateway/fib"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"
)

// learn takes an ARP or neighbour discovery frame, as received on iface.
func (m *machine) learn(iface uint16, data []byte, now uint64) {
	m.stats.Learned++
	f := m.ifaces[iface]
	if f == nil {
		m.stats.Ignored++
		return
	}
	m.pkt = packet.Packet{Buf: data, Len: len(data)}
	if r := packet.Parse(&m.pkt); r != verdict.Pass {
		m.stats.Malformed++
		return
	}
	if m.pkt.Flags&packet.FlagARP != 0 {
		if a, ok := build.ParseARP(&m.pkt); ok {
			m.arp(f, &a, now)
			return
		}
	} else if nd, ok := build.ParseND(&m.pkt); ok {
		switch nd.Type {
		case packet.ICMP6NeighborSolicit:
			m.solicitation(f, &nd, now)
		case packet.ICMP6NeighborAdvert:
			m.advertisement(f, &nd, now)
		default:
			m.stats.Ignored++ // we are a router: RFC 4861 sections 6.2.6 and 8.3
		}
		return
	}
	m.stats.Malformed++
}

// arp is RFC 826's packet reception, with what RFC 5227 says about conflicts.
func (m *machine) arp(f *netif, a *build.ARP, now uint64) {
	spa, tpa := netip.AddrFrom4(a.SPA), netip.AddrFrom4(a.TPA)
	if f.sends(a.SHA) {
		m.stats.Ignored++ // our own, come back, or the kernel's; or the node's that serves the group
		return
	}
	if c := f.claims(spa); c != foreign {
		if c == hosts || !m.serves(f.virtual[spa].group, now) {
			m.stats.Ignored++ // the kernel sees to its own, and who serves a group to that
			return
		}
		m.duplicate(f, spa, a.SHA, now)
		return
	}
	c := f.claims(tpa)
	g, as := f.from(tpa)
	ours := (c == own || c == proxied) && m.serves(g, now)
	solicited := a.Op == build.ARPOpReply && ours
	k := keyOf(f.Index, spa)
	i := m.t.find(&k)
	news := false
	switch {
	case spa.IsUnspecified():
		if ours && a.Op == build.ARPOpRequest {
			m.wanted(f, tpa, a.SHA, now) // RFC 5227 section 2.1.1
		}
	case i != none:
		news = m.heard(f, i, a.SHA, solicited, a.SPA == a.TPA, now)
	case ours && a.Op == build.ARPOpRequest:
		m.meet(f, &k, a.SHA, now)
	}
	if a.Op != build.ARPOpRequest || !ours {
		if !news {
			m.stats.Ignored++
		}
		return
	}
	if !m.mayAnswer(f, now) {
		m.stats.RateLimited++
		return
	}
	n := build.ARPReply(m.out[:], as, a.TPA, a.SHA, a.SPA, f.VLAN)
	m.send(f, g, m.out[:n], &m.stats.Replies)
}

// heard takes what ARP says of a neighbour, and reports whether that was news. solicited: it answered us. announced: it speaks of itself to everyone.
func (m *machine) heard(f *netif, i int32, mac [6]byte, solicited, announced bool, now uint64) bool {
	e := &m.t.all[i]
	moved := e.state.Usable() && e.mac != mac
	switch {
	case e.host: // the kernel knows better
		return false
	case moved && !announced && now-e.changed < lockTime:
		return false
	case solicited:
		m.moved(f, e, mac, moved, now)
		e.confirmed = now
		m.publish(i, fib.Reachable, mac, now)
	case moved || !e.state.Usable():
		m.moved(f, e, mac, moved, now)
		m.publish(i, fib.Stale, mac, now) // it can reach us; whether we reach it is seen when it is used
	default:
		return false
	}
	return true
}

func (m *machine) moved(f *netif, e *entry, mac [6]byte, moved bool, now uint64) {
	if !moved {
		return
	}
	m.stats.MACChanges++
	m.complain(&f.moved, now, "neighbour moved to another mac", "interface", f.Name, "address", e.key.addr.Netip(e.key.family), "from", macText(e.mac), "mac", macText(mac))
}

// meet makes an entry for a neighbour that asked for us: it will want an answer soon.
func (m *machine) meet(f *netif, k *key, mac [6]byte, now uint64) {
	a := k.addr.Netip(k.family)
	if !f.onLink(a) || !f.host(a) {
		return
	}
	if _, byKernel := f.source(a); byKernel || !m.makeRoom(false) {
		return
	}
	i := m.t.add(k, now)
	m.publish(i, fib.Stale, mac, now)
}

// solicitation is RFC 4861 section 7.2.3 and 7.2.4.
func (m *machine) solicitation(f *netif, n *build.ND, now uint64) {
	src, target := netip.AddrFrom16(n.Src), netip.AddrFrom16(n.Target)
	from := [6]byte(m.pkt.Frame()[6:12])
	if f.sends(from) || n.HasLLA && f.sends(n.LLA) {
		m.stats.Ignored++
		return
	}
	c := f.claims(target)
	g, as := f.from(target)
	if c != own && c != proxied || !m.serves(g, now) {
		m.stats.Ignored++
		return
	}
	probe := src.IsUnspecified() // somebody wants the address for itself: RFC 4862 section 5.4.3
	if probe {
		m.wanted(f, target, from, now)
	} else {
		switch f.claims(src) {
		case hosts:
			m.stats.Ignored++
			return
		case own, proxied:
			if !m.serves(f.virtual[src].group, now) {
				m.stats.Ignored++
				return
			}
			m.duplicate(f, src, from, now)
			return
		}
	}
	if !m.mayAnswer(f, now) {
		m.stats.RateLimited++
		return
	}
	to, dst := from, n.Src
	switch {
	case probe:
		to, dst = allNodesMAC, allNodes
	case n.HasLLA:
		to = n.LLA
		k := keyOf(f.Index, src)
		if i := m.t.find(&k); i == none {
			m.meet(f, &k, n.LLA, now)
		} else if e := &m.t.all[i]; !e.host && (!e.state.Usable() || e.mac != n.LLA) {
			m.moved(f, e, n.LLA, e.state.Usable(), now)
			m.publish(i, fib.Stale, n.LLA, now)
		}
	}
	// Section 7.2.4: for an address that is only answered for, override is not set.
	l := build.NeighborAdvertisement(m.out[:], as, n.Target, to, dst, n.Target, !probe, c == own, f.VLAN)
	m.send(f, g, m.out[:l], &m.stats.Replies)
}

// advertisement is RFC 4861 section 7.2.5.
func (m *machine) advertisement(f *netif, n *build.ND, now uint64) {
	target := netip.AddrFrom16(n.Target)
	from := [6]byte(m.pkt.Frame()[6:12])
	if f.sends(from) || n.HasLLA && f.sends(n.LLA) {
		m.stats.Ignored++
		return
	}
	if c := f.claims(target); c != foreign {
		if c == hosts || !m.serves(f.virtual[target].group, now) {
			m.stats.Ignored++
			return
		}
		if n.HasLLA {
			from = n.LLA
		}
		m.duplicate(f, target, from, now)
		return
	}
	k := keyOf(f.Index, target)
	i := m.t.find(&k)
	if i == none || m.t.all[i].host {
		m.stats.Ignored++
		return
	}
	e := &m.t.all[i]
	state := fib.Stale
	if n.Solicited {
		state = fib.Reachable
	}
	switch {
	case !e.state.Usable():
		if !n.HasLLA {
			m.stats.Ignored++
			return
		}
	case n.HasLLA && n.LLA != e.mac && !n.Override:
		if e.state == fib.Reachable {
			m.publish(i, fib.Stale, e.mac, now) // somebody differs: find out
		}
		return
	case !n.HasLLA || n.LLA == e.mac:
		if !n.Solicited {
			return // says nothing about the way to it
		}
		n.LLA = e.mac
	default:
		m.moved(f, e, n.LLA, true, now)
	}
	if n.Solicited {
		e.confirmed = now
	}
	m.publish(i, state, n.LLA, now)
}
