package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
	"demarc/gateway/packet/build"
	"demarc/gateway/packet/csum"
)

// raw6 is a whole Ethernet frame with UDP over IPv6.
func raw6(dst, src net.HardwareAddr, from, to netip.Addr, body []byte) []byte {
	f := make([]byte, 54, 54+len(body))
	copy(f, dst)
	copy(f[6:], src)
	f[12], f[13], f[14] = 0x86, 0xdd, 0x60
	binary.BigEndian.PutUint16(f[18:], uint16(len(body)))
	f[20], f[21] = 17, 64
	copy(f[22:], from.AsSlice())
	copy(f[38:], to.AsSlice())
	f = append(f, body...)
	a, b := from.As16(), to.As16()
	sum := csum.Checksum(csum.Sum(csum.Pseudo6(&a, &b, 17, len(body)), body))
	binary.BigEndian.PutUint16(f[60:], csum.NonZero(sum))
	return f
}

// in64 is an address of a /64 by number, far from those that are there.
func in64(net6 string, n int) netip.Addr {
	b := prefix(net6).Addr().As16()
	b[8] = 0x5c
	binary.BigEndian.PutUint32(b[12:], uint32(n))
	return netip.AddrFrom16(b)
}

// A scan of a /64 from the backbone and from a tenant, and a flood of ARP, solicitations and advertisements from invented stations: who is
// beside loses nothing, and neighbours in use stay (RFC 6583).
func TestScansAndFloodsLeaveNeighboursInUse(t *testing.T) {
	mostlyWaits(t)
	a := newAttacked(t, "ndscan", "sessions = 16384\nneighbors = 256", "[[tenant.rule]]\nname = \"six\"\ndirection = \"in\"\naction = \"allow\"\nto = [\""+netlab.AlphaNet6+"\"]\n")
	outer, public := a.macs(netlab.PublicPort, a.Public2)
	inner, station := a.macs(netlab.AlphaPort, a.Alpha1)
	invented := func(n int) [6]byte { return [6]byte{2, 0x66, 0, byte(n >> 16), byte(n >> 8), byte(n)} }
	var buf [128]byte
	attacks := []struct {
		what, ns string
		next     frames
	}{
		{"a scan from the backbone", a.Public2.Name, func(n int) []byte {
			return raw6(outer, public, a.Public2.V6, in64(netlab.AlphaNet6, n), udp(a.port(), 9, []byte("scan")))
		}},
		{"a scan by a tenant", a.Alpha1.Name, func(n int) []byte {
			return raw6(inner, station, a.Alpha1.V6, in64(netlab.PublicNet6, n), udp(a.port(), 9, []byte("scan")))
		}},
		{"invented stations", a.Alpha1.Name, func(n int) []byte {
			mac, gw6 := invented(n), hostIn(netlab.AlphaNet6, 1).As16()
			v4, v6 := [4]byte{198, 18, 10, byte(20 + n%200)}, in64(netlab.AlphaNet6, n).As16()
			k := 0
			switch n % 4 {
			case 0:
				k = build.ARPRequest(buf[:], mac, v4, addr(netlab.InsideGW4).As4(), [6]byte{}, 0)
			case 1:
				k = build.ARPRequest(buf[:], mac, v4, v4, [6]byte{}, 0)
			case 2:
				k = build.NeighborSolicitation(buf[:], mac, v6, gw6, [6]byte{}, 0)
			default:
				k = build.NeighborAdvertisement(buf[:], mac, v6, [6]byte{0x33, 0x33, 0, 0, 0, 1}, addr("ff02::1").As16(), v6, false, true, 0)
			}
			return bytes.Clone(buf[:k])
		}},
	}
	for i, x := range attacks {
		before := a.status()
		reasons := []string{"neighbor_queue_full or no_neighbor or slow_path_full or tenant_unanswered"}
		if i == 2 {
			reasons = nil
		}
		b := a.attack(attackRate, x.ns, x.next, reasons...)
		s := b.after.SlowPath
		t.Logf("%s: %d frames; %d neighbours, %d unanswered, %d questions and answers withheld", x.what, b.sent, s.Neighbours, s.Unanswered, s.Limited-before.SlowPath.Limited)
		// Every other frame wants an answer, of which there are 500 at once and 2,000 a second. Where the machine was elsewhere for half of the time that many were not asked for.
		if i == 2 && b.sent/2 > 500+2000*3 && s.Limited == before.SlowPath.Limited && b.after.Drops["slow_path_full"] == before.Drops["slow_path_full"] {
			t.Errorf("%s: nothing was withheld", x.what)
		}
		if s.Unanswered > 64 || s.TableFull > 0 {
			t.Errorf("%s: %d unanswered, %d refused for want of room", x.what, s.Unanswered, s.TableFull)
		}
		var n api.Neighbours
		a.ask(&n, "neighbours")
		for _, h := range []struct{ iface, addr string }{{"alpha", a.Alpha2.V4.String()}, {"beta", a.Beta1.V4.String()}, {"backbone", a.Public1.V4.String()}} {
			if !slices.ContainsFunc(n.Neighbours, func(e api.Neighbour) bool { return e.Interface == h.iface && e.Address == h.addr && e.MAC != "" }) {
				t.Errorf("%s: %s on %s, which is in use, is not known any more", x.what, h.addr, h.iface)
			}
		}
		if len(n.Neighbours) > 256 {
			t.Errorf("%s: %d entries", x.what, len(n.Neighbours))
		}
	}
	a.stop()
}

