package pipeline

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/badpackets"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

// stormFrame is what is sent in: on which port, which bytes.
type stormFrame struct {
	port uint16
	data []byte
}

const stormMax = 1600 // bytes of a frame

// generator makes hostile traffic: frames of a corpus, answers to what the gateway sent, errors that quote it, fragments, and all of these
// damaged in ways that lie about lengths, then often sealed with right checksums so that they get past the first checks.
type generator struct {
	rng    *rand.Rand
	corpus []stormFrame
	long   []stormFrame // first packets that are worth cutting
	pieces []stormFrame // of such a one, still to be sent
	id     uint16
	seen   [1024]stormFrame // what left lately
	seenN  uint64
	out    [stormMax]byte
	aside  [stormMax]byte
}

var be = binary.BigEndian

// stormCorpus is the bad and the good of every end, and first packets that the policy lets through, from and to everywhere.
func stormCorpus(t testing.TB, seed uint64) (all []stormFrame) {
	for i, e := range badEnds {
		for _, c := range badpackets.AllFor(seed+uint64(i), e.Ends) {
			if len(c.Frame) <= stormMax && (c.Want != verdict.Truncated || len(all)%8 == 0) { // there is no end of short frames
				all = append(all, stormFrame{uint16(e.port), c.Frame})
			}
		}
		for range 24 {
			for _, c := range badpackets.Good(e.Ends) {
				all = append(all, stormFrame{uint16(e.port), c.Frame})
			}
		}
	}
	add := func(port int, f []byte) { all = append(all, stormFrame{uint16(port), f}) }
	syn := func(x *layers.TCP) { x.SYN = true }
	inside := map[int][]string{1: {"198.18.10.5", "198.18.10.11", "198.18.10.12", "198.18.10.100"}, 2: {"198.18.30.5", "198.18.30.6"}}
	far := []string{"203.0.113.11", "203.0.113.12", "192.0.2.16", "192.0.2.100", "192.0.2.32", "192.0.2.48", "198.18.10.1", "203.0.113.1"}
	for port, hosts := range inside {
		for _, h := range hosts {
			for _, f := range far {
				for p := range 16 {
					sp, dp := uint16(4000+p), []uint16{53, 80, 8080, 5060}[p%4]
					u, s := udp4(t, port, h, sp, f, dp), tcp4(t, port, h, sp, f, dp, syn)
					add(port, u)
					add(port, s)
					if port == 1 {
						add(port, tagged(u, 20))
						add(port, tagged(s, 20))
					}
				}
			}
		}
	}
	for _, to := range []string{"192.0.2.16", "192.0.2.100", "192.0.2.32", "192.0.2.48", "203.0.113.1"} {
		for p := range 16 {
			add(0, tcp4(t, 0, "203.0.113.11", uint16(4000+p), to, []uint16{80, 8080}[p%2], syn))
			add(0, udp4(t, 0, "203.0.113.11", uint16(4000+p), to, uint16(1024+p)))
		}
		add(0, frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4("203.0.113.11", to, layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 1}, gopacket.Payload("ping")))
	}
	for range 32 {
		add(1, udp6(t))
	}
	return all
}

// stormLong is what is sent in fragments, and what is too large for the next hop.
func stormLong(t testing.TB) (all []stormFrame) {
	for _, size := range []int{64, 200, 700, 1480, 1530} {
		load := gopacket.Payload(make([]byte, size))
		for i := range load {
			load[i] = byte(i * 7)
		}
		add := func(port int, src, dst string, sp, dp uint16) {
			u := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolUDP), udp(sp, dp), load)
			c := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolTCP), &layers.TCP{SrcPort: layers.TCPPort(sp), DstPort: layers.TCPPort(dp), SYN: true, Seq: 1000, Window: 9000}, load)
			p := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: sp, Seq: 1}, load)
			e := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolESP), load)
			all = append(all, stormFrame{uint16(port), u}, stormFrame{uint16(port), c}, stormFrame{uint16(port), p}, stormFrame{uint16(port), e})
			if port == 1 {
				all = append(all, stormFrame{1, tagged(u, 20)})
			}
		}
		for n := range uint16(4) {
			for _, far := range []string{"203.0.113.11", "192.0.2.16", "192.0.2.48", "192.0.2.100", "198.18.10.1"} {
				add(1, "198.18.10.5", far, 4000+n, 53)
				add(1, "198.18.10.100", far, 4000+n, 8080)
				add(2, "198.18.30.5", far, 4000+n, 53)
			}
			for _, to := range []string{"192.0.2.16", "192.0.2.48", "192.0.2.100", "203.0.113.1"} {
				add(0, "203.0.113.11", to, 4000+n, 8080)
			}
		}
		ip := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("2001:db8:a::5"), DstIP: net.ParseIP("2001:db8:ff::11"), NextHeader: layers.IPProtocolUDP}
		all = append(all, stormFrame{1, frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, udp(4000, 53), load)})
		all = append(all, stormFrame{1, frame(t, eth(macs[1], layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: ip.SrcIP, DstIP: ip.DstIP, NextHeader: layers.IPProtocolTCP},
			&layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true, Seq: 1000, Window: 9000}, load)})
		ip = &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("2001:db8:ff::11"), DstIP: net.ParseIP("2001:db8:a::5"), NextHeader: layers.IPProtocolUDP}
		all = append(all, stormFrame{0, frame(t, eth(macs[0], layers.EthernetTypeIPv6), ip, udp(53, 4000), load)})
		ip = &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("2001:db8:a::5"), DstIP: net.ParseIP("2001:db8:a::1"), NextHeader: layers.IPProtocolICMPv6}
		all = append(all, stormFrame{1, frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, &layers.ICMPv6Echo{Identifier: 3}, load)})
	}
	return all
}

