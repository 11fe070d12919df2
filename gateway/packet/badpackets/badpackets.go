package badpackets

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

// Case is one bad frame.
type Case struct {
	Name  string // unique
	Frame []byte
	// Want is what packet.Parse returns or, when it is ICMPBadInner, packet.ParseInner after Parse passed. Unset: any result will
	// do as long as nothing breaks (random damage, and what only the receiver of ARP or neighbour discovery can refuse).
	Want verdict.Reason
}

// Ends are the addresses that the frames carry.
type Ends struct {
	SrcMAC, DstMAC [6]byte
	Src4, Dst4     [4]byte
	Src6, Dst6     [16]byte
	VLAN           uint16 // 0 = untagged
}

// Documentation addresses for tests that do not send anything.
func documentation() Ends {
	return Ends{
		SrcMAC: [6]byte{2, 0, 0, 0, 0, 1}, DstMAC: [6]byte{2, 0, 0, 0, 0, 2},
		Src4: [4]byte{198, 18, 10, 5}, Dst4: [4]byte{192, 0, 2, 1},
		Src6: [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 5}, Dst6: [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 15: 1},
	}
}

// All returns every case, between documentation addresses.
func All(seed uint64) []Case { return AllFor(seed, documentation()) }

// AllFor returns every case between the given ends.
func AllFor(seed uint64, e Ends) []Case {
	l := &list{e: e, rnd: rand.New(rand.NewPCG(seed, 0x62616470616b6574))}
	l.ethernet()
	l.ipv4()
	l.options()
	l.fragments()
	l.transport()
	l.icmp()
	l.ipv6()
	l.arp()
	l.nd()
	l.truncated()
	l.random()
	return l.cases
}

// Good returns well-formed frames of every kind that Parse accepts: what the bad ones are made from.
func Good(e Ends) []Case {
	l := &list{e: e}
	return l.good()
}

type list struct {
	e     Ends
	rnd   *rand.Rand
	cases []Case
}

func (l *list) add(want verdict.Reason, frame []byte, format string, args ...any) {
	l.cases = append(l.cases, Case{Name: fmt.Sprintf(format, args...), Frame: frame, Want: want})
}

var be = binary.BigEndian

func cat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func fill(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + 1)
	}
	return b
}

func (l *list) eth(et uint16, payload []byte) []byte {
	if l.e.VLAN != 0 {
		return l.tagged(l.e.VLAN, et, payload)
	}
	return cat(l.e.DstMAC[:], l.e.SrcMAC[:], be.AppendUint16(nil, et), payload)
}

func (l *list) tagged(tci, et uint16, payload []byte) []byte {
	t := be.AppendUint16(be.AppendUint16(be.AppendUint16(nil, 0x8100), tci), et)
	return cat(l.e.DstMAC[:], l.e.SrcMAC[:], t, payload)
}

// ip4 makes an IPv4 packet. change may spoil the header before its checksum is written.
func (l *list) ip4(proto uint8, opts, payload []byte, change func(h []byte)) []byte {
	h := make([]byte, 20, 60)
	h[0] = 0x40 | byte(5+len(opts)/4)
	be.PutUint16(h[2:], uint16(20+len(opts)+len(payload)))
	be.PutUint16(h[4:], 0x1234)
	h[8], h[9] = 64, proto
	copy(h[12:], l.e.Src4[:])
	copy(h[16:], l.e.Dst4[:])
	h = append(h, opts...)
	if change != nil {
		change(h)
	}
	h[10], h[11] = 0, 0
	// What the receiver takes for the header is what the sum covers, as far as there is so much.
	all := cat(h, payload)
	be.PutUint16(all[10:], csum.Checksum(csum.Sum(0, all[:min(len(all), max(20, int(h[0]&15)*4))])))
	return all
}

func (l *list) ip6(nh uint8, payload []byte, change func(h []byte)) []byte {
	h := make([]byte, 40)
	h[0] = 0x60
	be.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = nh, 64
	copy(h[8:], l.e.Src6[:])
	copy(h[24:], l.e.Dst6[:])
	if change != nil {
		change(h)
	}
	return cat(h, payload)
}

// seal writes the transport checksum at offset at of t, with the pseudo header of the family (0 = none).
func (l *list) seal(family int, proto uint8, t []byte, at int) []byte {
	be.PutUint16(t[at:], 0)
	var s uint64
	switch family {
	case 4:
		s = csum.Pseudo4(l.e.Src4, l.e.Dst4, proto, len(t))
	case 6:
		s = csum.Pseudo6(&l.e.Src6, &l.e.Dst6, proto, len(t))
	}
	be.PutUint16(t[at:], csum.NonZero(csum.Checksum(csum.Sum(s, t))))
	return t
}

func (l *list) udp(family, n int) []byte {
	t := cat([]byte{0x9c, 0x40, 0, 53, 0, 0, 0, 0}, fill(n))
	be.PutUint16(t[4:], uint16(len(t)))
	return l.seal(family, 17, t, 6)
}

func (l *list) tcp(family int, flags uint8, opts []byte, n int) []byte {
	t := cat([]byte{0x9c, 0x41, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, byte(5+len(opts)/4) << 4, flags, 0x20, 0, 0, 0, 0, 0}, opts, fill(n))
	return l.seal(family, 6, t, 16)
}

