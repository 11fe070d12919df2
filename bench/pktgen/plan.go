package pktgen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// The shape of the plan, which pktgen.c has too.
const (
	// FrameLen is the length of the smallest IPv4 frame without the frame check sequence: 64 bytes on a wire.
	FrameLen = 60
	// IPLen is the length of its IP packet.
	IPLen = 46
	// FCS is what a wire adds to a frame at its end.
	FCS = 4
	// InsideHosts and OutsideHosts are over how many addresses flows spread.
	InsideHosts  = 1024
	OutsideHosts = 16
	// MaxFlows is what fits into the ports above InsidePort and, with 100 bytes a flow, into the memory of a common machine.
	MaxFlows = 1 << 22

	sentTTL = 64

	ethLen, ip4Len, ip6Len, l4Len = 14, 20, 40, 24 // l4: UDP, flow, sequence number, time stamp, check word
	maxSizes                      = 12
	maxFrame                      = 1514
)

// MinSize is the smallest frame of a family, on a wire: with IPv6 the headers and what the judge needs take 82 bytes.
func MinSize(v6 bool) int {
	if v6 {
		return ethLen + ip6Len + l4Len + FCS
	}
	return FrameLen + FCS
}

// Plan says what is sent and what must arrive.
type Plan struct {
	Flows       int        // a power of two, at most MaxFlows
	Key         uint64     // of the check word; fresh for each run, so that frames of another run are not taken for this one's
	Inside      netip.Addr // first of InsideHosts inside addresses; its family is the plan's
	InsidePort  uint16     // first inside port; flow n has InsidePort + n/InsideHosts
	Outside     netip.Addr // first of OutsideHosts outside addresses
	OutsidePort uint16
	Pool        [2]netip.Addr // IPv4: public addresses that a frame may arrive from, first and last
	From, To    [6]byte       // MAC addresses of the maker's device and of the device under test's
	// Those of frames that the outside makes; only Both and In need them.
	OutsideFrom, OutsideTo [6]byte
	Sizes                  []int // of frames on a wire, even numbers; each flow takes them in turn. nil = the smallest
	// Calls makes calls of the flows with an even number, which have the first of two sizes and are marked EF (IPv4), and bulk of the others, which have the second.
	Calls bool
	// VLAN makes a tenant of each flow: frames of the inside are tagged, the first flow's with this id and so on; those are 4 bytes longer. 0 = none. Out only.
	VLAN uint16
}

// V6 says that frames are IPv6.
func (p *Plan) V6() bool { return p.Inside.Is6() }

// wire is struct plan of pktgen.c.
type wire struct {
	Key                   uint64
	Mask                  uint32
	Inside, Outside       uint32
	PoolLo, PoolHi        uint32
	InsidePort            uint16
	OutsidePort           uint16
	DstMAC, SrcMAC        [2][6]byte
	Shift                 uint32
	V6                    uint32
	InsideNet, OutsideNet [12]byte
	Calls, VLAN           uint32
	Sizes                 uint32
	Size, Filler          [maxSizes]uint16
	_                     [4]byte
}

// low is the last 32 bits of an address.
func low(a netip.Addr) uint32 {
	b := a.As16()
	return binary.BigEndian.Uint32(b[12:])
}

// withLow is an address with its last 32 bits changed.
func withLow(a netip.Addr, v uint32) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint32(b[12:], v)
	if a.Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// sizes are those of frames as they lie in memory.
func (p *Plan) sizes() []int {
	if len(p.Sizes) == 0 {
		return []int{MinSize(p.V6()) - FCS}
	}
	var list []int
	for _, n := range p.Sizes {
		list = append(list, n-FCS)
	}
	return list
}

// headers are what comes before the filler.
func (p *Plan) headers() int {
	if p.V6() {
		return ethLen + ip6Len + l4Len
	}
	return ethLen + ip4Len + l4Len
}

