package slowpath

import (
	"fmt"
	"log/slog"
	"net/netip"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"
)

// Times in ns. Those of RFC 4861 section 10 where it has one.
const (
	ms  = uint64(1_000_000)
	sec = 1000 * ms

	retransTimer    = 1 * sec  // RETRANS_TIMER
	maxTries        = 3        // MAX_UNICAST_SOLICIT, MAX_MULTICAST_SOLICIT
	baseReachable   = 30 * sec // REACHABLE_TIME; each time by a random factor of 0.5 to 1.5
	staleLook       = 5 * sec  // DELAY_FIRST_PROBE_TIME: how often a stale entry is looked at for use, and so how late its probe may come
	failedTime      = 3 * sec  // how long a next hop that did not answer is not asked for again
	unusedTime      = 300 * sec
	kernelLook      = 30 * sec // how often the kernel is told that an entry of its own is in use,
	routeKernelLook = 5 * sec  // and that of a router that has others beside it
	lockTime        = 1 * sec  // two stations that answer for one address must not make it flap
	complainEvery   = 60 * sec

	// What leaves one interface at most: a flood of questions, or of packets to addresses that nobody has, is not passed on
	// to the link (RFC 6583 section 6.2).
	askEvery, askBurst       = sec / 1000, 200
	answerEvery, answerBurst = sec / 2000, 500
	// Beside these answers a station's first few, which nobody beside it can use up by himself; of all stations together half as many.
	stationEvery, stationBurst = sec / 10, 8
	firstEvery, firstBurst     = sec / 1000, 250

	// And what one tenant's packets may have asked for: half of an interface's at most, and always a little, whatever others have asked for.
	tenantEvery, tenantBurst = sec / 500, 100
	sureEvery, sureBurst     = sec / 10, 16

	timersPerStep = 256
	maxHostAsks   = 256
)

// hostAsk is a question for the kernel.
type hostAsk struct {
	iface uint16
	addr  netip.Addr
}

// asked is what one tenant has had asked for: theoretical arrival times, see allow.
type asked struct{ all, sure uint64 }

// machine decides. It does no I/O of its own, takes no lock and reads no clock: what it sends goes to Config.Send, and each call says
// what time it is.
type machine struct {
	cfg        Config
	ifaces     map[uint16]*netif
	tenants    []asked      // by id; grows to the highest that has asked
	stations   [1024]uint64 // by interface and MAC, mixed with the seed: theoretical arrival times of answers, see allow
	mix        uint64
	routers    map[key]*router
	settling   uint64 // ns: when to look whether a router that was dead is settled; 0 = none is to be
	unmet      uint64 // ns: when to look again for room for routers that have no entry; 0 = all have
	t          entries
	jobs       []job
	pace       uint64 // ns: no announcement before
	listeners  listeners
	listenPace uint64     // ns: nothing is told to switches before
	records    [][16]byte // what is being told
	rng        uint64
	stats      Stats
	clashes    []Conflict // the last few; bounded
	hostAsks   []hostAsk  // to be asked once the lock is free; bounded
	resolves   int        // how many entries may be failed or resolving at once
	pkt        packet.Packet
	out        [1280]byte
}

func newMachine(c Config) *machine {
	m := &machine{cfg: c, ifaces: map[uint16]*netif{}, rng: c.Seed | 1, hostAsks: make([]hostAsk, 0, maxHostAsks)}
	m.mix = m.rng*0x9e3779b97f4a7c15 | 1
	m.resolves = min(max(c.Capacity/4, 1), c.MaxPending)
	m.t.init(c.Capacity, c.MaxPending, c.FrameBytes)
	return m
}

// jitter is base times a random factor of 0.5 to 1.5, so that neighbours learnt together are not probed together.
func (m *machine) jitter(base uint64) uint64 {
	m.rng ^= m.rng << 13
	m.rng ^= m.rng >> 7
	m.rng ^= m.rng << 17
	return base/2 + m.rng%base
}