func (l *list) icmp4(typ, code uint8, rest [4]byte, body []byte) []byte {
	return l.seal(0, 1, cat([]byte{typ, code, 0, 0}, rest[:], body), 2)
}

func (l *list) icmp6(typ, code uint8, rest [4]byte, body []byte) []byte {
	return l.seal(6, 58, cat([]byte{typ, code, 0, 0}, rest[:], body), 2)
}

// swapped returns l with its ends exchanged: who gets an error has sent what it quotes.
func (l *list) swapped() *list {
	e := l.e
	e.Src4, e.Dst4, e.Src6, e.Dst6 = e.Dst4, e.Src4, e.Dst6, e.Src6
	return &list{e: e}
}

var synOptions = []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}

func (l *list) arpMessage(op uint16) []byte {
	return cat([]byte{0, 1, 8, 0, 6, 4}, be.AppendUint16(nil, op), l.e.SrcMAC[:], l.e.Src4[:], make([]byte, 6), l.e.Dst4[:])
}

// solicit is a neighbour solicitation for the far end, sent to it directly.
func (l *list) solicit(opts []byte) []byte {
	return l.icmp6(135, 0, [4]byte{}, cat(l.e.Dst6[:], opts))
}

func (l *list) ndPacket(t []byte) []byte {
	return l.ip6(58, t, func(h []byte) { h[7] = 255 })
}

func (l *list) good() []Case {
	o := l.swapped()
	sll := cat([]byte{1, 1}, l.e.SrcMAC[:])
	hbh := []byte{60, 0, 1, 4, 0, 0, 0, 0}
	dst := []byte{17, 0, 1, 4, 0, 0, 0, 0}
	var out []Case
	add := func(name string, et uint16, p []byte) {
		out = append(out, Case{name, l.eth(et, p), verdict.Pass})
	}
	add("udp4", 0x0800, l.ip4(17, nil, l.udp(4, 18), nil))
	add("udp4 no checksum", 0x0800, l.ip4(17, nil, cat([]byte{1, 2, 3, 4, 0, 10, 0, 0, 9, 9}), nil))
	add("udp4 surplus", 0x0800, l.ip4(17, nil, cat(l.udp(4, 4), fill(6)), nil))
	add("tcp4 syn", 0x0800, l.ip4(6, nil, l.tcp(4, 2, synOptions, 0), nil))
	add("tcp4 syn odd mss", 0x0800, l.ip4(6, nil, l.tcp(4, 2, []byte{1, 2, 4, 5, 0xb4, 1, 1, 0}, 0), nil))
	add("tcp4 data", 0x0800, l.ip4(6, nil, l.tcp(4, 0x18, nil, 33), nil))
	add("options", 0x0800, l.ip4(17, []byte{7, 7, 4, 0, 0, 0, 0, 0}, l.udp(4, 5), nil))
	add("echo4", 0x0800, l.ip4(1, nil, l.icmp4(8, 0, [4]byte{0x12, 0x34, 0, 1}, fill(32)), nil))
	add("echo reply4", 0x0800, l.ip4(1, nil, l.icmp4(0, 0, [4]byte{0x12, 0x34, 0, 1}, fill(31)), nil))
	add("timestamp4", 0x0800, l.ip4(1, nil, l.icmp4(13, 0, [4]byte{0x12, 0x34, 0, 1}, fill(12)), nil))
	add("unreachable4 udp", 0x0800, l.ip4(1, nil, l.icmp4(3, 1, [4]byte{}, o.ip4(17, nil, o.udp(4, 40), nil)), nil))
	add("unreachable4 tcp cut", 0x0800, l.ip4(1, nil, l.icmp4(3, 4, [4]byte{0, 0, 5, 0}, o.ip4(6, nil, o.tcp(4, 16, nil, 40), nil)[:28]), nil))
	add("unreachable4 tcp", 0x0800, l.ip4(1, nil, l.icmp4(3, 4, [4]byte{0, 0, 5, 0}, o.ip4(6, nil, o.tcp(4, 16, nil, 5), nil)), nil))
	add("exceeded4 echo reply", 0x0800, l.ip4(1, nil, l.icmp4(11, 0, [4]byte{}, o.ip4(1, nil, o.icmp4(0, 0, [4]byte{0x12, 0x34, 0, 1}, fill(8)), nil)), nil))
	add("exceeded4 echo", 0x0800, l.ip4(1, nil, l.icmp4(11, 0, [4]byte{}, o.ip4(1, nil, o.icmp4(8, 0, [4]byte{0x12, 0x34, 0, 1}, fill(8)), nil)), nil))
	add("gre", 0x0800, l.ip4(47, nil, fill(20), nil))
	add("udplite", 0x0800, l.ip4(136, nil, l.seal(4, 136, cat([]byte{1, 2, 3, 4, 0, 0, 0, 0}, fill(9)), 6), nil))
	add("first fragment", 0x0800, l.ip4(17, nil, l.udp(4, 24), func(h []byte) { h[6] = 0x20 }))
	add("later fragment", 0x0800, l.ip4(17, nil, fill(24), func(h []byte) { h[7] = 4 }))
	add("udp6", 0x86dd, l.ip6(17, l.udp(6, 18), nil))
	add("tcp6 syn", 0x86dd, l.ip6(6, l.tcp(6, 2, synOptions, 0), nil))
	add("udp6 extensions", 0x86dd, l.ip6(0, cat(hbh, dst, l.udp(6, 18)), nil))
	add("atomic fragment6", 0x86dd, l.ip6(44, cat([]byte{17, 0, 0, 0, 1, 2, 3, 4}, l.udp(6, 18)), nil))
	add("first fragment6", 0x86dd, l.ip6(44, cat([]byte{17, 0, 0, 1, 1, 2, 3, 4}, l.udp(6, 16)), nil))
	add("later fragment6", 0x86dd, l.ip6(44, cat([]byte{17, 0, 0, 24, 1, 2, 3, 4}, fill(11)), nil))
	add("no next header", 0x86dd, l.ip6(59, nil, nil))
	add("esp6", 0x86dd, l.ip6(50, fill(40), nil))
	add("echo6", 0x86dd, l.ip6(58, l.icmp6(128, 0, [4]byte{0x12, 0x34, 0, 1}, fill(32)), nil))
	add("echo reply6", 0x86dd, l.ip6(58, l.icmp6(129, 0, [4]byte{0x12, 0x34, 0, 1}, fill(32)), nil))
	add("too big6", 0x86dd, l.ip6(58, l.icmp6(2, 0, [4]byte{0, 0, 5, 0}, o.ip6(17, o.udp(6, 99), nil)), nil))
	add("exceeded6 extensions", 0x86dd, l.ip6(58, l.icmp6(3, 0, [4]byte{}, o.ip6(0, cat(hbh, dst, o.udp(6, 9)), nil)), nil))
	add("arp request", 0x0806, l.arpMessage(1))
	add("arp reply padded", 0x0806, cat(l.arpMessage(2), make([]byte, 18)))
	add("solicitation", 0x86dd, l.ndPacket(l.solicit(sll)))
	add("advertisement", 0x86dd, l.ndPacket(l.icmp6(136, 0, [4]byte{0x60}, cat(l.e.Src6[:], []byte{2, 1}, l.e.SrcMAC[:]))))
	out = append(out, Case{"priority tag", l.tagged(5<<13, 0x0800, l.ip4(17, nil, l.udp(4, 8), nil)), verdict.Pass})
	return out
}

