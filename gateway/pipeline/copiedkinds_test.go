package pipeline

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/replica"
	"demarc/gateway/verdict"
)

// talk is a conversation: what began it, and an answer to it.
type talk struct {
	kind        string
	first, back arrival
}

func ip6(src, dst string, proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst), NextHeader: proto}
}

func udp6of(t testing.TB, port int, src string, sport uint16, dst string, dport uint16) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv6), ip6(src, dst, layers.IPProtocolUDP), udp(sport, dport), gopacket.Payload("x"))
}

func tcp6of(t testing.TB, port int, src string, sport uint16, dst string, dport uint16, ack bool) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv6), ip6(src, dst, layers.IPProtocolTCP),
		&layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Window: 65535, Seq: 1000, SYN: true, ACK: ack, Ack: map[bool]uint32{true: 1001}[ack]})
}

func echo6(t testing.TB, port int, src, dst string, id uint16, reply bool) []byte {
	typ := uint8(128)
	if reply {
		typ = 129
	}
	ip := ip6(src, dst, layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	return frame(t, eth(macs[port], layers.EthernetTypeIPv6), ip, icmp, &layers.ICMPv6Echo{Identifier: id})
}

func esp4(t testing.TB, port int, src, dst string) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolESP), gopacket.Payload("12345678payload"))
}

// kinds begins n conversations of each kind that open does not.
func (c *copying) kinds(n int) (list []talk) {
	t := c.t
	syn := func(t *layers.TCP) { t.SYN = true }
	synAck := func(t *layers.TCP) { t.SYN, t.ACK, t.Ack = true, true, 1001 }
	for i := range n {
		in4, in6, far4, far6 := fmt.Sprintf("198.18.10.%d", 120+i), fmt.Sprintf("2001:db8:a::%x", 0x80+i), fmt.Sprintf("203.0.113.%d", 140+i), fmt.Sprintf("2001:db8:ff::%x", 0x80+i)
		one, other := fmt.Sprintf("198.18.30.%d", 90+2*i), fmt.Sprintf("198.18.30.%d", 91+2*i)
		port := uint16(3000 + i)
		const public, static = "192.0.2.100", "198.18.10.100"
		for _, k := range []struct {
			kind  string
			first arrival
			back  func(x wire) arrival // x: the first, as it left. IPv6 leaves as it is
		}{
			{"an echo to the outside", arrival{port: 1, frame: echo(t, 1, in4, far4, port, false)}, func(x wire) arrival { return arrival{port: 0, frame: echo(t, 0, far4, x.src.String(), x.sport, true)} }},
			{"IPv6, UDP", arrival{port: 1, frame: udp6of(t, 1, in6, port, far6, 53)}, func(wire) arrival { return arrival{port: 0, frame: udp6of(t, 0, far6, 53, in6, port)} }},
			{"IPv6, TCP", arrival{port: 1, frame: tcp6of(t, 1, in6, port, far6, 443, false)}, func(wire) arrival { return arrival{port: 0, frame: tcp6of(t, 0, far6, 443, in6, port, true)} }},
			{"IPv6, an echo", arrival{port: 1, frame: echo6(t, 1, in6, far6, port, false)}, func(wire) arrival { return arrival{port: 0, frame: echo6(t, 0, far6, in6, port, true)} }},
			{"IPv6, TCP from outside", arrival{port: 0, frame: tcp6of(t, 0, far6, port, in6, 80, false)}, func(wire) arrival { return arrival{port: 1, frame: tcp6of(t, 1, in6, 80, far6, port, true)} }},
			{"1:1, UDP", arrival{port: 1, frame: udp4(t, 1, static, port, far4, 53)}, func(x wire) arrival { return arrival{port: 0, frame: udp4(t, 0, far4, 53, x.src.String(), x.sport)} }},
			{"1:1, TCP from outside", arrival{port: 0, frame: tcp4(t, 0, far4, port, public, 80, syn)}, func(wire) arrival { return arrival{port: 1, frame: tcp4(t, 1, static, 80, far4, port, synAck)} }},
			{"1:1, an echo from outside", arrival{port: 0, frame: echo(t, 0, far4, public, port, false)}, func(wire) arrival { return arrival{port: 1, frame: echo(t, 1, static, far4, port, true)} }},
			{"1:1, ESP", arrival{port: 1, frame: esp4(t, 1, static, far4)}, func(wire) arrival { return arrival{port: 0, frame: esp4(t, 0, far4, public)} }},
			{"round to a forwarded port", arrival{port: 1, frame: tcp4(t, 1, in4, port, "192.0.2.16", 8080, syn)}, func(x wire) arrival {
				return arrival{port: 1, frame: tcp4(t, 1, "198.18.10.11", 80, x.src.String(), x.sport, synAck)}
			}},
			{"out from behind a forwarded port", arrival{port: 1, frame: tcp4(t, 1, "198.18.10.11", 80, far4, port, syn)}, func(x wire) arrival {
				return arrival{port: 0, frame: tcp4(t, 0, far4, port, x.src.String(), x.sport, synAck)}
			}},
			{"ESP between two hosts inside", arrival{port: 2, frame: esp4(t, 2, one, other)}, func(wire) arrival { return arrival{port: 2, frame: esp4(t, 2, other, one)} }},
			{"round to a mapping", arrival{port: 2, frame: udp4(t, 2, one, port, far4, 53)}, func(x wire) arrival { return arrival{port: 2, frame: udp4(t, 2, other, port, x.src.String(), x.sport)} }},
		} {
			hops := c.a.arrive(k.first)
			last := hops[len(hops)-1]
			if last.verdict != verdict.Send {
				t.Fatalf("%s: %s (%s) at the owner", k.kind, last.verdict, last.reason)
			}
			var x wire
			if !strings.HasPrefix(k.kind, "IPv6") {
				x = readWire(t, last.frame)
			}
			back := k.back(x)
			list = append(list, talk{k.kind, k.first, back})
			if k.kind == "round to a mapping" { // two sessions more, one of which begins at either host
				c.went(c.a, back)
			}
		}
	}
	return list
}