// allow is a rate of one per every ns with a burst; tat is its word (GCRA).
func allow(tat *uint64, now, every uint64, burst int) bool {
	t := max(*tat, now)
	if t-now > every*uint64(burst-1) {
		return false
	}
	*tat = t + every
	return true
}

// serves reports whether this node serves a group now. nil is what every node serves.
func (m *machine) serves(g *Group, now uint64) bool {
	return g == nil || m.cfg.May != nil && m.cfg.May(g.ID, now)
}

// send sends a frame as a group, nil = as the node.
func (m *machine) send(f *netif, g *Group, b []byte, sent *uint64) bool {
	id := uint8(0)
	if g != nil {
		id = g.ID
	}
	if !m.cfg.Send(f.Port, id, b) {
		m.stats.SendFull++
		return false
	}
	*sent++
	return true
}

// drop ends a waiting frame.
func (m *machine) drop(b []byte, iface uint16, why verdict.Reason) {
	switch why {
	case verdict.NoNeighbor:
		m.stats.NoNeighbor++
		if m.cfg.Unreachable != nil {
			m.cfg.Unreachable(b, iface, m.t.worker)
		}
		return
	case verdict.NeighborQueueFull:
		m.stats.QueueFull++
	default:
		m.stats.Dropped++
	}
	if m.cfg.Dropped != nil {
		m.cfg.Dropped(b, iface, why)
	}
}

// resolve takes a finished frame whose next hop has no MAC yet, of a packet of tenant by. data may be written to and is the caller's again afterwards.
func (m *machine) resolve(worker int, iface uint16, by flow.TenantID, group, family uint8, hop *flow.Addr, data []byte, now uint64) {
	m.stats.Resolves++
	f := m.ifaces[iface]
	if f == nil {
		m.drop(data, iface, verdict.InterfaceDown)
		return
	}
	k := key{addr: *hop, iface: iface, family: family}
	i := m.t.find(&k)
	if i == none {
		if i = m.start(f, &k, by, now); i == none {
			why := verdict.NeighborQueueFull
			if a := hop.Netip(family); !f.host(a) || f.claims(a) == own {
				why = verdict.NoNeighbor
			}
			m.t.worker = worker
			m.drop(data, iface, why)
			return
		}
	}
	e := &m.t.all[i]
	switch {
	case e.state.Usable(): // answered between the worker's look and ours
		e.wanted = now
		m.forward(f, e, group, data)
		return
	case e.state == fib.Unreachable:
		m.t.worker = worker
		m.drop(data, iface, verdict.NoNeighbor)
		return
	}
	if int(e.waiting) >= m.cfg.QueuePerHop { // RFC 4861 section 7.2.2: the new one replaces the oldest
		m.drop(m.t.take(i), iface, verdict.NeighborQueueFull)
	}
	for !m.t.wait(i, data, worker, group) { // all frames wait: who has the most waiting gives up one of its longest asked-for
		p := m.t.greediest(func(p *party) int { return p.waiting })
		if p == none {
			p = routers
		}
		o := m.t.parties[p].resolving.head
		for m.t.all[o].waiting == 0 {
			o = m.t.all[o].next
		}
		m.drop(m.t.take(o), m.t.all[o].key.iface, verdict.NeighborQueueFull)
	}
}

// want asks for a neighbour that nobody has asked for yet. No frame waits for the answer.
func (m *machine) want(iface uint16, by flow.TenantID, family uint8, hop *flow.Addr, now uint64) {
	k := key{addr: *hop, iface: iface, family: family}
	if f := m.ifaces[iface]; f != nil && m.t.find(&k) == none {
		if i := m.start(f, &k, by, now); i != none {
			m.stats.Wanted++
			m.t.all[i].ahead = true
		}
	}
}