// A switch that keeps groups which nobody has reported from its ports (MLD snooping with a querier) lets hosts' questions for the gateway through to it, and to nobody else.
func TestSwitchesThatSnoop(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "snoop", rigPolicy("", ""))
	s := &site{Topology: r.Topology, t: t}
	const sw = "sw-alpha"
	gw6 := hostIn(netlab.AlphaNet6, 1)
	check(t, s.Sysctl(sw, "net.ipv6.conf.sw.accept_dad", "0"))
	check(t, s.Sysctl(sw, "net.ipv6.conf.sw.disable_ipv6", "0"))                                                                                                         // a querier has an address
	for _, options := range []string{"mcast_query_response_interval 10 mcast_query_interval 100 mcast_startup_query_interval 100", "mcast_snooping 1 mcast_querier 1"} { // hundredths of a second
		out, err := s.Exec(sw, "ip", append([]string{"link", "set", "sw", "type", "bridge"}, strings.Fields(options)...)...)
		if err != nil {
			t.Fatalf("%s: %v: %s", options, err, out)
		}
	}
	reached := func() bool {
		check(t, s.FlushNeighbours(r.Alpha1.Name, netlab.HostDevice))
		_, err := s.Exec(r.Alpha1.Name, "ping", "-6", "-n", "-c1", "-W1", gw6.String())
		return err == nil
	}
	at := gw6.As16()
	beside := s.capture(r.Alpha2.Name, netlab.HostDevice, 1000, func(f []byte) bool {
		return len(f) >= 78 && f[12] == 0x86 && f[20] == 58 && f[54] == 135 && bytes.Equal(f[62:78], at[:])
	})
	if !until(20*time.Second, func() bool {
		n := beside.Seen()
		return !reached() && beside.Seen() == n
	}) {
		t.Fatal("the switch floods what nobody has reported: it does not snoop")
	}
	flooded := beside.Seen()
	r.start()
	group, _ := build.SolicitedNode(at)
	port := netlab.PortName(netlab.End{NS: netlab.GW, Name: netlab.AlphaPort})
	var mdb string
	if !until(5*time.Second, func() bool {
		out, err := s.Exec(sw, "bridge", "mdb", "show", "dev", "sw")
		check(t, err)
		mdb = string(out)
		return slices.ContainsFunc(strings.Split(mdb, "\n"), func(l string) bool {
			return strings.Contains(l, "port "+port+" ") && strings.Contains(l, "grp "+netip.AddrFrom16(group).String()+" ")
		})
	}) {
		t.Fatalf("the switch does not know that the gateway listens for its address:\n%s", mdb)
	}
	for range 3 {
		if !reached() {
			t.Errorf("the gateway is not found behind a switch that snoops:\n%s", mdb)
		}
	}
	if n := beside.Seen(); n != flooded {
		t.Errorf("%d questions reached who is beside: the switch did not prune, and this test shows nothing", n-flooded)
	}
	r.stop()
}