// next makes one frame. It is valid until the next call.
func (g *generator) next() stormFrame {
	var f stormFrame
	if n := len(g.pieces); n > 0 && g.rng.IntN(4) > 0 {
		i := g.rng.IntN(n)
		f = g.copyOf(g.pieces[i])
		if g.rng.IntN(8) > 0 { // else it comes twice, or for ever
			g.pieces[i] = g.pieces[n-1]
			g.pieces = g.pieces[:n-1]
		}
		if g.rng.IntN(16) == 0 {
			f.data = g.damage(f.data)
			seal(f.data)
		}
		return f
	}
	switch n := g.rng.IntN(100); {
	case n < 4:
		g.split(g.long[g.rng.IntN(len(g.long))])
		f = g.copyOf(g.corpus[g.rng.IntN(len(g.corpus))])
	case n < 45 || g.seenN == 0:
		f = g.copyOf(g.corpus[g.rng.IntN(len(g.corpus))])
	case n < 72:
		f = g.answer(g.past())
	case n < 85:
		f = g.quote(g.past())
	case n < 93:
		f = g.fragment(g.corpus[g.rng.IntN(len(g.corpus))])
	case n < 99:
		f = g.copyOf(g.past())
		f.port = uint16(g.rng.IntN(4))
	default:
		f = stormFrame{uint16(g.rng.IntN(4)), g.out[:g.rng.IntN(200)]}
		for i := range f.data {
			f.data[i] = byte(g.rng.Uint32())
		}
	}
	if g.rng.IntN(5) > 1 {
		for range 1 + g.rng.IntN(3) {
			f.data = g.damage(f.data)
		}
		if g.rng.IntN(4) > 0 {
			seal(f.data)
		}
	}
	if g.rng.IntN(64) == 0 {
		f.port = uint16(g.rng.IntN(4)) // the last one does not exist
	}
	return f
}

func (g *generator) past() stormFrame {
	return g.seen[g.rng.Uint64N(min(g.seenN, uint64(len(g.seen))))]
}

// left remembers a frame that left by a port. Long ones would only cost time.
func (g *generator) left(port uint16, data []byte) {
	if len(data) > 400 {
		return
	}
	s := &g.seen[g.seenN%uint64(len(g.seen))]
	s.port, s.data = port, append(s.data[:0], data...)
	g.seenN++
}

func (g *generator) copyOf(f stormFrame) stormFrame {
	return stormFrame{f.port, g.out[:copy(g.out[:], f.data)]}
}

// l3Of is where the IP header of a frame should be, and which family it claims; 0 when it is too short for one.
func l3Of(f []byte) (l3 int, family byte) {
	if len(f) < 34 {
		return 0, 0
	}
	l3 = 14
	if be.Uint16(f[12:]) == 0x8100 {
		l3 = 18
	}
	switch et := be.Uint16(f[l3-2:]); {
	case et == 0x0800 && len(f) >= l3+20:
		return l3, 4
	case et == 0x86dd && len(f) >= l3+40:
		return l3, 6
	}
	return 0, 0
}