func (l *list) ethernet() {
	p := l.ip4(17, nil, l.udp(4, 8), nil)
	l.add(verdict.BadVLAN, l.tagged(0x0fff, 0x0800, p), "ethernet/vlan 4095")
	for _, et := range []uint16{0x8100, 0x88a8, 0x9100, 0x9200} {
		l.add(verdict.BadVLAN, l.tagged(5, et, cat([]byte{0, 6, 8, 0}, p)), "ethernet/double tag %04x", et)
	}
	l.add(verdict.BadVLAN, l.tagged(0, 0x8100, cat([]byte{0, 6, 8, 0}, p)), "ethernet/priority tag hides a tag")
	raw := func(et uint16, b []byte) []byte {
		return cat(l.e.DstMAC[:], l.e.SrcMAC[:], be.AppendUint16(nil, et), b)
	}
	l.add(verdict.BadEtherType, raw(0x88a8, cat([]byte{0, 5, 8, 0}, p)), "ethernet/service tag outside")
	for _, et := range []uint16{0, 3, 46, 1500, 0x05ff, 0x0801, 0x8847, 0x8863, 0x88cc, 0xffff} {
		l.add(verdict.BadEtherType, l.eth(et, p), "ethernet/type %04x", et)
	}
	l.add(verdict.BadVersion, l.eth(0x0800, l.ip6(17, l.udp(6, 8), nil)), "ethernet/ipv6 as ipv4")
	l.add(verdict.BadVersion, l.eth(0x86dd, l.ip4(17, nil, l.udp(4, 40), nil)), "ethernet/ipv4 as ipv6")
}