// start makes an entry and asks; none when it may not or there is no room.
func (m *machine) start(f *netif, k *key, by flow.TenantID, now uint64) int32 {
	if !f.host(k.addr.Netip(k.family)) || f.claims(k.addr.Netip(k.family)) == own {
		return none
	}
	if !m.mayAsk(f, by, now) {
		m.stats.RateLimited++
		return none
	}
	m.bound(k.iface, by)
	if !m.makeRoom(true) {
		return none
	}
	i := m.t.add(k, now)
	e := &m.t.all[i]
	e.wanted, e.by = now, by
	_, e.host = f.source(k.addr.Netip(k.family))
	m.ask(i, now)
	return i
}

// mayAsk is the rate of questions: of the interface, and of each tenant whose packets want them. A tenant's first few pass in any case, so
// that nobody is kept from his neighbours by what others scan.
func (m *machine) mayAsk(f *netif, by flow.TenantID, now uint64) bool {
	for len(m.tenants) <= int(by) {
		m.tenants = append(m.tenants, asked{})
	}
	t := &m.tenants[by]
	return allow(&t.sure, now, sureEvery, sureBurst) || allow(&t.all, now, tenantEvery, tenantBurst) && allow(&f.asked, now, askEvery, askBurst)
}

// mayAnswer is the rate of answers: of the interface, and beside it of each station's first ones, by the MAC that its frame came from. Stations that share a word share what is theirs; which do nobody outside can know.
func (m *machine) mayAnswer(f *netif, now uint64) bool {
	k := uint64(f.Index)
	for _, b := range m.pkt.Frame()[6:12] {
		k = k<<8 | uint64(b)
	}
	k = (k ^ k>>29) * m.mix
	k = (k ^ k>>31) * m.mix >> 54
	return allow(&m.stations[k], now, stationEvery, stationBurst) && allow(&f.first, now, firstEvery, firstBurst) || allow(&f.answered, now, answerEvery, answerBurst)
}

// bound sees to it that one more entry may be unanswered. A party may have as many as would still fit, so there is room for one more
// party whoever scans; an interface three quarters of all. Beyond, who has the most gives up his oldest.
func (m *machine) bound(iface uint16, by flow.TenantID) {
	if m.t.unanswered < m.resolves/4 {
		return
	}
	here := 0
	for _, i := range m.t.active[1:] {
		if p := &m.t.parties[i]; p.key.iface == iface {
			here += p.n()
		}
	}
	mine, ok := m.t.byParty[partyKey{iface, by}]
	switch {
	case m.t.unanswered >= m.resolves: // those in use that have fallen silent may be more than that
		m.giveUp(m.t.greediest((*party).n))
	case ok && m.t.parties[mine].n() > m.resolves-m.t.unanswered:
		m.giveUp(mine)
	case here >= m.resolves-m.resolves/4:
		m.giveUp(m.t.greediest(func(p *party) int {
			if p.key.iface != iface {
				return 0
			}
			return p.n()
		}))
	}
}

// giveUp forgets a party's oldest entry, one that failed first.
func (m *machine) giveUp(p int32) {
	if i := m.t.parties[p].failed.head; i != none {
		m.forget(i, verdict.NoNeighbor)
		return
	}
	m.forget(m.t.parties[p].resolving.head, verdict.NeighborQueueFull)
}

// makeRoom sees to it that an entry can be made, never at the cost of one in use (RFC 6583 section 7.1).
func (m *machine) makeRoom(resolving bool) bool {
	if m.t.len() < len(m.t.all) {
		return true
	}
	if p := m.t.greediest(func(p *party) int { return p.failed.n }); p != none {
		m.giveUp(p)
		return true
	}
	for range 32 {
		most := int32(none) // the interface with the most that nobody uses: a flood on one link does not empty another's
		for _, i := range m.t.idlers {
			if most == none || m.t.idle[i].n > m.t.idle[most].n {
				most = i
			}
		}
		if most == none {
			break
		}
		i := m.t.idle[most].head
		if e := &m.t.all[i]; m.cfg.Neighbors.Used(e.key.iface, e.key.family, &e.key.addr, false) {
			m.t.enlist(i, listIdle) // used since it was last looked at: not this one
			continue
		}
		m.forget(i, verdict.NoNeighbor)
		return true
	}
	if p := m.t.greediest(func(p *party) int { return p.resolving.n }); resolving && p != none {
		m.giveUp(p)
		return true
	}
	m.stats.TableFull++
	return false
}

