package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/roottest"
)

// namespace moves the test's thread into a namespace of its own with a veth pair: dmh0 (198.18.7.1/24, 2001:db8:7::1/64) here, dmh1 (198.18.7.2/24)
// in a second one. Nothing has a name, so nothing is left when the threads end: they are locked and never unlocked.
func namespace(t *testing.T, queues int) (here, there netns.NsHandle) {
	t.Helper()
	roottest.Require(t)
	runtime.LockOSThread()
	mk := func() netns.NsHandle {
		h, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return h
	}
	there = mk()
	here = mk()
	a := netlink.NewLinkAttrs()
	a.Name, a.NumRxQueues, a.NumTxQueues = "dmh0", queues, queues
	v := &netlink.Veth{LinkAttrs: a, PeerName: "dmh1", PeerNamespace: netlink.NsFd(there)}
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(v) })
	up(t, nil, "dmh0", "198.18.7.1/24", "2001:db8:7::1/64")
	h, err := netlink.NewHandleAt(there)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	up(t, h, "dmh1", "198.18.7.2/24")
	return here, there
}

func up(t *testing.T, h *netlink.Handle, name string, addrs ...string) {
	t.Helper()
	if h == nil {
		h = &netlink.Handle{}
	}
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(l, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

func TestLinkByName(t *testing.T) {
	namespace(t, 3)
	var l Link
	eventually(t, "carrier", func() bool {
		var err error
		if l, err = LinkByName("dmh0"); err != nil {
			t.Fatal(err)
		}
		return l.Carrier
	})
	if l.Name != "dmh0" || l.Kind != "veth" || l.Driver != "veth" || l.MTU != 1500 || !l.Up || l.MAC == [6]byte{} || l.XDP != (XDP{}) {
		t.Errorf("%+v", l)
	}
	if l.RxQueues != 3 || l.TxQueues != 3 {
		t.Errorf("queues %d, %d: want 3, 3", l.RxQueues, l.TxQueues)
	}
	for _, a := range []string{"198.18.7.1/24", "2001:db8:7::1/64"} {
		if !slices.Contains(l.Addrs, netip.MustParsePrefix(a)) {
			t.Errorf("addresses %v lack %s", l.Addrs, a)
		}
	}
	if o, err := LinkByIndex(l.Index); err != nil || o.Name != "dmh0" {
		t.Errorf("by index: %+v, %v", o, err)
	}
	if rx, tx, err := Queues("dmh0"); rx != 3 || tx != 3 || err != nil {
		t.Errorf("Queues: %d, %d, %v", rx, tx, err)
	}
	if f, err := ReadXDPFeatures(l.Index); err != nil || f&(XDPBasic|XDPRedirect) != XDPBasic|XDPRedirect || f&XDPZeroCopy != 0 {
		t.Errorf("xdp features of a veth: %b, %v", f, err)
	}
	if _, err := ReadXDPFeatures(9999); !errors.Is(err, ErrNotFound) {
		t.Errorf("xdp features of a missing link: %v", err)
	}
	all, err := Links()
	if err != nil || !slices.ContainsFunc(all, func(l Link) bool { return l.Name == "lo" }) {
		t.Errorf("Links: %v, %v", all, err)
	}
	if _, err := LinkByName("dmnone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing link: %v", err)
	}
	if _, err := LinkByIndex(9999); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing index: %v", err)
	}
	if _, _, err := Queues("dmnone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("queues of a missing link: %v", err)
	}
}

func TestQueuesWithoutChannels(t *testing.T) {
	namespace(t, 1)
	// The loopback has no ethtool channels: the kernel's own list of queues answers.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	if rx, tx, err := Queues("lo"); rx != 1 || tx != 1 || err != nil {
		t.Errorf("queues of lo: %d, %d, %v", rx, tx, err)
	}
}

func TestOffloadsOnVeth(t *testing.T) {
	namespace(t, 1)
	all := []Offload{TxChecksum, TSO, GSO, GRO, RxVLAN, TxVLAN, RxSTag, TxSTag}
	for _, on := range []bool{true, false, true} {
		if err := SetOffloads("dmh0", on, all...); err != nil {
			t.Fatalf("set %v: %v", on, err)
		}
		got, err := ReadOffloads("dmh0")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if got[o].On != on || got[o].Fixed {
				t.Errorf("%s: %+v, want on=%v", o, got[o], on)
			}
		}
	}
	if err := SetOffloads("dmh0", false, GRO); err != nil {
		t.Fatal(err)
	}
	if got, _ := ReadOffloads("dmh0"); got[GRO].On || !got[TxVLAN].On {
		t.Errorf("one at a time: %+v", got)
	}
	if err := SetOffloads("dmh0", true, LRO, LRO); !errors.Is(err, ErrNotSupported) || strings.Count(err.Error(), "lro") != 1 {
		t.Errorf("veth has no lro: %v", err)
	}
	if err := SetOffloads("dmh0", true, NumOffloads); err == nil {
		t.Error("an offload that there is not was set")
	}
	if _, err := ReadOffloads("dmnone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing link: %v", err)
	}
}