// l4Of is the transport protocol and where it begins and ends, as far as a simple reader sees.
func l4Of(f []byte, l3 int, family byte) (proto byte, l4, end int) {
	if family == 4 {
		l4 = min(len(f), l3+int(f[l3]&15)*4)
		return f[l3+9], l4, max(l4, min(len(f), l3+int(be.Uint16(f[l3+2:]))))
	}
	l4 = l3 + 40
	return f[l3+6], l4, max(l4, min(len(f), l4+int(be.Uint16(f[l3+4:]))))
}

// seal writes right checksums wherever there is a place for them.
func seal(f []byte) {
	l3, family := l3Of(f)
	if family == 0 {
		return
	}
	proto, l4, end := l4Of(f, l3, family)
	if family == 4 {
		be.PutUint16(f[l3+10:], 0)
		be.PutUint16(f[l3+10:], csum.Checksum(csum.Sum(0, f[l3:max(l3+20, l4)])))
		if be.Uint16(f[l3+6:])&0x3fff != 0 {
			return // a fragment: its checksum is another's
		}
	}
	end = min(end, len(f))
	at := sumAt(proto, family)
	if at < 0 || l4+at+2 > end {
		return
	}
	be.PutUint16(f[l4+at:], 0)
	be.PutUint16(f[l4+at:], csum.NonZero(csum.Checksum(csum.Sum(pseudoOf(f, l3, family, proto, end-l4), f[l4:end]))))
}

func sumAt(proto, family byte) int {
	switch {
	case proto == flow.UDP:
		return 6
	case proto == flow.TCP:
		return 16
	case proto == flow.ICMP && family == 4, proto == flow.ICMPv6 && family == 6:
		return 2
	}
	return -1
}

func pseudoOf(f []byte, l3 int, family, proto byte, n int) uint64 {
	switch {
	case family == 6:
		src, dst := [16]byte(f[l3+8:]), [16]byte(f[l3+24:])
		return csum.Pseudo6(&src, &dst, proto, n)
	case proto == flow.ICMP:
		return 0
	}
	return csum.Pseudo4([4]byte(f[l3+12:]), [4]byte(f[l3+16:]), proto, n)
}

// swap exchanges a[i:i+n] and a[j:j+n].
func swap(a []byte, i, j, n int) {
	for k := range n {
		a[i+k], a[j+k] = a[j+k], a[i+k]
	}
}

// answer turns a frame round: what its receiver would send back.
func (g *generator) answer(old stormFrame) stormFrame {
	f := g.copyOf(old)
	b := f.data
	l3, family := l3Of(b)
	if family == 0 {
		return f
	}
	swap(b, 0, 6, 6)
	if family == 4 {
		swap(b, l3+12, l3+16, 4)
		b[l3+8] = 64
	} else {
		swap(b, l3+8, l3+24, 16)
		b[l3+7] = 64
	}
	proto, l4, end := l4Of(b, l3, family)
	switch {
	case (proto == flow.TCP || proto == flow.UDP) && l4+4 <= end:
		swap(b, l4, l4+2, 2)
		if proto == flow.TCP && l4+20 <= end {
			seq, ack, flags := be.Uint32(b[l4+4:]), be.Uint32(b[l4+8:]), b[l4+13]
			if flags&packet.TCPAck == 0 {
				ack = g.rng.Uint32()
			}
			be.PutUint32(b[l4+4:], ack)
			next := seq + uint32(max(0, end-l4-int(b[l4+12]>>4)*4))
			if flags&(packet.TCPSyn|packet.TCPFin) != 0 {
				next++
			}
			be.PutUint32(b[l4+8:], next)
			switch {
			case flags&packet.TCPSyn != 0 && flags&packet.TCPAck == 0:
				b[l4+13] = packet.TCPSyn | packet.TCPAck
			default:
				b[l4+13] = []byte{packet.TCPAck, packet.TCPAck | packet.TCPPsh, packet.TCPAck | packet.TCPFin, packet.TCPRst, packet.TCPSyn}[max(0, g.rng.IntN(24)-19)]
			}
		}
	case proto == flow.ICMP && l4 < end && b[l4] == 8:
		b[l4] = 0
	case proto == flow.ICMPv6 && l4 < end && b[l4] == 128:
		b[l4] = 129
	}
	seal(b)
	return f
}

