package pipeline

import (
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/packet/badpackets"
	"demarc/gateway/verdict"
)

// establish opens sessions of every kind, so that what is fuzzed can meet them.
func (w *world) establish() {
	w.t.Helper()
	syn := func(t *layers.TCP) { t.SYN = true }
	in := func(port int, f []byte) {
		if h := w.carry(0, port, false, false, f); h[len(h)-1].verdict == verdict.Drop {
			w.t.Fatalf("not established: %s", h[len(h)-1].reason)
		}
	}
	in(1, udp4(w.t, 1, "198.18.10.5", 4000, "203.0.113.11", 53))
	in(1, tcp4(w.t, 1, "198.18.10.5", 4000, "203.0.113.11", 80, syn))
	in(1, tagged(udp4(w.t, 1, "198.18.10.5", 4000, "203.0.113.11", 53), 20))
	in(2, udp4(w.t, 2, "198.18.30.5", 4000, "203.0.113.11", 53))
	in(1, udp4(w.t, 1, "198.18.10.100", 4000, "203.0.113.11", 53))
	in(0, tcp4(w.t, 0, "203.0.113.11", 4000, "192.0.2.16", 8080, syn))
	in(1, tcp4(w.t, 1, "198.18.10.12", 4000, "192.0.2.16", 8080, syn))
	in(1, udp6(w.t))
	w.whole()
}

// badEnds are where bad frames come from: a host of alpha, the backbone, a host of beta.
var badEnds = []struct {
	port byte
	badpackets.Ends
}{
	{1, badpackets.Ends{SrcMAC: hostMAC, DstMAC: macs[1], Src4: [4]byte{198, 18, 10, 5}, Dst4: [4]byte{203, 0, 113, 11},
		Src6: [16]byte{0x20, 1, 0xd, 0xb8, 0, 0xa, 15: 0x11}, Dst6: [16]byte{0x20, 1, 0xd, 0xb8, 0, 0xff, 15: 0x11}}},
	{0, badpackets.Ends{SrcMAC: hostMAC, DstMAC: macs[0], Src4: [4]byte{203, 0, 113, 11}, Dst4: [4]byte{192, 0, 2, 16},
		Src6: [16]byte{0x20, 1, 0xd, 0xb8, 0, 0xff, 15: 0x11}, Dst6: [16]byte{0x20, 1, 0xd, 0xb8, 0, 0xa, 15: 0x11}}},
	{1, badpackets.Ends{SrcMAC: hostMAC, DstMAC: macs[1], Src4: [4]byte{198, 18, 10, 5}, Dst4: [4]byte{192, 0, 2, 16}, VLAN: 20}},
}

func TestBadPacketsEndUnderAReason(t *testing.T) {
	for i, e := range badEnds {
		w := newWorld(t, 1+i%2, testPolicy)
		w.establish()
		for _, c := range badpackets.AllFor(uint64(i)+1, e.Ends) {
			hops := w.carry(0, int(e.port), false, false, c.Frame)
			last := hops[len(hops)-1]
			if c.Want != verdict.Unset && c.Want != verdict.Pass && c.Want != verdict.ICMPBadInner && last.reason != c.Want && last.reason != verdict.ForeignMAC {
				t.Errorf("%s: %s (%s), want %s", c.Name, last.verdict, last.reason, c.Want)
			}
			if c.Want == verdict.ICMPBadInner && last.verdict != verdict.Drop {
				t.Errorf("%s: %s", c.Name, last.verdict)
			}
		}
		w.whole()
	}
}

