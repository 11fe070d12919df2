package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/flow"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

// asking sends one datagram from each of the host's ports to dst and waits for its own back, at most 128 at a time; what does not come within 300 ms is
// asked for again. Not answered are those that it returns.
func asking(dst netip.AddrPort, host byte, ports []int) (silent []int, err error) {
	const window, tries = 128, 8
	far := &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()}
	open := map[int]int{} // port -> socket
	shut := func(p int) {
		unix.Close(open[p])
		delete(open, p)
	}
	defer func() { // after an error
		for p := range open {
			shut(p)
		}
	}()
	for len(ports) > 0 {
		part := ports[:min(window, len(ports))]
		ports = ports[len(part):]
		for _, p := range part {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			open[p] = fd
			if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: p}), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})); err != nil {
				return nil, fmt.Errorf("port %d: %w", p, err)
			}
		}
		for range tries {
			if len(open) == 0 {
				break
			}
			for p, fd := range open {
				if err := unix.Sendto(fd, []byte{host, byte(p >> 8), byte(p)}, 0, far); err != nil {
					return nil, fmt.Errorf("port %d: %w", p, err)
				}
			}
			wait := 0 // once for all: what has not come then is late
			for p, fd := range open {
				var b [16]byte
				n, _, err := unix.Recvfrom(fd, b[:], wait)
				switch {
				case errors.Is(err, unix.EAGAIN):
					wait = unix.MSG_DONTWAIT
					continue
				case errors.Is(err, unix.EINTR):
					continue
				case err != nil:
					return nil, fmt.Errorf("port %d: %w", p, err)
				case n != 3 || b[0] != host || int(binary.BigEndian.Uint16(b[1:])) != p:
					return nil, fmt.Errorf("port %d of host %d got %x, which is not its own", p, host, b[:n])
				}
				shut(p)
			}
		}
		for p := range open {
			silent = append(silent, p)
			shut(p)
		}
	}
	return silent, nil
}

// Two inside hosts of different workers have all ports of the one public address between them: a few are the one's, spread over its worker's blocks, and
// the other gets every one of the rest, among them what is free in those blocks. Answers come back to each, and the next one is refused.
func TestPortsOfAnAddressAreLentBetweenWorkers(t *testing.T) {
	const all, few = 65536 - 1024, 100
	roottest.Require(t)
	top, err := netlab.Standard("lentports", netlab.Options{Queues: 2, Redirects: offloaded()})
	check(t, err)
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, top.Name())
	})
	r := rigOn(t, top, program(t), strings.Replace(rigPolicy("", ""), netlab.AlphaPool, "192.0.2.16", 1))
	r.write(r.node, replace(t, rigNode(r.data, r.socket, "[workers]\ncount = 2\n"), "sessions = 16384", "sessions = 262144"))
	worker := func(seed uint64, a netip.Addr) int {
		fa := flow.AddrFrom(a)
		return flow.Home(flow.HomeHash(1, 4, &fa, seed), 2)
	}
	seed := uint64(1)
	for worker(seed, r.Alpha1.V4) == worker(seed, r.Alpha2.V4) {
		seed++
	}
	r.args = []string{"--seed", fmt.Sprint(seed)}
	r.start()

	type end struct {
		host byte
		port int
	}
	var mu sync.Mutex
	inside, public := map[int]end{}, map[end]int{} // by public port; and back
	srv := rigUDP(r, r.Public1.Name, 7009, "")
	srv.SetReadBuffer(1 << 20)
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := srv.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n != 3 {
				continue
			}
			e, p := end{b[0], int(binary.BigEndian.Uint16(b[1:]))}, int(from.Port())
			mu.Lock()
			if who, known := inside[p]; known && who != e {
				t.Errorf("public port %d is %+v's and %+v's", p, who, e)
			}
			inside[p], public[e] = e, p
			mu.Unlock()
			srv.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	dst := netip.AddrPortFrom(r.Public1.V4, 7009)
	ask := func(ns string, host byte, ports []int) {
		t.Helper()
		var silent []int
		start := time.Now()
		if err := r.Do(ns, func() (err error) {
			silent, err = asking(dst, host, ports)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Logf("host %d: %d ports in %v", host, len(ports), time.Since(start).Round(time.Millisecond))
		if len(silent) > 0 {
			t.Errorf("host %d: %d of %d ports were not answered, such as %v; drops %v", host, len(silent), len(ports), silent[:min(10, len(silent))], rigTenantOf(r.status(), "alpha").Drops)
		}
	}
	from := func(first, n int) (ports []int) {
		for p := range n {
			ports = append(ports, first+p)
		}
		return ports
	}
	ask(r.Alpha2.Name, 2, from(2000, 1)) // has the gateway learn the public host: what waits for a neighbour is bounded
	ask(r.Alpha2.Name, 2, from(2000, few))
	ask(r.Alpha1.Name, 1, from(1024, all-few))
	mu.Lock()
	blocks := map[int]bool{} // those of Alpha2's worker
	for p, e := range inside {
		if e.host == 2 {
			blocks[p/64] = true
		}
	}
	var lent []int
	for p, e := range inside {
		if e.host == 1 && blocks[p/64] {
			lent = append(lent, e.port)
		}
	}
	got, ends := len(inside), len(public)
	mu.Unlock()
	st := r.status()
	al := rigTenantOf(st, "alpha")
	t.Logf("%d public ports for %d inside ones; %d of host 1 in %d blocks that host 2 has ports in; pool %+v", got, ends, len(lent), len(blocks), *al.Pool)
	if got != all || ends != all || al.Pool.InUse != all || al.Drops["nat_no_port"] > 0 || len(lent) != len(blocks)*64-few || len(blocks) < 4 {
		t.Errorf("want %d of each, and what is free in the other worker's blocks is the first host's: drops %v", all, al.Drops)
	}
	for _, w := range st.Workers {
		if w.HandedOut == 0 {
			t.Errorf("worker %d handed nothing over: this shows little", w.ID)
		}
	}
	// Both hosts have ports of the same blocks: still each gets its own.
	ask(r.Alpha1.Name, 1, lent)
	ask(r.Alpha2.Name, 2, from(2000, few))
	for _, h := range []netlab.Host{r.Alpha1, r.Alpha2} {
		before := rigTenantOf(r.status(), "alpha").Drops["nat_no_port"]
		c := rigUDP(r, h.Name, 65535, dst.String())
		c.Write([]byte{9, 9, 9})
		r.until(2*time.Second, "one more is refused under its reason", func() (bool, string) {
			d := rigTenantOf(r.status(), "alpha").Drops
			return d["nat_no_port"] > before, fmt.Sprint(d)
		})
	}
}