func (l *list) ipv4() {
	pay := l.udp(4, 16)
	mk := func(want verdict.Reason, name string, change func(h []byte)) {
		l.add(want, l.eth(0x0800, l.ip4(17, nil, pay, change)), "ipv4/%s", name)
	}
	for v := range 16 {
		if v != 4 {
			mk(verdict.BadVersion, fmt.Sprintf("version %d", v), func(h []byte) { h[0] = byte(v<<4 | 5) })
		}
	}
	for n := range 5 {
		mk(verdict.BadHeaderLength, fmt.Sprintf("header length %d", n), func(h []byte) { h[0] = byte(0x40 | n) })
	}
	mk(verdict.BadTotalLength, "header length beyond the packet", func(h []byte) { h[0] = 0x4f })
	for _, n := range []uint16{0, 1, 19} {
		mk(verdict.BadTotalLength, fmt.Sprintf("total length %d", n), func(h []byte) { be.PutUint16(h[2:], n) })
	}
	for _, n := range []uint16{45, 1500, 32768, 65535} {
		mk(verdict.Truncated, fmt.Sprintf("total length %d", n), func(h []byte) { be.PutUint16(h[2:], n) })
	}
	for _, n := range []uint16{20, 21, 27} {
		mk(verdict.BadL4Length, fmt.Sprintf("total length %d", n), func(h []byte) { be.PutUint16(h[2:], n) })
	}
	for _, bit := range []int{8, 31, 72, 80, 95, 96, 159} {
		p := l.ip4(17, nil, pay, nil)
		p[bit/8] ^= 0x80 >> (bit % 8)
		want := verdict.BadHeaderChecksum
		if bit == 31 { // the total length's last bit: longer than the frame, or one shorter
			want = verdict.Unset
		}
		l.add(want, l.eth(0x0800, p), "ipv4/bit %d flipped", bit)
	}
	p := l.ip4(17, nil, pay, nil)
	p[10], p[11] = 0, 0
	l.add(verdict.BadHeaderChecksum, l.eth(0x0800, p), "ipv4/checksum zero")
	l.add(verdict.Truncated, l.eth(0x0800, nil), "ipv4/nothing")
	l.add(verdict.BadVersion, l.eth(0x0800, make([]byte, 46)), "ipv4/all zero")
	ones := make([]byte, 46)
	for i := range ones {
		ones[i] = 0xff
	}
	l.add(verdict.BadVersion, l.eth(0x0800, ones), "ipv4/all ones")
	// A segment that a sender left for its card to cut has a total length of 0 when it exceeds 64 KiB; here within one frame.
	l.add(verdict.BadTotalLength, l.eth(0x0800, l.ip4(6, nil, l.tcp(4, 16, nil, 1400), func(h []byte) { h[2], h[3] = 0, 0 })), "ipv4/giant with length 0")
}

func (l *list) options() {
	pay := l.udp(4, 16)
	for name, o := range map[string][]byte{
		"loose source route":       {131, 7, 4, 192, 0, 2, 9, 0},
		"strict source route":      {137, 7, 4, 192, 0, 2, 9, 0},
		"source route behind nops": {1, 1, 1, 1, 1, 131, 3, 4},
		"source route, no length":  {1, 1, 1, 131},
	} {
		l.add(verdict.SourceRoute, l.eth(0x0800, l.ip4(17, o, pay, nil)), "options/%s", name)
	}
	for name, o := range map[string][]byte{
		"length 0":            {7, 0, 0, 0},
		"length 1":            {7, 1, 0, 0},
		"length beyond":       {7, 5, 4, 0},
		"length 255":          {68, 255, 4, 0},
		"length missing":      {1, 1, 1, 7},
		"second one too long": {7, 3, 4, 68, 40, 5, 0, 0},
	} {
		l.add(verdict.IPOptions, l.eth(0x0800, l.ip4(17, o, pay, nil)), "options/%s", name)
	}
	for i := range 32 {
		o := make([]byte, 4*(1+l.rnd.IntN(10)))
		for j := range o {
			o[j] = byte(l.rnd.Uint32())
		}
		l.add(verdict.Unset, l.eth(0x0800, l.ip4(17, o, pay, nil)), "options/random %d", i)
	}
	sortByName(l.cases)
}

func (l *list) fragments() {
	frag := func(want verdict.Reason, name string, proto uint8, pay []byte, field uint16) {
		l.add(want, l.eth(0x0800, l.ip4(proto, nil, pay, func(h []byte) { be.PutUint16(h[6:], field) })), "fragment/%s", name)
	}
	const more = 0x2000
	frag(verdict.Fragment, "odd length with more", 17, fill(25), more|2)
	frag(verdict.Fragment, "empty first", 17, nil, more)
	frag(verdict.Fragment, "empty last", 17, nil, 7)
	frag(verdict.Fragment, "beyond 65535", 1, fill(800), 0x1fff)
	frag(verdict.Fragment, "beyond 65535 with more", 1, fill(8), more|0x1fff)
	frag(verdict.Fragment, "tcp at 8", 6, fill(24), 1)
	frag(verdict.Fragment, "tcp at 8 with more", 6, fill(24), more|1)
	frag(verdict.Fragment, "tiny tcp", 6, l.tcp(4, 2, nil, 0)[:8], more)
	frag(verdict.Fragment, "tiny tcp 16", 6, l.tcp(4, 2, nil, 0)[:16], more)
	frag(verdict.Fragment, "tcp options cut", 6, l.tcp(4, 2, synOptions, 0)[:24], more)
	frag(verdict.BadL4Length, "udp length below its header", 17, []byte{1, 2, 3, 4, 0, 7, 0, 0}, more)
	inner := l.swapped().ip4(17, nil, l.udp(4, 20), nil)
	frag(verdict.ICMPBadInner, "icmp error in fragments", 1, l.icmp4(3, 1, [4]byte{}, inner[:40]), more)
	frag6 := func(want verdict.Reason, name string, nh uint8, pay []byte, field uint16) {
		f := be.AppendUint16([]byte{nh, 0}, field)
		l.add(want, l.eth(0x86dd, l.ip6(44, cat(f, []byte{1, 2, 3, 4}, pay), nil)), "fragment6/%s", name)
	}
	frag6(verdict.Fragment, "odd length with more", 17, fill(25), 16|1)
	frag6(verdict.Fragment, "empty last", 17, nil, 16)
	frag6(verdict.Fragment, "beyond 65535", 17, fill(16), 0xfff8)
	frag6(verdict.Fragment, "tcp at 8", 6, fill(16), 8)
	frag6(verdict.Fragment, "tiny tcp", 6, l.tcp(6, 2, nil, 0)[:16], 1)
	frag6(verdict.Fragment, "first ends in the chain", 60, []byte{17, 1, 1, 4, 0, 0, 0, 0}, 1)
	frag6(verdict.Fragment, "udp header missing", 60, []byte{17, 0, 1, 4, 0, 0, 0, 0}, 1)
	frag6(verdict.BadExtensionHeader, "two fragment headers", 44, cat([]byte{17, 0, 0, 0, 1, 2, 3, 4}, l.udp(6, 8)), 0)
	frag6(verdict.Fragment, "neighbour solicitation", 58, l.solicit(nil), 1)
}

