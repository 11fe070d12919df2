package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// Destinations behind the uplinks: each router of the lab has them.
const (
	farAway4 = "198.51.100.7"
	farAway6 = "2001:db8:99::7"
	sat      = "sat" // namespace of the router on the second uplink port
	satPort  = "bb1"
)

// uplinks is a gateway with three routers: two on the backbone port, one on a port of its own. All of them have the far addresses.
func uplinks(t *testing.T, name string) *rig {
	r := newRig(t, name, uplinkPolicy(true, ""))
	check(t, r.AddNamespace(sat))
	check(t, r.AddLink(netlab.LinkSpec{A: netlab.End{NS: netlab.GW, Name: satPort}, B: netlab.End{NS: sat, Name: netlab.HostDevice,
		Addrs: []netip.Prefix{prefix("198.51.100.130/30"), prefix("2001:db8:fe::2/64")}}}))
	for _, p := range []string{netlab.PoolRoute, netlab.AlphaNet6} {
		via := addr("198.51.100.129")
		if prefix(p).Addr().Is6() {
			via = addr("2001:db8:fe::1")
		}
		check(t, r.AddRoute(sat, prefix(p), via))
	}
	for _, ns := range []string{r.Public1.Name, r.Public2.Name, sat} {
		check(t, r.AddAddr(ns, "lo", prefix(farAway4+"/32")))
		check(t, r.AddAddr(ns, "lo", prefix(farAway6+"/128")))
	}
	redirectable(t, r.Topology, sat, netlab.HostDevice)
	port := "[[port]]\n" + offloadSaid() + "device = \"bb1\"\n"
	r.write(r.node, strings.Replace(rigNode(r.data, r.socket, ""), "[[interface]]\n", port+"[[interface]]\nname = \"sat\"\nport = \"bb1\"\naddresses = [\"198.51.100.129/30\", \"2001:db8:fe::1/64\"]\n[[interface]]\n", 1))
	return r
}

// uplinkPolicy is that of both tenants; routed: the way to the far addresses is there. more goes before the tenants.
func uplinkPolicy(routed bool, more string) string {
	via := "[[route]]\nprefix = \"198.51.100.0/25\"\nvia = [\"203.0.113.11\", \"203.0.113.12\", \"198.51.100.130\"]\n" +
		"[[route]]\nprefix = \"2001:db8:99::/48\"\nvia = [\"2001:db8:ff::11\", \"2001:db8:ff::12\", \"2001:db8:fe::2\"]\n"
	if !routed {
		via = ""
	}
	return "schema = 1\nname = \"e2e\"\n[backbone]\ninterfaces = [\"backbone\", \"sat\"]\n" + via + more + rigAlpha("") + rigBeta("")
}

// hop is a router's name, as a byte that it puts into its answers.
var hopNames = map[byte]string{1: "public1", 2: "public2", 3: sat}

// parrot answers on a far address in a router's namespace: what came, who it is, and as whom it sees the asker.
func parrot(r *rig, ns string, who byte, at string) {
	var c *net.UDPConn
	check(r.t, r.Do(ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	}))
	r.t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 200)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return // closed: nothing sends errors to it
			}
			c.WriteToUDPAddrPort(fmt.Appendf(append(slices.Clone(b[:min(n, 8)]), who), "%s", from), from)
		}
	}()
}

// talk is one conversation of a host with a far address, a packet every 20 ms.
type talk struct {
	c    *net.UDPConn
	sent atomic.Uint64

	mu      sync.Mutex
	got     uint64
	who     byte   // who answered last
	as      string // as whom
	others  int    // times that as changed
	moves   int    // times that who changed
	last    time.Time
	longest time.Duration // without an answer
}

func (k *talk) now() (who byte, got uint64, moves, others int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.who, k.got, k.moves, k.others
}

