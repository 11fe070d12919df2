package gateway

import (
	"context"
	"fmt"

	"demarc/gateway/api"
	"demarc/gateway/xsk"
)

func (b backend) Ports(ctx context.Context) (*api.Ports, error) {
	in := b.ask(ctx)
	return b.ports(&in)
}

func (b backend) ports(in *inside) (*api.Ports, error) {
	g := b.g
	out := &api.Ports{}
	stats := map[[2]int]int{}
	var socks []socketFigures
	for wi, w := range g.workers {
		for _, s := range w.SocketStats() {
			stats[[2]int{int(s.Port), s.Queue}] = len(socks)
			socks = append(socks, socketFigures{wi, s.RxPackets, s.RxBytes, s.TxPackets, s.TxBytes, s.TxFull, s.TxErrors, s.Kicks, s.Launched})
		}
	}
	for i, p := range g.ports {
		var err error
		f := g.facts(p)
		link := f.link
		ap := api.Port{Name: p.cfg.Name, Device: p.cfg.Device, State: f.state, Ifindex: link.Index, MTU: link.MTU, Driver: link.Driver,
			Up: link.Up, Carrier: link.Carrier, Asked: p.asked.String(), Attach: "generic", Problem: f.problem}
		switch {
		case f.bare:
			ap.Problem = "its XDP program was taken off: the host's stack sees all that arrives; restart the node"
		case ap.Problem != "":
		case !ap.Up:
			ap.Problem = fmt.Sprintf("device %s is down: ip link set %s up", p.cfg.Device, p.cfg.Device)
		case !ap.Carrier:
			ap.Problem = fmt.Sprintf("device %s has no carrier: nothing is connected to it, or its far end is down", p.cfg.Device)
		case g.fits(link.MTU) < link.MTU:
			ap.Problem = fmt.Sprintf("mtu %d is more than the %d that a frame of packet memory holds: larger packets that arrive are lost; ip link set %s mtu %d%s",
				link.MTU, g.fits(link.MTU), p.cfg.Device, g.fits(link.MTU), orRestart(link.MTU))
		default:
			ap.Problem = g.tooLarge(p, link.MTU)
		}
		ap.Warnings = f.warnings
		for _, c := range f.changes {
			ap.Changed = append(ap.Changed, api.Setting{Name: c.What, Was: c.Was, Now: c.Now})
		}
		m := link.MAC
		ap.MAC = fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
		if f.native {
			ap.Attach = "native"
		}
		if f.bare || f.state == portGone {
			ap.Attach = "none"
		}
		if p.prog != nil {
			c, err := p.prog.Counters()
			if err != nil {
				return nil, fmt.Errorf("port %s: read the XDP program's counters: %w", p.cfg.Name, err)
			}
			ap.XDPToHost = c.Host()
			for _, n := range c.Dropped {
				ap.XDPDropped += n
			}
		}
		if ap.Offload, err = g.offloadReport(i, p); err != nil {
			return nil, err
		}
		for n := range f.queues {
			aq := b.queue(i, p, n, socks, stats)
			q := f.queues[n]
			r := in.rings[[2]int{i, q.n}]
			aq.InFill, aq.InRx, aq.InTx = r[0], r[1], r[2]
			ap.Queues = append(ap.Queues, aq)
		}
		out.Ports = append(out.Ports, ap)
	}
	v := g.view.Load()
	for i := 1; i < len(v.Ifaces); i++ {
		f := &v.Ifaces[i]
		ai := api.Interface{Name: f.Name, Port: g.ports[f.Port].cfg.Name, VLAN: int(f.VLAN), MTU: f.MTU}
		if f.Used {
			ai.Faces = "backbone"
			if t := v.Tenant(f.Zone); t != nil {
				ai.Faces = t.Name
			}
		}
		for _, a := range f.Addrs {
			ai.Addresses = append(ai.Addresses, a.String())
		}
		out.Interfaces = append(out.Interfaces, ai)
	}
	return out, nil
}

// orRestart is the other way out of an mtu that the memory taken at start does not hold.
func orRestart(mtu int) string {
	if mtu > maxMTU {
		return ""
	}
	return ", or restart the node, which then takes larger frames"
}

// tooLarge says that an interface is to be larger than its device has become: the device's size holds, and a start would be refused.
func (g *Gateway) tooLarge(p *port, mtu int) string {
	for _, f := range g.o.Node.Interfaces {
		if f.Port == p.cfg.Name && f.MTU > mtu {
			return fmt.Sprintf("interface %s has mtu %d, its device only %d, which holds: a restart would be refused", f.Name, f.MTU, mtu)
		}
	}
	return ""
}

// queue reports on queue n of a port. The descriptor of its socket stays valid while linkMu is held.
func (b backend) queue(port int, p *port, n int, socks []socketFigures, at map[[2]int]int) api.Queue {
	b.g.linkMu.Lock()
	defer b.g.linkMu.Unlock()
	if n >= len(p.queues) {
		return api.Queue{Queue: n, Asked: p.asked.String(), Mode: "none"}
	}
	q := p.queues[n]
	a := api.Queue{Queue: q.n, Worker: q.worker, Asked: p.asked.String(), WhyNotBetter: p.why, Mode: "none"}
	if i, ok := at[[2]int{port, q.n}]; ok {
		f := socks[i]
		a.Rx, a.Tx = api.Counter{Packets: f.rxPackets, Bytes: f.rxBytes}, api.Counter{Packets: f.txPackets, Bytes: f.txBytes}
		a.TxFull, a.TxErrors, a.Kicks, a.TxRedirected = f.txFull, f.txErrors, f.kicks, f.launched
	}
	if q.sock == nil {
		return a
	}
	a.NeedWakeup, a.Mode = q.sock.Config().NeedWakeup, "unknown"
	if zc, err := q.sock.ZeroCopy(); err == nil {
		switch {
		case zc:
			a.Mode = xsk.ZeroCopy.String()
		case p.native:
			a.Mode = xsk.Copy.String()
		default:
			a.Mode = xsk.Generic.String()
		}
	}
	if st, err := q.sock.Stats(); err == nil {
		a.Rings = api.RingStats{RxDropped: st.Rx_dropped, RxInvalidDescs: st.Rx_invalid_descs, TxInvalidDescs: st.Tx_invalid_descs,
			RxRingFull: st.Rx_ring_full, FillEmpty: st.Rx_fill_ring_empty_descs, TxEmpty: st.Tx_ring_empty_descs}
	}
	return a
}