func (l *list) transport() {
	udp := func(want verdict.Reason, n uint16) {
		u := l.udp(4, 16)
		be.PutUint16(u[4:], n)
		l.add(want, l.eth(0x0800, l.ip4(17, nil, u, nil)), "udp/length %d", n)
		u = l.udp(6, 16)
		be.PutUint16(u[4:], n)
		l.add(want, l.eth(0x86dd, l.ip6(17, u, nil)), "udp6/length %d", n)
	}
	for _, n := range []uint16{0, 1, 7, 25, 1480, 65535} {
		udp(verdict.BadL4Length, n)
	}
	for off := range 16 {
		want := verdict.BadL4Header
		if off == 5 || off == 6 { // 24 bytes are there: 5 is right, 6 takes the payload for options
			continue
		}
		t := l.tcp(4, 16, nil, 4)
		t[12] = byte(off << 4)
		l.add(want, l.eth(0x0800, l.ip4(6, nil, l.seal(4, 6, t, 16), nil)), "tcp/data offset %d", off)
		t = l.tcp(6, 16, nil, 4)
		t[12] = byte(off << 4)
		l.add(want, l.eth(0x86dd, l.ip6(6, l.seal(6, 6, t, 16), nil)), "tcp6/data offset %d", off)
	}
	for n := range 20 {
		l.add(verdict.BadL4Length, l.eth(0x0800, l.ip4(6, nil, l.tcp(4, 2, nil, 0)[:n], nil)), "tcp/header cut at %d", n)
		l.add(verdict.BadL4Length, l.eth(0x86dd, l.ip6(6, l.tcp(6, 2, nil, 0)[:n], nil)), "tcp6/header cut at %d", n)
	}
	for n := range 8 {
		l.add(verdict.BadL4Length, l.eth(0x0800, l.ip4(17, nil, l.udp(4, 0)[:n], nil)), "udp/header cut at %d", n)
		l.add(verdict.BadL4Length, l.eth(0x0800, l.ip4(1, nil, l.icmp4(8, 0, [4]byte{}, nil)[:n], nil)), "icmp/header cut at %d", n)
		l.add(verdict.BadL4Length, l.eth(0x86dd, l.ip6(58, l.icmp6(128, 0, [4]byte{}, nil)[:n], nil)), "icmp6/header cut at %d", n)
	}
	for i := range 32 { // options that do not end, on a SYN: the MSS clamp walks them
		o := make([]byte, 40)
		for j := range o {
			o[j] = byte(l.rnd.IntN(6))
		}
		l.add(verdict.Pass, l.eth(0x0800, l.ip4(6, nil, l.tcp(4, 2, o, 0), nil)), "tcp/random options %d", i)
	}
	for name, o := range map[string][]byte{
		"length 0": {2, 0, 5, 0xb4}, "mss cut": {1, 1, 2, 4}, "mss length 3": {2, 3, 5, 0xb4}, "length 255": {8, 255, 1, 1}, "no length": {1, 1, 1, 2},
	} {
		l.add(verdict.Pass, l.eth(0x0800, l.ip4(6, nil, l.tcp(4, 2, o, 0), nil)), "tcp/option %s", name)
	}
	l.add(verdict.UnsupportedProtocol, l.eth(0x0800, l.ip4(58, nil, l.icmp6(128, 0, [4]byte{}, nil), nil)), "transport/icmpv6 in ipv4")
	l.add(verdict.UnsupportedProtocol, l.eth(0x86dd, l.ip6(1, l.icmp4(8, 0, [4]byte{}, nil), nil)), "transport/icmp in ipv6")
	sortByName(l.cases)
}