// talks starts n conversations that go on until the end is called.
func talks(r *rig, n int, hosts []netlab.Host, at string) (all []*talk, end func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		k := &talk{c: rigUDP(r, hosts[i%len(hosts)].Name, 0, at), last: time.Now()}
		all = append(all, k)
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				if _, err := k.c.Write(binary.BigEndian.AppendUint64(nil, k.sent.Add(1))); errors.Is(err, net.ErrClosed) {
					return
				}
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		})
		wg.Go(func() {
			b := make([]byte, 200)
			for {
				n, err := k.c.Read(b)
				select {
				case <-stop:
					return
				default:
				}
				if errors.Is(err, net.ErrClosed) {
					return // the test has failed
				}
				if err != nil || n < 10 {
					continue
				}
				k.mu.Lock()
				if k.got++; k.got > 1 {
					k.longest = max(k.longest, time.Since(k.last))
					if k.who != b[8] {
						k.moves++
					}
					if k.as != string(b[9:n]) {
						k.others++
					}
				}
				k.last, k.who, k.as = time.Now(), b[8], string(b[9:n])
				k.mu.Unlock()
			}
		})
	}
	return all, func() {
		close(stop)
		for _, k := range all {
			k.c.SetReadDeadline(time.Now())
		}
		wg.Wait()
	}
}

// share is how many conversations each router has now.
func share(all []*talk) map[string]int {
	m := map[string]int{}
	for _, k := range all {
		who, _, _, _ := k.now()
		m[hopNames[who]]++
	}
	return m
}

// going waits until every conversation has had an answer since it was called.
func going(r *rig, all []*talk, d time.Duration, what string) {
	r.t.Helper()
	before := make([]uint64, len(all))
	for i, k := range all {
		before[i] = k.sent.Load()
	}
	start := make([]uint64, len(all))
	for i, k := range all {
		_, start[i], _, _ = k.now()
	}
	r.until(d, what, func() (bool, string) {
		silent := 0
		for i, k := range all {
			if _, got, _, _ := k.now(); got < start[i]+2 {
				silent++
			}
		}
		return silent == 0, fmt.Sprintf("%d of %d conversations have no answer; %v", silent, len(all), share(all))
	})
}

// hopState is what `routes` says of a router.
func hopState(r *rig, via string) string {
	var rs api.Routes
	r.ask(&rs, "routes")
	for _, x := range rs.Routes {
		for _, h := range x.Hops {
			if h.Via == via {
				return h.State
			}
		}
	}
	return "not there"
}

