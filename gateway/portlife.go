package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"demarc/gateway/hostnet"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

// What a port can be. A device that vanishes takes its port along and nothing else: the others go on, sessions live, and a device of that name is
// taken up again by itself. Each step is closed: the program is on the new device before anything is asked of it, and redirects last.
const (
	portOpen   = "open"
	portClosed = "closed" // the device is there, with our program on it, and no socket: transit is dropped
	portGone   = "gone"   // there is no such device
)

// mendPause is how often a port that is not open is looked at without an event.
const mendPause = time.Second

// mendPorts has another look at ports that are not open: what stood against them may have gone without a word.
func (g *Gateway) mendPorts(ctx context.Context) error {
	tick := time.NewTicker(mendPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for i, p := range g.ports {
			if g.facts(p).state != portOpen {
				g.mend(i)
			}
			g.lookOffload(i, p)
		}
	}
}

// portGone lets go of a device that has vanished, or left this namespace.
func (g *Gateway) portGone(i int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, index := g.ports[i], g.ports[i].link.Index
	g.change(p, func() {
		p.link.Index, p.link.Up, p.link.Carrier, p.link.Addrs, p.changes, p.warnings = 0, false, false, nil, nil, nil
		p.state, p.bare, p.fenced, p.problem = portGone, false, time.Time{}, p.missing()
	})
	g.log.Error("port gone: what is sent to it is dropped, the other ports go on; a device of that name is taken up by itself", "port", p.cfg.Name, "device", p.cfg.Device)
	g.carrier(i, p)
	p.prep, p.ready = nil, 0 // with the device its settings went
	if err := errors.Join(g.dropSockets(i, index), p.unlock()); err != nil {
		g.log.Warn("let go of a port", "port", p.cfg.Name, "err", err)
	}
	g.tellSlow(g.view.Load())
}

func (p *port) missing() string {
	return fmt.Sprintf("device %s is gone; a device of that name is taken up by itself", p.cfg.Device)
}

// mend tries to open a port that is not.
func (g *Gateway) mend(i int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.ports[i]
	if !g.ready.Load() || p.state == portOpen { // the start opens its ports itself, and the end none
		return
	}
	err := g.comeBack(i, p)
	if err == nil {
		return
	}
	if text := err.Error(); text != p.problem {
		g.change(p, func() { p.problem = text })
		if p.state != portGone {
			g.log.Warn("port stays closed", "port", p.cfg.Name, "err", text)
		}
	}
}

// comeBack opens a port whose device is there again. The error says what stands against it. The caller holds mu.
func (g *Gateway) comeBack(i int, p *port) error {
	l, err := hostnet.LinkByName(p.cfg.Device)
	switch {
	case errors.Is(err, hostnet.ErrNotFound):
		return errors.New(p.missing())
	case err != nil:
		return err
	case p.state == portClosed && l.Index != p.link.Index:
		return fmt.Errorf("device %s is another one by now", p.cfg.Device) // the event that says so is on its way
	}
	if p.state == portGone {
		if err := p.lock(l.Index); err != nil {
			return err
		}
		p.prog.Move(l.Index) // the old rules, but without a socket they let nothing in; the right ones take longer to load
		if err := g.attach(p); err != nil {
			return errors.Join(err, p.unlock())
		}
		g.change(p, func() {
			p.state, p.problem = portClosed, fmt.Sprintf("device %s is back and not open yet", p.cfg.Device)
		})
		g.log.Info("device is back, closed", "port", p.cfg.Name, "device", p.cfg.Device, "ifindex", l.Index)
	}
	if p.link.Index != l.Index {
		p.dead.Store(false) // what was said of the device before; from here on events are of this one
	}
	g.change(p, func() { p.link = bound(p, l) })
	if err := g.admit(p.cfg, l); err != nil {
		return err
	}
	if p.ready != l.Index {
		if err := g.prepare(p); err != nil { // the number of queues may be another one from here on
			return err
		}
		if err := g.lookAgain(p); err != nil {
			return err
		}
	}
	if err := g.follow(p); err != nil {
		return err
	}
	if p.loaded.Ifindex != l.Index {
		return errors.New("the XDP program has not the rules for this device: the log says why")
	}
	if err := g.decideMode(p); err != nil {
		return err
	}
	if err := g.makeSockets(i, p); err != nil {
		return errors.Join(err, g.dropSockets(i, 0))
	}
	if err := g.openPort(i, p); err != nil {
		return errors.Join(err, g.dropSockets(i, 0))
	}
	g.tellSlow(g.view.Load())
	g.log.Info("port open again", "port", p.cfg.Name, "device", p.cfg.Device, "mac", net.HardwareAddr(l.MAC[:]).String(), "mtu", l.MTU, "queues", len(p.queues), "mode", p.mode.String())
	return nil
}

// makeSockets binds the queues of a port that has come back and gives each to its worker, in memory that the worker has already.
func (g *Gateway) makeSockets(i int, p *port) error {
	g.change(p, func() { p.queues = make([]queue, max(1, p.link.RxQueues)) })
	for n := range p.queues {
		id := n % len(g.workers)
		w := g.workers[id]
		area, u := w.Area(p.mode == xsk.ZeroCopy)
		if u == nil && p.mode == xsk.ZeroCopy && p.asked == xsk.Auto {
			g.change(p, func() { p.mode, p.why = xsk.Copy, "no zero-copy memory was taken at start" })
			area, u = w.Area(false)
		}
		if u == nil {
			return fmt.Errorf("port %s: mode %s needs packet memory of its own, which is taken at start: restart the node", p.cfg.Name, p.mode)
		}
		s, err := xsk.Bind(u, g.socketConfig(p, n))
		if err != nil {
			return fmt.Errorf("port %s: %w", p.cfg.Name, err)
		}
		var adopt error
		if err := g.order(w, func() { adopt = w.Adopt(worker.Socket{Port: uint16(i), Queue: n, Area: area, S: s, Up: p.prog.Up(n)}) }); err != nil || adopt != nil {
			return errors.Join(err, adopt, s.Close())
		}
		g.change(p, func() { p.queues[n] = queue{n: n, worker: id, sock: s} })
	}
	return nil
}