func (l *list) icmp() {
	o := l.swapped()
	outer := func(want verdict.Reason, name string, typ uint8, quote []byte) {
		l.add(want, l.eth(0x0800, l.ip4(1, nil, l.icmp4(typ, 0, [4]byte{}, quote), nil)), "icmp/%s", name)
	}
	bad := verdict.ICMPBadInner
	udp := o.ip4(17, nil, o.udp(4, 16), nil)
	for n := range 28 {
		outer(bad, fmt.Sprintf("quote cut at %d", n), 3, udp[:n])
	}
	for v := range 16 {
		if v != 4 {
			outer(bad, fmt.Sprintf("quoted version %d", v), 11, o.ip4(17, nil, o.udp(4, 16), func(h []byte) { h[0] = byte(v<<4 | 5) }))
		}
	}
	for _, n := range []int{0, 4, 15} {
		outer(bad, fmt.Sprintf("quoted header length %d", n), 3, o.ip4(17, nil, o.udp(4, 16), func(h []byte) { h[0] = byte(0x40 | n) }))
	}
	for _, n := range []uint16{0, 19, 27} {
		outer(bad, fmt.Sprintf("quoted total length %d", n), 3, o.ip4(17, nil, o.udp(4, 16), func(h []byte) { be.PutUint16(h[2:], n) }))
	}
	outer(bad, "quoted later fragment", 3, o.ip4(17, nil, o.udp(4, 16), func(h []byte) { h[7] = 3 }))
	outer(bad, "quoted error", 3, o.ip4(1, nil, o.icmp4(3, 0, [4]byte{}, udp), nil))
	outer(bad, "quoted redirect", 3, o.ip4(1, nil, o.icmp4(5, 0, [4]byte{}, udp), nil))
	outer(bad, "quoted icmpv6", 3, o.ip4(58, nil, fill(16), nil))
	outer(bad, "redirect", 5, udp)
	for n := range 8 {
		outer(bad, fmt.Sprintf("quoted echo cut at %d", n), 3, o.ip4(1, nil, o.icmp4(8, 0, [4]byte{}, fill(8)), nil)[:20+n])
	}
	outer(verdict.Pass, "quoted total length 65535", 3, o.ip4(17, nil, o.udp(4, 16), func(h []byte) { be.PutUint16(h[2:], 65535) }))
	outer(bad, "quoted header checksum wrong", 3, cat(udp[:10], []byte{0xde, 0xad}, udp[12:]))   // RFC 5508 REQ-3a
	outer(verdict.Pass, "quoted transport checksum wrong", 3, cat(udp[:26], []byte{0xbe, 0xef})) // REQ-3c
	m := l.icmp4(3, 1, [4]byte{}, udp)
	m[len(m)-1] ^= 1
	l.add(bad, l.eth(0x0800, l.ip4(1, nil, m, nil)), "icmp/checksum wrong")
	l.add(verdict.BadL4Length, l.eth(0x0800, l.ip4(1, nil, l.icmp4(13, 0, [4]byte{}, fill(11)), nil)), "icmp/timestamp cut")
	nested := udp
	for i := range 8 {
		nested = l.ip4(1, nil, l.icmp4(3, 0, [4]byte{}, nested), nil)
		if i > 0 {
			l.add(bad, l.eth(0x0800, nested), "icmp/nested %d", i)
		}
	}

	outer6 := func(want verdict.Reason, name string, typ uint8, quote []byte) {
		l.add(want, l.eth(0x86dd, l.ip6(58, l.icmp6(typ, 0, [4]byte{}, quote), nil)), "icmp6/%s", name)
	}
	udp6 := o.ip6(17, o.udp(6, 16), nil)
	for n := range 48 {
		outer6(bad, fmt.Sprintf("quote cut at %d", n), 1, udp6[:n])
	}
	outer6(bad, "quoted ipv4", 1, udp)
	outer6(bad, "quoted error", 1, o.ip6(58, o.icmp6(1, 0, [4]byte{}, udp6), nil))
	outer6(bad, "quoted later fragment", 3, o.ip6(44, cat([]byte{17, 0, 0, 16, 0, 0, 0, 1}, fill(16)), nil))
	outer6(bad, "quoted routing header 0", 3, o.ip6(43, cat([]byte{17, 2, 0, 1, 0, 0, 0, 0}, o.e.Dst6[:], o.udp(6, 8)), nil))
	outer6(bad, "quoted chain cut", 3, o.ip6(60, []byte{17, 3, 1, 4, 0, 0, 0, 0}, nil))
	outer6(bad, "quoted payload length 0", 1, o.ip6(17, o.udp(6, 16), func(h []byte) { h[4], h[5] = 0, 0 }))
	m = l.icmp6(1, 0, [4]byte{}, udp6)
	m[len(m)-1] ^= 1
	l.add(bad, l.eth(0x86dd, l.ip6(58, m, nil)), "icmp6/checksum wrong")
}

