package pipeline

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/configs"
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Who is told of a packet that goes no further, and who is not: RFC 5508 REQ-8, REQ-9, REQ-10f, RFC 1812 sections 4.3.2.8 and 5.2.7.1, RFC 4443 sections
// 2.4 and 3.1.

// toldPolicy is rfcPolicy with IPv6 and rules outwards; REJECT stands for the tenant's keys.
var toldPolicy = strings.NewReplacer(
	"prefixes = [\"198.18.10.0/24\"]\n", "prefixes = [\"198.18.10.0/24\", \"2001:db8:a::/64\"]\n# REJECT\n",
	"[[tenant.rule]]\ndirection = \"in\"\naction = \"deny\"\nfrom", `[[tenant.rule]]
direction = "out"
action = "reject"
service = ["tcp/139", "udp/139"]
[[tenant.rule]]
direction = "out"
action = "deny"
service = ["tcp/25", "udp/25"]
[[tenant.rule]]
direction = "in"
action = "deny"
from`).Replace(rfcPolicy)

func toldWorld(t testing.TB, workers int, keys ...string) *world {
	t.Helper()
	text := strings.Replace(toldPolicy, "# REJECT\n", strings.Join(keys, "\n")+"\n", 1)
	if text == toldPolicy || !strings.Contains(text, "tcp/139") {
		t.Fatal("the policy lacks its marks")
	}
	return newWorld(t, workers, text)
}

const host6, far6 = "2001:db8:a::11", "2001:db8:ff::11"

func ip6pkt(t testing.TB, port int, src, dst string, next layers.IPProtocol, l4 ...gopacket.SerializableLayer) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
	for _, l := range l4 {
		if x, ok := l.(*layers.TCP); ok {
			_ = x.SetNetworkLayerForChecksum(ip)
		}
	}
	return frame(t, append([]gopacket.SerializableLayer{eth(macs[port], layers.EthernetTypeIPv6), ip}, l4...)...)
}

// quotes6 checks an ICMPv6 error in full: type, code, ends, checksum, and that it quotes a packet byte by byte.
func quotes6(t testing.TB, h hop, typ, code uint8, src, dst string, quoted []byte) {
	t.Helper()
	if h.verdict != verdict.Send {
		t.Fatalf("%s (%s)", h.verdict, h.reason)
	}
	f := h.frame[14:]
	n := int(be.Uint16(f[4:]))
	m := f[40 : 40+n]
	pseudo := append(append([]byte(nil), f[8:40]...), 0, 0, byte(n>>8), byte(n), 0, 0, 0, 58)
	s, d := netip.AddrFrom16([16]byte(f[8:24])), netip.AddrFrom16([16]byte(f[24:40]))
	if f[6] != 58 || m[0] != typ || m[1] != code || s.String() != src || d.String() != dst || sum16(append(pseudo, m...)) != 0xffff {
		t.Fatalf("type %d code %d from %s to %s, checksum %#x", m[0], m[1], s, d, sum16(append(pseudo, m...)))
	}
	if string(m[8:]) != string(quoted) {
		t.Fatalf("quotes %x, want %x", m[8:], quoted)
	}
}

// drops is how often the tenants together had packets dropped for a reason.
func (w *world) drops(why verdict.Reason) (n uint64) {
	for _, sh := range w.shards {
		sh.Meter.Publish()
		for id := range sh.Meter.Tenants() {
			n += sh.Meter.Drops(flow.TenantID(id), why)
		}
	}
	return n
}