func hostIn(p string, n byte) netip.Addr {
	b := prefix(p).Addr().As16()
	b[15] = n
	return netip.AddrFrom16(b)
}

// Another station claims the gateway's addresses, by ARP and by neighbour discovery, once and in a flood. It is told whose they are, at most once in ten
// seconds, and counted, shown and logged; the addresses are never lost.
func TestFaultAddressConflict(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "conflict", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	gw, err := r.MAC(netlab.GW, netlab.AlphaPort)
	check(t, err)
	evil := [6]byte{2, 0x66, 0, 0, 0, 1}
	gw4, gw6 := addr(netlab.InsideGW4), hostIn(netlab.AlphaNet6, 1)
	var b4, b6 [128]byte
	claim4 := b4[:build.ARPRequest(b4[:], evil, gw4.As4(), gw4.As4(), [6]byte{}, 0)]
	claim6 := b6[:build.NeighborAdvertisement(b6[:], evil, gw6.As16(), [6]byte{0x33, 0x33, 0, 0, 0, 1}, addr("ff02::1").As16(), gw6.As16(), false, true, 0)]
	s := &site{Topology: r.Topology, t: t}
	send := s.rawFrames(r.Alpha2.Name, netlab.HostDevice)
	defence := s.capture(r.Alpha1.Name, netlab.HostDevice, 1000, func(f []byte) bool {
		return bytes.Equal(f[6:12], gw) && f[0]&1 != 0 && (f[12] == 8 && f[13] == 6 && bytes.Equal(f[28:32], f[38:42]) || f[12] == 0x86 && f[54] == 136)
	})
	r.until(15*time.Second, "the gateway's own announcements are over", func() (bool, string) {
		n := defence.Seen()
		time.Sleep(2500 * time.Millisecond)
		return defence.Seen() == n, fmt.Sprint(defence.Seen())
	})
	before, tries, began := defence.Seen(), 0, time.Now()
	var defended time.Time
	// How long hosts go by the claim is a time; that it is answered, and counted once, is none.
	quiet.Judge(t, func(l *quiet.Limits) {
		if tries++; tries > 1 {
			time.Sleep(time.Until(defended.Add(10500 * time.Millisecond))) // no earlier is there another defence
		}
		seen, carried := defence.Seen(), rigTenantOf(r.status(), "alpha").Out.Packets
		var p host.Probe
		stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "2s")
		r.until(5*time.Second, "the stream runs", func() (bool, string) { return rigTenantOf(r.status(), "alpha").Out.Packets > carried+20, "" })
		check(t, send(claim4))
		check(t, send(claim6))
		r.until(5*time.Second, "both addresses are defended", func() (bool, string) {
			return defence.Seen()-seen >= 2, fmt.Sprint(defence.Seen() - seen)
		})
		defended = time.Now()
		r.wait(stream)
		t.Logf("%d of %d probes, longest gap %.1f ms", p.Received, p.Sent, p.LongestMs)
		if p.Sent-p.Received > 50 || p.LongestMs > 300 {
			l.Missed("beside one claim: %d of %d lost, longest gap %.1f ms", p.Sent-p.Received, p.Sent, p.LongestMs)
		}
	})
	claims := uint64(2 * tries)
	for round := range uint64(15) { // in bursts that the slow path's ring takes whole
		for range 20 {
			check(t, send(claim4))
			check(t, send(claim6))
		}
		r.until(2*time.Second, "all claims are counted", func() (bool, string) {
			n := r.status().SlowPath.Duplicates
			return n == claims+40*(round+1), fmt.Sprint(n)
		})
	}
	most := 2 * (1 + int(time.Since(began)/(10*time.Second)))
	r.until(2*time.Second, "what is counted as a defence is on the wire", func() (bool, string) {
		n, c := defence.Seen()-before, r.status().SlowPath.Defended // one that is under way is counted first
		return uint64(n) == c, fmt.Sprintf("%d on the wire, %d counted", n, c)
	})
	if n := defence.Seen() - before; n > most {
		t.Errorf("%d defences, want at most two in ten seconds, %d", n, most)
	}
	out, _, _ := r.cli("status")
	if !strings.Contains(out, fmt.Sprintf("CONFLICT  198.18.10.1 on alpha is used by 02:66:00:00:00:01 too: %d times", claims/2+300)) || !strings.Contains(out, "CONFLICT  2001:db8:a::1 on alpha") {
		t.Errorf("status does not say so:\n%s", out)
	}
	log, err := os.ReadFile(r.log)
	check(t, err)
	if n := bytes.Count(log, []byte("another station uses our address")); n < 1 || n > 1+int(time.Since(began)/time.Minute) {
		t.Errorf("%d lines in the log for %d claims", n, claims+600)
	}
	// The claims may have won over the hosts' memories; asked anew they find the gateway.
	check(t, r.FlushNeighbours(r.Alpha1.Name, netlab.HostDevice))
	for _, dst := range []string{netlab.InsideGW4, gw6.String(), r.Public1.V4.String(), r.Public1.V6.String()} {
		var ping host.Ping
		check(t, r.Run(t.Context(), r.Alpha1.Name, &ping, "ping", "-dst", dst, "-count", "3", "-interval", "20ms"))
		if ping.Received != 3 {
			t.Errorf("ping %s after the claims: %d of 3", dst, ping.Received)
		}
	}
	r.stop()
}