// quote makes an ICMP error about a frame that left, cut anywhere, with options in the quoted header now and then.
func (g *generator) quote(old stormFrame) stormFrame {
	l3, family := l3Of(old.data)
	if family == 0 {
		return g.copyOf(old)
	}
	q := old.data[l3:]
	if head := map[byte]int{4: 20, 6: 40}[family]; g.rng.IntN(3) > 0 {
		q = q[:min(len(q), head+g.rng.IntN(48))]
	}
	b := g.out[:l3]
	copy(b, old.data[:l3])
	swap(b, 0, 6, 6)
	if family == 4 {
		src := [][4]byte{{203, 0, 113, 254}, {198, 18, 10, 9}, [4]byte(q[16:20]), {192, 0, 2, 100}}[g.rng.IntN(4)]
		typ := []byte{3, 3, 3, 11, 12, 4, 5}[g.rng.IntN(7)]
		h := g.aside[:28]
		clear(h)
		h[0], h[8], h[9] = 0x45, 64, 1
		copy(h[12:], src[:])
		copy(h[16:], q[12:16])
		h[20], h[21] = typ, byte(g.rng.IntN(16))
		be.PutUint16(h[26:], uint16(g.rng.IntN(1600)))
		b = append(append(b, h...), q[:20]...)
		if g.rng.IntN(8) == 0 && q[0] == 0x45 {
			n := 1 + g.rng.IntN(10)
			b[len(b)-20] = 0x40 | byte(5+n)
			for range n * 4 {
				b = append(b, byte(g.rng.IntN(2)))
			}
		}
		b = append(b, q[20:]...)
		if g.rng.IntN(4) == 0 { // an extension behind 128 bytes (RFC 4884)
			for len(b) < l3+28+128 {
				b = append(b, 0)
			}
			b[l3+25] = 32
			b = append(b, 0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0, 16, 0)
		}
		be.PutUint16(b[l3+2:], uint16(len(b)-l3))
	} else {
		h := g.aside[:48]
		clear(h)
		h[0], h[6], h[7] = 0x60, 58, 64
		copy(h[8:], q[24:40])
		copy(h[24:], q[8:24])
		h[40], h[41] = []byte{1, 2, 3, 4}[g.rng.IntN(4)], byte(g.rng.IntN(8))
		be.PutUint32(h[44:], uint32(g.rng.IntN(1600)))
		b = append(append(b, h...), q...)
		be.PutUint16(b[l3+4:], uint16(len(b)-l3-40))
	}
	seal(b)
	return stormFrame{old.port, b}
}

// fragment makes a piece of a packet, of few identifications so that pieces meet.
func (g *generator) fragment(old stormFrame) stormFrame {
	f := g.copyOf(old)
	b := f.data
	l3, family := l3Of(b)
	off := []int{0, 0, 0, 1, 2, 3, 4, 8, 184, 185, 8191}[g.rng.IntN(11)]
	more := g.rng.IntN(2)
	id := uint16(g.rng.IntN(32))
	switch family {
	case 4:
		be.PutUint16(b[l3+4:], id)
		be.PutUint16(b[l3+6:], uint16(off|more<<13))
		be.PutUint16(b[l3+10:], 0)
		ihl := max(20, int(b[l3]&15)*4)
		if off == 0 && more == 1 { // whole eighths
			n := (len(b) - l3 - ihl) &^ 7
			b = b[:max(l3+ihl, min(len(b), l3+ihl+n))]
			be.PutUint16(b[l3+2:], uint16(len(b)-l3))
		}
		seal(b)
	case 6:
		if len(b)+8 > stormMax {
			return f
		}
		b = b[:len(b)+8]
		copy(b[l3+48:], b[l3+40:len(b)-8])
		h := b[l3+40 : l3+48]
		h[0], h[1] = b[l3+6], 0
		be.PutUint16(h[2:], uint16(off<<3|more))
		be.PutUint32(h[4:], uint32(id))
		b[l3+6] = 44
		be.PutUint16(b[l3+4:], uint16(len(b)-l3-40))
	}
	return stormFrame{f.port, b}
}

// split makes all the fragments of a packet, which are sent in any order among other things. Of some the first one is tiny, pieces overlap, or the
// first one never comes.
func (g *generator) split(old stormFrame) {
	if len(g.pieces) > 64 {
		g.pieces = g.pieces[:0]
	}
	b := old.data
	l3, family := l3Of(b)
	head := map[byte]int{4: 20, 6: 40}[family]
	payload := b[l3+head:]
	if g.id++; g.rng.IntN(16) == 0 {
		g.id = uint16(g.rng.IntN(64))
	}
	tiny, laps, orphans := g.rng.IntN(6) == 0, g.rng.IntN(12) == 0, g.rng.IntN(12) == 0
	for from := 0; from < len(payload); {
		size := 8 * (1 + g.rng.IntN(8))
		if from == 0 && !tiny {
			size += 24
		}
		if g.rng.IntN(4) == 0 && !(tiny && from == 0) {
			size += 1024
		}
		size = min(size, len(payload)-from)
		begin := from
		if laps && from > 0 && g.rng.IntN(3) == 0 {
			begin -= 8
		}
		if from > 0 || !orphans {
			f := fragmentOf(b[:l3+head], family, g.id, begin, from+size < len(payload), payload[begin:from+size])
			g.pieces = append(g.pieces, stormFrame{old.port, f})
		}
		from += size
	}
}

