package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/failover"
	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/cruise"
	"demarc/gateway/flow"
	"demarc/gateway/frag"
	"demarc/gateway/hostnet"
	"demarc/gateway/lease"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/portprep"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

// port is one network device of the node. What portFacts holds is read by reports under linkMu alone, and written under mu and linkMu.
type port struct {
	cfg    configs.Port
	asked  xsk.Mode
	prog   *xsk.Program
	loaded xsk.ProgramConfig     // what prog was made of
	locks  []io.Closer           // see lock
	heard  map[[6]byte]io.Closer // virtual MACs that the device receives; see hear
	served compiled              // what the view took from it; under mu
	prep   *portprep.Port        // nil with prepare = false, and before it was prepared
	ready  int                   // number of the device that was prepared or judged
	dead   atomic.Bool           // the last event of its device said that it carries nothing; what follows from an event may have to wait for mu
	portFacts
}

type portFacts struct {
	link    hostnet.Link // Index is 0 while the device is gone; the rest is then what it was
	state   string       // see portlife.go
	bare    bool         // somebody took the XDP program off
	problem string       // why the port is not open
	fenced  time.Time    // since when it is closed because a lease ended; zero = it is open, or closed for another reason
	mode    xsk.Mode     // decided
	why     string       // why not zero-copy
	native  bool
	queues  []queue
	off     portOffload

	second    *cruise.Program // nil until the port is opened with offload; for the sockets secondFor
	secondFor any

	changes  []portprep.Change // of the device's settings
	warnings []string
}

type queue struct {
	n      int
	worker int
	sock   *xsk.Socket // nil while the port is not open
}

// facts is a copy of what a report needs.
func (g *Gateway) facts(p *port) portFacts {
	g.linkMu.Lock()
	defer g.linkMu.Unlock()
	return p.portFacts
}

// change writes facts. The caller holds mu, or is New or the start.
func (g *Gateway) change(p *port, fn func()) {
	g.linkMu.Lock()
	defer g.linkMu.Unlock()
	fn()
}

// findPorts looks every device up. It changes nothing.
func (g *Gateway) findPorts() error {
	var errs []error
	for _, c := range g.o.Node.Ports {
		l, err := hostnet.LinkByName(c.Device)
		if err != nil {
			errs = append(errs, fmt.Errorf("port %s: device %s: %w: name a device that `ip link` shows", c.Name, c.Device, err))
			continue
		}
		m, err := xsk.ParseMode(c.Mode)
		if err != nil {
			errs = append(errs, fmt.Errorf("port %s: %w", c.Name, err))
			continue
		}
		p := &port{cfg: c, asked: m, portFacts: portFacts{link: l, state: portClosed}}
		errs = append(errs, g.admit(c, l), ofPort(c.Name, g.foreseePort(p)))
		g.ports = append(g.ports, p)
	}
	return errors.Join(errs...)
}

// admit says what of a device stands against it as a port: at start, and when it has come back.
func (g *Gateway) admit(c configs.Port, l hostnet.Link) error {
	var errs []error
	if !l.Up {
		errs = append(errs, fmt.Errorf("port %s: device %s is down: ip link set %s up", c.Name, c.Device, c.Device))
	}
	if l.MTU > maxMTU {
		errs = append(errs, fmt.Errorf("port %s: mtu %d is more than %d, which is what one frame of packet memory holds: ip link set %s mtu %d", c.Name, l.MTU, maxMTU, c.Device, maxMTU))
	}
	return errors.Join(errs...)
}

// Room in a chunk of packet memory: what XDP keeps before the frame, and Ethernet with a tag.
const (
	smallChunk = 2048
	largeChunk = 4096
	headroom   = 256
	linkHeader = 18
	maxMTU     = configs.MaxMTU
)

// trunk reports whether a port carries VLAN tags.
func (g *Gateway) trunk(name string) bool {
	return slices.ContainsFunc(g.o.Node.Interfaces, func(i configs.Interface) bool { return i.Port == name && i.VLAN != 0 })
}

func (g *Gateway) links() []snapshot.Link {
	out := make([]snapshot.Link, len(g.ports))
	for i, p := range g.ports {
		out[i] = snapshot.Link{MAC: p.link.MAC, MTU: g.fits(p.link.MTU)}
	}
	return out
}

