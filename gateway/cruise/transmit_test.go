package cruise

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

// Frames of two workers leave to two ports as they were added, each port's in their order, whatever their sizes; what is too late does not, nor what is for a port without a device, and Left says so.
func TestTransmit(t *testing.T) {
	roottest.Require(t)
	l, err := netlab.New("dmtransmit")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, ns := range []string{"gw", "h0", "h1"} {
		if err := l.AddNamespace(ns); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		h := fmt.Sprint("h", i)
		if err := l.AddLink(netlab.LinkSpec{A: netlab.End{NS: "gw", Name: fmt.Sprint("p", i)}, B: netlab.End{NS: h, Name: "e"}, Queues: 1}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.SetMTU("gw", fmt.Sprint("p", i), SendBytes-18), l.SetMTU(h, "e", SendBytes-18), l.TakesRedirected(h, "e", true)); err != nil {
			t.Fatal(err)
		}
	}
	const ahead = int64(3 * time.Hour) // a time namespace
	tab, err := Open(Config{Seeds: []uint64{1, 2}, Sessions: SessionUnit, Ports: 3, Interfaces: 1, Tenants: 1, Hops: 2, Ahead: ahead})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	})
	x, err := tab.OpenTransmit()
	if err != nil {
		t.Fatal(err)
	}
	if x.Takes(0) {
		t.Error("a port takes frames before it was said to")
	}
	x.SetPort(1, true)
	if !x.Takes(1) || x.Takes(0) {
		t.Error("SetPort does not set it")
	}
	err = l.Do("gw", func() error {
		for i := range 2 {
			f, err := net.InterfaceByName(fmt.Sprint("p", i))
			if err != nil {
				return err
			}
			if err := tab.SetDevice(uint16(i), f.Index); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var heard [2]int
	for i := range heard {
		heard[i] = raw(t, l, fmt.Sprint("h", i), "e")
		if err := errors.Join(unix.SetsockoptTimeval(heard[i], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}), unix.SetsockoptInt(heard[i], unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 4096)
	sent := 0
	for round := range 200 {
		s := x.Sender(rng.IntN(2))
		var want [2][][]byte
		var kind []int // of each frame: 0 and 1 a port, 2 one without a device, 3 too late
		n := 1 + rng.IntN(SendMost)
		if round%3 == 0 {
			n = 1 + rng.IntN(4)
		}
		for i := range n {
			k, size := rng.IntN(2), 60+rng.IntN(100)
			switch r := rng.IntN(20); {
			case r < 2:
				k = 2 + r
			case r < 5:
				size = 60 + rng.IntN(SendBytes-59)
			case r == 5:
				size = SendBytes - 4 // without a tag that is the most that the link takes
			}
			size = min(size, SendBytes-4)
			f := make([]byte, size)
			for j := range f {
				f[j] = byte(rng.Uint32())
			}
			copy(f, []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5}) // to somebody, of a local experimental kind (IEEE 802)
			binary.BigEndian.PutUint32(f[14:], uint32(sent+i))
			port := uint16(min(k, 2))
			if k == 3 {
				port = uint16(rng.IntN(2))
			}
			s.Add(port, uint8(i), f)
			if p, g, got := s.Frame(i); p != port || g != uint8(i) || !bytes.Equal(got, f) {
				t.Fatal("a frame is not what was added")
			}
			if k == 3 {
				s.Until(i, uint64(rng.IntN(2))*(boot(t)+uint64(ahead)-1)) // never, or until a moment ago
			} else if rng.IntN(2) == 0 {
				s.Until(i, boot(t)+uint64(ahead)+uint64(time.Minute))
			}
			if k < 2 {
				want[k] = append(want[k], f)
			}
			kind = append(kind, k)
		}
		sent += n
		if s.Len() != n || s.Room() != SendMost-n {
			t.Fatalf("%d frames, room for %d, want %d", s.Len(), s.Room(), n)
		}
		if err := s.Run(); err != nil {
			t.Fatal(err)
		}
		for i, k := range kind {
			if s.Left(i) != (k < 2) {
				t.Fatalf("round %d, frame %d of %d, kind %d: left %v", round, i, n, k, s.Left(i))
			}
		}
		s.Reset()
		for p := range want {
			for i := range want[p] {
				for {
					n, from, err := unix.Recvfrom(heard[p], b, 0)
					if err != nil {
						t.Fatalf("round %d, port %d: frame %d of %d did not come: %v", round, p, i, len(want[p]), err)
					}
					if l := from.(*unix.SockaddrLinklayer); l.Pkttype == unix.PACKET_OUTGOING || !bytes.Equal(b[12:14], []byte{0x88, 0xb5}) {
						continue // the host's own
					}
					if !bytes.Equal(b[:n], want[p][i]) {
						t.Fatalf("round %d, port %d: frame %d of %d came as %d bytes, number %d; want %d bytes, number %d", round, p, i, len(want[p]), n, binary.BigEndian.Uint32(b[14:]), len(want[p][i]), binary.BigEndian.Uint32(want[p][i][14:]))
					}
					break
				}
			}
		}
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

func boot(t *testing.T) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// A call does not exchange the kernel's dispatcher; and nothing of it is left when it is closed: no namespace, no program.
func TestTransmitIsReady(t *testing.T) {
	roottest.Require(t)
	tab, err := Open(Config{Seeds: []uint64{1}, Sessions: SessionUnit, Ports: 1, Interfaces: 1, Tenants: 1, Hops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	}()
	x, err := tab.OpenTransmit()
	if err != nil {
		t.Fatal(err)
	}
	there, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", x.nowhere.Fd()))
	if err != nil || !strings.HasPrefix(there, "net:[") {
		t.Fatalf("%q %v", there, err)
	}
	least := time.Hour
	for range 50 {
		for range 2 {
			x.Sender(0).Add(0, 0, make([]byte, 60))
		}
		began := time.Now()
		if err := x.Sender(0).Run(); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(began))
		x.Sender(0).Reset()
	}
	t.Logf("a call takes %v at best", least)
	if least > slowCall {
		t.Error("want less than a millisecond")
	}
	// Without the anchor it is slow, which OpenTransmit would refuse.
	if err := x.anchor.Close(); err != nil {
		t.Fatal(err)
	}
	x.anchor = nil
	if err := x.try(); err == nil || !strings.Contains(err.Error(), "want at most 1ms") {
		t.Errorf("without an anchor: %v", err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range open {
		if to, _ := os.Readlink("/proc/self/fd/" + f.Name()); to == there {
			t.Errorf("%s is still open", there)
		}
	}
}

// What a frame costs by the program, to a veth whose far end drops it, 60 bytes.
func BenchmarkTransmit(b *testing.B) {
	roottest.Require(b)
	l, err := netlab.New("dmtransmit")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	drop, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		b.Fatal(err)
	}
	defer drop.Close()
	index := 0
	err = errors.Join(l.AddNamespace("gw"), l.AddNamespace("h"), l.AddLink(netlab.LinkSpec{A: netlab.End{NS: "gw", Name: "p"}, B: netlab.End{NS: "h", Name: "e"}, Queues: 1}))
	if err != nil {
		b.Fatal(err)
	}
	err = errors.Join(l.Do("h", func() error {
		far, err := net.InterfaceByName("e")
		if err != nil {
			return err
		}
		_, err = link.AttachXDP(link.XDPOptions{Program: drop, Interface: far.Index})
		return err
	}), l.Do("gw", func() error {
		p, err := net.InterfaceByName("p")
		if err == nil {
			index = p.Index
		}
		return err
	}))
	if err != nil {
		b.Fatal(err)
	}
	tab, err := Open(Config{Seeds: []uint64{1}, Sessions: SessionUnit, Ports: 1, Interfaces: 1, Tenants: 1, Hops: 2})
	if err != nil {
		b.Fatal(err)
	}
	defer tab.Close()
	x, err := tab.OpenTransmit()
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	if err := l.Do("gw", func() error { return tab.SetDevice(0, index) }); err != nil {
		b.Fatal(err)
	}
	s, frame := x.Sender(0), make([]byte, 60)
	for _, n := range []int{8, 16, 24, 32, 64, 128, SendMost} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				for range n {
					s.Add(0, 0, frame)
				}
				if err := s.Run(); err != nil {
					b.Fatal(err)
				}
				if !s.Left(n - 1) {
					b.Fatal("it has not left")
				}
				s.Reset()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/frame")
		})
	}
}
