package pipeline

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/configs"
	"demarc/gateway/verdict"
)

// What else an IP header may carry: walked safely, and kept out or let through as the tenant says.

// withOptions puts options into the IPv4 header of a frame and makes its checksum and length right.
func withOptions(f, options []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	out := slices.Concat(f[:34], options, f[34:])
	out[14] += byte(len(options) / 4)
	be.PutUint16(out[16:], be.Uint16(out[16:])+uint16(len(options)))
	head := out[14 : 34+len(options)]
	head[10], head[11] = 0, 0
	be.PutUint16(head[10:], ^sum16(head))
	return out
}

var options4 = map[string][]byte{
	"record-route": {7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0},
	"timestamp":    {68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	"router-alert": {148, 4, 0, 0},
	"security":     {134, 6, 0, 0, 0, 1},
	"other":        {25, 4, 1, 2}, // quick-start
}

// Each option by itself, between others, and all at once, against each list of those that may pass: outwards and inwards, in first packets and later
// ones, in queries to the gateway and in errors. What passes is not changed but for the addresses.
func TestIPv4OptionsByPolicy(t *testing.T) {
	lists := [][]string{nil, {}, {"record-route"}, {"timestamp", "router-alert"}, {"security", "other"}, configs.IPv4Options}
	for _, list := range lists {
		keys := ""
		if list != nil {
			keys = fmt.Sprintf("ipv4_options = [%s]", quoted(list))
		}
		for kind, option := range options4 {
			mixed := slices.Concat([]byte{1, 1}, option, []byte{1}) // no-operations round it always pass
			w := toldWorld(t, 1, keys)
			pass := slices.Contains(list, kind)
			want := func(what string, h hop, f []byte) {
				t.Helper()
				if !pass {
					if h.verdict != verdict.Drop || h.reason != verdict.OptionRefused || h.tenant == 0 {
						t.Fatalf("%q lets through %s: %s (%s), tenant %d", keys, what, h.verdict, h.reason, h.tenant)
					}
					return
				}
				if h.verdict != verdict.Send {
					t.Fatalf("%q: %s: %s (%s)", keys, what, h.verdict, h.reason)
				}
				readWire(t, h.frame)
				n := int(f[14]&15) * 4
				if string(h.frame[34:14+n]) != string(f[34:14+n]) || len(h.frame) != len(cutToIP(f)) {
					t.Fatalf("%s: options became %x, were %x", what, h.frame[34:14+n], f[34:14+n])
				}
			}
			first := withOptions(udp4(t, 1, hostA, 4000, far, 53), mixed)
			want("a first packet", w.from(1, first), first)
			p := w.out(hostA, 4001, far, 53).sport
			for _, side := range []int{0, 1} {
				f := udp4(t, 1, hostA, 4001, far, 53)
				if side == 0 {
					f = udp4(t, 0, far, 53, pub, p)
				}
				f = withOptions(f, mixed)
				want(fmt.Sprintf("a later packet from port %d", side), w.from(side, f), f)
			}
			in := withOptions(udp4(t, 0, far, 999, pub, 8080), mixed)
			want("a first packet from outside", w.from(0, in), in)
			ask := withOptions(echo(t, 1, hostA, "198.18.10.1", 5, false), mixed)
			want("a ping of the gateway", w.from(1, ask), ask)
			_, asSent, asCame := errorsAbout(t, w, hostB, 4000)
			e := withOptions(icmpErr(t, 0, far2, pub, 3, 1, 0, asSent), mixed)
			want("an error from outside", w.from(0, e), e)
			e = withOptions(icmpErr(t, 1, hostB, far, 3, 3, 0, asCame), mixed)
			want("an error from inside", w.from(1, e), e)
			// A ping from outside has no tenant that could let it in.
			if h := w.from(0, withOptions(echo(t, 0, far, "203.0.113.1", 5, false), mixed)); h.reason != verdict.OptionRefused {
				t.Fatalf("a ping from outside: %s (%s)", h.verdict, h.reason)
			}
			w.whole()
		}
	}
	// Whatever the list: source routes and malformed ones.
	w := toldWorld(t, 1, fmt.Sprintf("ipv4_options = [%s]", quoted(configs.IPv4Options)))
	for _, c := range []struct {
		option []byte
		why    verdict.Reason
	}{
		{[]byte{131, 7, 4, 1, 2, 3, 4}, verdict.SourceRoute}, {[]byte{137, 7, 4, 1, 2, 3, 4}, verdict.SourceRoute},
		{[]byte{1, 7, 3, 4, 131, 7, 4, 1, 2, 3, 4}, verdict.SourceRoute}, // behind another
		{[]byte{7, 0, 0, 0}, verdict.IPOptions}, {[]byte{7, 1, 0, 0}, verdict.IPOptions}, {[]byte{7, 40, 4, 0}, verdict.IPOptions}, {[]byte{1, 1, 1, 7}, verdict.IPOptions},
	} {
		for side, f := range [][]byte{udp4(t, 0, far, 53, pubS, 80), udp4(t, 1, hostA, 4000, far, 53)} {
			w.dropped4(w.from(side, withOptions(f, c.option)), c.why)
		}
	}
	// All at once, and an end behind which anything may stand.
	all := []byte{148, 4, 0, 0, 134, 6, 0, 0, 0, 1, 25, 4, 1, 2, 7, 7, 4, 0, 0, 0, 0, 68, 8, 5, 0, 0, 0, 0, 0}
	w.sent(w.from(1, withOptions(udp4(t, 1, hostA, 4000, far, 53), all)), 0)
	w.sent(w.from(1, withOptions(udp4(t, 1, hostA, 4000, far, 53), []byte{0, 131, 7, 4})), 0)
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, s := range words {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

// Errors of ours about packets with options quote these too, and the sizes are right: too large, expired, prohibited.
func TestErrorsAboutPacketsWithOptions(t *testing.T) {
	w := toldWorld(t, 1, fmt.Sprintf("ipv4_options = [%s]\nreject = \"icmp\"", quoted(configs.IPv4Options)))
	for _, option := range options4 {
		big := frame(t, eth(macs[1], layers.EthernetTypeIPv4), func() *layers.IPv4 {
			ip := ip4(hostA, far, layers.IPProtocolUDP)
			ip.Flags = layers.IPv4DontFragment
			return ip
		}(), udp(4000, 53), gopacket.Payload(make([]byte, 1472)))
		for name, c := range map[string]struct {
			f         []byte
			typ, code uint8
		}{
			"too large":  {withOptions(big, option), 3, 4},
			"expired":    {withOptions(expired(t, hostA, 4000, 0), option), 11, 0},
			"prohibited": {withOptions(udp4(t, 1, hostA, 4000, far, 25), option), 3, 13},
		} {
			q := w.reachesICMP(w.from(1, c.f), c.typ, c.code, "198.18.10.1", hostA)
			want := packetOf(c.f)
			if want = want[:min(len(want), 548)]; string(q.inner) != string(want) {
				t.Errorf("%s: quotes %x, want %x", name, q.inner, want)
			}
		}
	}
}

// ext6 is a packet with extension headers: each names its own type and has its length right.
func ext6(t testing.TB, port int, src, dst string, sport, dport uint16, kinds []uint8, bodies [][]byte) []byte {
	plain := ip6pkt(t, port, src, dst, layers.IPProtocolUDP, udp(sport, dport), gopacket.Payload("abcdefgh"))
	pseudo := slices.Concat(plain[22:54], []byte{0, 0, 0, 16, 0, 0, 0, 17})
	l4 := plain[54:]
	l4[6], l4[7] = 0, 0
	be.PutUint16(l4[6:], ^sum16(append(pseudo, l4...)))
	var chain []byte
	for i, body := range bodies {
		next := uint8(17)
		if i+1 < len(kinds) {
			next = kinds[i+1]
		}
		chain = append(chain, next, byte((len(body)+2)/8-1))
		chain = append(chain, body...)
	}
	out := slices.Concat(plain[:54], chain, l4)
	out[20] = kinds[0]
	be.PutUint16(out[18:], uint16(len(chain)+len(l4)))
	return out
}

// Extension headers by the tenant's list, in either direction; routing header 0 and what is malformed never pass.
func TestIPv6HeadersByPolicy(t *testing.T) {
	pad := []byte{1, 4, 0, 0, 0, 0}
	route := func(typ byte) []byte { return append([]byte{typ, 1, 0, 0, 0, 0}, make([]byte, 16)...) }
	for _, list := range [][]string{nil, {}, {"hop-by-hop"}, {"destination-options"}, {"routing"}, configs.IPv6Headers} {
		keys, let := "", []string{"hop-by-hop", "destination-options"}
		if list != nil {
			keys, let = fmt.Sprintf("ipv6_headers = [%s]", quoted(list)), list
		}
		w := toldWorld(t, 1, keys)
		plain := ip6pkt(t, 1, host6, far6, layers.IPProtocolUDP, udp(4000, 53), gopacket.Payload("x"))
		w.from(1, plain)
		for name, c := range map[string]struct {
			kinds []uint8
			body  [][]byte
			needs []string
		}{
			"hop-by-hop":   {[]uint8{0}, [][]byte{pad}, []string{"hop-by-hop"}},
			"router alert": {[]uint8{0}, [][]byte{{5, 2, 0, 0, 1, 0}}, []string{"hop-by-hop"}},
			"destination":  {[]uint8{60}, [][]byte{pad}, []string{"destination-options"}},
			"mobility":     {[]uint8{43}, [][]byte{route(2)}, []string{"routing"}},
			"segments":     {[]uint8{43}, [][]byte{route(4)}, []string{"routing"}},
			"both":         {[]uint8{0, 60}, [][]byte{pad, pad}, []string{"hop-by-hop", "destination-options"}},
			"all":          {[]uint8{0, 60, 43, 60}, [][]byte{pad, pad, route(2), pad}, configs.IPv6Headers},
		} {
			pass := !slices.ContainsFunc(c.needs, func(n string) bool { return !slices.Contains(let, n) })
			for _, f := range [][]byte{ext6(t, 1, host6, far6, 4000, 53, c.kinds, c.body), ext6(t, 1, host6, far6, 4100, 53, c.kinds, c.body), ext6(t, 0, far6, host6, 53, 4000, c.kinds, c.body)} {
				port := 1
				if f[5] == macs[0][5] {
					port = 0
				}
				h := w.from(port, f)
				if !pass {
					w.dropped4(h, verdict.HeaderRefused)
					continue
				}
				if h.verdict != verdict.Send || int(h.port) != 1-port || string(h.frame[54:]) != string(f[54:]) || h.frame[21] != f[21]-1 {
					t.Fatalf("%q, %s from port %d: %s (%s)", keys, name, port, h.verdict, h.reason)
				}
			}
		}
		w.whole()
	}
	w := toldWorld(t, 1, fmt.Sprintf("ipv6_headers = [%s]", quoted(configs.IPv6Headers)))
	deep := make([]uint8, 9)
	bodies := make([][]byte, 9)
	for i := range deep {
		deep[i], bodies[i] = 60, pad
	}
	for name, c := range map[string]struct {
		kinds []uint8
		body  [][]byte
		why   verdict.Reason
	}{
		"routing header 0":                 {[]uint8{43}, [][]byte{route(0)}, verdict.SourceRoute},
		"routing header 0 behind another":  {[]uint8{0, 60, 43}, [][]byte{pad, pad, route(0)}, verdict.SourceRoute},
		"hop-by-hop not first":             {[]uint8{60, 0}, [][]byte{pad, pad}, verdict.BadExtensionHeader},
		"an option longer than its header": {[]uint8{60}, [][]byte{{1, 9, 0, 0, 0, 0}}, verdict.BadExtensionHeader},
		"jumbo":                            {[]uint8{0}, [][]byte{{0xc2, 4, 0, 1, 0, 0}}, verdict.BadExtensionHeader},
		"nine":                             {deep, bodies, verdict.BadExtensionHeader},
	} {
		t.Run(name, func(t *testing.T) {
			for port, ends := range [][2]string{{far6, host6}, {host6, far6}} {
				w.dropped4(w.from(port, ext6(t, port, ends[0], ends[1], 4000, 53, c.kinds, c.body)), c.why)
			}
		})
	}
	cut := ext6(t, 1, host6, far6, 4000, 53, []uint8{60}, [][]byte{pad})
	cut[55] = 200 // the header claims more than there is
	w.dropped4(w.from(1, cut), verdict.BadExtensionHeader)
}

// Addresses that no packet may carry over a router, as source and as destination, from either side, with rules that allow everything and routes that
// lead everywhere (RFC 1812 sections 5.3.7 and 4.2.2.11, RFC 3927 section 7, RFC 4291 section 2, RFC 6890).
func TestNeverForwarded(t *testing.T) {
	open := strings.NewReplacer("# REJECT\n", "reject = \"reset\"\n", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.254\"\n",
		"prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.254\"\n[[route]]\nprefix = \"::/0\"\nvia = \"2001:db8:ff::fe\"\n",
		"service = [\"udp/80\", \"tcp/80\", \"icmp/echo-request\"]\n", "").Replace(toldPolicy)
	w := newWorld(t, 1, open)
	a4 := []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.255.254", "224.0.0.1", "224.0.0.251", "239.255.255.250", "240.0.0.1", "247.1.2.3", "255.255.255.254", "255.255.255.255"}
	a6 := []string{"::", "::1", "::203.0.113.9", "::ffff:203.0.113.9", "fe80::1", "febf::1", "ff02::1", "ff02::fb", "ff05::2", "ff0e::1"}
	n := 0
	try := func(port int, f []byte, what string) {
		t.Helper()
		n++
		h := w.from(port, f)
		switch h.reason {
		case verdict.Martian, verdict.Multicast, verdict.LinkLocal, verdict.SpoofedSource:
		default:
			t.Errorf("%s from port %d: %s (%s)", what, port, h.verdict, h.reason)
			return
		}
		if h.verdict != verdict.Drop {
			t.Errorf("%s from port %d: %s", what, port, h.verdict)
		}
	}
	for _, bad := range a4 {
		for port, ok := range [][2]string{{far, pubS}, {hostA, far}} {
			for name, f := range map[string]func(src, dst string) []byte{
				"UDP":  func(src, dst string) []byte { return udp4(t, port, src, 4000, dst, 80) },
				"TCP":  func(src, dst string) []byte { return tcp4(t, port, src, 4000, dst, 80, seg("S", 1, 0)) },
				"echo": func(src, dst string) []byte { return echo(t, port, src, dst, 7, false) },
				"GRE": func(src, dst string) []byte {
					return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolGRE), gopacket.Payload("gregregregre"))
				},
			} {
				try(port, f(bad, ok[1]), name+" from "+bad)
				try(port, f(ok[0], bad), name+" to "+bad)
			}
		}
	}
	for _, bad := range a6 {
		for port, ok := range [][2]string{{far6, host6}, {host6, far6}} {
			raw := func(src, dst string) []byte { // by hand: gopacket writes ::ffff:0:0/96 as IPv4
				f := ip6pkt(t, port, ok[0], ok[1], layers.IPProtocolUDP, udp(4000, 80), gopacket.Payload("x"))
				s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
				copy(f[22:], s[:])
				copy(f[38:], d[:])
				return f
			}
			try(port, raw(bad, ok[1]), "UDP from "+bad)
			try(port, raw(ok[0], bad), "UDP to "+bad)
		}
	}
	// A unicast address in a frame to everybody (RFC 1812 section 5.3.4).
	for _, mac := range []net.HardwareAddr{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}} {
		for port, f := range [][]byte{udp4(t, 0, far, 4000, pubS, 80), udp4(t, 1, hostA, 4000, far, 80)} {
			copy(f, mac)
			try(port, f, "to "+mac.String())
		}
	}
	if n != 2*2*len(a4)*4+2*2*len(a6)+6 {
		t.Errorf("%d tried", n)
	}
	if got := w.view.TenantByName("alpha").Shared.Sessions.Load(); got != 0 {
		t.Errorf("%d sessions", got)
	}
	// The same packets with good addresses pass: what refused them was the address.
	w.sent(w.from(1, udp4(t, 1, hostA, 4000, far, 80)), 0)
	w.reaches(w.in(far, 4000, pubS, 80), hostS, 80)
	if h := w.from(1, ip6pkt(t, 1, host6, far6, layers.IPProtocolUDP, udp(4000, 80), gopacket.Payload("x"))); h.verdict != verdict.Send {
		t.Errorf("%s (%s)", h.verdict, h.reason)
	}
}