// went is where a packet leaves to, at a node.
func (c *copying) went(w *world, a arrival) (s string) {
	c.t.Helper()
	hops := w.arrive(a)
	h := hops[len(hops)-1]
	if h.verdict != verdict.Send {
		c.t.Fatalf("%s (%s)", h.verdict, h.reason)
	}
	k := q(h.frame).Key
	return fmt.Sprintf("port %d: %s:%d > %s:%d, protocol %d", h.port, k.Src.Netip(k.Family), k.SPort, k.Dst.Netip(k.Family), k.DPort, k.Proto)
}

// sorts are the sessions of groups that a node has, by what they are.
func (c *copying) sorts(w *world) map[string]int {
	n := map[string]int{}
	for _, sh := range w.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			if w.view.GroupOf(se.Tenant) != nil {
				n[fmt.Sprintf("protocol %d, flags %#x, mapped %v", se.Proto, se.Flags&(conntrack.FlagV6|conntrack.FlagFromBackbone|conntrack.FlagToBackbone|conntrack.FlagNAT), se.Mapping != conntrack.NoMapping)]++
			}
			return true
		})
	}
	return n
}

// TestCopiesOfEveryKind: conversations of every kind go on at the other node: an answer and what is sent again leave there as they leave at the owner.
func TestCopiesOfEveryKind(t *testing.T) {
	for _, workers := range [][2]int{{1, 2}, {3, 2}} {
		t.Run(fmt.Sprintf("%d to %d workers", workers[0], workers[1]), func(t *testing.T) {
			const each = 8
			c := newCopying(t, workers[0], workers[1])
			list := c.kinds(each)
			c.carry()
			c.equal()
			a, b := c.sorts(c.a), c.sorts(c.b)
			if !maps.Equal(a, b) {
				t.Fatalf("the owner has %v, the standby %v", a, b)
			}
			for _, what := range []struct {
				words string
				want  string
				least int
			}{
				{"IPv6 to the outside", fmt.Sprintf("protocol %d, flags %#x, mapped false", flow.UDP, conntrack.FlagV6|conntrack.FlagToBackbone), each},
				{"IPv6 from the outside", fmt.Sprintf("protocol %d, flags %#x, mapped false", flow.TCP, conntrack.FlagV6|conntrack.FlagFromBackbone), each},
				{"ICMP with a mapping", fmt.Sprintf("protocol %d, flags %#x, mapped true", flow.ICMP, conntrack.FlagToBackbone|conntrack.FlagNAT), each},
				{"1:1 without ports", fmt.Sprintf("protocol 50, flags %#x, mapped false", conntrack.FlagToBackbone|conntrack.FlagNAT), each},
			} {
				if a[what.want] < what.least {
					t.Errorf("%s: %d, want %d at least, of %v", what.words, a[what.want], what.least, slices.Sorted(maps.Keys(a)))
				}
			}
			c.b.takesOver()
			for _, x := range list {
				for what, p := range map[string]arrival{"an answer": x.back, "the first packet again": x.first} {
					if at, by := c.went(c.a, p), c.went(c.b, p); at != by {
						t.Errorf("%s: %s leaves as %s at the owner, and as %s at the standby", x.kind, what, at, by)
					}
				}
			}
			// Nothing of it was made anew there: what is made anew has another public port, or none for a while.
			for _, w := range []*world{c.a, c.b} {
				w.whole()
			}
			if now := c.sorts(c.b); !maps.Equal(now, b) {
				t.Errorf("the standby had %v, and has %v after the packets", b, now)
			}
		})
	}
}

