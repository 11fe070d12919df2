package gateway

import (
	"io"
	"net"

	"demarc/gateway/hostnet"
	"demarc/gateway/xsk"
)

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