// order runs fn on a worker's thread.
func (g *Gateway) order(w *worker.Worker, fn func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return w.Do(ctx, func(*pipeline.Shard) { fn() })
}

// dropSockets closes the sockets of a port and gives their frames back. gone is the number of their device if that has vanished, else 0.
func (g *Gateway) dropSockets(i, gone int) (err error) {
	g.closeSecond(i, g.ports[i]) // what is closed carries nothing
	var all []*xsk.Socket
	for _, w := range g.workers {
		if err := g.order(w, func() { all = append(all, w.Detach(uint16(i))...) }); err != nil {
			return err // it has ended, and the sockets end with the process
		}
	}
	p := g.ports[i]
	g.change(p, func() {
		for n := range p.queues {
			p.queues[n].n, p.queues[n].sock = n, nil
		}
	})
	for _, s := range all {
		err = errors.Join(err, s.Shut())
	}
	for _, w := range g.workers {
		var reclaim error
		err = errors.Join(err, g.order(w, func() { reclaim = w.Reclaim(gone) }), reclaim)
	}
	return err
}

// openPort lets a port's program redirect. The caller holds mu.
func (g *Gateway) openPort(i int, p *port) error {
	for _, q := range p.queues {
		if err := p.prog.SetSocket(q.n, q.sock.FD()); err != nil {
			return fmt.Errorf("port %s queue %d: %w", p.cfg.Name, q.n, err)
		}
	}
	if err := g.openSecond(i, p); err != nil {
		return err
	}
	g.change(p, func() { p.state, p.fenced, p.problem = portOpen, time.Time{}, "" })
	g.carrier(i, p)
	return nil
}

// carrier tells the workers whether a port can send, and has it be looked at once what that means to groups.
func (g *Gateway) carrier(i int, p *port) {
	for _, w := range g.workers {
		w.SetLink(uint16(i), p.link.Up && p.link.Carrier)
	}
	g.setDevice(i, p)
	poke(g.groups.links)
}

// compiled is what a view took from a port.
type compiled struct {
	ifindex int
	link    snapshot.Link
}

func (g *Gateway) compiledOf(p *port) compiled {
	return compiled{p.link.Index, snapshot.Link{MAC: p.link.MAC, MTU: g.fits(p.link.MTU)}}
}

// fits is the part of a device's MTU that a frame of packet memory holds. It may grow while the node runs, the memory cannot.
func (g *Gateway) fits(mtu int) int {
	most := maxMTU
	if g.chunk > 0 {
		most = min(most, g.chunk-headroom-linkHeader)
	}
	return min(mtu, most)
}

// follow compiles again when what the view took from a port is no longer so. The caller holds mu.
func (g *Gateway) follow(p *port) error {
	if p.served == g.compiledOf(p) {
		return nil
	}
	if err := g.recompile(); err != nil {
		return fmt.Errorf("the policy does not compile on the changed link, the old view stays: %w", err)
	}
	return nil
}

// linkChanged follows what a device says of itself.
func (g *Gateway) linkChanged(i int, l hostnet.Link) {
	g.mu.Lock()
	p := g.ports[i]
	if l.Index != p.link.Index { // it went while we waited
		g.mu.Unlock()
		return
	}
	was := p.link
	if bare := g.bare(p, &l); bare != p.bare {
		g.change(p, func() { p.bare = bare })
		if bare {
			g.log.Error("the XDP program was taken off: nothing of this port arrives, the host's stack sees all of it; restart the node", "port", p.cfg.Name)
		}
	}
	g.change(p, func() { p.link.Up, p.link.Carrier, p.link.MAC, p.link.MTU = l.Up, l.Carrier, l.MAC, l.MTU })
	if l.Carrier != was.Carrier || l.Up != was.Up {
		g.log.Info("link", "port", p.cfg.Name, "up", l.Up, "carrier", l.Carrier)
		g.carrier(i, p)
		g.tellSlow(g.view.Load())
	}
	if l.MAC != was.MAC || l.MTU != was.MTU {
		g.log.Info("link changed", "port", p.cfg.Name, "mtu", l.MTU, "mac", net.HardwareAddr(l.MAC[:]).String())
		if most := g.fits(l.MTU); most < l.MTU {
			g.log.Error("mtu is larger than a frame of packet memory: larger packets that arrive are lost", "port", p.cfg.Name, "mtu", l.MTU, "most", most)
		}
	}
	if err := g.follow(p); err != nil {
		g.log.Error("link changed", "port", p.cfg.Name, "err", err)
	}
	closed := p.state == portClosed
	g.mu.Unlock()
	if closed {
		g.mend(i)
	}
}

// bare reports whether somebody has taken the program off. The event may be older than our attaching it, so the device is asked again.
func (g *Gateway) bare(p *port, l *hostnet.Link) bool {
	if l.XDP.ID != 0 || !g.ready.Load() || p.state == portGone {
		return false
	}
	now, err := hostnet.LinkByIndex(l.Index)
	return err == nil && now.XDP.ID == 0
}
