package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/packet/csum"
)

// layerRig is a gateway that would forward everything if it could: rules that allow all, routes for all.
type layerRig struct {
	*rig
	send map[string]func([]byte) error // from a host, past its kernel
	mac  map[string]net.HardwareAddr   // the gateway's on the host's side

	mu   sync.Mutex
	came map[string][][]byte // by host: frames with a mark
}

const layerMark = "on-the-wire"

func newLayerRig(t *testing.T) *layerRig {
	policy := rigPolicy(rigNATRules+"[[tenant.rule]]\nname = \"all\"\ndirection = \"in\"\naction = \"allow\"\n", "")
	policy = replace(t, policy, `prefixes = ["198.18.10.0/24", "`+netlab.AlphaNet6+`"]`, `prefixes = ["198.18.10.0/24", "`+netlab.AlphaNet6+"\"]\nipv4_options = [\"router-alert\"]")
	policy = replace(t, policy, "pool = [\""+netlab.AlphaPool+"\"]\n", "pool = [\""+netlab.AlphaPool+"\"]\n[[tenant.nat.static]]\npublic = \"192.0.2.100\"\ninside = \"198.18.10.12\"\n")
	policy = replace(t, policy, "interfaces = [\"backbone\"]\n", "interfaces = [\"backbone\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.12\"\n[[route]]\nprefix = \"::/0\"\nvia = \"2001:db8:ff::12\"\n")
	l := &layerRig{rig: newRig(t, "layer", policy), send: map[string]func([]byte) error{}, mac: map[string]net.HardwareAddr{}, came: map[string][][]byte{}}
	l.start()
	for _, h := range []struct {
		netlab.Host
		port string
	}{{l.Alpha1, netlab.AlphaPort}, {l.Alpha2, netlab.AlphaPort}, {l.Public1, netlab.PublicPort}, {l.Public2, netlab.PublicPort}} {
		mac, err := l.MAC(netlab.GW, h.port)
		if err != nil {
			t.Fatal(err)
		}
		l.mac[h.Name] = mac
		l.send[h.Name] = (&site{Topology: l.Topology, t: t}).rawFrames(h.Name, netlab.HostDevice)
		if _, err := l.Capture(h.Name, netlab.HostDevice, 0, func(f []byte) bool {
			// Host unreachables are the test's, and a truncated quote has no mark; that a port or protocol is none say the hosts' own kernels.
			report := len(f) > 35 && f[12] == 8 && f[23] == 1 && f[34] == 3 || len(f) > 55 && f[12] == 0x86 && f[20] == 58
			if bytes.Equal(f[6:12], mac) && (report && f[12] == 8 && f[35] == 1 || !report && bytes.Contains(f, []byte(layerMark))) {
				l.mu.Lock()
				l.came[h.Name] = append(l.came[h.Name], bytes.Clone(f))
				l.mu.Unlock()
			}
			return false
		}); err != nil {
			t.Fatal(err)
		}
	}
	rigUDPEcho(l.rig, l.Public1.Name, 7008)
	rigUDPEcho(l.rig, l.Public2.Name, 7008)
	for _, from := range []netlab.Host{l.Alpha1, l.Alpha2} { // neighbours are known from here on
		for _, to := range []netlab.Host{l.Public1, l.Public2} {
			for _, a := range []netip.Addr{to.V4, to.V6} {
				if err := answered(rigUDP(l.rig, from.Name, 0, addrPort(a, 7008)), "x"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return l
}

// take waits until a host has so many frames, and empties its list.
func (l *layerRig) take(ns string, n int) (frames [][]byte) {
	l.t.Helper()
	l.until(5*time.Second, fmt.Sprintf("%d frames at %s", n, ns), func() (bool, string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.came[ns]) >= n, fmt.Sprintf("%d", len(l.came[ns]))
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	frames, l.came[ns] = l.came[ns], nil
	return frames
}

func (l *layerRig) from(h netlab.Host, f []byte) {
	l.t.Helper()
	if err := l.send[h.Name](f); err != nil {
		l.t.Fatal(err)
	}
}

func (l *layerRig) ip4(h netlab.Host, src, dst netip.Addr, proto byte, payload []byte, sum int) []byte {
	return raw4(l.mac[h.Name], net.HardwareAddr{2, 0xd3, 0, 0, 0xbe, 0xef}, src, dst, proto, 64, false, payload, sum)
}

// optioned puts options, a multiple of four bytes, into an IPv4 frame.
func optioned(f []byte, options ...byte) []byte {
	out := slices.Concat(f[:34], options, f[34:])
	out[14] += byte(len(options) / 4)
	binary.BigEndian.PutUint16(out[16:], binary.BigEndian.Uint16(out[16:])+uint16(len(options)))
	out[24], out[25] = 0, 0
	binary.BigEndian.PutUint16(out[24:], csum.Checksum(csum.Sum(0, out[14:34+len(options)])))
	return out
}

// ip6 is a UDP packet behind extension headers; chain is their bytes but for the last one's next header, which is made to be UDP.
func (l *layerRig) ip6(h netlab.Host, src, dst netip.Addr, first byte, chain []byte) []byte {
	u := udp(4000, 7009, []byte(layerMark))
	s, d := src.As16(), dst.As16()
	binary.BigEndian.PutUint16(u[6:], csum.NonZero(csum.Checksum(csum.Sum(csum.Pseudo6(&s, &d, 17, len(u)), u))))
	f := slices.Concat(l.mac[h.Name], []byte{2, 0xd3, 0, 0, 0xbe, 0xef, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, first, 64}, s[:], d[:], chain, u)
	binary.BigEndian.PutUint16(f[18:], uint16(len(chain)+len(u)))
	return f
}

// Raw frames through the running gateway: addresses that no router forwards, source routes and routing header 0, options and headers that the tenant
// keeps out end under their reasons and come out nowhere; those that it lets through arrive as they were sent.
func TestNeverForwardedOnTheWire(t *testing.T) {
	mostlyWaits(t)
	l := newLayerRig(t)
	a, p := l.Alpha1, l.Public1
	before := l.status()
	want := map[string]uint64{}
	body := []byte(layerMark)
	bad := func(why string, h netlab.Host, f []byte) {
		t.Helper()
		want[why]++
		l.from(h, f)
	}
	pub := addr("192.0.2.100")
	for _, x := range []struct{ address, asSource, asDestination string }{
		{"0.0.0.0", "martian", "martian"}, {"0.1.2.3", "martian", "martian"}, {"127.0.0.1", "martian", "martian"}, {"240.0.0.1", "martian", "martian"},
		{"255.255.255.254", "martian", "martian"}, {"169.254.1.1", "link_local", "link_local"}, {"224.0.0.5", "martian", "multicast"}, {"239.1.2.3", "martian", "multicast"},
	} {
		bad(x.asSource, a, l.ip4(a, addr(x.address), p.V4, 17, udp(4000, 7009, body), 0))
		bad(x.asSource, p, l.ip4(p, addr(x.address), pub, 17, udp(4000, 7009, body), 0))
		bad(x.asDestination, a, l.ip4(a, a.V4, addr(x.address), 17, udp(4000, 7009, body), 0))
		bad(x.asDestination, p, l.ip4(p, p.V4, addr(x.address), 17, udp(4000, 7009, body), 0))
	}
	for _, x := range []struct{ address, asSource, asDestination string }{
		{"::", "martian", "martian"}, {"::1", "martian", "martian"}, {"::ffff:203.0.113.9", "martian", "martian"}, {"fe80::99", "link_local", "link_local"},
		{"ff0e::1", "martian", "multicast"},
	} {
		bad(x.asSource, a, l.ip6(a, addr(x.address), p.V6, 17, nil))
		bad(x.asSource, p, l.ip6(p, addr(x.address), a.V6, 17, nil))
		bad(x.asDestination, a, l.ip6(a, a.V6, addr(x.address), 17, nil))
		bad(x.asDestination, p, l.ip6(p, p.V6, addr(x.address), 17, nil))
	}
	out, in := l.ip4(a, a.V4, p.V4, 17, udp(4000, 7009, body), 0), l.ip4(p, p.V4, pub, 17, udp(4000, 7009, body), 0)
	for _, x := range []struct {
		why     string
		options []byte
	}{
		{"source_route", []byte{131, 7, 4, 203, 0, 113, 9, 0}}, {"source_route", []byte{1, 137, 7, 4, 203, 0, 113, 9}}, {"ip_option_refused", []byte{7, 7, 4, 0, 0, 0, 0, 0}},
		{"ip_option_refused", []byte{68, 8, 5, 0, 0, 0, 0, 0}}, {"ip_options", []byte{7, 0, 0, 0}}, {"ip_options", []byte{7, 40, 4, 0}},
	} {
		bad(x.why, a, optioned(out, x.options...))
		bad(x.why, p, optioned(in, x.options...))
	}
	rh := func(typ byte) []byte { return append([]byte{17, 2, typ, 1, 0, 0, 0, 0}, make([]byte, 16)...) }
	for _, x := range []struct {
		why   string
		first byte
		chain []byte
	}{
		{"source_route", 43, rh(0)}, {"source_route", 60, append([]byte{43, 0, 1, 4, 0, 0, 0, 0}, rh(0)...)}, {"extension_header_refused", 43, rh(2)}, {"extension_header_refused", 43, rh(4)},
		{"bad_extension_header", 60, []byte{17, 0, 1, 200, 0, 0, 0, 0}}, {"bad_extension_header", 60, []byte{0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}},
	} {
		bad(x.why, a, l.ip6(a, a.V6, p.V6, x.first, x.chain))
		bad(x.why, p, l.ip6(p, p.V6, a.V6, x.first, x.chain))
	}
	l.until(5*time.Second, "every frame is dropped under its reason", func() (bool, string) {
		d := drops(before, l.status())
		for why, n := range want {
			if d[why] < n {
				return false, fmt.Sprintf("%v, want %v", d, want)
			}
		}
		return true, ""
	})
	l.mu.Lock()
	for ns, frames := range l.came {
		for _, f := range frames {
			t.Errorf("%s received % x", ns, f)
		}
	}
	l.mu.Unlock()
	// What may pass, with the same sender: as it was sent.
	alert := []byte{148, 4, 0, 0}
	l.from(a, optioned(out, alert...))
	if f := l.take(p.Name, 1)[0]; !bytes.Equal(f[34:38], alert) || csum.Fold(csum.Sum(0, f[14:38])) != 0xffff {
		t.Errorf("came as % x", f)
	}
	l.from(p, optioned(in, alert...))
	if f := l.take(l.Alpha2.Name, 1)[0]; !bytes.Equal(f[34:38], alert) {
		t.Errorf("came as % x", f)
	}
	chain := []byte{60, 0, 5, 2, 0, 0, 1, 0, 17, 0, 1, 4, 0, 0, 0, 0} // hop-by-hop with router alert, destination options
	l.from(a, l.ip6(a, a.V6, p.V6, 0, chain))
	if f := l.take(p.Name, 1)[0]; !bytes.Equal(f[54:70], chain) {
		t.Errorf("came as % x", f)
	}
	l.from(p, l.ip6(p, p.V6, a.V6, 0, chain))
	l.take(a.Name, 1)
}

// ICMP errors that quote tunnels, truncated packets, options and wrong checksums, from outside, from inside and round by a public address, through the
// running gateway: the sender gets them with its packet as it wrote it, or they are dropped.
func TestICMPErrorsQuotedOnTheWire(t *testing.T) {
	mostlyWaits(t)
	l := newLayerRig(t)
	a, b, p, router := l.Alpha1, l.Alpha2, l.Public1, l.Public2
	pub := addr("192.0.2.100") // b's own
	gre := append([]byte{0, 0, 8, 0}, layerMark...)
	ipip := l.ip4(a, addr("10.1.1.1"), addr("10.2.2.2"), 17, udp(1, 2, []byte(layerMark)), 0)[14:]
	packet := func(f []byte) []byte { return f[14:][:binary.BigEndian.Uint16(f[16:])] }
	tail := []byte("padding") // behind the quote, where RFC 4884 puts its extensions
	report := func(quote []byte) []byte { return slices.Concat([]byte{3, 1, 0, 0, 0, 0, 0, 0}, quote, tail) }
	for _, k := range []struct {
		name  string
		proto byte
		body  []byte
	}{{"GRE", 47, gre}, {"IPIP", 4, ipip}, {"UDP", 17, udp(4400, 7009, []byte(layerMark))}} {
		for _, way := range []string{"outside", "inside", "hairpin"} {
			// The packet as it was written and as it came; who reports it, from and to which address; who shall hear of it.
			var wrote, came []byte
			var by, hears netlab.Host
			var from, to netip.Addr
			switch way {
			case "outside":
				f := l.ip4(b, b.V4, p.V4, k.proto, k.body, 0)
				l.from(b, f)
				wrote, came, by, from, to, hears = packet(f), packet(l.take(p.Name, 1)[0]), router, router.V4, pub, b
			case "inside":
				f := l.ip4(p, p.V4, pub, k.proto, k.body, 0)
				l.from(p, f)
				wrote, came, by, from, to, hears = packet(f), packet(l.take(b.Name, 1)[0]), b, b.V4, p.V4, p
			case "hairpin":
				f := l.ip4(a, a.V4, pub, k.proto, k.body, 0)
				l.from(a, f)
				came = packet(l.take(b.Name, 1)[0])
				wrote, by, from, hears = packet(f), b, b.V4, a
				to = netip.AddrFrom4([4]byte(came[12:16]))
			}
			for _, q := range []struct {
				how   string
				quote []byte
				good  bool
			}{
				{"whole", came, true}, {"truncated", came[:28], true}, {"options", optioned(slices.Concat(make([]byte, 14), came), 7, 7, 4, 1, 2, 3, 4, 0)[14:], true},
				{"bad inner checksum", append(append(append([]byte(nil), came[:10]...), came[10]^0x55), came[11:]...), false}, {"less than a header", came[:12], false},
			} {
				before := l.status()
				m := report(q.quote)
				if q.how == "truncated" || len(q.quote) < 20 {
					m = m[:8+len(q.quote)] // what follows would be more of the packet
				}
				l.from(by, l.ip4(by, from, to, 1, m, 2))
				what := strings.Join([]string{k.name, way, q.how}, ", ")
				if !q.good {
					l.until(5*time.Second, what, func() (bool, string) {
						d := drops(before, l.status())
						return d["icmp_bad_inner"] > 0, fmt.Sprint(d)
					})
					continue
				}
				f := l.take(hears.Name, 1)[0]
				e := packet(f)
				if e[9] != 1 || e[20] != 3 || e[21] != 1 || csum.Fold(csum.Sum(0, e[20:])) != 0xffff || !bytes.Equal(e[16:20], hears.V4.AsSlice()) {
					t.Errorf("%s: arrived as % x", what, e)
					continue
				}
				in := e[28:]
				n := int(in[0]&15) * 4
				if csum.Fold(csum.Sum(0, in[:n])) != 0xffff || !bytes.Equal(in[12:20], wrote[12:20]) || k.proto == 17 && !bytes.Equal(in[n:n+4], wrote[20:24]) {
					t.Errorf("%s: quotes % x, the sender wrote % x", what, in, wrote)
				}
			}
			l.mu.Lock()
			clear(l.came)
			l.mu.Unlock()
		}
	}
}