func (l *list) ipv6() {
	u := l.udp(6, 16)
	for v := range 16 {
		if v != 6 {
			l.add(verdict.BadVersion, l.eth(0x86dd, l.ip6(17, u, func(h []byte) { h[0] = byte(v << 4) })), "ipv6/version %d", v)
		}
	}
	for _, n := range []uint16{25, 1460, 65535} {
		l.add(verdict.Truncated, l.eth(0x86dd, l.ip6(17, u, func(h []byte) { be.PutUint16(h[4:], n) })), "ipv6/payload length %d", n)
	}
	for _, n := range []uint16{0, 1, 7, 23} {
		l.add(verdict.BadL4Length, l.eth(0x86dd, l.ip6(17, u, func(h []byte) { be.PutUint16(h[4:], n) })), "ipv6/payload length %d", n)
	}
	ext := func(want verdict.Reason, name string, nh uint8, e []byte) {
		l.add(want, l.eth(0x86dd, l.ip6(nh, cat(e, u), nil)), "ipv6/%s", name)
	}
	bad := verdict.BadExtensionHeader
	ext(verdict.SourceRoute, "routing header 0", 43, cat([]byte{17, 2, 0, 1, 0, 0, 0, 0}, l.e.Dst6[:]))
	ext(verdict.SourceRoute, "routing header 0, none left", 43, []byte{17, 0, 0, 0, 0, 0, 0, 0})
	ext(verdict.SourceRoute, "routing header 0 behind options", 60, cat([]byte{43, 0, 1, 4, 0, 0, 0, 0}, []byte{17, 0, 0, 0, 0, 0, 0, 0}))
	ext(bad, "hop-by-hop not first", 60, cat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, []byte{17, 0, 1, 4, 0, 0, 0, 0}))
	ext(bad, "hop-by-hop twice", 0, cat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, []byte{17, 0, 1, 4, 0, 0, 0, 0}))
	ext(bad, "option beyond its header", 0, []byte{17, 0, 1, 5, 0, 0, 0, 0})
	ext(bad, "option without length", 60, []byte{17, 0, 1, 3, 0, 0, 0, 1})
	ext(bad, "jumbo payload", 0, []byte{17, 0, 0xc2, 4, 0, 1, 0, 0})
	ext(bad, "header beyond the packet", 60, []byte{17, 200, 1, 4, 0, 0, 0, 0})
	l.add(bad, l.eth(0x86dd, l.ip6(60, []byte{17, 0, 1, 4}, nil)), "ipv6/header cut")
	l.add(bad, l.eth(0x86dd, l.ip6(0, nil, nil)), "ipv6/jumbogram without option")
	l.add(bad, l.eth(0x86dd, l.ip6(0, nil, func(h []byte) { h[4], h[5] = 0, 0 })), "ipv6/hop-by-hop missing")
	for n, want := range map[int]verdict.Reason{8: verdict.Pass, 9: bad, 100: bad} {
		var chain []byte
		for i := range n {
			next := byte(60)
			if i == n-1 {
				next = 17
			}
			chain = append(chain, next, 0, 1, 4, 0, 0, 0, 0)
		}
		ext(want, fmt.Sprintf("chain of %d", n), 60, chain)
	}
	sortByName(l.cases)
	for n := range 8 {
		l.add(verdict.BadL4Length, l.eth(0x86dd, l.ip6(60, cat([]byte{17, 0, 1, 4, 0, 0, 0, 0}, u[:n]), nil)), "ipv6/udp cut at %d behind options", n)
	}
	l.add(verdict.Truncated, l.eth(0x86dd, nil), "ipv6/nothing")
}

func (l *list) arp() {
	mk := func(want verdict.Reason, name string, change func(a []byte)) {
		a := l.arpMessage(1)
		change(a)
		l.add(want, l.eth(0x0806, a), "arp/%s", name)
	}
	mk(verdict.UnsupportedProtocol, "hardware 6", func(a []byte) { a[1] = 6 })
	mk(verdict.UnsupportedProtocol, "protocol ipv6", func(a []byte) { a[2], a[3] = 0x86, 0xdd })
	for _, n := range []byte{0, 5, 7, 16, 255} {
		mk(verdict.BadHeaderLength, fmt.Sprintf("hardware length %d", n), func(a []byte) { a[4] = n })
		mk(verdict.BadHeaderLength, fmt.Sprintf("protocol length %d", n), func(a []byte) { a[5] = n })
	}
	for _, op := range []byte{0, 3, 8, 255} {
		mk(verdict.UnsupportedProtocol, fmt.Sprintf("operation %d", op), func(a []byte) { a[7] = op })
	}
	any := verdict.Unset // well formed; whoever learns from it must refuse
	mk(any, "sender mac broadcast", func(a []byte) { copy(a[8:14], []byte{255, 255, 255, 255, 255, 255}) })
	mk(any, "sender mac zero", func(a []byte) { clear(a[8:14]) })
	mk(any, "sender mac multicast", func(a []byte) { a[8] |= 1 })
	mk(any, "sender is the target", func(a []byte) { copy(a[14:18], a[24:28]) })
	for _, first := range []byte{0, 127, 224, 255} {
		mk(any, fmt.Sprintf("sender address %d.x", first), func(a []byte) { a[14] = first; a[7] = 2 })
	}
}

