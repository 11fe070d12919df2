package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// faults is a rig whose gateway namespace would forward by itself if it were let: each tenant sends the whole time, and so does the outside to
// the insides, which the policy forbids.
type faults struct {
	*rig
	site      *site // for its tools
	plain, in atomic.Int64
	base      uint64 // packets that the kernel has forwarded
	stop      func() // of what is sent; idempotent
}

// kernelWouldForward turns the gateway's namespace into a router beside the gateway and starts transit that shows it.
func kernelWouldForward(r *rig) *faults {
	r.t.Helper()
	f := &faults{rig: r, site: &site{Topology: r.Topology, t: r.t}}
	check(r.t, r.Sysctl(netlab.GW, "net.ipv4.ip_forward", "1"))
	check(r.t, r.Sysctl(netlab.GW, "net.ipv6.conf.all.forwarding", "1"))
	for _, a := range []string{hostOnPublic + "/24", "2001:db8:ff::9/64"} {
		check(r.t, r.AddAddr(netlab.GW, netlab.PublicPort, prefix(a)))
	}
	inside := host.ProbeMarker("r6")
	f.site.capture(r.Public1.Name, netlab.HostDevice, 0, func(b []byte) bool {
		if len(b) > 30 && b[12] == 8 && b[13] == 0 && b[26] == 198 && b[27] == 18 {
			f.plain.Add(1)
		}
		return false
	})
	for _, h := range []netlab.Host{r.Alpha1, r.Beta1} {
		f.site.capture(h.Name, netlab.HostDevice, 0, func(b []byte) bool {
			if strings.Contains(string(b), string(inside)) {
				f.in.Add(1)
			}
			return false
		})
	}
	r.serve(r.Public1.Name, "udp-sink", "-addr", ":9000")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, x := range []struct{ ns, tag, dst string }{
		{r.Alpha2.Name, "t4", "203.0.113.11:9000"}, {r.Beta2.Name, "t4", "203.0.113.11:9000"},
		{r.Public1.Name, "r6", "[2001:db8:a::11]:9000"}, {r.Public1.Name, "r6", "[2001:db8:b::11]:9000"},
	} {
		wg.Go(func() {
			if err := r.Run(ctx, x.ns, nil, "udp-flood", "-dst", x.dst, "-tag", x.tag, "-bits", "400000", "-size", "100", "-duration", "2m"); err != nil && ctx.Err() == nil {
				r.t.Error(err)
			}
		})
	}
	f.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.t.Cleanup(f.stop)
	f.base = f.site.kernelForwarded()
	return f
}

// tight says that nothing has passed around the rules since the last look.
func (f *faults) tight(when string) {
	f.t.Helper()
	kernel := f.site.kernelForwarded()
	if n, in := f.plain.Swap(0), f.in.Swap(0); n+in > 0 || kernel != f.base {
		f.t.Errorf("%s: leaked: %d packets untranslated outside, %d denied ones inside, the kernel forwarded %d", when, n, in, kernel-f.base)
	}
	f.base = kernel
}

// portOf is what a status says of one port.
func portOf(st *api.Status, name string) api.Port {
	for _, p := range st.Ports {
		if p.Name == name {
			return p
		}
	}
	return api.Port{}
}

// portIs waits until status shows a port in a state.
func (r *rig) portIs(name, state string) (st *api.Status) {
	r.t.Helper()
	r.until(8*time.Second, name+" is "+state, func() (bool, string) {
		st = r.status()
		p := portOf(st, name)
		return p.State == state, fmt.Sprintf("%s: %s", p.State, p.Problem)
	})
	return st
}

// plug puts a new device into the gateway's namespace: with all that the kernel switches on, up at both ends, or up only at the far one.
func (r *rig) plug(sw, dev string, mac net.HardwareAddr, up bool) {
	r.t.Helper()
	check(r.t, r.Plug(sw, netlab.End{NS: "spare", Name: dev, MAC: mac}, 1, 1500))
	check(r.t, r.SetOffloads("spare", dev, true))
	check(r.t, r.Do("spare", func() error { // made elsewhere, so that it comes into the gateway's namespace down
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(l); err != nil {
			return err
		}
		ns, err := os.Open("/run/netns/" + r.NetNS(netlab.GW))
		if err != nil {
			return err
		}
		defer ns.Close()
		return netlink.LinkSetNsFd(l, int(ns.Fd()))
	}))
	if up {
		check(r.t, r.SetUp(netlab.GW, dev, true))
	}
}

// size is what a process holds.
type size struct {
	rss, fds, programs, maps int
}

func (r *rig) size() (s size) {
	r.t.Helper()
	pid := r.cmd.Process.Pid
	for l := range strings.Lines(read(r.t, fmt.Sprintf("/proc/%d/status", pid))) {
		if f := strings.Fields(l); f[0] == "VmRSS:" {
			fmt.Sscan(f[1], &s.rss) // KiB
		}
	}
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	check(r.t, err)
	s.fds = len(list)
	for _, fd := range list {
		switch to, _ := os.Readlink(fd); {
		case strings.Contains(to, "bpf-prog"):
			s.programs++
		case strings.Contains(to, "bpf-map"):
			s.maps++
		}
	}
	return s
}

// grew says how a process that did something many times may differ from what it was: not at all in descriptors, little in memory.
func (a size) grew(t testing.TB, b size, most int) {
	t.Helper()
	t.Logf("resident %d -> %d KiB, %d -> %d descriptors, %d -> %d programs, %d -> %d maps", a.rss, b.rss, a.fds, b.fds, a.programs, b.programs, a.maps, b.maps)
	if b.programs > a.programs || b.maps > a.maps || b.fds > a.fds+3 {
		t.Errorf("descriptors grew: %+v, was %+v", b, a)
	}
	if b.rss > a.rss+most {
		t.Errorf("resident memory grew by %d KiB, more than %d", b.rss-a.rss, most)
	}
}

// metric is a series of /metrics.
func (r *rig) metric(series string) float64 {
	r.t.Helper()
	b, err := r.api.Text(r.t.Context(), api.PathMetrics)
	check(r.t, err)
	for l := range strings.Lines(string(b)) {
		if name, v, ok := strings.Cut(strings.TrimSpace(l), "} "); ok && name+"}" == series {
			var x float64
			fmt.Sscan(v, &x)
			return x
		}
	}
	r.t.Errorf("no series %s", series)
	return -1
}