// REQ-8: what a rule refuses. Each kind of packet under each choice, the drop counted once under its reason whatever was said, and nothing left behind.
func TestRFC5508Req8RefusedByARule(t *testing.T) {
	syn := func(x *layers.TCP) { x.SYN = true }
	const silent, prohibited, reset = "silent", "prohibited", "reset"
	for _, c := range []struct {
		key            string
		udp, tcp       string // of a rule that says deny
		udpRej, tcpRej string // of a rule that says reject
		byDefault      string // of UDP that no rule matched
	}{
		{"", silent, silent, prohibited, prohibited, ""},
		{`reject = "silent"`, silent, silent, prohibited, prohibited, ""},
		{`reject = "icmp"`, prohibited, prohibited, prohibited, prohibited, ""},
		{`reject = "reset"`, prohibited, reset, prohibited, reset, ""},
		{`default_out = "deny"`, silent, silent, prohibited, prohibited, silent},
		{`default_out = "reject"`, silent, silent, prohibited, prohibited, prohibited},
		{"default_out = \"deny\"\nreject = \"icmp\"", prohibited, prohibited, prohibited, prohibited, prohibited},
	} {
		for _, workers := range []int{1, 3} {
			w := toldWorld(t, workers, c.key)
			check := func(what, want string, f []byte, why verdict.Reason) {
				t.Helper()
				before := w.drops(why)
				h := w.from(1, f)
				if n := w.drops(why) - before; n != 1 {
					t.Fatalf("%s, %s: counted %d times under %s", c.key, what, n, why)
				}
				six := f[12] == 0x86
				switch {
				case want == silent:
					w.dropped4(h, why)
				case h.port != 1:
					t.Fatalf("%s, %s: left on port %d", c.key, what, h.port)
				case want == prohibited && six:
					quotes6(t, h, 1, 1, "2001:db8:a::1", host6, f[14:])
				case want == prohibited:
					q := w.reachesICMP(h, 3, 13, "198.18.10.1", hostA)
					if string(q.inner) != string(packetOf(f)) {
						t.Fatalf("%s, %s: quotes %x of %x", c.key, what, q.inner, packetOf(f))
					}
				default:
					p := gopacket.NewPacket(h.frame, layers.LayerTypeEthernet, gopacket.Default)
					x, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
					if !ok || !x.RST || !x.ACK || x.Seq != 0 || x.Ack != 1001 || x.DstPort != 4000 {
						t.Fatalf("%s, %s: %v", c.key, what, p)
					}
					if !six {
						if y := readWire(t, h.frame); y.src.String() != far || y.dst.String() != hostA {
							t.Fatalf("%s, %s: reset from %s", c.key, what, y)
						}
					}
				}
			}
			tcp := func(port uint16) *layers.TCP {
				return &layers.TCP{SrcPort: 4000, DstPort: layers.TCPPort(port), SYN: true, Seq: 1000, Window: 9}
			}
			check("UDP", c.udp, udp4(t, 1, hostA, 4000, far, 25), verdict.ACLDeny)
			check("TCP", c.tcp, tcp4(t, 1, hostA, 4000, far, 25, syn), verdict.ACLDeny)
			check("UDP6", c.udp, ip6pkt(t, 1, host6, far6, layers.IPProtocolUDP, udp(4000, 25), gopacket.Payload("x")), verdict.ACLDeny)
			check("TCP6", c.tcp, ip6pkt(t, 1, host6, far6, layers.IPProtocolTCP, tcp(25)), verdict.ACLDeny)
			check("rejected UDP", c.udpRej, udp4(t, 1, hostA, 4000, far, 139), verdict.ACLDeny)
			check("rejected TCP", c.tcpRej, tcp4(t, 1, hostA, 4000, far, 139, syn), verdict.ACLDeny)
			check("rejected TCP6", c.tcpRej, ip6pkt(t, 1, host6, far6, layers.IPProtocolTCP, tcp(139)), verdict.ACLDeny)
			if c.byDefault != "" {
				check("UDP by default", c.byDefault, udp4(t, 1, hostA, 4000, far, 53), verdict.ACLDefault)
				check("echo by default", c.byDefault, echo(t, 1, hostA, far, 9, false), verdict.ACLDefault)
			}
			if w.view.TenantByName("alpha").Shared.Sessions.Load() != 0 {
				t.Fatalf("%s: sessions were left behind", c.key)
			}
			w.whole()
		}
	}
}

