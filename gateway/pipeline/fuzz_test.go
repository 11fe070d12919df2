package pipeline

import (
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
		// Bits 0 and 1 are the port, which may not exist; 2 and 3 what a driver may have said of the frame.
		w.carry(n%len(w.shards), int(how&3), how&4 != 0, how&8 != 0 || how&4 != 0, frame)
		w.whole()
	})
}