// A neighbour goes on under another MAC, announced or not: sessions go on at once, and one that flaps does not flood the log.
func TestFaultNeighbourChangesItsMAC(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "newmac", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	set := func(ns string, mac net.HardwareAddr) {
		t.Helper()
		out, err := r.Exec(ns, "ip", "link", "set", "dev", netlab.HostDevice, "address", mac.String())
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	s := &site{Topology: r.Topology, t: t}
	var buf [128]byte
	announce := func(h netlab.Host, mac net.HardwareAddr) {
		send := s.rawFrames(h.Name, netlab.HostDevice)
		check(t, send(buf[:build.ARPRequest(buf[:], [6]byte(mac), h.V4.As4(), h.V4.As4(), [6]byte{}, 0)]))
		check(t, send(buf[:build.NeighborAdvertisement(buf[:], [6]byte(mac), h.V6.As16(), [6]byte{0x33, 0x33, 0, 0, 0, 1}, addr("ff02::1").As16(), h.V6.As16(), false, true, 0)]))
	}
	changes := byte(0)
	for i, c := range []struct {
		who       netlab.Host
		announced bool
	}{{r.Public1, true}, {r.Alpha1, false}} {
		for _, dst := range []netip.Addr{r.Public1.V4, r.Public1.V6} {
			quiet.Judge(t, func(l *quiet.Limits) {
				var p host.Probe
				created := rigTenantOf(r.status(), "alpha").Created
				stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(dst, 7007), "-pps", "200", "-duration", "3s")
				r.until(5*time.Second, "the stream runs", func() (bool, string) { return rigTenantOf(r.status(), "alpha").Created > created, "" })
				time.Sleep(1100 * time.Millisecond) // so that the address has been on its MAC for a while: a change within a second needs an announcement
				changes++                           // another one each time, in another try too
				mac := net.HardwareAddr{2, 0xd4, 0, 0, byte(i), changes}
				set(c.who.Name, mac)
				if c.announced {
					announce(c.who, mac)
				}
				r.wait(stream)
				t.Logf("%s, announced %v, to %s: %d of %d, longest gap %.1f ms", c.who.Name, c.announced, dst, p.Received, p.Sent, p.LongestMs)
				if p.LongestMs > 700 || p.Received < p.Sent*3/4 {
					l.Missed("%s, announced %v, to %s: %d of %d, longest gap %.1f ms", c.who.Name, c.announced, dst, p.Received, p.Sent, p.LongestMs)
				}
				if n := rigTenantOf(r.status(), "alpha").Created - created; n > 4 { // the stream, and what hosts say by themselves
					t.Errorf("%d sessions were made", n)
				}
			})
		}
	}
	send := s.rawFrames(r.Public2.Name, netlab.HostDevice)
	for n := range 200 { // public1's address jumps between two MACs
		mac := [6]byte{2, 0xd4, 0, 0, 9, byte(n % 2)}
		check(t, send(buf[:build.ARPRequest(buf[:], mac, r.Public1.V4.As4(), r.Public1.V4.As4(), [6]byte{}, 0)]))
	}
	r.until(2*time.Second, "the moves are counted", func() (bool, string) {
		n := r.status().SlowPath.MACChanges
		return n >= 150, fmt.Sprint(n)
	})
	log, err := os.ReadFile(r.log)
	check(t, err)
	if n := bytes.Count(log, []byte("neighbour moved to another mac")); n == 0 || n > 3 {
		t.Errorf("%d lines in the log", n)
	}
	r.stop()
}