// REQ-8: what limits refuse, and translation that has nothing left.
func TestRFC5508Req8NoSessionPossible(t *testing.T) {
	for name, c := range map[string]struct {
		keys []string
		why  verdict.Reason
	}{
		"sessions of the tenant": {[]string{"limits = {sessions = 1}"}, verdict.TenantSessions},
		"sessions of the host":   {[]string{"limits = {host_sessions = 1}"}, verdict.HostSessions},
		"rate of the host":       {[]string{"limits = {host_session_rate = 1}"}, verdict.HostSessionRate},
		"rate of the tenant":     {[]string{"limits = {session_rate = 1}"}, verdict.TenantSessionRate},
	} {
		for _, told := range []bool{true, false} {
			keys := c.keys
			if told {
				keys = append(keys, `reject = "icmp"`)
			}
			w := toldWorld(t, 1, keys...)
			w.out(hostA, 4000, far, 53)
			f := udp4(t, 1, hostA, 4001, far, 53)
			h := w.from(1, f)
			for range 3 {
				if h.verdict == verdict.Send && h.port == 0 {
					h = w.from(1, f2(t)) // a rate lets a few more begin
				}
			}
			if w.drops(c.why) != 1 {
				t.Fatalf("%s: %s (%s)", name, h.verdict, h.reason)
			}
			if !told {
				w.dropped4(h, c.why)
				continue
			}
			w.reachesICMP(h, 3, 13, "198.18.10.1", hostA)
			w.whole()
		}
	}
	// The table is full of what this tenant may hold of it.
	w := toldWorld(t, 1, `reject = "icmp"`)
	var h hop
	for i := range 5000 {
		if h = w.from(1, udp4(t, 1, hostA, uint16(1024+i), far, 53)); h.port != 0 {
			break
		}
	}
	w.reachesICMP(h, 3, 13, "198.18.10.1", hostA)
	if n := w.drops(verdict.NATMappingTableFull) + w.drops(verdict.SessionTableFull) + w.drops(verdict.TenantUnanswered); n != 1 {
		t.Fatalf("%d drops for want of room", n)
	}
	w.whole()
	// No pool for this host.
	w = newWorld(t, 1, strings.NewReplacer("pool = [\"192.0.2.16\"]\n", "", "# REJECT\n", "reject = \"icmp\"\n", "192.0.2.16", "192.0.2.17").Replace(toldPolicy))
	w.reachesICMP(w.from(1, udp4(t, 1, hostA, 4000, far, 53)), 3, 13, "198.18.10.1", hostA)
	if w.drops(verdict.NATNoPool) != 1 {
		t.Fatal("not for want of a pool")
	}
	// Every public port is taken: 64,512 of one address (two are forwarded).
	node := strings.NewReplacer("sessions = 1024", "sessions = 262144", "mappings = 1024", "mappings = 262144").Replace(testNode)
	r := newRig(t, node, strings.Replace(toldPolicy, "# REJECT\n", "reject = \"icmp\"\n", 1))
	f := udp4(t, 1, hostA, 1024, far, 53)
	n := 0
	for ; n < 70000; n++ {
		be.PutUint16(f[34:], uint16(1024+n%64512))
		f[29] = byte(10 + n/64512)
		f[40], f[41] = 0, 0 // no checksum
		seal(f)
		if s := r.send(1, f); s[0].OutPort != 0 {
			break
		}
	}
	if r.slots[0].Verdict != verdict.Send || r.sh.Meter.Drops(r.view.TenantByName("alpha").ID, verdict.NATNoPort) != 1 {
		t.Fatalf("after %d ports: %s (%s)", n, r.slots[0].Verdict, r.slots[0].Reason)
	}
	if q := readQuote(t, r.slots[0].Frame()); q.typ != 3 || q.code != 13 {
		t.Fatalf("told type %d code %d", q.typ, q.code)
	}
}

func f2(t testing.TB) []byte { return udp4(t, 1, hostA, 4002, far, 53) }

// What is wrong with a packet itself is not told, nor is a rate that is exceeded.
func TestRFC5508Req8NotEveryDropIsTold(t *testing.T) {
	w := toldWorld(t, 1, `reject = "reset"`)
	for _, c := range []struct {
		f   []byte
		why verdict.Reason
	}{
		{udp4(t, 1, "198.18.99.1", 4000, far, 53), verdict.SpoofedSource},
		{udp4(t, 1, hostA, 4000, "240.0.0.1", 53), verdict.Martian},
		{tcp4(t, 1, hostA, 4000, far, 443, seg("A", 5, 5)), verdict.TCPNotSyn},
		{tcp4(t, 1, hostA, 4000, far, 443, seg("SF", 5, 5)), verdict.TCPInvalidFlags},
		{echo(t, 1, hostA, far, 7, true), verdict.ICMPNoSession},
		{tcp4(t, 1, hostA, 4000, far, 25, seg("R", 5, 5)), verdict.ACLDeny}, // no reset about a reset
	} {
		w.dropped4(w.from(1, c.f), c.why)
	}
}