// page is a frame with nothing but filler, of the largest size: headers are written over it, and smaller frames are cut from it.
func (p *Plan) page() []byte {
	b := make([]byte, slices.Max(p.sizes()))
	for i := p.headers(); i < len(b); i++ {
		b[i] = byte(0x5a ^ (i-p.headers())*31)
	}
	return b
}

func (p *Plan) wire() (w wire, err error) {
	if p.Flows < 1 || p.Flows > MaxFlows || p.Flows&(p.Flows-1) != 0 {
		return w, fmt.Errorf("%d flows: want a power of two from 1 to %d", p.Flows, MaxFlows)
	}
	if p.Inside.Is6() != p.Outside.Is6() || !p.Inside.IsValid() || !p.Outside.IsValid() {
		return w, errors.New("the plan's addresses must be of one family")
	}
	if !p.V6() && (!p.Pool[0].Is4() || !p.Pool[1].Is4()) {
		return w, errors.New("the addresses of an IPv4 plan's pool must be IPv4")
	}
	if int(p.InsidePort)+p.Flows/InsideHosts > 65536 {
		return w, fmt.Errorf("%d flows do not fit above inside port %d", p.Flows, p.InsidePort)
	}
	sizes := p.sizes()
	if len(sizes) > maxSizes {
		return w, fmt.Errorf("%d frame sizes: at most %d", len(sizes), maxSizes)
	}
	w = wire{
		Key: p.Key, Mask: uint32(p.Flows - 1), Shift: uint32(bits.Len(uint(p.Flows - 1))), Inside: low(p.Inside), Outside: low(p.Outside),
		InsidePort: p.InsidePort, OutsidePort: p.OutsidePort, DstMAC: [2][6]byte{p.To, p.OutsideTo}, SrcMAC: [2][6]byte{p.From, p.OutsideFrom},
		Sizes: uint32(len(sizes)),
	}
	if p.V6() {
		in, out := p.Inside.As16(), p.Outside.As16()
		w.V6, w.InsideNet, w.OutsideNet = 1, [12]byte(in[:]), [12]byte(out[:])
	} else {
		w.PoolLo, w.PoolHi = low(p.Pool[0]), low(p.Pool[1])
	}
	if p.Calls {
		if w.Calls = 1; len(sizes) != 2 || p.Flows < 2 {
			return w, fmt.Errorf("calls and bulk need two frame sizes and two flows: there are %d and %d", len(sizes), p.Flows)
		}
	}
	if w.VLAN = uint32(p.VLAN); p.VLAN > 0 && (p.Calls || p.V6() || int(p.VLAN)+p.Flows > 4095 || p.Flows > InsideHosts) {
		return w, fmt.Errorf("%d tenants from VLAN %d: at most %d, IPv4, with ids up to 4094, and no calls", p.Flows, p.VLAN, InsideHosts)
	}
	page := p.page()
	for i, n := range sizes {
		if n < MinSize(p.V6())-FCS || n > maxFrame || n%2 != 0 {
			return w, fmt.Errorf("frames of %d bytes: want an even number from %d to %d", n+FCS, MinSize(p.V6()), maxFrame+FCS)
		}
		w.Size[i], w.Filler[i] = uint16(n), sum(page[p.headers():n])
	}
	return w, nil
}

// sum is the ones' complement sum of an even number of bytes, in the byte order of the machine that the program is for.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.LittleEndian.Uint16(b[i:]))
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// Flow is the inside and the outside end of flow n, as sent.
func (p *Plan) Flow(n int) (inside, outside netip.AddrPort) {
	f := uint32(n)
	in := netip.AddrPortFrom(withLow(p.Inside, low(p.Inside)+f%InsideHosts), p.InsidePort+uint16(f/InsideHosts))
	return in, netip.AddrPortFrom(withLow(p.Outside, low(p.Outside)+(f^f/InsideHosts)%OutsideHosts), p.OutsidePort)
}
