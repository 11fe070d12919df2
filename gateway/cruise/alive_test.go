package cruise

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/cruise/bpf"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/quiet"
	"demarc/gateway/netlab/roottest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "cruise-child" {
		child()
	}
	netlab.Init()
	os.Exit(m.Run())
}

// alone is what a world asks of its test where there is none.
type alone struct{ testing.TB }

func (alone) Helper()                        {}
func (alone) Cleanup(func())                 {}
func (alone) Fatal(args ...any)              { panic(fmt.Sprint(args...)) }
func (alone) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }
func (alone) Error(args ...any)              { panic(fmt.Sprint(args...)) }
func (alone) Errorf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }

const (
	fed    = 400 * time.Millisecond // how far ahead a worker says that it lives
	feeds  = 100 * time.Millisecond // how often
	closed = fed + feeds
)

// child is a node as far as it matters: it hands a session from port 1 to port 0 down, attaches the programs and feeds its deadline. It prints a frame of the session.
func child() {
	t := alone{}
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), 1, true)
	w.populate(16)
	ps, err := w.load(bpf.LoadCruise)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		link, err := netlink.LinkByName(fmt.Sprint("p", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.tab.SetDevice(uint16(i), link.Attrs().Index); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetXdpFdWithFlags(link, ps[i].prog.FD(), unix.XDP_FLAGS_DRV_MODE); err != nil {
			t.Fatal(err)
		}
	}
	stuck := make(chan os.Signal, 1)
	signal.Notify(stuck, syscall.SIGUSR1)
	w.tab.Feed(0, bootNow(t)+uint64(fed))
	for _, h := range w.live {
		se := w.shards[0].Sessions.At(h.slot)
		if w.at(se, 0).Port == 1 && w.at(se, 1).Port == 0 {
			r := &round{form: w.form(se, 0)}
			r.ttl, r.flags, r.payload, r.seq, r.ack, r.mac = 64, 0x4000, 40, se.TCPEnd[0], se.TCPEnd[1], r.iface.MAC
			fmt.Println(hex.EncodeToString(w.build(r.form)))
			break
		}
	}
	for {
		w.tab.Feed(0, bootNow(t)+uint64(fed))
		select {
		case <-stuck:
			for { // the worker is caught
			}
		case <-time.After(feeds):
		}
	}
}

// raw is a socket that sends and receives all frames of a device.
func raw(t *testing.T, l *netlab.Lab, ns, dev string) (fd int) {
	t.Helper()
	err := l.Do(ns, func() (err error) {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// What a dead, a stopped or a stuck process had handed down ends within half a second, although its programs stay attached. Who hears the frames, sends them or feeds may be without a processor when the
// deadline passes: then the last frame is read late, or none was sent, and that says nothing.
func TestADeadProcessClosesTransit(t *testing.T) {
	roottest.Require(t)
	for name, end := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP, "in an endless loop": syscall.SIGUSR1} {
		once := func(t *testing.T, limits *quiet.Limits) {
			l, err := netlab.New("dmcruise")
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, ns := range []string{"gw", "h0", "h1"} {
				if err := l.AddNamespace(ns); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 2 {
				at := func(n int) []netip.Prefix {
					return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.18.%d.%d/24", i, n))}
				}
				if err := l.AddLink(netlab.LinkSpec{A: netlab.End{NS: "gw", Name: fmt.Sprint("p", i), Addrs: at(1)}, B: netlab.End{NS: fmt.Sprint("h", i), Name: "e", Addrs: at(2)}, Queues: 1}); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.SetOffloads("h0", "e", true); err != nil { // a redirect into a veth is lost where the peer has no NAPI, which it has with gro
				t.Fatal(err)
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := l.Command("gw", exe, "cruise-child")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			frame, err := hex.DecodeString(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}

			from, to := raw(t, l, "h1", "e"), raw(t, l, "h0", "e")
			var last, count atomic.Int64 // ns of arrival, frames
			began := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				b := make([]byte, 2000)
				for {
					if err := unix.SetsockoptTimeval(to, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
						return
					}
					n, _, err := unix.Recvfrom(to, b, 0)
					switch {
					case err == nil && n >= 54 && string(b[n-40:n]) == string(frame[len(frame)-40:]):
						last.Store(int64(time.Since(began)))
						count.Add(1)
					case time.Since(began) > time.Minute || last.Load() < 0:
						return
					}
				}
			}()
			send := func(d time.Duration) {
				for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(time.Millisecond) {
					if _, err := unix.Write(from, frame); err != nil {
						t.Errorf("send: %v", err)
						return
					}
				}
			}
			for until := time.Now().Add(10 * time.Second); count.Load() < 100; {
				if time.Now().After(until) {
					t.Fatalf("%d frames came", count.Load())
				}
				send(50 * time.Millisecond)
			}
			send(rand.N(feeds)) // somewhere between two feeds
			ended := time.Since(began)
			if err := cmd.Process.Signal(end); err != nil {
				t.Fatal(err)
			}
			send(900 * time.Millisecond)
			after := time.Duration(last.Swap(-1)) - ended
			<-done
			t.Logf("the last of %d frames came %v after", count.Load(), after)
			if after > closed {
				limits.Missed("frames came for %v, want at most %v", after, closed)
			}
			if after < feeds {
				limits.Missed("frames came for %v only: the deadline was not what ended them", after)
			}
		}
		t.Run(name, func(t *testing.T) {
			quiet.Judge(t, func(limits *quiet.Limits) { once(t, limits) })
		})
	}
}