// The outside hears nothing, whatever the tenant's choice: neither of rules, nor of addresses without a use or a way.
func TestSilenceToTheOutside(t *testing.T) {
	for _, reject := range []string{"silent", "icmp", "reset"} {
		w := toldWorld(t, 1, fmt.Sprintf("reject = %q", reject))
		for _, c := range []struct {
			f   []byte
			why verdict.Reason
		}{
			{tcp4(t, 0, far, 1, pubS, 81, seg("S", 1, 0)), verdict.ACLDefault},
			{tcp4(t, 0, "203.0.113.66", 1, pubS, 80, seg("S", 1, 0)), verdict.ACLDeny},
			{tcp4(t, 0, far, 1, pub, 81, seg("S", 1, 0)), verdict.NATUnusedAddress},
			{udp4(t, 0, far, 1, "203.0.113.99", 2), verdict.NotForUs},
			{udp4(t, 0, far, 1, hostA, 2), verdict.NotForUs},
			{ip6pkt(t, 0, far6, host6, layers.IPProtocolUDP, udp(1, 2), gopacket.Payload("x")), verdict.ACLDefault},
			{ip6pkt(t, 0, far6, "2001:db8:99::1", layers.IPProtocolUDP, udp(1, 2), gopacket.Payload("x")), verdict.NoRoute},
			{udp4(t, 0, far, 1, "203.0.113.1", 2), verdict.LocalUnhandled},
		} {
			w.dropped4(w.from(0, c.f), c.why)
		}
		// From inside round by a public address is from outside: the other end's rules are not told.
		w.dropped4(w.from(1, tcp4(t, 1, hostA, 4000, pubS, 81, seg("S", 1, 0))), verdict.ACLDefault)
		w.dropped4(w.from(1, udp4(t, 1, hostA, 4000, pub, 9)), verdict.NATUnusedAddress)
	}
}

// No route: a host inside is told by either family, also when the route went while a session lived; a black hole is silent.
func TestNoRouteIsTold(t *testing.T) {
	noDefault := strings.Replace(toldPolicy, "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.254\"", "prefix = \"192.88.99.0/24\"\ndiscard = true", 1)
	w := toldWorld(t, 1)
	w.out(hostA, 4000, "198.51.100.9", 53)
	w.apply(noDefault)
	for _, f := range [][]byte{udp4(t, 1, hostA, 4000, "198.51.100.9", 53), tcp4(t, 1, hostA, 4001, "198.51.100.10", 53, seg("S", 1, 0))} {
		q := w.reachesICMP(w.from(1, f), 3, 0, "198.18.10.1", hostA)
		if string(q.inner) != string(packetOf(f)) {
			t.Fatalf("quotes %x", q.inner)
		}
	}
	six := ip6pkt(t, 1, host6, "2001:db8:99::1", layers.IPProtocolUDP, udp(1, 2), gopacket.Payload("x"))
	quotes6(t, w.from(1, six), 1, 0, "2001:db8:a::1", host6, six[14:])
	if n := w.drops(verdict.NoRoute); n != 3 {
		t.Fatalf("%d drops counted, want 3", n)
	}
	w.dropped4(w.from(1, udp4(t, 1, hostA, 4000, "192.88.99.1", 53)), verdict.NoRoute)

	// The way inside goes while a session lives: whoever is outside hears nothing of it.
	behind := strings.NewReplacer("\"198.18.10.0/24\", \"2001", "\"198.18.10.0/23\", \"2001", "[tenant.nat]\n", "[[tenant.route]]\nprefix = \"198.18.11.0/24\"\nvia = \"198.18.10.50\"\n[tenant.nat]\n").Replace(toldPolicy)
	w = newWorld(t, 1, behind)
	p := w.out("198.18.11.5", 4000, far, 53).sport
	w.reaches(w.in(far, 53, pub, p), "198.18.11.5", 4000)
	w.apply(strings.Replace(behind, "via = \"198.18.10.50\"", "discard = true", 1))
	w.dropped4(w.in(far, 53, pub, p), verdict.NoRoute)
	w.apply(strings.Replace(behind, "[[tenant.route]]\nprefix = \"198.18.11.0/24\"\nvia = \"198.18.10.50\"\n", "", 1))
	w.dropped4(w.in(far, 53, pub, p), verdict.NoRoute)
}

// giveBack brings a frame that waited for a next hop back to its worker, as the slow path does when nobody answers.
func (w *world) giveBack(h hop) hop {
	w.t.Helper()
	if h.verdict != verdict.Neighbor {
		w.t.Fatalf("%s (%s), want to wait for a neighbour", h.verdict, h.reason)
	}
	iface := w.view.Iface(h.port, 0)
	s := &w.slots[0]
	*s = Slot{Looped: true, Unreached: true, OutIface: iface}
	s.Buf, s.Off, s.Len = w.buf[:], 256, copy(w.buf[256:], h.frame)
	w.shards[h.worker].Process(w.slots[:], w.now)
	w.sound(s)
	return hop{worker: h.worker, verdict: s.Verdict, reason: s.Reason, tenant: s.Tenant, port: s.OutPort, frame: append([]byte(nil), s.Frame()...)}
}

