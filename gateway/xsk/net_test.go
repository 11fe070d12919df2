package xsk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "xsk-child" {
		os.Exit(child(os.Args[2:]))
	}
	netlab.Init()
	os.Exit(m.Run())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeLab makes a gateway namespace gw with ports p0, p1 to the hosts h0, h1, and goes away with the test.
func makeLab(t *testing.T, queues int) *netlab.Lab {
	t.Helper()
	roottest.Require(t)
	l, err := netlab.New("dmxsk")
	check(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, ns := range []string{"gw", "h0", "h1"} {
		check(t, l.AddNamespace(ns))
	}
	for i := range 2 {
		check(t, l.AddLink(netlab.LinkSpec{
			A:      netlab.End{NS: "gw", Name: fmt.Sprintf("p%d", i), Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.18.%d.1/24", i))}},
			B:      netlab.End{NS: fmt.Sprintf("h%d", i), Name: "e", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.18.%d.2/24", i))}},
			Queues: queues,
		}))
	}
	return l
}

// rig is two ports forwarding to each other, queue by queue, over one UMEM.
type rig struct {
	u       *UMEM
	macs    [2][6]byte
	progs   []*Program
	sockets [2][]*Socket
}

func rigConfig(ifindex, queue int, mode Mode, needWakeup bool, busy time.Duration) SocketConfig {
	return SocketConfig{Ifindex: ifindex, Queue: queue, RxSize: 256, TxSize: 256, FillSize: 256, CompSize: 256, Mode: mode, NeedWakeup: needWakeup, BusyPoll: busy}
}

// openRig must be called in the gateway's namespace. The host has the ports' first addresses.
func openRig(queues int, mode Mode, needWakeup bool, busy time.Duration) (r *rig, err error) {
	r = &rig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.u, err = NewUMEM(1024*queues, 2048); err != nil {
		return r, err
	}
	for i := range 2 {
		dev, err := netlink.LinkByName(fmt.Sprintf("p%d", i))
		if err != nil {
			return r, err
		}
		ifindex := dev.Attrs().Index
		r.macs[i] = [6]byte(dev.Attrs().HardwareAddr)
		p, err := LoadProgram(ProgramConfig{Ifindex: ifindex, Queues: queues, MAC: r.macs[i],
			HostPrefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.18.%d.1/32", i))}}, nil)
		if err != nil {
			return r, err
		}
		r.progs = append(r.progs, p)
		if _, err := p.Attach(mode == Generic); err != nil {
			return r, err
		}
		for q := range queues {
			s, err := Open(r.u, rigConfig(ifindex, q, mode, needWakeup, busy))
			if err != nil {
				return r, err
			}
			r.sockets[i] = append(r.sockets[i], s)
			s.Fill(256)
			if err := p.SetSocket(q, s.FD()); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// turn moves what has come, once.
func (r *rig) turn() error {
	var buf [64]Desc
	for i := range r.sockets {
		for q, s := range r.sockets[i] {
			s.Complete()
			s.Fill(256)
			if err := s.WakeRx(); err != nil {
				return err
			}
			n := s.Recv(buf[:])
			out := r.sockets[1-i][q]
			k := out.Send(buf[:n])
			for _, d := range buf[k:n] {
				r.u.Free(d.Addr)
			}
			if err := out.KickTx(); err != nil {
				return err
			}
		}
	}
	return r.u.Check(0)
}

func (r *rig) close() error {
	var errs []error
	for _, ss := range r.sockets {
		for _, s := range ss {
			errs = append(errs, s.Close())
		}
	}
	for _, p := range r.progs {
		errs = append(errs, p.Close())
	}
	if r.u != nil {
		errs = append(errs, r.u.Check(0), r.u.Close())
	}
	return errors.Join(errs...)
}

// rawSocket sees and sends whole frames on a device of the thread's namespace, without waiting.
func rawSocket(dev string) (int, error) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return -1, err
	}
	const all = uint16(unix.ETH_P_ALL << 8) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return fd, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
}

// rawSockets opens one at each host.
func rawSockets(t *testing.T, l *netlab.Lab) (fds [2]int) {
	t.Helper()
	for i := range fds {
		check(t, l.Do(fmt.Sprintf("h%d", i), func() (err error) { fds[i], err = rawSocket("e"); return }))
		t.Cleanup(func() { unix.Close(fds[i]) })
	}
	return fds
}

// mark is in every test frame and in nothing else.
var mark = []byte("dmxsk")

// next returns the next test frame that came in, or nil.
func next(fd int, buf []byte) []byte {
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING || !bytes.Contains(buf[:n], mark) {
			continue
		}
		return buf[:n]
	}
}

// pattern is a frame that carries its number, of any length, each byte known.
func pattern(dst [6]byte, i, size int) []byte {
	f := ether(dst, 0x800, ip4(17, "203.0.113.1", "203.0.113.2", be(uint16(1000+i)), be(9), be(0), be(0), mark, binary.BigEndian.AppendUint32(nil, uint32(i))))
	for len(f) < size {
		f = append(f, byte(i+len(f)))
	}
	return f
}

// exchange sends count frames from each host to the other through the rig, both ways at once, and compares every byte.
func exchange(t *testing.T, l *netlab.Lab, r *rig, count int) {
	t.Helper()
	fds := rawSockets(t, l)
	want := [2]map[string]bool{{}, {}}
	good, sent := [2]int{}, 0
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(10 * time.Second); good != [2]int{count, count}; {
		if time.Now().After(deadline) {
			t.Fatalf("%v of %d frames arrived", good, count)
		}
		for range 16 {
			if sent == count {
				break
			}
			for i := range 2 {
				f := pattern(r.macs[i], sent*2+i, 60+sent*7%1400)
				want[1-i][string(f)] = true
				if _, err := unix.Write(fds[i], f); err != nil {
					t.Fatal(err)
				}
			}
			sent++
		}
		check(t, r.turn())
		for i := range 2 {
			for f := next(fds[i], buf); f != nil; f = next(fds[i], buf) {
				if !want[i][string(f)] {
					t.Fatalf("host %d got a frame that was not sent to it, or got it twice: % x", i, f)
				}
				delete(want[i], string(f))
				good[i]++
			}
		}
	}
}

func TestForwarding(t *testing.T) {
	const count = 2000
	for _, c := range []struct {
		name       string
		queues     int
		mode       Mode
		needWakeup bool
		busy       time.Duration
	}{
		{"copy", 1, Copy, true, 0},
		{"copy without need-wakeup", 1, Copy, false, 0},
		{"copy with busy poll", 1, Copy, true, 20 * time.Microsecond},
		{"generic", 1, Generic, true, 0},
		{"two queues", 2, Copy, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := makeLab(t, c.queues)
			for range 2 { // the second time after an orderly close
				var r *rig
				check(t, l.Do("gw", func() (err error) { r, err = openRig(c.queues, c.mode, c.needWakeup, c.busy); return }))
				exchange(t, l, r, count)
				for i, ss := range r.sockets {
					var received uint64
					for q, s := range ss {
						if zc, err := s.ZeroCopy(); zc || err != nil {
							t.Errorf("port %d queue %d reads back zero-copy %v, %v", i, q, zc, err)
						}
						st, err := s.Stats()
						if err != nil || st.Rx_invalid_descs+st.Tx_invalid_descs != 0 {
							t.Errorf("port %d queue %d: statistics %+v, %v", i, q, st, err)
						}
						n, _ := s.Totals()
						received += n
						t.Logf("port %d queue %d received %d", i, q, n)
					}
					if n, err := r.progs[i].Counters(); err != nil || n.Socket < received || received < count {
						t.Errorf("port %d: received %d, counted %d, %v", i, received, n.Socket, err)
					}
				}
				check(t, l.Do("gw", r.close))
			}
		})
	}
}

// Queues that are closed and opened again on a UMEM that lives on get all frames back, also when the first socket, which registered
// the UMEM, goes first.
func TestReopenOnLivingUMEM(t *testing.T) {
	l := makeLab(t, 1)
	var r *rig
	check(t, l.Do("gw", func() (err error) { r, err = openRig(1, Copy, true, 0); return }))
	for range 3 {
		exchange(t, l, r, 200)
		check(t, l.Do("gw", func() error {
			for i := range 2 {
				old := r.sockets[i][0]
				if err := old.Close(); err != nil {
					return err
				}
				if err := r.u.Check(0); err != nil {
					return err
				}
				s, err := Open(r.u, old.Config())
				if err != nil {
					return err
				}
				r.sockets[i][0] = s
				s.Fill(256)
				if err := r.progs[i].SetSocket(0, s.FD()); err != nil {
					return err
				}
			}
			if r.u.Limbo() != 0 {
				return fmt.Errorf("%d frames still in limbo", r.u.Limbo())
			}
			return nil
		}))
	}
	exchange(t, l, r, 200)
	check(t, l.Do("gw", r.close))
}