// forget ends an entry; its frames are dropped for the reason given.
func (m *machine) forget(i int32, why verdict.Reason) {
	e := &m.t.all[i]
	for b := m.t.take(i); b != nil; b = m.t.take(i) {
		m.drop(b, e.key.iface, why)
	}
	m.cfg.Neighbors.Delete(e.key.iface, e.key.family, &e.key.addr)
	m.t.remove(i)
}

// ask begins to resolve from nothing: everyone on the link is asked.
func (m *machine) ask(i int32, now uint64) {
	e := &m.t.all[i]
	e.state, e.tries = fib.Incomplete, 0
	m.t.enlist(i, listResolving)
	m.again(i, [6]byte{}, now)
}

// again sends one more question, to mac or, when that is zero, to everyone.
func (m *machine) again(i int32, mac [6]byte, now uint64) {
	e := &m.t.all[i]
	e.tries++
	wait := retransTimer
	if e.route != nil && e.route.Often && e.state == fib.Probe {
		wait = lookAgain
	}
	m.t.arm(i, now+wait)
	f := m.ifaces[e.key.iface]
	a := e.key.addr.Netip(e.key.family)
	src, byKernel := f.source(a)
	var n int
	switch {
	case e.host || byKernel:
		e.host = true
		m.askHost(f, a)
		return
	case e.key.family == 4:
		n = build.ARPRequest(m.out[:], f.MAC, src.As4(), a.As4(), mac, f.VLAN)
	default:
		n = build.NeighborSolicitation(m.out[:], f.MAC, src.As16(), a.As16(), mac, f.VLAN)
	}
	m.send(f, nil, m.out[:n], &m.stats.Solicited)
}

func (m *machine) askHost(f *netif, a netip.Addr) {
	if m.cfg.HostResolve != nil && len(m.hostAsks) < maxHostAsks {
		m.hostAsks = append(m.hostAsks, hostAsk{f.Index, a})
		m.stats.HostAsks++
	}
}

// publish moves an entry to a usable state, sends what waited for it and tells the workers, in this order, so that what waited stays first.
func (m *machine) publish(i int32, state fib.State, mac [6]byte, now uint64) {
	e := &m.t.all[i]
	if e.mac != mac {
		e.mac, e.changed = mac, now
	}
	f := m.ifaces[e.key.iface]
	for b := m.t.take(i); b != nil; b = m.t.take(i) {
		m.forward(f, e, m.t.group, b)
	}
	was := e.state
	e.state, e.tries = state, 0
	to, wait := listNone, m.jitter(baseReachable)
	e.ahead = false
	switch state {
	case fib.Reachable:
		if was != fib.Probe { // who was asked because he is used is in use; a station may answer for all of a /64, and nobody use one of it
			to = listIdle
		}
	case fib.Stale:
		to, wait = listIdle, staleLook
	case fib.Permanent:
		wait = m.kernelLook(e)
	}
	if r := e.route; r != nil {
		switch {
		case state == fib.Stale:
			wait = 0 // it can reach us: do we reach it?
		case state == fib.Reachable || state == fib.Permanent:
			m.answered(r, now)
			if state == fib.Reachable && r.Often {
				wait = lookEvery
			}
		}
	}
	m.t.enlist(i, to)
	m.t.arm(i, now+wait)
	if err := m.cfg.Neighbors.Set(e.key.iface, e.key.family, &e.key.addr, mac, state, now); err != nil {
		m.stats.TableFull++ // cannot be: Capacity is not above that of the table, and this is its one writer
		m.forget(i, verdict.NoNeighbor)
	}
}

