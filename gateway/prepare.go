package gateway

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"demarc/gateway/hostnet"
	"demarc/gateway/portprep"
	"demarc/gateway/xsk"
)

// prepDir is where a node keeps what its ports were like before it prepared them.
func prepDir(dataDir string) string { return filepath.Join(dataDir, "ports") }

// ReleaseSettings puts back, from a node's data directory, what preparing changed on a device and no gateway has put back. It says what.
func ReleaseSettings(dataDir, device string, ifindex int) (string, error) {
	done, err := portprep.Release(prepDir(dataDir), device, ifindex)
	return portprep.Join(done), err
}

// wanted is what the node file makes of a port's device.
func (g *Gateway) wanted(p *port) portprep.Want {
	return portprep.Want{Trunk: g.trunk(p.cfg.Name), Generic: p.asked == xsk.Generic || noNative(p.link.Index), Queues: p.cfg.Queues}
}

// foreseePort refuses, without a change, what prepare would have to refuse.
func (g *Gateway) foreseePort(p *port) error {
	if p.cfg.Prepared() {
		return portprep.Foresee(p.cfg.Device, g.wanted(p))
	}
	_, err := portprep.Judge(p.cfg.Device, g.wanted(p))
	return err
}

// prepare readies the device of a port, or judges it as it is where the node file says prepare = false. It may be called again when the device
// is another one. Nobody else serves the device: it is locked.
func (g *Gateway) prepare(p *port) error {
	var warnings []string
	var changes []portprep.Change
	if p.cfg.Prepared() {
		prep, err := portprep.Prepare(prepDir(g.o.Node.DataDir), p.cfg.Device, p.link.Index, g.wanted(p))
		if err != nil {
			return ofPort(p.cfg.Name, underProgram(p, err))
		}
		p.prep = prep
		warnings, changes = prep.Warnings, prep.Changes()
		if prep.Promiscuous != "" {
			m, err := hostnet.ReceiveAll(p.link.Index)
			if err != nil {
				return fmt.Errorf("port %s: %w", p.cfg.Name, err)
			}
			p.locks = append(p.locks, m)
			changes = append(changes, portprep.Change{What: "promiscuous", Was: "off", Now: "on (" + prep.Promiscuous + ")"})
		}
		if len(changes) > 0 {
			g.log.Info("port prepared", "port", p.cfg.Name, "device", p.cfg.Device, "changed", portprep.Join(changes))
		}
	} else {
		var err error
		if warnings, err = portprep.Judge(p.cfg.Device, g.wanted(p)); err != nil {
			return ofPort(p.cfg.Name, err)
		}
	}
	for _, w := range warnings {
		g.log.Warn("port", "port", p.cfg.Name, "device", p.cfg.Device, "warning", w)
	}
	l, err := hostnet.LinkByIndex(p.link.Index) // the number of queues may be another one
	if err != nil {
		return fmt.Errorf("port %s: %w", p.cfg.Name, err)
	}
	g.change(p, func() { p.link, p.changes, p.warnings = bound(p, l), changes, warnings })
	p.ready = l.Index
	return nil
}

// bound is a link with the queues that are to be bound, which may be fewer than the device has.
func bound(p *port, l hostnet.Link) hostnet.Link {
	if p.prep != nil && p.prep.Queues > 0 {
		l.RxQueues = min(l.RxQueues, p.prep.Queues)
	}
	return l
}

// lookAgain looks at a device again once the program is on it, before the sockets: virtio_net has more queues from then on, and spreads packets over
// those as well.
func (g *Gateway) lookAgain(p *port) error {
	if p.prep != nil {
		before := portprep.Join(p.prep.Changes())
		if err := p.prep.Settle(); err != nil {
			return fmt.Errorf("port %s: %w", p.cfg.Name, err)
		}
		if now := p.prep.Changes(); portprep.Join(now) != before {
			g.log.Info("port prepared anew, as its driver has more queues with a program", "port", p.cfg.Name, "device", p.cfg.Device, "changed", portprep.Join(now))
			promiscuous := slices.DeleteFunc(slices.Clone(p.changes), func(c portprep.Change) bool { return c.What != "promiscuous" })
			g.change(p, func() { p.changes = append(now, promiscuous...) })
		}
		g.change(p, func() { p.warnings = p.prep.Warnings })
	}
	l, err := hostnet.LinkByIndex(p.link.Index)
	if err != nil {
		return fmt.Errorf("port %s: %w", p.cfg.Name, err)
	}
	if l = bound(p, l); l.RxQueues != p.link.RxQueues {
		g.log.Info("the driver has another number of queues with a program", "port", p.cfg.Name, "device", p.cfg.Device, "without", p.link.RxQueues, "with", l.RxQueues)
	}
	g.change(p, func() { p.link.RxQueues, p.link.TxQueues = l.RxQueues, l.TxQueues })
	return nil
}

// underProgram adds what helps when a driver will not change a setting because of the program that an earlier gateway left on the device:
// virtio_net does not change its queues then, whoever asks.
func underProgram(p *port, err error) error {
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	if _, id, _, ours, aerr := xsk.Attached(p.link.Index); aerr != nil || id == 0 || !ours {
		return err
	}
	return fmt.Errorf("%w; the driver may refuse it because of the program that keeps the port closed: demarc release %s, then start again", err, p.cfg.Device)
}

// KeepPorts says that another start follows at once: the ports stay prepared when Run ends, and what was found stays on record for it. On many
// cards each change takes the link down for a moment.
func (g *Gateway) KeepPorts() { g.keepPorts.Store(true) }

// unprepare puts the ports back: to what the first start found, or after a start that failed to what that one found.
func (g *Gateway) unprepare() {
	for i := len(g.ports) - 1; i >= 0; i-- {
		p := g.ports[i]
		if p.prep == nil {
			continue
		}
		switch {
		case g.startFailed:
			if err := p.prep.Abandon(); err != nil {
				g.log.Warn("port is not as it was found", "port", p.cfg.Name, "device", p.cfg.Device, "err", err)
			}
		case g.keepPorts.Load():
			if c := p.prep.Changes(); len(c) > 0 {
				g.log.Info("port stays prepared for the next start", "port", p.cfg.Name, "device", p.cfg.Device, "changed", portprep.Join(c))
			}
		default:
			done, err := p.prep.Restore()
			if len(done) > 0 {
				g.log.Info("port put back", "port", p.cfg.Name, "device", p.cfg.Device, "changed", portprep.Join(done))
			}
			if err != nil {
				g.log.Warn("port is not wholly as it was found: demarc release tries again", "port", p.cfg.Name, "device", p.cfg.Device, "err", err)
			}
		}
		p.prep = nil
	}
}

// ofPort puts the port's name before each of the errors that errors.Join has put together, so that each is a line by itself.
func ofPort(name string, err error) error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var list []error
		for _, e := range j.Unwrap() {
			list = append(list, ofPort(name, e))
		}
		return errors.Join(list...)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("port %s: %w", name, err)
}
