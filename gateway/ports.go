package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/hostnet"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/portprep"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

// port is one network device of the node.
type port struct {
	cfg      configs.Port
	link     hostnet.Link // written under mu and linkMu
	gone     bool         // somebody took the XDP program off; under linkMu
	asked    xsk.Mode
	mode     xsk.Mode // decided
	why      string   // why not zero-copy
	native   bool
	prep     *portprep.Port    // nil with prepare = false
	changes  []portprep.Change // of the device's settings, as reports show them; under linkMu
	warnings []string          // under linkMu
	prog     *xsk.Program
	loaded   xsk.ProgramConfig // what prog was made of
	queues   []*queue
}

type queue struct {
	n      int
	worker int
	area   uint8
	sock   *xsk.Socket
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
		if !l.Up {
			errs = append(errs, fmt.Errorf("port %s: device %s is down: ip link set %s up", c.Name, c.Device, c.Device))
		}
		if l.MTU > maxMTU {
			errs = append(errs, fmt.Errorf("port %s: mtu %d is more than %d, which is what one frame of packet memory holds: ip link set %s mtu %d", c.Name, l.MTU, maxMTU, c.Device, maxMTU))
		}
		p := &port{cfg: c, link: l, asked: m}
		errs = append(errs, ofPort(c.Name, g.foreseePort(p)))
		g.ports = append(g.ports, p)
	}
	return errors.Join(errs...)
}

// Room in a chunk of packet memory: what XDP keeps before the frame, and Ethernet with a tag.
const (
	smallChunk = 2048
	largeChunk = 4096
	headroom   = 256
	linkHeader = 18
	maxMTU     = 3400 // what XDP takes on one page, with the kernel's own needs behind the frame
)

// trunk reports whether a port carries VLAN tags.
func (g *Gateway) trunk(name string) bool {
	return slices.ContainsFunc(g.o.Node.Interfaces, func(i configs.Interface) bool { return i.Port == name && i.VLAN != 0 })
}

func (g *Gateway) links() []snapshot.Link {
	out := make([]snapshot.Link, len(g.ports))
	for i, p := range g.ports {
		out[i] = snapshot.Link{MAC: p.link.MAC, MTU: p.link.MTU}
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
	v := g.view.Load()
	for i, p := range g.ports {
		p.loaded = g.programConfig(i, v)
		if p.prog, err = xsk.LoadProgram(p.loaded); err != nil {
			return fmt.Errorf("port %s: %w", p.cfg.Name, err)
		}
		if p.native, err = p.prog.Attach(p.asked == xsk.Generic); err != nil {
			return fmt.Errorf("port %s: %w", p.cfg.Name, err)
		}
		if p.mode = p.asked; p.asked == xsk.Auto {
			switch zc, why := xsk.Probe(p.link.Index, 0); {
			case !p.native:
				p.mode, p.why = xsk.Generic, "the driver has no native XDP"
			case zc:
				p.mode = xsk.ZeroCopy
			default:
				p.mode, p.why = xsk.Copy, reason(why)
			}
		} else if !p.native && p.asked != xsk.Generic {
			return fmt.Errorf("port %s: mode %s was asked for, but the driver of %s has no native XDP: mode = \"generic\" works, at a price", p.cfg.Name, p.asked, p.cfg.Device)
		}
	}
	return g.makeWorkers()
}

// reason is what the operator wants of a probe's error: the kernel's word, not the calls on the way to it.
func reason(why string) string {
	if i, j := strings.LastIndex(why, "("), strings.LastIndex(why, ")"); i >= 0 && j > i {
		why, _, _ = strings.Cut(why[i+1:j], ": use") // the advice is for who has asked for the mode
	}
	return why
}

// lockPorts makes sure that no other process serves one of the devices, before anything on them is touched, and has them receive multicast.
// The lock is a name of the network namespace; it and the membership end with the process, however it ends.
func (g *Gateway) lockPorts() error {
	for _, p := range g.ports {
		l, err := net.Listen("unix", fmt.Sprintf("@demarc-port-%d", p.link.Index))
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("port %s: another demarc process serves %s: stop that one first", p.cfg.Name, p.cfg.Device)
		}
		if err != nil {
			return fmt.Errorf("port %s: lock: %w", p.cfg.Name, err)
		}
		g.locks = append(g.locks, l)
		m, err := hostnet.ReceiveAllMulticast(p.link.Index)
		if err != nil {
			return fmt.Errorf("port %s: %w", p.cfg.Name, err)
		}
		g.locks = append(g.locks, m)
	}
	return nil
}