// Conversations are shared among three routers on two ports, IPv4 and IPv6. One router falls silent, then a port loses its link: each time only its
// own conversations go elsewhere, under the same public address and port. When they are back, what goes on elsewhere stays there.
func TestECMPMovesOnlyTheFlowsOfADeadNextHop(t *testing.T) {
	r := uplinks(t, "ecmp")
	r.start()
	for who, ns := range map[byte]string{1: r.Public1.Name, 2: r.Public2.Name, 3: sat} {
		parrot(r, ns, who, farAway4+":7000")
		parrot(r, ns, who, "["+farAway6+"]:7000")
	}
	r.until(5*time.Second, "all routers have answered", func() (bool, string) {
		st := r.status().SlowPath.Routers
		return st.Up == 6, fmt.Sprintf("%+v", st)
	})
	four, end4 := talks(r, 45, []netlab.Host{r.Alpha1, r.Alpha2, r.Beta1}, farAway4+":7000")
	six, end6 := talks(r, 40, []netlab.Host{r.Alpha1, r.Alpha2}, "["+farAway6+"]:7000")
	all := append(slices.Clone(four), six...)
	going(r, all, 5*time.Second, "conversations go on")
	at, at6 := share(four), share(six)
	t.Logf("IPv4 %v, IPv6 %v", at, at6)
	for _, n := range hopNames {
		if at[n] < 4 || at6[n] < 1 {
			t.Errorf("%s has %d and %d conversations", n, at[n], at6[n])
		}
	}
	// moved checks who has moved since the last look: those of the router that died and no others, and not to it.
	var was []byte
	look := func() {
		was = was[:0]
		for _, k := range all {
			who, _, _, _ := k.now()
			was = append(was, who)
		}
	}
	look()
	moved := func(dead byte) {
		t.Helper()
		going(r, all, 8*time.Second, "conversations go on past "+hopNames[dead])
		for i, k := range all {
			who, _, _, _ := k.now()
			if was[i] != dead && who != was[i] || who == dead {
				t.Errorf("conversation %d went from %s to %s when %s died", i, hopNames[was[i]], hopNames[who], hopNames[dead])
			}
		}
		look()
	}

	start := time.Now()
	check(t, r.SetUp(r.Public2.Name, netlab.HostDevice, false)) // behind a switch: the gateway's port keeps its link
	moved(2)
	silent := time.Since(start)
	if s := hopState(r, "203.0.113.12"); s != "no answer" {
		t.Errorf("routes says of the dead one: %q", s)
	}
	out, _, _ := r.cli("status")
	if !strings.Contains(out, "DEAD      next hop 203.0.113.12 on backbone: no answer for ") || !strings.Contains(out, "DEAD      next hop 2001:db8:ff::12 on backbone") {
		t.Errorf("status does not name it:\n%s", out)
	}

	start = time.Now()
	check(t, r.SetUp(sat, netlab.HostDevice, false)) // the other end of the cable
	moved(3)
	cut := time.Since(start)
	if s := hopState(r, "198.51.100.130"); s != "no link" {
		t.Errorf("routes says of the one without link: %q", s)
	}
	t.Logf("conversations went on %v after a router fell silent, %v after a link was cut (of which up to 0.1 s is looking)", silent.Round(time.Millisecond), cut.Round(time.Millisecond))

	for _, ns := range []string{r.Public2.Name, sat} {
		check(t, r.SetUp(ns, netlab.HostDevice, true))
	}
	for _, p := range [][2]string{{netlab.PoolRoute, netlab.PublicGW4}, {netlab.AlphaNet6, netlab.PublicGW6}} { // gone with the link
		r.AddRoute(r.Public2.Name, prefix(p[0]), addr(p[1]))
	}
	check(t, r.AddRoute(sat, prefix(netlab.PoolRoute), addr("198.51.100.129")))
	r.AddAddr(r.Public2.Name, netlab.HostDevice, prefix("2001:db8:ff::12/64")) // IPv6 addresses go with the link too
	r.AddAddr(sat, netlab.HostDevice, prefix("2001:db8:fe::2/64"))
	r.AddRoute(r.Public2.Name, prefix(netlab.AlphaNet6), addr(netlab.PublicGW6))
	r.AddRoute(sat, prefix(netlab.AlphaNet6), addr("2001:db8:fe::1"))
	r.until(8*time.Second, "all routers are back", func() (bool, string) {
		st := r.status().SlowPath.Routers
		return st.Up == 6, fmt.Sprintf("%+v", st)
	})
	going(r, all, 5*time.Second, "conversations go on")
	for i, k := range all {
		if who, _, _, _ := k.now(); who != was[i] {
			t.Errorf("conversation %d went back from %s to %s", i, hopNames[was[i]], hopNames[who])
		}
	}
	fresh, endFresh := talks(r, 30, []netlab.Host{r.Alpha1, r.Beta2}, farAway4+":7000")
	going(r, fresh, 5*time.Second, "new conversations")
	if s := share(fresh); s["public2"] == 0 || s[sat] == 0 {
		t.Errorf("new conversations: %v", s)
	}
	endFresh()
	end4()
	end6()
	for i, k := range four {
		if k.others > 0 {
			t.Errorf("conversation %d had %d changes of its public address or port", i, k.others)
		}
	}
	for _, k := range all {
		if k.longest > 6*time.Second {
			t.Errorf("a conversation had no answer for %v", k.longest)
		}
	}
	st := r.status()
	if !st.Ready || !st.Conservation.OK || st.SlowPath.Routers.Moved == 0 || st.SlowPath.Routers.Died < 2 {
		t.Errorf("%+v %+v", st.Conservation, st.SlowPath)
	}
	if d := st.Drops["unset"]; d > 0 {
		t.Errorf("%d packets without a reason", d)
	}
	r.stop()
}