// The route goes and comes by policy, and a router by its link, in rows and under load: conversations survive under the same public address and port, no
// packet leaves untranslated, and nothing goes to another tenant.
func TestFaultRouteFlap(t *testing.T) {
	r := uplinks(t, "flap")
	r.start()
	for who, ns := range map[byte]string{1: r.Public1.Name, 2: r.Public2.Name, 3: sat} {
		parrot(r, ns, who, farAway4+":7000")
	}
	inside := prefix(netlab.Inside4)
	s := &site{Topology: r.Topology, t: t}
	var leaks []*netlab.Capture
	for _, ns := range []string{r.Public1.Name, r.Public2.Name, sat} {
		leaks = append(leaks, s.capture(ns, netlab.HostDevice, 10, func(f []byte) bool {
			return f[12] == 8 && f[13] == 0 && len(f) > 34 && (inside.Contains(netip.AddrFrom4([4]byte(f[26:30]))) || inside.Contains(netip.AddrFrom4([4]byte(f[30:34]))))
		}))
	}
	far := addr(farAway4)
	atBeta := s.capture(r.Beta1.Name, netlab.HostDevice, 10, func(f []byte) bool {
		return f[12] == 8 && f[13] == 0 && len(f) > 34 && netip.AddrFrom4([4]byte(f[26:30])) == far
	})
	r.until(5*time.Second, "all routers have answered", func() (bool, string) {
		st := r.status().SlowPath.Routers
		return st.Up == 6, fmt.Sprintf("%+v", st)
	})
	all, end := talks(r, 40, []netlab.Host{r.Alpha1, r.Alpha2}, farAway4+":7000")
	going(r, all, 5*time.Second, "conversations go on")
	created := rigTenantOf(r.status(), "alpha").Created
	const rounds = 6
	for round := range rounds {
		a := r.apply(uplinkPolicy(false, ""))
		if a.Cut != 0 {
			t.Errorf("round %d: taking the route away cuts %d sessions", round, a.Cut)
		}
		check(t, r.SetUp(sat, netlab.HostDevice, round%2 == 1))
		before := r.status()
		r.until(3*time.Second, "packets end for want of a route", func() (bool, string) {
			d := drops(before, r.status())
			return d["no_route"] > 5, fmt.Sprint(d)
		})
		r.apply(uplinkPolicy(true, ""))
		if round%2 == 1 {
			r.AddRoute(sat, prefix(netlab.PoolRoute), addr("198.51.100.129")) // went with the link
		}
		going(r, all, 6*time.Second, fmt.Sprintf("round %d: conversations go on", round))
	}
	end()
	for i, k := range all {
		if _, got, _, others := k.now(); others > 0 || got < 1+rounds { // one before and one after each round
			t.Errorf("conversation %d: %d answers, %d changes of its public address or port", i, got, others)
		}
	}
	for i, c := range leaks {
		if c.Seen() > 0 {
			t.Errorf("router %d saw %d packets with inside addresses", i+1, c.Seen())
		}
	}
	if atBeta.Seen() > 0 {
		t.Errorf("the other tenant saw %d packets", atBeta.Seen())
	}
	st := r.status()
	if n := rigTenantOf(st, "alpha").Created - created; n > 4 {
		t.Errorf("%d sessions were made anew", n)
	}
	if !st.Ready || !st.Conservation.OK || st.Drops["unset"] > 0 {
		t.Errorf("%v %s", st.Ready, st.Conservation.Detail)
	}
	r.stop()
}