// programConfig is what the XDP program of port i must know.
func (g *Gateway) programConfig(i int, v *snapshot.View) xsk.ProgramConfig {
	p := g.ports[i]
	c := xsk.ProgramConfig{Ifindex: p.link.Index, Queues: max(1, p.link.RxQueues), MAC: p.link.MAC, EphemeralLo: g.eph[0], EphemeralHi: g.eph[1], Shared: p.cfg.Host.Shared}
	for _, n := range p.cfg.Host.TCPPorts {
		c.SharedTCP = append(c.SharedTCP, uint16(n))
	}
	for _, n := range p.cfg.Host.UDPPorts {
		c.SharedUDP = append(c.SharedUDP, uint16(n))
	}
	ours := map[netip.Addr]bool{}
	for k := range v.Ifaces {
		f := &v.Ifaces[k]
		if k == 0 || int(f.Port) != i || f.VLAN != 0 { // on a VLAN nothing is the host's
			continue
		}
		for _, a := range f.Addrs {
			ours[a.Addr()] = true
			c.GatewayAddrs = append(c.GatewayAddrs, a.Addr())
		}
		c.GatewayAddrs = append(c.GatewayAddrs, f.LinkLocal.Netip(6))
		for _, pub := range onLink(v, f) {
			ours[pub] = true
			c.GatewayAddrs = append(c.GatewayAddrs, pub)
		}
	}
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
		for _, p := range f.Addrs {
			if p.Contains(a) && p.Addr() != a {
				out = append(out, a)
			}
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
		si := slowpath.Interface{Index: f.Index, Name: f.Name, Port: f.Port, VLAN: f.VLAN, MAC: f.MAC, Addrs: f.Addrs, HostShared: p.cfg.Host.Shared, Ifindex: p.link.Index}
		for _, a := range onLink(v, f) {
			si.Proxy = append(si.Proxy, netip.PrefixFrom(a, 32))
		}
		out = append(out, si)
	}
	return out
}

func (g *Gateway) makeWorkers() error {
	n := g.o.Node
	count := max(1, n.Workers.Count)
	g.busy = make([]float64, count)
	g.slow = slowpath.New(slowpath.Config{
		Neighbors: g.neigh, Send: g.transmit, Now: g.clock.Now, Log: g.log, Workers: count, Capacity: n.Tables.Neighbors, Seed: g.seed,
		HostResolve: g.hostResolve, Unreachable: func([]byte, uint16) { g.slowDrops[verdict.NoNeighbor].Add(1) },
		Dropped: func(_ []byte, _ uint16, r verdict.Reason) { g.slowDrops[r%verdict.NumReasons].Add(1) },
	})
	chunk := smallChunk
	for _, p := range g.ports {
		if p.link.MTU+headroom+linkHeader > smallChunk {
			chunk = largeChunk
		}
	}
	g.chunk = chunk
	sessions := max(64, n.Tables.Sessions/count)
	mappings := max(64, n.Tables.Mappings/count)
	for id := range count {
		cfg := worker.Config{ID: id, CPU: -1, Ports: len(g.ports), Slow: g.slow, Clock: g.clock, Batch: n.Workers.Batch, Spin: n.Workers.Spin.Duration, Log: g.log}
		if len(n.Workers.CPUs) > id {
			cfg.CPU = n.Workers.CPUs[id]
		}
		area := map[xsk.Mode]uint8{}
		for pi, p := range g.ports {
			for q := range max(1, p.link.RxQueues) {
				if q%count != id {
					continue
				}
				key := p.mode
				a, ok := area[key]
				if !ok {
					u, err := xsk.NewUMEM(n.Tables.Frames, chunk)
					if err != nil {
						return fmt.Errorf("worker %d: %w", id, err)
					}
					a = uint8(len(cfg.Areas))
					area[key] = a
					cfg.Areas = append(cfg.Areas, u)
					g.areas = append(g.areas, u)
				}
				s, err := xsk.Open(cfg.Areas[a], xsk.SocketConfig{Ifindex: p.link.Index, Queue: q, RxSize: 2048, TxSize: 2048, FillSize: 4096, CompSize: 2048,
					Mode: p.mode, NeedWakeup: n.Workers.NeedWakeup == nil || *n.Workers.NeedWakeup, BusyPoll: n.Workers.BusyPoll.Duration})
				if err != nil {
					return fmt.Errorf("port %s: %w", p.cfg.Name, err)
				}
				p.queues = append(p.queues, &queue{n: q, worker: id, area: a, sock: s})
				cfg.Sockets = append(cfg.Sockets, worker.Socket{Port: uint16(pi), Queue: q, Area: a, S: s})
			}
		}
		if len(cfg.Areas) == 0 {
			return fmt.Errorf("workers.count = %d, but no port has a queue for worker %d: use at most as many workers as the ports have queues", count, id)
		}
		sm, err := mapTable(conntrack.Bytes(sessions))
		if err != nil {
			return err
		}
		g.mem = append(g.mem, sm)
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
		shard, err := pipeline.NewShard(pipeline.Config{Worker: id, SessionMem: sm, Sessions: sessions, NATMem: nm, Mappings: mappings, PermitMem: pm,
			Tenants: snapshot.MaxTenantID(n), ShaperMax: n.Tables.Frames / 2, Seed: g.seed + uint64(id)*0x9e3779b97f4a7c15, Space: g.space, Neighbors: g.neigh})
		if err != nil {
			return fmt.Errorf("worker %d: %w", id, err)
		}
		cfg.Shard = shard
		w, err := worker.New(cfg)
		if err != nil {
			return err
		}
		g.shards = append(g.shards, shard)
		g.workers = append(g.workers, w)
	}
	worker.Connect(g.workers)
	return nil
}