func (l *list) nd() {
	sll := cat([]byte{1, 1}, l.e.SrcMAC[:])
	l.add(verdict.BadL4Header, l.eth(0x86dd, l.ip6(58, l.solicit(sll), func(h []byte) { h[7] = 254 })), "nd/hop limit 254")
	l.add(verdict.BadL4Header, l.eth(0x86dd, l.ip6(58, l.solicit(sll), func(h []byte) { h[7] = 64 })), "nd/hop limit 64")
	l.add(verdict.BadL4Header, l.eth(0x86dd, l.ndPacket(l.icmp6(135, 1, [4]byte{}, cat(l.e.Dst6[:], sll)))), "nd/code 1")
	for i, n := range []int{8, 16, 24, 24, 40} {
		typ := uint8(133 + i)
		for cut := 8; cut < n; cut++ {
			l.add(verdict.BadL4Length, l.eth(0x86dd, l.ndPacket(l.icmp6(typ, 0, [4]byte{}, fill(cut-8)))), "nd/type %d cut at %d", typ, cut)
		}
		for name, o := range map[string][]byte{
			"length 0": {1, 0, 2, 0, 0, 0, 0, 1}, "length beyond": {1, 2, 2, 0, 0, 0, 0, 1}, "length 255": {2, 255, 2, 0, 0, 0, 0, 1},
			"one byte": {1}, "seven bytes": {1, 1, 2, 0, 0, 0, 0}, "second length 0": {1, 1, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0},
		} {
			l.add(verdict.BadL4Length, l.eth(0x86dd, l.ndPacket(l.icmp6(typ, 0, [4]byte{}, cat(make([]byte, n-8), o)))), "nd/type %d option %s", typ, name)
		}
	}
	sortByName(l.cases)
	any := verdict.Unset // well formed; whoever learns from it must refuse
	target := func(typ uint8, flags byte, a []byte, o []byte) []byte {
		return l.eth(0x86dd, l.ndPacket(l.icmp6(typ, 0, [4]byte{flags}, cat(a, o))))
	}
	group := [16]byte{0xff, 2, 15: 1}
	l.add(any, target(135, 0, group[:], sll), "nd/target multicast")
	l.add(any, target(136, 0x60, group[:], nil), "nd/advertised target multicast")
	l.add(any, target(136, 0x60, l.e.Src6[:], []byte{2, 1, 255, 255, 255, 255, 255, 255}), "nd/advertised mac broadcast")
	l.add(any, target(136, 0x60, l.e.Src6[:], []byte{2, 1, 0, 0, 0, 0, 0, 0}), "nd/advertised mac zero")
	m := l.solicit(sll)
	m[2] ^= 0x55
	l.add(any, l.eth(0x86dd, l.ndPacket(m)), "nd/checksum wrong")
	from := *l
	from.e.Src6 = [16]byte{}
	l.add(any, from.eth(0x86dd, from.ndPacket(from.solicit(sll))), "nd/unspecified source with mac")
	l.add(any, from.eth(0x86dd, from.ndPacket(from.solicit(nil))), "nd/unspecified source to unicast")
	l.add(any, from.eth(0x86dd, from.ndPacket(from.icmp6(136, 0, [4]byte{0x20}, from.e.Dst6[:]))), "nd/advertisement from unspecified")
	from.e.Dst6 = [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: l.e.Dst6[13], 14: l.e.Dst6[14], 15: l.e.Dst6[15]}
	l.add(any, from.eth(0x86dd, from.ndPacket(from.icmp6(135, 0, [4]byte{}, cat(l.e.Dst6[:], sll)))), "nd/duplicate probe with mac")
	from.e = l.e
	from.e.Dst6 = group
	l.add(any, from.eth(0x86dd, from.ndPacket(from.icmp6(136, 0, [4]byte{0x60}, cat(l.e.Src6[:], []byte{2, 1}, l.e.SrcMAC[:])))), "nd/solicited advertisement to a group")
	from.e = l.e
	from.e.Src6 = group
	l.add(any, from.eth(0x86dd, from.ndPacket(from.solicit(sll))), "nd/multicast source")
	l.add(any, target(134, 0, fill(8), nil), "nd/router advertisement not from link-local")
	l.add(any, target(137, 0, fill(32), nil), "nd/redirect not from link-local")
}

// truncated cuts every good frame at every byte that the packet in it reaches.
func (l *list) truncated() {
	for _, c := range l.good() {
		end := len(c.Frame)
		if c.Name == "arp reply padded" {
			end -= 18
		}
		for n := range end {
			l.add(verdict.Truncated, append([]byte(nil), c.Frame[:n]...), "truncated/%s at %d", c.Name, n)
		}
	}
}

// random damages good frames: bytes, bits, and IPv4 lengths with the checksum mended, so that damage gets past it.
func (l *list) random() {
	for _, c := range l.good() {
		for i := range 16 {
			f := append([]byte(nil), c.Frame...)
			for range 1 + l.rnd.IntN(4) {
				f[l.rnd.IntN(len(f))] = byte(l.rnd.Uint32())
			}
			l.add(verdict.Unset, f, "random/%s bytes %d", c.Name, i)

			f = append([]byte(nil), c.Frame...)
			at := 14 + l.rnd.IntN(len(f)-14)
			f[at] ^= 1 << l.rnd.IntN(8)
			mend(f)
			l.add(verdict.Unset, f, "random/%s bit %d", c.Name, i)
		}
	}
	for i := range 64 {
		f := make([]byte, l.rnd.IntN(1514))
		for j := range f {
			f[j] = byte(l.rnd.Uint32())
		}
		if len(f) >= 14 && i%2 == 0 {
			copy(f, l.eth([]uint16{0x0800, 0x86dd, 0x0806, 0x8100}[i/2%4], nil))
		}
		l.add(verdict.Unset, f, "random/noise %d", i)
	}
}

// mend writes a right IPv4 header checksum into f if there is a header.
func mend(f []byte) {
	at := 14
	if len(f) > 18 && be.Uint16(f[12:]) == 0x8100 {
		at = 18
	}
	if be.Uint16(f[at-2:]) != 0x0800 || len(f) < at+20 {
		return
	}
	h := f[at:min(len(f), at+max(20, int(f[at]&15)*4))]
	h[10], h[11] = 0, 0
	be.PutUint16(h[10:], csum.Checksum(csum.Sum(0, h)))
}

// sortByName undoes the random order of maps, so that the same seed gives the same list.
func sortByName(c []Case) {
	slices.SortStableFunc(c, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
}