func (w *world) forgetNeighbour(iface, addr string) {
	a := netip.MustParseAddr(addr)
	fa, family := flow.AddrFrom(a), uint8(4)
	if a.Is6() {
		family = 6
	}
	for i := range w.view.Ifaces {
		if w.view.Ifaces[i].Name == iface {
			w.neigh.Delete(uint16(i), family, &fa)
		}
	}
}

// A next hop that does not answer: the sender inside is told, with its packet as it wrote it (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
func TestNextHopThatDoesNotAnswer(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := toldWorld(t, workers)
		w.forgetNeighbour("backbone", far)
		w.forgetNeighbour("backbone", far6)
		w.forgetNeighbour("alpha", server)
		for name, f := range map[string][]byte{
			"mapping": udp4(t, 1, hostA, 4000, far, 53), "1:1": udp4(t, 1, hostS, 4000, far, 53),
			"TCP": tcp4(t, 1, hostB, 4000, far, 443, seg("S", 1000, 0)), "echo": echo(t, 1, hostB, far, 77, false),
			"GRE": frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4(hostB, far, layers.IPProtocolGRE), gopacket.Payload("gregregregre")),
		} {
			src := netip.AddrFrom4([4]byte(f[26:30])).String()
			q := w.reachesICMPAt(w.giveBack(w.from(1, f)), 1, 3, 1, "198.18.10.1", src)
			want := append([]byte(nil), packetOf(f)...)
			want[8]--                     // a hop has been counted
			copy(want[4:6], q.inner[4:6]) // nobody keeps which identification it had inside (RFC 6864 section 5.3.1)
			want[10], want[11] = 0, 0
			be.PutUint16(want[10:], ^sum16(want[:20]))
			if string(q.inner) != string(want) {
				t.Errorf("%s: quotes %x of %x", name, q.inner, want)
			}
		}
		six := ip6pkt(t, 1, host6, far6, layers.IPProtocolUDP, udp(1, 2), gopacket.Payload("x"))
		back := w.giveBack(w.from(1, six))
		six[14+7]--
		quotes6(t, back, 1, 3, "2001:db8:a::1", host6, six[14:])
		// The answer of a server whose client has gone: the server is told.
		w.reaches(w.inTCP(far2, 999, pubS, 80, seg("S", 1, 0)), hostS, 80)
		w.forgetNeighbour("backbone", far2)
		w.reachesICMPAt(w.giveBack(w.from(1, tcp4(t, 1, hostS, 80, far2, 999, seg("SA", 7, 2)))), 1, 3, 1, "198.18.10.1", hostS)
		// From outside to an inside host that is off: silence.
		w.dropped4(w.giveBack(w.inTCP("203.0.113.13", 999, pub, 8080, seg("S", 1, 0))), verdict.NoNeighbor)
		// An error about an error, and a frame whose session has gone.
		gone := w.from(1, udp4(t, 1, hostA, 4400, far, 53))
		for _, sh := range w.shards {
			sh.Cut(func(*sessionT) bool { return true })
		}
		w.dropped4(w.giveBack(gone), verdict.NoNeighbor)
		w.whole()
	}
	// To all hosts of a network: nobody has that address, and no error is about a broadcast.
	w := toldWorld(t, 1)
	for _, all := range []string{"203.0.113.255", "203.0.113.0"} {
		w.forgetNeighbour("backbone", all)
		w.dropped4(w.giveBack(w.from(1, udp4(t, 1, hostA, 4000, all, 53))), verdict.NoNeighbor)
	}
}