// A backup carries nothing while the first is up, everything with its public addresses and ports while that is dead, and nothing again as soon as it answers: also of sessions that the XDP program carries.
func TestBackupUplinkIsUsedNoLongerThanNeeded(t *testing.T) {
	mostlyWaits(t)
	r := uplinks(t, "backup")
	r.write(r.policy, "schema = 1\nname = \"e2e\"\n[backbone]\ninterfaces = [\"backbone\", \"sat\"]\n"+
		"[[route]]\nprefix = \"198.51.100.0/25\"\nvia = \"203.0.113.11\"\nbackup = \"198.51.100.130\"\n"+
		"[[route]]\nprefix = \"2001:db8:99::/48\"\nvia = \"2001:db8:ff::11\"\nbackup = [\"2001:db8:fe::2\"]\n"+rigAlpha("")+rigBeta(""))
	r.start()
	for who, ns := range map[byte]string{1: r.Public1.Name, 3: sat} {
		parrot(r, ns, who, farAway4+":7000")
		parrot(r, ns, who, "["+farAway6+"]:7000")
	}
	r.until(5*time.Second, "all routers have answered", func() (bool, string) {
		st := r.status().SlowPath.Routers
		return st.Up == 4, fmt.Sprintf("%+v", st)
	})
	four, end4 := talks(r, 30, []netlab.Host{r.Alpha1, r.Alpha2, r.Beta1}, farAway4+":7000")
	six, end6 := talks(r, 20, []netlab.Host{r.Alpha1, r.Alpha2}, "["+farAway6+"]:7000")
	all := append(slices.Clone(four), six...)
	by := func(name string, d time.Duration) {
		t.Helper()
		r.until(d, "all conversations go by "+name, func() (bool, string) {
			s := share(all)
			return s[name] == len(all), fmt.Sprint(s)
		})
		going(r, all, 5*time.Second, "conversations go on by "+name)
	}
	by("public1", 5*time.Second)
	onBackup := func(want int) {
		t.Helper()
		if st := r.status().SlowPath.Routers; st.OnBackup != want {
			t.Errorf("%d routes go by their backup, want %d", st.OnBackup, want)
		}
		out, _, _ := r.cli("status")
		if told := strings.Contains(out, "BACKUP    "+fmt.Sprintf("%d routes go", want)); told != (want > 0) {
			t.Errorf("with %d routes on their backup status says:\n%s", want, out)
		}
	}
	onBackup(0)
	check(t, r.SetUp(r.Public1.Name, netlab.HostDevice, false))
	by(sat, 8*time.Second)
	onBackup(2)
	if offloaded() {
		r.until(5*time.Second, "the XDP program has them", func() (bool, string) {
			n := 0
			for _, w := range r.status().Workers {
				n += w.Cruising
			}
			return n == len(all), fmt.Sprint(n)
		})
	}
	out, _, _ := r.cli("routes")
	if !strings.Contains(out, "backup, up") || !strings.Contains(out, "no answer for ") {
		t.Errorf("routes says\n%s", out)
	}
	check(t, r.SetUp(r.Public1.Name, netlab.HostDevice, true))
	r.AddRoute(r.Public1.Name, prefix(netlab.PoolRoute), addr(netlab.PublicGW4)) // gone with the link
	r.AddAddr(r.Public1.Name, netlab.HostDevice, prefix("2001:db8:ff::11/64"))
	r.AddRoute(r.Public1.Name, prefix(netlab.AlphaNet6), addr(netlab.PublicGW6))
	r.until(5*time.Second, "the first answers again", func() (bool, string) {
		s, s6 := hopState(r, "203.0.113.11"), hopState(r, "2001:db8:ff::11")
		return s == "up" && s6 == "up", s + ", " + s6
	})
	back := time.Now()
	going(r, all, 5*time.Second, "conversations go on")
	onBackup(2) // it may be gone again in a moment
	by("public1", 15*time.Second)
	d := time.Since(back)
	if t.Logf("conversations went back %v after the first had answered", d.Round(time.Millisecond)); d < 5*time.Second || d > 13*time.Second {
		t.Error("want 10 s")
	}
	onBackup(0)
	going(r, all, 5*time.Second, "conversations go on")
	time.Sleep(500 * time.Millisecond) // who gets an answer by the backup now has moved once more
	end4()
	end6()
	for i, k := range four {
		if k.others > 0 || k.moves != 2 {
			t.Errorf("conversation %d had %d changes of its public address or port, and %d of its router: want 0 and 2", i, k.others, k.moves)
		}
	}
	if st := r.status(); !st.Ready || !st.Conservation.OK {
		t.Errorf("%+v", st.Conservation)
	}
	r.stop()
}