// forward sends a frame, of a group's or (0) nobody's, to a neighbour.
func (m *machine) forward(f *netif, e *entry, group uint8, b []byte) {
	copy(b[0:6], e.mac[:])
	if group == 0 { // a group's has its group's MAC already
		copy(b[6:12], f.MAC[:])
	}
	if !m.cfg.Send(f.Port, group, b) {
		m.drop(b, f.Index, verdict.TxRingFull)
		return
	}
	m.stats.Forwarded++
}

// expire runs the timers that are due, a bounded number at a time; more reports that others wait.
func (m *machine) expire(now uint64) (more bool) {
	if m.settling != 0 && now >= m.settling {
		m.settle(now)
	}
	if m.unmet != 0 && now >= m.unmet {
		m.lookAfter(now)
	}
	for range timersPerStep {
		if len(m.t.heap) == 0 || m.t.all[m.t.heap[0]].due > now {
			return false
		}
		m.timer(m.t.heap[0], now)
	}
	return true
}

func (m *machine) timer(i int32, now uint64) {
	e := &m.t.all[i]
	used := e.state.Usable() && m.cfg.Neighbors.Used(e.key.iface, e.key.family, &e.key.addr, true) || e.route != nil
	if used {
		e.wanted = now
	}
	switch e.state {
	case fib.Incomplete:
		if e.tries < maxTries {
			m.again(i, [6]byte{}, now)
			return
		}
		if e.ahead && e.waiting == 0 && e.route == nil { // the first frame asks anew: the way to it may have been down here
			m.forget(i, verdict.NoNeighbor)
			return
		}
		for b := m.t.take(i); b != nil; b = m.t.take(i) {
			m.drop(b, e.key.iface, verdict.NoNeighbor)
		}
		e.state = fib.Unreachable
		m.t.enlist(i, listFailed)
		if e.route != nil { // asked again and again
			m.silent(e.route, now)
			m.t.arm(i, now+lookEvery)
			return
		}
		m.t.arm(i, now+failedTime)
	case fib.Unreachable:
		if e.route != nil {
			m.ask(i, now)
			return
		}
		m.forget(i, verdict.NoNeighbor)
	case fib.Reachable, fib.Stale:
		// RFC 4861 section 7.3.3 lets a used entry be stale until the next packet and then waits for 5 s before the first probe. Here use is seen
		// by looking, so the probe is sent when it is seen.
		switch {
		case used:
			m.publish(i, fib.Probe, e.mac, now)
			m.again(i, e.mac, now)
		case now-max(e.wanted, e.made) >= unusedTime:
			m.forget(i, verdict.NoNeighbor)
		case e.state == fib.Reachable:
			m.publish(i, fib.Stale, e.mac, now)
		default:
			m.t.arm(i, now+staleLook)
		}
	case fib.Probe:
		often := e.route != nil && e.route.Often
		if e.tries < maxTries {
			mac := e.mac
			if often && e.tries == maxTries-1 {
				mac = [6]byte{} // it may have moved: found before it is given up
			}
			m.again(i, mac, now)
			return
		}
		if often {
			m.silent(e.route, now)
		}
		// It may have moved: everyone is asked, and nothing more is sent to the old MAC.
		m.cfg.Neighbors.Delete(e.key.iface, e.key.family, &e.key.addr)
		m.ask(i, now)
	case fib.Permanent:
		if now-max(e.wanted, e.made) >= unusedTime {
			m.forget(i, verdict.NoNeighbor)
			return
		}
		m.t.arm(i, now+m.kernelLook(e))
		if used {
			m.askHost(m.ifaces[e.key.iface], e.key.addr.Netip(e.key.family))
		}
	default:
		m.forget(i, verdict.NoNeighbor)
	}
}

// kernelLook is how often the kernel is told that an entry of its own is in use.
func (m *machine) kernelLook(e *entry) uint64 {
	if e.route != nil && e.route.Often {
		return routeKernelLook
	}
	return kernelLook
}

