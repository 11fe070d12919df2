package slowpath

import (
	"net/netip"

	"demarc/gateway/fib"
)

// A router that a route names is looked after whether or not packets go there. One that shares its route with others, or that a group may leave this node for, is asked often, because its
// conversations can go elsewhere: it is dead after lookEvery and three questions at most.
const (
	lookEvery    = 1 * sec
	lookAgain    = 500 * ms
	lookTogether = 64       // asked at once when routes come; the others one after the other,
	lookApart    = 2 * ms   // with this between
	routeEvery   = 10 * sec // how often one router's coming and going is logged
	restoreAfter = 10 * sec // how long one that was dead answers before what stands in for it gives way (ITU-T G.808.1: wait to restore): each time costs what goes there its order
)

// NextHop is a router that routes name.
type NextHop struct {
	Iface uint16
	Addr  netip.Addr
	Often bool          // asked every second: some route has others beside it, or a group may go to another node because of it
	State *fib.HopState // written here and nowhere else
}

type router struct {
	NextHop
	told   uint64 // ns: when a change was last logged; 0 = never
	unsaid int    // changes since that were not
}

// setNextHops replaces the list of routers. Those that do not fit, half the table, are left to the packets that want them.
func (m *machine) setNextHops(list []NextHop, now uint64) {
	old := m.routers
	m.routers = make(map[key]*router, len(list))
	for _, h := range list[:min(len(list), len(m.t.all)/2)] {
		k := keyOf(h.Iface, h.Addr)
		r := old[k]
		if r == nil || r.State != h.State {
			r = &router{}
		}
		if i := m.t.find(&k); i != none && h.Often && !r.Often {
			m.t.arm(i, now) // looked at more often from now on
		}
		r.NextHop = h
		m.routers[k] = r
	}
	for k := range old {
		if i := m.t.find(&k); i != none && m.routers[k] == nil {
			m.t.enlistAs(i, nil)
		}
	}
	m.lookAfter(now)
}

// lookAfter makes the entries of routers that have none. An interface that is not there has no link: when it comes back, who is behind it may be
// another one, and is asked before he counts as alive.
func (m *machine) lookAfter(now uint64) {
	m.unmet = 0
	fresh := uint64(0)
	for k, r := range m.routers {
		f := m.ifaces[k.iface]
		r.State.Link(f != nil, now)
		if f == nil || f.claims(k.addr.Netip(k.family)) == own {
			continue
		}
		i := m.t.find(&k)
		if i == none {
			if !m.makeRoom(true) {
				m.unmet = now + sec
				continue
			}
			i = m.t.add(&k, now)
			e := &m.t.all[i]
			e.wanted, e.state = now, fib.Incomplete
			_, e.host = f.source(k.addr.Netip(k.family))
			m.t.enlist(i, listResolving)
		} else if m.t.all[i].route == r {
			continue
		}
		m.t.enlistAs(i, r)
		switch e := &m.t.all[i]; {
		case e.state == fib.Unreachable:
			m.silent(r, now)
		case e.state == fib.Reachable || e.state == fib.Permanent:
			m.answered(r, now)
		}
		m.t.arm(i, now+fresh/lookTogether*lookTogether*lookApart)
		fresh++
	}
}

// enlistAs makes an entry that of a router, or with nil one like any other.
func (t *entries) enlistAs(i int32, r *router) {
	e := &t.all[i]
	was := e.in
	if e.state == fib.Stale {
		was = listIdle // a router's is in no list
	}
	t.enlist(i, listNone)
	e.route = r
	t.enlist(i, was)
}

// answered and silent note the state of a router.
func (m *machine) answered(r *router, now uint64) {
	was := r.State.Dead()
	if !r.State.Answered(now) {
		return
	}
	if was {
		m.stats.Returned++
		m.tell(r, "next hop answers again", now)
	}
	m.settleOne(r, now)
}

// settle looks whether routers that were dead have answered for long enough.
func (m *machine) settle(now uint64) {
	m.settling = 0
	for _, r := range m.routers {
		if !r.State.Settled() {
			m.settleOne(r, now)
		}
	}
}

// settleOne is called for a router that answers and is not settled, or has not been until now.
func (m *machine) settleOne(r *router, now uint64) {
	at := r.State.Settle(now, restoreAfter)
	if at != 0 && (m.settling == 0 || at < m.settling) {
		m.settling = at
	}
	if r.State.Settled() && m.cfg.Settled != nil {
		m.cfg.Settled(r.Iface, r.Addr)
	}
}

func (m *machine) silent(r *router, now uint64) {
	if r.State.Silent(now) {
		m.stats.Died++
		m.tell(r, "next hop does not answer", now)
	}
}

// tell logs a change of a router, and of one that comes and goes not each time.
func (m *machine) tell(r *router, msg string, now uint64) {
	if r.told != 0 && now-r.told < routeEvery {
		r.unsaid++
		return
	}
	if m.cfg.Log != nil {
		name := ""
		if f := m.ifaces[r.Iface]; f != nil {
			name = f.Name
		}
		m.cfg.Log.Warn(msg, "interface", name, "address", r.Addr, "changes_not_logged", r.unsaid)
	}
	r.told, r.unsaid = max(now, 1), 0
}