// damage changes a frame in one way. It may become shorter or longer.
func (g *generator) damage(b []byte) []byte {
	if len(b) == 0 {
		return b
	}
	l3, family := l3Of(b)
	switch g.rng.IntN(10) {
	case 0: // a bit
		b[g.rng.IntN(len(b))] ^= 1 << g.rng.IntN(8)
	case 1: // a bit of the headers
		b[g.rng.IntN(min(len(b), 64))] ^= 1 << g.rng.IntN(8)
	case 2: // a byte
		b[g.rng.IntN(len(b))] = []byte{0, 1, 0x7f, 0x80, 0xff, byte(g.rng.Uint32())}[g.rng.IntN(6)]
	case 3: // shorter
		b = b[:len(b)-min(len(b), g.rng.IntN(1+g.rng.IntN(len(b)+1)))]
	case 4: // longer, with what was there before
		b = g.out[:min(stormMax, len(b)+g.rng.IntN(64))]
	case 5: // a length that lies
		if family == 4 {
			_, l4, end := l4Of(b, l3, 4)
			switch g.rng.IntN(4) {
			case 0:
				be.PutUint16(b[l3+2:], uint16(g.rng.IntN(len(b)+8)))
			case 1:
				b[l3] = 0x40 | byte(g.rng.IntN(16))
			case 2:
				if l4+6 <= len(b) {
					be.PutUint16(b[l4+4:], uint16(g.rng.IntN(end-l4+16))) // the length of UDP
				}
			case 3:
				if l4+13 <= len(b) {
					b[l4+12] = byte(g.rng.Uint32()) // the data offset of TCP
				}
			}
		} else if family == 6 {
			be.PutUint16(b[l3+4:], uint16(g.rng.IntN(len(b)+8)))
		}
	case 6: // the tail of another frame
		o := g.corpus[g.rng.IntN(len(g.corpus))].data
		if cut := g.rng.IntN(min(len(b), len(o)) + 1); cut > 0 {
			b = g.out[:cut+copy(g.out[cut:], o[cut:])]
		}
	case 7: // another protocol, hop limit, or field of the IP header
		if family == 4 {
			b[l3+[]int{1, 6, 8, 9, 9}[g.rng.IntN(5)]] = []byte{0, 1, 2, 4, 6, 17, 41, 44, 47, 50, 51, 58, 132, 136, 255}[g.rng.IntN(15)]
		} else if family == 6 {
			b[l3+6+g.rng.IntN(2)] = []byte{0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 255}[g.rng.IntN(13)]
		}
	case 8: // another address of those that mean something
		if family == 4 {
			a := [][4]byte{{192, 0, 2, 16}, {192, 0, 2, 100}, {192, 0, 2, 17}, {203, 0, 113, 1}, {203, 0, 113, 11}, {198, 18, 10, 1}, {198, 18, 10, 11}, {198, 18, 30, 5},
				{127, 0, 0, 1}, {0, 0, 0, 0}, {255, 255, 255, 255}, {224, 0, 0, 1}, {169, 254, 1, 1}, {240, 0, 0, 1}}[g.rng.IntN(14)]
			copy(b[l3+12+4*g.rng.IntN(2):], a[:])
		}
	case 9: // IPv4 options
		if family == 4 && b[l3]&15 == 5 && len(b)+40 < stormMax {
			n := 4 * (1 + g.rng.IntN(10))
			b = g.out[:len(b)+n]
			copy(b[l3+20+n:], b[l3+20:len(b)-n])
			for i := range n {
				b[l3+20+i] = []byte{0, 1, 1, 1, 7, 68, 131, 137, 148, 3, 4, 8, byte(g.rng.Uint32())}[g.rng.IntN(13)]
			}
			b[l3] = 0x40 | byte(5+n/4)
			be.PutUint16(b[l3+2:], be.Uint16(b[l3+2:])+uint16(n))
		}
	}
	return b
}