// transmit sends a frame of the slow path by whichever worker has a socket on the port.
func (g *Gateway) transmit(p uint16, frame []byte) bool {
	for _, w := range g.workers {
		if w.Sends(p) {
			return w.Transmit(p, frame)
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
	index := g.ports[v.Ifaces[iface].Port].link.Index
	if err := hostnet.UseNeighbor(index, a); err != nil {
		g.log.Debug("ask the kernel for a neighbour", "iface", v.Ifaces[iface].Name, "addr", a.String(), "err", err)
	}
	if n, err := hostnet.Neighbor(index, a); err == nil && n.Valid {
		g.slow.Learned(iface, a, n.MAC)
	}
}

// openSockets lets the programs redirect. Until here nothing arrives; from here on everything has a worker.
func (g *Gateway) openSockets() error {
	for _, p := range g.ports {
		for _, q := range p.queues {
			if err := p.prog.SetSocket(q.n, q.sock.FD()); err != nil {
				return fmt.Errorf("port %s queue %d: %w", p.cfg.Name, q.n, err)
			}
		}
	}
	return nil
}

// closeSockets makes the programs drop transit again.
func (g *Gateway) closeSockets() {
	for _, p := range g.ports {
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
		if p.prog != nil {
			err = errors.Join(err, p.prog.Restore())
		}
	}
	return err
}

// release closes sockets and memory, after the workers have ended. The frame account is taken last.
func (g *Gateway) release() (err error) {
	for _, w := range g.workers {
		err = errors.Join(err, w.Account(), w.Close())
	}
	for _, p := range g.ports {
		for _, q := range p.queues {
			err = errors.Join(err, q.sock.Close())
		}
		p.queues = nil
		if p.prog != nil {
			err = errors.Join(err, p.prog.Close())
			p.prog = nil
		}
	}
	g.unprepare()
	for _, l := range g.locks {
		l.Close()
	}
	g.locks = nil
	for _, u := range g.areas {
		err = errors.Join(err, u.Close())
	}
	g.areas = nil
	for _, m := range g.mem {
		err = errors.Join(err, unix.Munmap(m))
	}
	g.mem = nil
	return err
}

// netEvent follows the machine: MAC, MTU, addresses, neighbours of shared addresses, devices that go.
func (g *Gateway) netEvent(e hostnet.Event) {
	for i, p := range g.ports {
		switch e.Kind {
		case hostnet.LinkEvent:
			if e.Link.Index != p.link.Index {
				continue
			}
			if e.Gone {
				g.fail(fmt.Errorf("port %s: device %s has vanished", p.cfg.Name, p.cfg.Device))
				return
			}
			g.linkChanged(i, e.Link)
		case hostnet.AddrEvent:
			if e.Ifindex == p.link.Index {
				g.addrChanged(i, e.Addr, e.Gone)
			}
		case hostnet.NeighborEvent:
			if e.Ifindex == p.link.Index && len(p.cfg.Host.Shared) > 0 {
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
	g.linkMu.Lock()
	p.link.Addrs = addrs
	g.linkMu.Unlock()
	g.log.Info("host address", "port", p.cfg.Name, "addr", a.String(), "gone", gone)
	g.steer(g.view.Load())
}

func (g *Gateway) fail(err error) {
	select {
	case g.fatal <- err:
	default:
	}
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

// linkChanged recompiles when what the view took from the link is no longer so.
func (g *Gateway) linkChanged(i int, l hostnet.Link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.ports[i]
	if l.Carrier != p.link.Carrier || l.Up != p.link.Up {
		g.log.Info("link", "port", p.cfg.Name, "up", l.Up, "carrier", l.Carrier)
	}
	same := l.MAC == p.link.MAC && l.MTU == p.link.MTU
	if gone := l.XDP.ID == 0 && g.ready.Load(); gone != p.gone {
		g.linkMu.Lock()
		p.gone = gone
		g.linkMu.Unlock()
		if gone {
			g.log.Error("the XDP program was taken off: nothing of this port arrives, the host's stack sees all of it; restart the node", "port", p.cfg.Name)
		}
	}
	g.linkMu.Lock()
	p.link.Up, p.link.Carrier, p.link.MAC, p.link.MTU = l.Up, l.Carrier, l.MAC, l.MTU
	g.linkMu.Unlock()
	if same {
		return
	}
	g.log.Info("link changed", "port", p.cfg.Name, "mtu", l.MTU, "mac", fmt.Sprintf("%x", l.MAC))
	if l.MTU+headroom+linkHeader > g.chunk {
		g.log.Error("mtu is larger than a frame of packet memory: larger packets are lost until a restart", "port", p.cfg.Name, "mtu", l.MTU, "chunk", g.chunk)
	}
	if err := g.recompile(); err != nil {
		g.log.Error("policy does not compile on the changed link, the old view stays", "port", p.cfg.Name, "err", err)
	}
}