// open attaches the programs (closed), decides the modes, makes memory, sockets, shards and workers. Nothing is forwarded yet.
func (g *Gateway) open() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, g.restorePorts())
		}
	}()
	if err = g.lockPorts(); err != nil {
		return err
	}
	for _, p := range g.ports {
		if err = g.prepare(p); err != nil {
			return err
		}
	}
	if g.deadlines, err = xsk.NewDeadlines(); err != nil {
		return err
	}
	if err := g.o.Parent.Deadlines(g.deadlines.FD()); err != nil {
		g.log.Warn("the parent process has no table of deadlines to close", "err", err)
	}
	v := g.view.Load()
	for i, p := range g.ports {
		p.loaded = g.programConfig(i, v)
	}
	// The kernel takes some 20 ms to verify one, and does several at a time.
	err = atOnce(g.ports, func(p *port) (err error) {
		if p.prog, err = xsk.LoadProgram(p.loaded, g.deadlines); err != nil {
			return fmt.Errorf("port %s: %w", p.cfg.Name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range g.ports {
		if err = g.attach(p); err != nil {
			return err
		}
		if err = g.lookAgain(p); err != nil {
			return err
		}
		g.hear(p)
		if err = g.decideMode(p); err != nil {
			return err
		}
	}
	return g.makeWorkers()
}

// attach puts the port's program on its device: it is closed from here on.
func (g *Gateway) attach(p *port) error {
	native, err := p.prog.Attach(p.asked == xsk.Generic || p.asked == xsk.Auto && noNative(p.link.Index))
	if errors.Is(err, xsk.ErrNoNative) {
		if p.asked != xsk.Auto {
			return fmt.Errorf("port %s: mode %s was asked for, but the driver of %s has no native XDP: mode = \"generic\" works, and %s", p.cfg.Name, p.asked, p.cfg.Device, xsk.GenericCost)
		}
		native, err = p.prog.Attach(true) // a kernel that could not tell before
	}
	if err != nil {
		return fmt.Errorf("port %s: %w", p.cfg.Name, err)
	}
	g.change(p, func() { p.native = native })
	return nil
}

// noNative says that the driver of a device has no native XDP, without trying. Kernels before 6.3 cannot tell; there a program of ours that is
// attached in generic mode says it.
func noNative(ifindex int) bool {
	f, err := hostnet.ReadXDPFeatures(ifindex)
	if err == nil {
		return f&hostnet.XDPBasic == 0
	}
	_, id, mode, ours, err := xsk.Attached(ifindex)
	return err == nil && id != 0 && ours && mode == "generic"
}

// probe asks for zero-copy where there may be any.
func probe(p *port) (zerocopy bool, why string) {
	if !p.native {
		return false, ""
	}
	return xsk.Probe(p.link.Index, 0)
}

// strayHeader is what is wrong with zero-copy where astray says so.
const strayHeader = "virtio_net as a module tells the device a wrong address for the header of what a zero-copy socket sends, and what lies there may have it throw all of that away"

// astray says that a device may throw away what a zero-copy socket sends, without a word to anybody: virtio_net maps the header that goes before each frame as one may map what is part of the kernel, and not what is part of a module.
// Which address that gives differs from boot to boot; where zeros lie there, all is well. The kernel's own frames, and those of copy mode, bring a header of theirs.
func astray(driver string) bool {
	if driver != "virtio_net" {
		return false
	}
	_, err := os.Stat("/sys/module/virtio_net/initstate") // a module that was loaded has it, one that is built in has not
	return err == nil
}

// decideMode settles what auto means on the port's device, which is up.
func (g *Gateway) decideMode(p *port) error {
	mode, why := p.asked, ""
	if p.asked == xsk.Auto {
		switch zc, not := probe(p); {
		case !p.native:
			mode, why = xsk.Generic, "the driver has no native XDP"
		case zc && astray(p.link.Driver):
			mode, why = xsk.Copy, strayHeader
		case zc:
			mode = xsk.ZeroCopy
		default:
			mode, why = xsk.Copy, reason(not)
		}
	}
	warnings, w := p.warnings, ""
	switch {
	case mode == xsk.Generic:
		w = "generic mode " + xsk.GenericCost
	case mode == xsk.ZeroCopy && astray(p.link.Driver):
		w = strayHeader + ": mode = \"copy\" or \"auto\", or a kernel that has the driver built in"
	}
	if w != "" && !slices.Contains(warnings, w) {
		warnings = append(slices.Clone(warnings), w)
		g.log.Warn("port", "port", p.cfg.Name, "device", p.cfg.Device, "warning", w)
	}
	g.change(p, func() { p.mode, p.why, p.warnings = mode, why, warnings })
	return g.decideOffload(p)
}

// reason is what the operator wants of a probe's error: the kernel's word, not the calls on the way to it.
func reason(why string) string {
	if i, j := strings.LastIndex(why, "("), strings.LastIndex(why, ")"); i >= 0 && j > i {
		why, _, _ = strings.Cut(why[i+1:j], ": use") // the advice is for who has asked for the mode
	}
	return why
}

// lockPorts locks all ports before anything on one of them is touched.
func (g *Gateway) lockPorts() error {
	for _, p := range g.ports {
		if err := p.lock(p.link.Index); err != nil {
			return err
		}
	}
	return nil
}

// lock makes sure that no other process serves the port's device, and has the device receive multicast. Lock and membership end with the process,
// however it ends.
func (p *port) lock(ifindex int) error {
	l, err := LockPort(ifindex)
	if held := (*PortHeldError)(nil); errors.As(err, &held) {
		return fmt.Errorf("port %s: %w serves %s: stop that one first", p.cfg.Name, held, p.cfg.Device)
	}
	if err != nil {
		return fmt.Errorf("port %s: %w", p.cfg.Name, err)
	}
	p.locks = append(p.locks, l)
	m, err := hostnet.ReceiveAllMulticast(ifindex)
	if err != nil {
		return errors.Join(fmt.Errorf("port %s: %w", p.cfg.Name, err), p.unlock())
	}
	p.locks = append(p.locks, m)
	return nil
}

func (p *port) unlock() (err error) {
	for _, l := range p.locks {
		err = errors.Join(err, l.Close())
	}
	for _, l := range p.heard {
		err = errors.Join(err, l.Close())
	}
	p.locks, p.heard = nil, nil
	return err
}

// programConfig is what the XDP program of port i must know.
func (g *Gateway) programConfig(i int, v *snapshot.View) xsk.ProgramConfig {
	p := g.ports[i]
	c := xsk.ProgramConfig{Ifindex: p.link.Index, Queues: max(1, p.link.RxQueues, p.link.MostRxQueues), MAC: p.link.MAC, EphemeralLo: g.eph[0], EphemeralHi: g.eph[1], Shared: p.cfg.Host.Shared}
	for _, n := range p.cfg.Host.TCPPorts {
		c.SharedTCP = append(c.SharedTCP, uint16(n))
	}
	for _, n := range p.cfg.Host.UDPPorts {
		c.SharedUDP = append(c.SharedUDP, uint16(n))
	}
	ours := map[netip.Addr]bool{}
	for k := range v.Ifaces {
		f := &v.Ifaces[k]
		if k == 0 || int(f.Port) != i {
			continue
		}
		for _, pr := range f.Groups {
			if g := pr.Group; g.Virtual && !slices.Contains(c.Groups, g.ID) {
				c.Groups = append(c.Groups, g.ID)
			}
		}
		if f.VLAN != 0 { // on a VLAN nothing is the host's
			continue
		}
		for _, a := range f.Addrs {
			ours[a.Addr()] = true
			c.GatewayAddrs = append(c.GatewayAddrs, a.Addr())
		}
		c.GatewayAddrs = append(c.GatewayAddrs, f.LinkLocal.Netip(6))
		for i := range f.Groups { // whether or not this node serves them: they are never the host's
			for _, a := range virtualAddrs(&f.Groups[i]) {
				ours[a] = true
				c.GatewayAddrs = append(c.GatewayAddrs, a)
			}
		}
		for _, pub := range onLink(v, f) {
			ours[pub] = true
			c.GatewayAddrs = append(c.GatewayAddrs, pub)
		}
	}
	slices.Sort(c.Groups)
	c.HostPrefixes = append(c.HostPrefixes, p.cfg.Host.Addresses...)
	for _, a := range p.link.Addrs {
		if !ours[a.Addr()] && !slices.Contains(p.cfg.Host.Shared, a.Addr()) {
			c.HostPrefixes = append(c.HostPrefixes, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	return c
}

// onLink lists the NAT addresses that lie in a prefix of the interface: they are answered for there and nowhere else.
func onLink(v *snapshot.View, f *snapshot.Iface) (out []netip.Addr) {
	if f.Zone != 0 || !f.Used {
		return nil
	}
	for i := range v.Publics {
		a := v.Publics[i].Addr.Netip(4)
		if slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			continue
		}
		if slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}

func (g *Gateway) slowInterfaces(v *snapshot.View) (out []slowpath.Interface) {
	for i := range v.Ifaces {
		f := &v.Ifaces[i]
		if i == 0 || !f.Used {
			continue
		}
		p := g.ports[f.Port]
		if !p.link.Up || !p.link.Carrier || p.state != portOpen { // neighbours there are forgotten; when it is back they are told of us again
			continue
		}
		si := slowpath.Interface{Groups: slowGroups(v, f), Index: f.Index, Name: f.Name, Port: f.Port, VLAN: f.VLAN, MAC: f.MAC, Addrs: f.Addrs, Ifindex: p.link.Index}
		if f.VLAN == 0 { // on a VLAN nothing is the host's: no frame there comes to it, so nobody but the gateway would answer
			si.HostShared = p.cfg.Host.Shared
		}
		for _, a := range onLink(v, f) {
			if g := publicGroup(v, a); g == nil {
				si.Proxy = append(si.Proxy, netip.PrefixFrom(a, 32))
			}
		}
		out = append(out, si)
	}
	return out
}

// virtualAddrs lists what a group has on an interface, its link-local address last.
func virtualAddrs(p *snapshot.Presence) (out []netip.Addr) {
	for _, a := range p.Addrs {
		out = append(out, a.Addr())
	}
	if p.Six {
		out = append(out, p.Group.LinkLocal.Netip(6))
	}
	return out
}

// publicGroup is the group whose tenant has a NAT address, nil when every node serves it.
func publicGroup(v *snapshot.View, a netip.Addr) *snapshot.Group {
	fa := flow.AddrFrom(a)
	if _, h, ok := v.Lookup(flow.Backbone, 4, &fa); ok && h.Kind == snapshot.HopPublic {
		return h.Group
	}
	return nil
}

// slowGroups is what the slow path is to know of groups on an interface: what is answered for and announced while this node serves them.
func slowGroups(v *snapshot.View, f *snapshot.Iface) (out []slowpath.Group) {
	at := map[uint8]int{}
	for i := range f.Groups {
		p := &f.Groups[i]
		at[p.Group.ID] = len(out)
		out = append(out, slowpath.Group{ID: p.Group.ID, MAC4: *f.Source(p.Group, 4), MAC6: *f.Source(p.Group, 6), Addrs: virtualAddrs(p)})
	}
	for _, a := range onLink(v, f) {
		if g := publicGroup(v, a); g != nil {
			if s := &out[at[g.ID]]; !slices.Contains(s.Addrs, a) { // else it is a virtual address too
				s.Proxy = append(s.Proxy, a)
			}
		}
	}
	return out
}

func (g *Gateway) makeWorkers() error {
	n := g.o.Node
	count := max(1, n.Workers.Count)
	g.busy = make([]float64, count)
	g.slow = slowpath.New(slowpath.Config{
		Neighbors: g.neigh, Send: g.transmit, Now: g.clock.Now, Log: g.log, Workers: count, Capacity: n.Tables.Neighbors, Seed: g.seed,
		May: g.mayWord, HostResolve: g.hostResolve, Unreachable: g.unreached, Settled: g.firstAgain,
		Dropped: func(frame []byte, _ uint16, r verdict.Reason) {
			g.slowDrops[r%verdict.NumReasons].Add(1)
			g.slowDropped(frame, r)
		},
	})
	chunk := smallChunk
	for _, p := range g.ports {
		if p.link.MTU+headroom+linkHeader > smallChunk {
			chunk = largeChunk
		}
	}
	g.chunk = chunk
	sessions := max(64, n.Tables.Sessions/count)
	seeds := make([]uint64, count)
	for id := range seeds {
		seeds[id] = g.seed + uint64(id)*0x9e3779b97f4a7c15
	}
	if err := g.openOffload(seeds, (sessions+cruise.SessionUnit-1)/cruise.SessionUnit*cruise.SessionUnit); err != nil {
		for _, p := range g.ports {
			if err := g.noOffload(p, err); err != nil {
				return err
			}
		}
	}
	if g.off != nil {
		sessions = (sessions + cruise.SessionUnit - 1) / cruise.SessionUnit * cruise.SessionUnit
	}
	mappings := max(64, n.Tables.Mappings/count)
	for id := range count {
		ending := new(lease.Deadlines)
		g.ending = append(g.ending, ending)
		cfg := worker.Config{ID: id, CPU: -1, Ports: len(g.ports), Slow: g.slow, Clock: g.clock, Deadlines: g.table(), Leaving: &g.leaving, Ending: ending, HandOn: &g.handOn, Guard: failover.Default.Guard, Fenced: g.fenced, Batch: n.Workers.Batch, Spin: n.Workers.Spin.Duration, Log: g.log}
		if len(n.Workers.CPUs) > id {
			cfg.CPU = n.Workers.CPUs[id]
		}
		area := map[bool]uint8{}
		for pi, p := range g.ports {
			for q := range max(1, p.link.RxQueues) {
				if q%count != id {
					continue
				}
				key := p.mode == xsk.ZeroCopy // copy and generic mode are one to the memory
				a, ok := area[key]
				if !ok {
					u, err := xsk.NewUMEM(n.Tables.Frames, chunk)
					if err != nil {
						return fmt.Errorf("worker %d: %w", id, err)
					}
					a = uint8(len(cfg.Areas))
					area[key] = a
					cfg.Areas, cfg.ZeroCopy = append(cfg.Areas, u), append(cfg.ZeroCopy, key)
					g.areas = append(g.areas, u)
				}
				s, err := xsk.Open(cfg.Areas[a], g.socketConfig(p, q))
				if err != nil {
					return fmt.Errorf("port %s: %w", p.cfg.Name, err)
				}
				g.change(p, func() { p.queues = append(p.queues, queue{n: q, worker: id, sock: s}) })
				cfg.Sockets = append(cfg.Sockets, worker.Socket{Port: uint16(pi), Queue: q, Area: a, S: s, Up: p.prog.Up(q)})
			}
		}
		if len(cfg.Areas) == 0 {
			return fmt.Errorf("workers.count = %d, but no port has a queue for worker %d: use at most as many workers as the ports have queues", count, id)
		}
		var sm []byte
		var idents *[nat.WholeWords]uint64
		if g.off != nil {
			sm, idents = g.off.tables.SessionMem(id), g.off.tables.Idents(id)
		} else {
			var err error
			if sm, err = mapTable(conntrack.Bytes(sessions)); err != nil {
				return err
			}
			g.mem = append(g.mem, sm)
		}
		nm, err := mapTable(nat.Bytes(mappings))
		if err != nil {
			return err
		}
		g.mem = append(g.mem, nm)
		pm, err := mapTable(nat.PermitBytes(sessions))
		if err != nil {
			return err
		}
		g.mem = append(g.mem, pm)
		fragments := max(64, n.Tables.Fragments/count)
		fm, err := mapTable(frag.Bytes(fragments, chunk))
		if err != nil {
			return err
		}
		g.mem = append(g.mem, fm)
		g.tableBytes = append(g.tableBytes, uint64(len(sm)+len(nm)+len(pm)+len(fm)))
		shard, err := pipeline.NewShard(pipeline.Config{Worker: id, SessionMem: sm, Sessions: sessions, Shared: g.off != nil, Idents: idents, NATMem: nm, Mappings: mappings, PermitMem: pm,
			Tenants: snapshot.MaxTenantID(n), ShaperMax: n.Tables.Frames / 2, Seed: seeds[id], Fragments: fragments, FrameBytes: chunk, FragMem: fm, Space: g.space, Neighbors: g.neigh, Deadlines: g.table(), Ending: ending})
		if err != nil {
			return fmt.Errorf("worker %d: %w", id, err)
		}
		cfg.Shard, cfg.Second, cfg.Grown = shard, g.off.second(), func() { poke(g.grown) }
		w, err := worker.New(cfg)
		if err != nil {
			return err
		}
		g.shards = append(g.shards, shard)
		g.workers = append(g.workers, w)
		if g.off != nil {
			sm = nil
		}
		g.ahead = append(g.ahead, newAhead(sm, sessions, nm, mappings, func() (int, int) {
			st := w.Stats()
			return st.Sessions, st.Mappings
		}, w.TellGrown))
	}
	worker.Connect(g.workers)
	return nil
}

func (g *Gateway) socketConfig(p *port, queue int) xsk.SocketConfig {
	w := &g.o.Node.Workers
	return xsk.SocketConfig{Ifindex: p.link.Index, Queue: queue, RxSize: 2048, TxSize: 2048, FillSize: 4096, CompSize: 2048,
		Mode: p.mode, NeedWakeup: w.NeedWakeup == nil || *w.NeedWakeup, BusyPoll: w.BusyPoll.Duration}
}

// unreached gives a frame whose next hop did not answer back to its worker, which counts it as dropped.
func (g *Gateway) unreached(frame []byte, iface uint16, worker int) {
	if !g.workers[worker].Unreached(iface, frame) {
		g.slowDrops[verdict.NoNeighbor].Add(1)
		g.slowDropped(frame, verdict.NoNeighbor)
	}
}

// transmit sends a frame of the slow path by whichever worker has a socket on the port.
func (g *Gateway) transmit(p uint16, group uint8, frame []byte) bool {
	group = wordOf(group, frame)
	for _, w := range g.workers {
		if w.Sends(p) {
			return w.Transmit(p, group, frame)
		}
	}
	return false
}

// hostResolve asks the kernel for a neighbour on an address that it shares with the gateway. What it knows already it will not report as
// a change, so that is looked up at once.
func (g *Gateway) hostResolve(iface uint16, a netip.Addr) {
	v := g.view.Load()
	if int(iface) >= len(v.Ifaces) {
		return
	}
	index := g.facts(g.ports[v.Ifaces[iface].Port]).link.Index
	if index == 0 {
		return
	}
	if err := hostnet.UseNeighbor(index, a); err != nil {
		g.log.Debug("ask the kernel for a neighbour", "iface", v.Ifaces[iface].Name, "addr", a.String(), "err", err)
	}
	if n, err := hostnet.Neighbor(index, a); err == nil && n.Valid {
		g.slow.Learned(iface, a, n.MAC)
	}
}

// openSockets lets the programs redirect. Until here nothing arrives; from here on everything has a worker.
func (g *Gateway) openSockets() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, p := range g.ports {
		if p.state == portGone { // while we were starting
			continue
		}
		if err := g.openPort(i, p); err != nil {
			return err
		}
	}
	g.ready.Store(true)
	g.tellSlow(g.view.Load())
	return nil
}

// closeSockets makes the programs drop transit again.
func (g *Gateway) closeSockets() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ready.Store(false) // from here on no port is opened again
	for i, p := range g.ports {
		g.closeSecond(i, p)
		for _, q := range p.queues {
			if err := p.prog.ClearSocket(q.n); err != nil {
				g.log.Warn("close queue", "port", p.cfg.Name, "queue", q.n, "err", err)
			}
		}
	}
}

// restorePorts puts back what was attached before a start that failed.
func (g *Gateway) restorePorts() (err error) {
	g.startFailed = true
	for _, p := range g.ports {
		if p.prog != nil && p.state != portGone {
			err = errors.Join(err, p.prog.Restore())
		}
	}
	return err
}

// release closes sockets and memory, after the workers have ended. The frame account is taken last.
func (g *Gateway) release() (err error) {
	if g.abandoned {
		g.unprepare() // the rest goes with the process
		return nil
	}
	g.fencing.Wait()
	for _, w := range g.workers {
		err = errors.Join(err, w.Account(), w.Reclaim(0), w.Close())
	}
	err = errors.Join(err, g.shutSockets())
	for _, p := range g.ports {
		for _, q := range p.queues {
			if q.sock != nil {
				err = errors.Join(err, q.sock.Close())
			}
		}
		p.queues = nil
		if p.second != nil {
			second := p.second
			g.change(p, func() { p.second = nil })
			err = errors.Join(err, second.Close())
		}
		if p.prog != nil {
			err = errors.Join(err, p.prog.Close())
			p.prog = nil
		}
	}
	g.unprepare() // while the devices are still locked
	err = errors.Join(err, atOnce(g.ports, (*port).unlock))
	for _, u := range g.areas {
		err = errors.Join(err, u.Close())
	}
	g.areas = nil
	for _, m := range g.mem {
		err = errors.Join(err, unix.Munmap(m))
	}
	g.mem = nil
	return errors.Join(err, g.off.close(), g.deadlines.Close(), g.dir.Close())
}

// shutSockets gives up the kernel's part of all sockets, when what they have queued has left.
func (g *Gateway) shutSockets() error {
	var socks []*xsk.Socket
	for _, p := range g.ports {
		for _, q := range p.queues {
			if q.sock != nil {
				q.sock.Drain()
				socks = append(socks, q.sock)
			}
		}
	}
	return atOnce(socks, (*xsk.Socket).Shut)
}

// atOnce does what the kernel takes its time for, of several ports at a time: the end of a socket is a grace period, 8 to 16 ms. One after the other they kept the next process
// waiting for a tenth of a second.
func atOnce[T any](list []T, fn func(T) error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, x := range list {
		wg.Go(func() {
			defer func() { // nobody else could: it would end the process, and the caller's rest would not be done
				if p := recover(); p != nil {
					errs[i] = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				}
			}()
			errs[i] = fn(x)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// eventsWaiting is how many events of the machine may wait for what follows from those before.
const eventsWaiting = 4096

// watchLinks follows the machine. What an event means to groups is noted at once: what else follows from it waits while a policy is looked at or applied, which may take seconds with a million sessions.
func (g *Gateway) watchLinks(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan hostnet.Event, eventsWaiting)
	done := make(chan error, 1)
	go func() {
		defer cancel() // a fault in here ends the watch
		done <- contained(g.log, "what follows from links", func() error {
			for e := range events {
				if ctx.Err() == nil { // else the node ends
					g.netEvent(e)
				}
			}
			return nil
		})
	}()
	err := hostnet.Watch(ctx, func(e hostnet.Event) {
		g.noteLink(e)
		select {
		case events <- e:
		case <-ctx.Done():
		}
	})
	close(events)
	return errors.Join(<-done, err)
}

// noteLink has groups know of a port that carries nothing, or something again.
func (g *Gateway) noteLink(e hostnet.Event) {
	if e.Kind != hostnet.LinkEvent {
		return
	}
	for _, p := range g.ports {
		if dead := e.Gone || !e.Link.Up || !e.Link.Carrier; e.Link.Index == g.facts(p).link.Index && p.dead.Swap(dead) != dead {
			poke(g.groups.links)
		}
	}
}

// netEvent follows the machine: devices that go and come, MAC, MTU, addresses, neighbours of shared addresses.
func (g *Gateway) netEvent(e hostnet.Event) {
	for i, p := range g.ports {
		index := g.facts(p).link.Index
		switch e.Kind {
		case hostnet.LinkEvent:
			switch {
			case e.Link.Index == index && e.Gone:
				g.portGone(i)
			case e.Link.Index == index:
				g.linkChanged(i, e.Link)
			case index == 0 && !e.Gone && e.Link.Name == p.cfg.Device:
				g.mend(i)
			}
		case hostnet.AddrEvent:
			if e.Ifindex == index {
				g.addrChanged(i, e.Addr, e.Gone)
			}
		case hostnet.NeighborEvent:
			if e.Ifindex == index && len(p.cfg.Host.Shared) > 0 {
				g.kernelNeighbor(i, e)
			}
		}
	}
}

// addrChanged follows an address that the host got or lost on a port: what is addressed to it is the host's from then on, or no more.
func (g *Gateway) addrChanged(i int, a netip.Prefix, gone bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.ports[i]
	if gone == !slices.Contains(p.link.Addrs, a) {
		return
	}
	addrs := slices.DeleteFunc(slices.Clone(p.link.Addrs), func(x netip.Prefix) bool { return x == a })
	if !gone {
		addrs = append(addrs, a)
	}
	g.change(p, func() { p.link.Addrs = addrs })
	g.log.Info("host address", "port", p.cfg.Name, "addr", a.String(), "gone", gone)
	g.steer(g.view.Load())
}

func (g *Gateway) kernelNeighbor(port int, e hostnet.Event) {
	mac := e.Neigh.MAC
	if e.Gone || !e.Neigh.Valid {
		mac = [6]byte{}
	}
	v := g.view.Load()
	for k := range v.Ifaces {
		f := &v.Ifaces[k]
		if k == 0 || int(f.Port) != port || f.VLAN != 0 {
			continue
		}
		for _, p := range f.Addrs {
			if p.Contains(e.Neigh.Addr) {
				g.slow.Learned(f.Index, e.Neigh.Addr, mac)
			}
		}
	}
}
