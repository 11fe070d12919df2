package xsk

import (
	"fmt"

	"demarc/gateway/verdict"
)

// What the XDP program made of a frame, in the order of enum what in bpf/steer.c.
const (
	toSocket = iota
	hostLink
	hostARP
	hostND
	hostRA
	hostDHCP
	hostAddress
	hostShared
	dropMAC
	dropNoSocket
	dropNotOwner
	kept
	numWhats
)

// Counters is what a port's XDP program has decided since it was loaded, summed over CPUs; Update keeps them. Frames each.
type Counters struct {
	Socket uint64 // redirected to a socket
	Kept   uint64 // redirected too: sent to a group that had just been handed over, for its next owner

	// Passed to the host, and why.
	HostLink, HostARP, HostND, HostRA, HostDHCP, HostAddress, HostShared uint64

	Dropped [verdict.NumReasons]uint64 // by reason: XDPForeignMAC, XDPNoSocket, XDPNotOwner
}

// Host is how many frames were passed to the host in all.
func (c *Counters) Host() uint64 {
	return c.HostLink + c.HostARP + c.HostND + c.HostRA + c.HostDHCP + c.HostAddress + c.HostShared
}

// Counters reads the counters.
func (p *Program) Counters() (Counters, error) {
	var c Counters
	for what, at := range [numWhats]*uint64{
		toSocket: &c.Socket, kept: &c.Kept, hostLink: &c.HostLink, hostARP: &c.HostARP, hostND: &c.HostND, hostRA: &c.HostRA, hostDHCP: &c.HostDHCP,
		hostAddress: &c.HostAddress, hostShared: &c.HostShared,
		dropMAC: &c.Dropped[verdict.XDPForeignMAC], dropNoSocket: &c.Dropped[verdict.XDPNoSocket],
		dropNotOwner: &c.Dropped[verdict.XDPNotOwner],
	} {
		var perCPU []uint64
		if err := p.counters.Lookup(uint32(what), &perCPU); err != nil {
			return c, fmt.Errorf("read xdp counter %d of device %d: %w", what, p.cfg.Ifindex, err)
		}
		for _, n := range perCPU {
			*at += n
		}
	}
	return c, nil
}