func TestUseNeighbor(t *testing.T) {
	namespace(t, 1)
	l, err := LinkByName("dmh0")
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("198.18.7.2")
	if _, err := Neighbor(l.Index, a); !errors.Is(err, ErrNotFound) {
		t.Fatalf("before: %v", err)
	}
	if err := UseNeighbor(l.Index, a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the kernel resolves", func() bool {
		n, err := Neighbor(l.Index, a)
		return err == nil && n.Valid && n.MAC != [6]byte{} && n.Addr == a && n.Ifindex == l.Index
	})
	nobody := netip.MustParseAddr("198.18.7.77")
	if err := UseNeighbor(l.Index, nobody); err != nil {
		t.Fatal(err)
	}
	if n, err := Neighbor(l.Index, nobody); err != nil || n.Valid {
		t.Errorf("nobody there: %+v, %v", n, err)
	}
	if all, err := Neighbors(0); err != nil || len(all) < 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	if err := UseNeighbor(9999, a); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing link: %v", err)
	}
}

func TestEphemeralRangeOfTheNamespace(t *testing.T) {
	namespace(t, 1)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40100"), 0o644); err != nil {
		t.Fatal(err)
	}
	if lo, hi, err := EphemeralRange(); lo != 40000 || hi != 40100 || err != nil {
		t.Errorf("%d, %d, %v", lo, hi, err)
	}
}

// recorder collects events from a Watch that runs in namespace ns.
type recorder struct {
	mu     sync.Mutex
	events []Event
	hold   sync.Mutex // while held, fn does not return: the kernel must queue
}

func (r *recorder) run(t *testing.T, ns netns.NsHandle, buffer int) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- watch(ctx, func(e Event) {
			r.hold.Lock()
			r.hold.Unlock() // the wait is what is wanted
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
		}, buffer)
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func (r *recorder) saw(ok func(Event) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.events, ok)
}

func TestWatch(t *testing.T) {
	here, there := namespace(t, 1)
	var r recorder
	stop := r.run(t, here, 1<<20)
	eventually(t, "what is there", func() bool {
		return r.saw(func(e Event) bool { return e.Kind == LinkEvent && e.Link.Name == "dmh0" && !e.Gone }) &&
			r.saw(func(e Event) bool {
				return e.Kind == AddrEvent && e.Addr == netip.MustParsePrefix("198.18.7.1/24") && !e.Gone
			})
	})
	l, err := netlink.LinkByName("dmh0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(l, 1400); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mtu", func() bool {
		return r.saw(func(e Event) bool { return e.Kind == LinkEvent && e.Link.Name == "dmh0" && e.Link.MTU == 1400 })
	})
	h, err := netlink.NewHandleAt(there)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	peer, err := h.LinkByName("dmh1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetDown(peer); err != nil {
		t.Fatal(err)
	}
	eventually(t, "carrier lost", func() bool {
		return r.saw(func(e Event) bool { return e.Kind == LinkEvent && e.Link.MTU == 1400 && !e.Link.Carrier })
	})
	a, _ := netlink.ParseAddr("198.18.8.1/25")
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrDel(l, a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "address came and went", func() bool {
		return r.saw(func(e Event) bool {
			return e.Kind == AddrEvent && e.Addr == netip.MustParsePrefix("198.18.8.1/25") && e.Gone && e.Ifindex == l.Attrs().Index
		})
	})
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	n := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: unix.NUD_PERMANENT, IP: net.IPv4(198, 18, 7, 9), HardwareAddr: mac}
	if err := netlink.NeighSet(n); err != nil {
		t.Fatal(err)
	}
	eventually(t, "neighbour", func() bool {
		return r.saw(func(e Event) bool {
			return e.Kind == NeighborEvent && e.Neigh.Addr == netip.MustParseAddr("198.18.7.9") && e.Neigh.MAC == [6]byte(mac) && e.Neigh.Valid && !e.Gone
		})
	})
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device vanished, and its neighbour and address with it", func() bool {
		return r.saw(func(e Event) bool { return e.Kind == LinkEvent && e.Gone && e.Link.Name == "dmh0" }) &&
			r.saw(func(e Event) bool {
				return e.Kind == NeighborEvent && e.Gone && e.Neigh.Addr == netip.MustParseAddr("198.18.7.9")
			}) &&
			r.saw(func(e Event) bool {
				return e.Kind == AddrEvent && e.Gone && e.Addr == netip.MustParsePrefix("198.18.7.1/24")
			})
	})
	if err := stop(); err != nil {
		t.Errorf("Watch: %v", err)
	}
}

func TestWatchSurvivesOverrun(t *testing.T) {
	here, _ := namespace(t, 1)
	l, err := netlink.LinkByName("dmh0")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("198.18.9.1/25")
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
	var r recorder
	stop := r.run(t, here, 4096)
	eventually(t, "the address", func() bool {
		return r.saw(func(e Event) bool {
			return e.Kind == AddrEvent && e.Addr == netip.MustParsePrefix("198.18.9.1/25") && !e.Gone
		})
	})
	r.hold.Lock()
	for i := range 300 { // far more than 4 KiB of messages, while nobody reads
		if err := netlink.LinkSetMTU(l, 1300+i%2); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.AddrDel(l, a); err != nil { // surely among what is lost
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(l, 1234); err != nil {
		t.Fatal(err)
	}
	r.hold.Unlock()
	eventually(t, "resync", func() bool { return r.saw(func(e Event) bool { return e.Kind == ResyncEvent }) })
	eventually(t, "what was lost is told after all", func() bool {
		return r.saw(func(e Event) bool {
			return e.Kind == AddrEvent && e.Addr == netip.MustParsePrefix("198.18.9.1/25") && e.Gone
		}) && r.saw(func(e Event) bool { return e.Kind == LinkEvent && e.Link.Name == "dmh0" && e.Link.MTU == 1234 })
	})
	if err := stop(); err != nil {
		t.Errorf("Watch: %v", err)
	}
}