// learned takes what the kernel knows about a neighbour that it resolves for us.
func (m *machine) learned(iface uint16, a netip.Addr, mac [6]byte, now uint64) {
	a = a.Unmap().WithZone("")
	k := keyOf(iface, a)
	i := m.t.find(&k)
	if i == none || !m.t.all[i].host {
		return
	}
	e := &m.t.all[i]
	switch {
	case mac != [6]byte{}:
		if e.state.Usable() && e.mac == mac {
			e.confirmed = now // the timer stays: it is what sees that nobody uses the entry
			return
		}
		e.confirmed = now
		m.publish(i, fib.Permanent, mac, now)
	case e.route != nil && e.state != fib.Unreachable:
		m.silent(e.route, now)
		m.cfg.Neighbors.Delete(k.iface, k.family, &k.addr)
		m.ask(i, now)
	case e.state.Usable():
		m.forget(i, verdict.NoNeighbor)
	}
}

// complain logs at most once a minute by the word at.
func (m *machine) complain(at *uint64, now uint64, msg string, attrs ...any) {
	if *at != 0 && now-*at < complainEvery {
		return
	}
	*at = max(now, 1)
	if m.cfg.Log != nil {
		m.cfg.Log.Warn(msg, attrs...)
	}
}

func macText(mac [6]byte) slog.Value {
	return slog.StringValue(fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]))
}

// setInterfaces takes the new list. Entries on what is gone or is now another link are forgotten.
func (m *machine) setInterfaces(list []Interface, now uint64) {
	old := m.ifaces
	m.ifaces = make(map[uint16]*netif, len(list))
	m.listeners = nil
	for _, c := range list {
		f := newNetif(c)
		if o := old[c.Index]; o != nil && sameLink(o, f) {
			f.asked, f.answered, f.first, f.defended, f.complained, f.moved, f.probed = o.asked, o.answered, o.first, o.defended, o.complained, o.moved, o.probed
		}
		m.listenAnew(f, old[c.Index], now)
		m.ifaces[c.Index] = f
		m.t.interfaces(c.Index)
	}
	for i := range m.t.all {
		e := &m.t.all[i]
		if e.key.family == 0 {
			continue // free
		}
		o, f := old[e.key.iface], m.ifaces[e.key.iface]
		a := e.key.addr.Netip(e.key.family)
		if f == nil || o == nil || !sameLink(o, f) || f.claims(a) == own {
			m.forget(int32(i), verdict.InterfaceDown)
			continue
		}
		if _, byKernel := f.source(a); byKernel != e.host {
			m.forget(int32(i), verdict.InterfaceDown) // somebody else asks for it from now on
		}
	}
	m.announceNew(old, now)
	m.lookAfter(now)
}

func sameLink(a, b *netif) bool {
	return a.Port == b.Port && a.VLAN == b.VLAN && a.Ifindex == b.Ifindex
}

// shutdown gives up all that waits.
func (m *machine) shutdown() {
	for i := range m.t.all {
		if m.t.all[i].key.family == 0 {
			continue // free
		}
		for b := m.t.take(int32(i)); b != nil; b = m.t.take(int32(i)) {
			m.drop(b, m.t.all[i].key.iface, verdict.Shutdown)
		}
	}
}

// next is when something is due, ^0 when nothing is.
func (m *machine) next() uint64 {
	at := ^uint64(0)
	if m.settling != 0 {
		at = m.settling
	}
	if m.unmet != 0 && m.unmet < at {
		at = m.unmet
	}
	if len(m.listeners) > 0 {
		at = min(at, max(m.listeners[0].listen.at, m.listenPace))
	}
	if len(m.t.heap) > 0 {
		at = min(at, m.t.all[m.t.heap[0]].due)
	}
	for i := range m.jobs {
		at = min(at, max(m.jobs[i].due, m.pace))
	}
	return at
}