// The flags of a table and those of a copy are turned into each other by tables: here is what those say, in words.
func TestFlagsOfCopies(t *testing.T) {
	for i := range 256 {
		var of replica.Flags
		var in uint8
		for _, f := range same {
			if f.copy > 0xff {
				t.Fatalf("flag %#x of a copy is not among the lowest eight", f.copy)
			}
			if uint8(i)&f.table != 0 {
				of |= f.copy
			}
			if replica.Flags(i)&f.copy != 0 {
				in |= f.table
			}
		}
		if flagsOf[i] != of || flagsIn[i] != in {
			t.Fatalf("flags %#x: %#x and %#x, want %#x and %#x", i, flagsOf[i], flagsIn[i], of, in)
		}
	}
}

// What is entered is read back as it was written, of every kind of session: readBack leaves out what no hash is of.
func TestReadBackIsFill(t *testing.T) {
	c := newCopying(t, 1, 2)
	c.kinds(8)
	ctx := new(replica.Context)
	n := 0
	for _, sh := range c.a.shards {
		sh.read.Reset()
		sh.read.Session.Remote, sh.read.Session.Flags = [4]byte{1, 2, 3, 4}, 0xffff // of the one before
		for slot := range sh.Sessions.Slots() {
			if !sh.Sessions.Live(slot) {
				continue
			}
			var r replica.Record
			Copies{sh}.Fill(slot, &r)
			if got, want := sh.readBack(slot, ctx), ctx.Hash(&r); got != want {
				t.Fatalf("slot %d: %x is read back, want %x", slot, got, want)
			}
			n++
		}
	}
	if n < 32 {
		t.Fatalf("%d sessions", n)
	}
}

// A state that releases before do not know is told as the nearest one that they do.
func TestReuseIsToldAsClosing(t *testing.T) {
	c := newCopying(t, 1, 2)
	c.kinds(8)
	for _, sh := range c.a.shards {
		for slot := range sh.Sessions.Slots() {
			if se := sh.Sessions.At(slot); sh.Sessions.Live(slot) && se.Proto == flow.TCP {
				se.State = conntrack.TCPReuse
				var r replica.Record
				if (Copies{sh}).Fill(slot, &r); r.Session.State != conntrack.TCPClosing {
					t.Fatalf("state %d is told", r.Session.State)
				}
				return
			}
		}
	}
	t.Fatal("no TCP session")
}
