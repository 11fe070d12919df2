package pktgen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// The shape of the plan, which pktgen.c has too.
const (
	// FrameLen is the length of a frame without the frame check sequence: 64 bytes on a wire.
	FrameLen = 60
	// IPLen is the length of its IP packet.
	IPLen = 46
	// InsideHosts and OutsideHosts are over how many addresses flows spread.
	InsideHosts  = 1024
	OutsideHosts = 16
	// MaxFlows is what fits into the ports above InsidePort and, with 100 bytes a flow, into the memory of a common machine.
	MaxFlows = 1 << 22

	sentTTL = 64
)

// Plan says what is sent and what must arrive.
type Plan struct {
	Flows       int        // a power of two, at most MaxFlows
	Key         uint64     // of the check word; fresh for each run, so that frames of another run are not taken for this one's
	Inside      netip.Addr // first of InsideHosts inside addresses
	InsidePort  uint16     // first inside port; flow n has InsidePort + n/InsideHosts
	Outside     netip.Addr // first of OutsideHosts outside addresses
	OutsidePort uint16
	Pool        [2]netip.Addr // public addresses that a frame may arrive from, first and last
	From, To    [6]byte       // MAC addresses of the maker's device and of the device under test's
}

// wire is struct plan of pktgen.c.
type wire struct {
	Key             uint64
	Mask            uint32
	Inside, Outside uint32
	PoolLo, PoolHi  uint32
	InsidePort      uint16
	OutsidePort     uint16
	DstMAC, SrcMAC  [6]byte
	Shift           uint32
}

func host(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v)))
}

func (p *Plan) wire() (wire, error) {
	if p.Flows < 2 || p.Flows > MaxFlows || p.Flows&(p.Flows-1) != 0 {
		return wire{}, fmt.Errorf("%d flows: want a power of two from 2 to %d", p.Flows, MaxFlows)
	}
	for _, a := range []netip.Addr{p.Inside, p.Outside, p.Pool[0], p.Pool[1]} {
		if !a.Is4() {
			return wire{}, errors.New("the plan's addresses must be IPv4")
		}
	}
	if int(p.InsidePort)+p.Flows/InsideHosts > 65536 {
		return wire{}, fmt.Errorf("%d flows do not fit above inside port %d", p.Flows, p.InsidePort)
	}
	return wire{
		Key: p.Key, Mask: uint32(p.Flows - 1), Shift: uint32(bits.Len(uint(p.Flows - 1))),
		Inside: host(p.Inside), Outside: host(p.Outside), PoolLo: host(p.Pool[0]), PoolHi: host(p.Pool[1]),
		InsidePort: p.InsidePort, OutsidePort: p.OutsidePort, DstMAC: p.To, SrcMAC: p.From,
	}, nil
}

// Flow is the inside and the outside end of flow n, as sent.
func (p *Plan) Flow(n int) (inside, outside netip.AddrPort) {
	f := uint32(n)
	in := netip.AddrPortFrom(addr(host(p.Inside)+f%InsideHosts), p.InsidePort+uint16(f/InsideHosts))
	return in, netip.AddrPortFrom(addr(host(p.Outside)+(f^f/InsideHosts)%OutsideHosts), p.OutsidePort)
}