// REQ-9, 7.2: an interface of the node file out of which no error of ours goes, while the others' do.
func TestRFC5508Req9SilentInterface(t *testing.T) {
	for _, silent := range []bool{false, true} {
		w := toldWorld(t, 1, `reject = "reset"`)
		no := !silent
		for i := range w.node.Interfaces {
			if w.node.Interfaces[i].Name == "alpha" {
				w.node.Interfaces[i].ICMPErrors = &no
			}
		}
		w.apply(strings.Replace(toldPolicy, "# REJECT\n", "reject = \"reset\"\n", 1))
		for name, f := range map[string][]byte{
			"time exceeded": expired(t, hostA, 4000, 0), "prohibited": udp4(t, 1, hostA, 4000, far, 25),
			"reset": tcp4(t, 1, hostA, 4000, far, 25, seg("S", 1, 0)),
			"route": ip6pkt(t, 1, host6, "2001:db8:99::1", layers.IPProtocolUDP, udp(1, 2), gopacket.Payload("x")),
		} {
			if h := w.from(1, f); (h.verdict == verdict.Drop) != silent || silent && h.reason == verdict.Unset {
				t.Errorf("%s, silent %v: %s (%s)", name, silent, h.verdict, h.reason)
			}
		}
		// Errors of others still reach the tenant, and the backbone is still told.
		_, asSent, _ := errorsAbout(t, w, hostA, 4000)
		w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, 3, 1, 0, asSent)), 3, 1, far2, hostA)
		ip := ip4(far, pubS, layers.IPProtocolUDP)
		ip.TTL = 1
		w.reachesICMPAt(w.from(0, frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip, udp(5000, 80), gopacket.Payload("x"))), 0, 11, 0, "203.0.113.1", far)
		w.reaches(w.from(1, echo(t, 1, hostA, "198.18.10.1", 3, false)), hostA, 3) // an answer is no error
	}
}

// REQ-10f: the rate of a tenant is one for all workers, and that of all sides one for all tenants (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).
func TestRFC5508Req10fOneRateForAllWorkers(t *testing.T) {
	const workers = 3
	flood := func(w *world, port int, src string, dst string, sec time.Duration) (told int) {
		for i := range int(sec / (50 * time.Microsecond)) {
			w.now += 50_000
			ip := ip4(fmt.Sprintf("%s.%d", src, 10+i%200), dst, layers.IPProtocolUDP)
			ip.TTL = 1
			f := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip, udp(uint16(1024+i), 5000), gopacket.Payload("x"))
			if h := w.carry(i%workers, port, false, true, f); h[0].verdict == verdict.Send {
				told++
			}
		}
		return told
	}
	const each = configs.DefaultICMPErrorsPerSide
	w := newWorld(t, workers, testPolicy)
	if n := flood(w, 1, "198.18.10", far, 2*time.Second); n < 2*each || n > 2*each+each/4+2 {
		t.Errorf("%d errors in 2 s to one tenant by %d workers, want %d and a burst of %d", n, workers, 2*each, each/4)
	}
	// Another tenant has its own.
	if n := flood(w, 2, "198.18.30", far, time.Second); n < each || n > each+each/4+2 {
		t.Errorf("%d errors in 1 s to the other tenant", n)
	}
	// By choice, and the sum bounds both.
	w = newWorld(t, workers, strings.Replace(testPolicy, "schema = 1\n", "schema = 1\n[icmp_errors]\ntotal = 60\nper_side = 50\n", 1))
	told := [2]int{}
	for i := range 4000 {
		w.now += 1_000_000
		port, src := 1+i%2, []string{"198.18.10.10", "198.18.30.10"}[i%2]
		ip := ip4(src, far, layers.IPProtocolUDP)
		ip.TTL = 1
		f := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip, udp(uint16(1024+i), 5000), gopacket.Payload("x"))
		if h := w.carry(i%workers, port, false, true, f); h[0].verdict == verdict.Send {
			told[i%2]++
		}
	}
	if sum := told[0] + told[1]; sum < 4*60 || sum > 4*60+60/4+2 || told[0] > 4*50+50/4+2 {
		t.Errorf("%v errors in 4 s, want 240 together and at most 200 to one", told)
	}
	alpha := w.view.TenantByName("alpha").Shared
	if s, h := alpha.Told.Sent.Sum(), alpha.Told.Held.Sum(); int(s) != told[0] || int(s+h) != 2000 {
		t.Errorf("%d sent and %d held back are counted, %d of 2000 were sent", s, h, told[0])
	}
	// A new policy does not fill the bucket again.
	w.apply(strings.Replace(testPolicy, "schema = 1\n", "schema = 1\n[icmp_errors]\ntotal = 60\nper_side = 50\n", 1))
	if n := flood(w, 1, "198.18.10", far, 100*time.Millisecond); n > 8 {
		t.Errorf("%d errors in the 100 ms after an apply", n)
	}
}