func FuzzProcess(f *testing.F) {
	for i, e := range badEnds {
		for j, c := range badpackets.AllFor(uint64(i)+1, e.Ends) {
			if j%64 == i {
				f.Add(e.port, c.Frame)
			}
		}
		for _, c := range badpackets.Good(e.Ends) {
			f.Add(e.port, c.Frame)
		}
	}
	f.Add(byte(2), udp4(f, 2, "198.18.30.5", 4000, "192.0.2.16", 8080))
	f.Add(byte(0), icmpError(f, 0, "203.0.113.254", "192.0.2.100", udp4(f, 0, "192.0.2.100", 4000, "203.0.113.11", 53)[14:]))
	for _, p := range fuzzFragments(f) {
		f.Add(byte(p.port), p.data)
	}
	for i, size := range []int{40, 300, 1500} { // cut by the target
		f.Add(byte(1|i<<4|0x40), bigUDP(f, 1, "198.18.10.5", 4000, "203.0.113.11", 53, size))
		f.Add(byte(0|i<<4|0x40), bigUDP(f, 0, "203.0.113.11", 53, "192.0.2.16", 8080, size))
		f.Add(byte(1|i<<4|0x40), bigUDP6(f, 1, "2001:db8:a::5", 4000, "2001:db8:ff::11", 53, size))
	}
	var w *world
	n := 0
	f.Fuzz(func(t *testing.T, how byte, frame []byte) {
		if len(frame) > 1600 {
			return
		}
		if w == nil || n%4096 == 0 {
			w = newWorld(t, 1+int(how>>7), testPolicy)
			w.establish()
		}
		n++
		w.t = t
		w.now += 1e6
		// Bits 0 and 1 are the port, which may not exist; 2 and 3 what a driver may have said of the frame; 6 that it comes in fragments, 4 and 5 of
		// which length and in what order.
		frames := [][]byte{frame}
		if how&0x40 != 0 {
			frames = inFragments(frame, uint16(n), int(how>>4&3))
		}
		for i, f := range frames {
			w.carry((n+i)%len(w.shards), int(how&3), how&4 != 0, how&8 != 0 || how&4 != 0, f)
		}
		w.waiting() // is its table as it should be?
		w.whole()
	})
}

// inFragments cuts whatever claims to be an IP packet behind a header of the least length, however little sense that makes.
func inFragments(f []byte, id uint16, how int) (all [][]byte) {
	l3, family := l3Of(f)
	head := map[byte]int{4: 20, 6: 40}[family]
	size := []int{8, 24, 256, 16}[how]
	payload := f[min(len(f), l3+head):]
	if family == 0 || len(payload) <= size || family == 4 && f[l3]&15 != 5 {
		return [][]byte{f}
	}
	for from := 0; from < len(payload); from += size {
		to := min(len(payload), from+size)
		all = append(all, fragmentOf(f[:l3+head], family, id, from, to < len(payload), payload[from:to]))
		if how == 3 && from > 0 { // half of it once more, as other bytes
			all = append(all, fragmentOf(f[:l3+head], family, id, from-8, true, payload[:size]))
		}
	}
	if how != 2 {
		slices.Reverse(all)
	}
	return all
}

// fragmentOf is a fragment behind a header that a whole packet had.
func fragmentOf(header []byte, family byte, id uint16, from int, more bool, data []byte) []byte {
	f := append([]byte(nil), header...)
	if family == 6 {
		l3 := len(header) - 40
		f = append(f, f[l3+6], 0, byte(from>>8), byte(from), 0, 0, byte(id>>8), byte(id))
		if more {
			f[l3+43] |= 1
		}
		f[l3+6] = 44
		f = append(f, data...)
		be.PutUint16(f[l3+4:], uint16(8+len(data)))
		return f
	}
	l3 := len(header) - 20
	be.PutUint16(f[l3+2:], uint16(20+len(data)))
	be.PutUint16(f[l3+4:], id)
	be.PutUint16(f[l3+6:], uint16(from/8))
	if more {
		f[l3+6] |= 0x20
	}
	f = append(f, data...)
	seal(f)
	return f
}

// fuzzFragments is each kind of fragment: first and later ones of datagrams that open something, tiny, overlapping, orphans, the largest place that
// there is, an IPv6 fragment header that divides nothing.
func fuzzFragments(t testing.TB) (all []stormFrame) {
	for _, e := range []stormFrame{
		{1, bigUDP(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53, 100)}, {0, bigUDP(t, 0, "203.0.113.11", 53, "192.0.2.16", 4000, 100)},
		{1, bigEcho(t, 1, "198.18.10.5", "203.0.113.11", 8, 7, 100)}, {1, bigUDP6(t, 1, "2001:db8:a::5", 4000, "2001:db8:ff::11", 53, 100)},
		{1, bigUDP(t, 1, "198.18.10.5", 4000, "192.0.2.16", 8080, 100)},
		{1, frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4("198.18.10.5", "203.0.113.11", layers.IPProtocolTCP), &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true}, load(100))},
	} {
		for how := range 4 {
			for _, p := range inFragments(e.data, 9, how) {
				all = append(all, stormFrame{e.port, p})
			}
		}
		l3, family := l3Of(e.data)
		head := e.data[:l3+map[byte]int{4: 20, 6: 40}[family]]
		all = append(all, stormFrame{e.port, fragmentOf(head, family, 10, 65528, true, load(8))}, stormFrame{e.port, fragmentOf(head, family, 11, 8, false, load(1))},
			stormFrame{e.port, fragmentOf(head, family, 12, 0, true, nil)}, stormFrame{e.port, fragmentOf(head, family, 13, 0, false, e.data[len(head):])})
	}
	return all
}
