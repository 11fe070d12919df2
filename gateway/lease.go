package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"demarc/gateway/hostnet"
	"demarc/gateway/pipeline"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

// writeLease says until when this node may send for a group (ns of CLOCK_BOOTTIME; 0 = not at all), and under which epoch. It holds for the next frame that
// arrives and the next look of a worker. What has come by then may be carried, and what is in tx rings may leave, until leave (0 = it may not: its sockets are closed). done, which may be nil, is called from somewhere else once nothing leaves any more that went by what was
// written before: every worker has looked since, what may leave has, and what it had to close is closed. If a worker hangs it is not called. One goroutine alone writes.
func (g *Gateway) writeLease(group uint8, epoch, until, leave uint64, done func()) {
	for _, e := range g.ending {
		e.Write(group, epoch, leave)
	}
	g.leaving.Write(group, epoch, leave) // first: who finds the deadline over looks here
	// What comes behind a hand-over is for the next owner. Workers that have all hands full have none for that.
	keeps := leave > 0 && !slices.ContainsFunc(g.workers, (*worker.Worker).Laden)
	switch {
	case keeps:
		keep := g.clock.Now() + uint64(handOnTime)
		g.handOn.Begin(group, keep)
		g.keepFor(group, keep)
	case until > 0:
		g.keepFor(group, 0)
	}
	g.writeTable(group, epoch, until)
	if keeps {
		g.handOn.Closed()
	}
	if done != nil {
		last := g.copying.ends.begin(group, leave > 0)
		go func() {
			if g.looked(last) {
				if leave > 0 {
					g.countLast(group)
				}
				last.common()
				done()
			}
		}()
	}
}

// countLast has what was passed on for a group's tenants up to its end go with the last changes, what programs have carried too: it is billed, and the next owner counts on from there.
func (g *Gateway) countLast(group uint8) {
	if g.off != nil {
		for _, t := range g.view.Load().Tenants {
			if t != nil && t.Group != nil && t.Group.ID == group {
				g.off.readOf(t.ID)
			}
		}
	}
	g.common.soon(func(c *pipeline.Common, now int64) { c.Count(group, now) })
}

// handOnTime is for how long what comes for a group behind a planned hand-over is kept until its next owner is heard: longer than nearly all take (cluster/failover/DESIGN.md), and no longer than packets may be late.
const handOnTime = 100 * time.Millisecond

// awaitHandOn waits until the workers keep nothing any more for who serves a group next, which is at most handOnTime. Before they end.
func (g *Gateway) awaitHandOn() {
	for now := g.clock.Now(); now < g.handOn.Until(); now = g.clock.Now() {
		time.Sleep(min(time.Duration(g.handOn.Until()-now), 5*time.Millisecond))
	}
}

// looked waits until every worker has passed a look at the deadlines that began after the call. One that has ended sends no more. What each has changed until then goes to those that last is for.
func (g *Gateway) looked(last lastChanges) bool {
	var wg sync.WaitGroup
	var mu sync.Mutex
	all := true
	for i, w := range g.workers {
		wg.Go(func() {
			if !looked(w, func() { last.worker(i) }) {
				mu.Lock()
				all = false
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all && g.off.settle() == nil
}

// looked waits for one worker, unless it sleeps with nothing in hand: on a busy machine most of a hand-over is waiting for threads to get a CPU. So what then is to be done is begun by the worker itself.
func looked(w *worker.Worker, then func()) bool {
	if w.Rests() {
		if w.EndNow(); w.Rests() { // it has not woken since, or is done with what it woke for
			then()
			return true
		}
	}
	for clean := false; ; time.Sleep(200 * time.Microsecond) { // what is queued is about to leave, a socket that had to be closed to be
		err := w.DoBehind(context.Background(), func(sh *pipeline.Shard) {
			if clean = w.Clean(); clean {
				sh.Meter.Publish() // the turn that is told to the next owner may not have ended yet
				then()
			}
		})
		if err != nil {
			return errors.Is(err, worker.ErrStopped)
		}
		if clean {
			return true
		}
	}
}

// fenced is told by a worker that a deadline passed while frames of the group were queued on a socket, which it has let go of: what is queued must die with it. The
// port is closed and opened again.
func (g *Gateway) fenced(port uint16, s *xsk.Socket) {
	g.fencing.Go(func() {
		err := s.Shut() // first of all
		i, p := int(port), g.ports[port]
		g.mu.Lock()
		if g.ready.Load() && p.state == portOpen {
			g.change(p, func() {
				p.state, p.fenced, p.problem = portClosed, time.Now(), "a lease ended while frames were queued: it is being opened again"
			})
			g.log.Warn("a lease ended while frames of its group were queued: the port is closed and opened again", "port", p.cfg.Name)
			err = errors.Join(err, g.dropSockets(i, 0))
		}
		g.mu.Unlock()
		if err != nil {
			g.log.Warn("close a port on which a lease ended", "port", p.cfg.Name, "err", err)
		}
		g.mend(i)
	})
}

// reopenTime is how long a port that was closed because a lease ended has until it counts as one that carries nothing.
const reopenTime = time.Second

// reopens says that a port is closed for a moment only: a lease that came late has done that, and is no reason to move its group, and hold it where it went, when a port really fails.
func (f *portFacts) reopens() bool {
	return f.state == portClosed && !f.fenced.IsZero() && time.Since(f.fenced) < reopenTime
}

// hear has the device of a port receive what is sent to the virtual MACs of the groups that its program knows, and no others any more. The kernel counts
// such a membership and takes it back when the process ends. The caller holds mu, or is the start.
func (g *Gateway) hear(p *port) {
	want := map[[6]byte]bool{}
	for _, id := range p.loaded.Groups {
		for _, mac := range xsk.VirtualMACs(id) {
			want[mac] = true
		}
	}
	for mac, m := range p.heard {
		if !want[mac] {
			delete(p.heard, mac)
			if err := m.Close(); err != nil {
				g.log.Warn("receive no more what is sent to a virtual MAC", "port", p.cfg.Name, "mac", net.HardwareAddr(mac[:]).String(), "err", err)
			}
		}
	}
	for mac := range want {
		if p.heard[mac] != nil {
			continue
		}
		m, err := receiveMAC(p.link.Index, mac)
		if err != nil {
			g.log.Error("the device cannot be told to receive what is sent to a virtual MAC", "port", p.cfg.Name, "mac", net.HardwareAddr(mac[:]).String(), "err", err)
			continue
		}
		if p.heard == nil {
			p.heard = map[[6]byte]io.Closer{}
		}
		p.heard[mac] = m
	}
}

// receiveMAC is hostnet's; where a driver refuses, the whole port hears everything. A seam for tests.
var receiveMAC = func(ifindex int, mac [6]byte) (io.Closer, error) {
	if m, err := hostnet.ReceiveMAC(ifindex, mac); err == nil {
		return m, nil
	}
	return hostnet.ReceiveAll(ifindex)
}
