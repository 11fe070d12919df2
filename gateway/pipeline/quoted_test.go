package pipeline

import (
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/verdict"
)

// quotedKind is a kind of packet that errors may quote. ports is how many of its transport bytes a quote must have.
type quotedKind struct {
	name         string
	make         func(t testing.TB, port int, src, dst string, reply bool) []byte
	ports        int
	sport, dport uint16
}

func raw4(proto layers.IPProtocol, payload func(t testing.TB) []byte) func(testing.TB, int, string, string, bool) []byte {
	return func(t testing.TB, port int, src, dst string, _ bool) []byte {
		return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, proto), gopacket.Payload(payload(t)))
	}
}

var quotedKinds = []quotedKind{
	{"GRE", raw4(layers.IPProtocolGRE, func(testing.TB) []byte { return []byte("\x00\x00\x08\x00gregregregregregre") }), 0, 0, 0},
	{"IPIP", raw4(layers.IPProtocolIPv4, func(t testing.TB) []byte { return packetOf(udp4(t, 1, "10.1.1.1", 1, "10.2.2.2", 2)) }), 0, 0, 0},
	{"6in4", raw4(layers.IPProtocolIPv6, func(t testing.TB) []byte { return udp6(t)[14:] }), 0, 0, 0},
	{"ESP", raw4(layers.IPProtocolESP, func(testing.TB) []byte { return []byte("spi.seq.datadatadata") }), 0, 0, 0},
	{"UDP", func(t testing.TB, port int, src, dst string, reply bool) []byte {
		if reply {
			return udp4(t, port, src, 5000, dst, 4000)
		}
		return udp4(t, port, src, 4000, dst, 5000)
	}, 8, 4000, 5000},
	{"TCP", func(t testing.TB, port int, src, dst string, reply bool) []byte {
		if reply {
			return tcp4(t, port, src, 5000, dst, 4000, seg("SA", 7000, 1001))
		}
		return tcp4(t, port, src, 4000, dst, 5000, seg("S", 1000, 0))
	}, 8, 4000, 5000},
	{"echo", func(t testing.TB, port int, src, dst string, reply bool) []byte {
		return echo(t, port, src, dst, 9, reply)
	}, 8, 9, 9},
}

// header rewrites the header of a quoted packet and makes its checksum right.
func header(change func(h []byte)) func(q []byte, k quotedKind) ([]byte, bool) {
	return func(q []byte, k quotedKind) ([]byte, bool) {
		change(q)
		q[10], q[11] = 0, 0
		be.PutUint16(q[10:], ^sum16(q[:20]))
		return q, true
	}
}

// What a router on the way may have made of the packet that it quotes, and whether the error is still good for its sender.
var quotedAs = map[string]func(q []byte, k quotedKind) ([]byte, bool){
	"whole":               func(q []byte, _ quotedKind) ([]byte, bool) { return q, true },
	"truncated after 8":   func(q []byte, _ quotedKind) ([]byte, bool) { return q[:28], true }, // what RFC 792 promises
	"truncated after 7":   func(q []byte, k quotedKind) ([]byte, bool) { return q[:27], k.ports == 0 },
	"truncated after 3":   func(q []byte, k quotedKind) ([]byte, bool) { return q[:23], k.ports == 0 },
	"header alone":        func(q []byte, k quotedKind) ([]byte, bool) { return q[:20], k.ports == 0 },
	"less than a header":  func(q []byte, _ quotedKind) ([]byte, bool) { return q[:19], false },
	"nothing":             func(q []byte, _ quotedKind) ([]byte, bool) { return nil, false },
	"bad header checksum": func(q []byte, _ quotedKind) ([]byte, bool) { q[10] ^= 0x40; return q, false }, // RFC 5508 REQ-3a
	"bad transport checksum": func(q []byte, k quotedKind) ([]byte, bool) { // REQ-3c
		if k.ports > 0 {
			q[len(q)-1] ^= 0x55
		}
		return q, true
	},
	"options": func(q []byte, _ quotedKind) ([]byte, bool) { // REQ-3b; the tenant lets none pass, and the quoted packet passes no more
		return packetOf(withOptions(append(make([]byte, 12, 200), append([]byte{8, 0}, q...)...), []byte{7, 11, 4, 1, 2, 3, 4, 5, 6, 7, 8})), true
	},
	"source route": func(q []byte, _ quotedKind) ([]byte, bool) { // RFC 5508 section 7.3
		return packetOf(withOptions(append(make([]byte, 12, 200), append([]byte{8, 0}, q...)...), []byte{131, 7, 4, 1, 2, 3, 4})), false
	},
	"options cut":     header(func(h []byte) { h[0] = 0x4f }),
	"hop used up":     header(func(h []byte) { h[8] = 0 }),
	"first fragment":  header(func(h []byte) { h[6] |= 0x20 }),
	"later fragment":  header(func(h []byte) { h[7] = 9 }),
	"length too long": header(func(h []byte) { h[2] = 0x7f }),
	"version 6":       header(func(h []byte) { h[0] = 0x65 }),
}

func init() {
	for _, name := range []string{"options cut", "later fragment", "version 6"} {
		good := quotedAs[name]
		quotedAs[name] = func(q []byte, k quotedKind) ([]byte, bool) { q, _ = good(q, k); return q, false }
	}
}

// Errors about each kind of packet, quoted in each way, from outside, from inside and round by a public address: whoever sent the packet gets the
// error with the packet as it wrote it, or the error is dropped under a reason (RFC 5508 REQ-3 to REQ-5, REQ-7).
func TestICMPErrorsWhateverTheyQuote(t *testing.T) {
	open := strings.Replace(rfcPolicy, "service = [\"udp/80\", \"tcp/80\", \"icmp/echo-request\"]\n", "", 1)
	if open == rfcPolicy {
		t.Fatal("the policy has changed")
	}
	for _, k := range quotedKinds {
		for how, change := range quotedAs {
			// Each way: the packet as its sender wrote it, as it came to whoever finds fault with it, and where the error enters and comes out.
			for way, play := range map[string]func(w *world) (wrote, came []byte, port int, from, to string, out int, sender, seenFrom string){
				"from outside": func(w *world) ([]byte, []byte, int, string, string, int, string, string) {
					f := k.make(t, 1, hostA, far, false)
					return packetOf(f), packetOf(w.from(1, f).frame), 0, far2, pub, 1, hostA, far2
				},
				"from inside": func(w *world) ([]byte, []byte, int, string, string, int, string, string) {
					left := w.from(1, k.make(t, 1, hostA, far, false))
					f := k.make(t, 0, far, pub, true)
					if k.ports > 0 { // the public port is the mapping's
						x := w.sent(left, 0)
						at := map[bool]int{true: 14 + 24, false: 14 + 22}[k.name == "echo"]
						be.PutUint16(f[at:], x.sport)
						seal(f)
					}
					h := w.from(0, f)
					w.sent(h, 1)
					return packetOf(f), packetOf(h.frame), 1, hostA, far, 0, far, pub
				},
				"hairpin": func(w *world) ([]byte, []byte, int, string, string, int, string, string) {
					f := k.make(t, 1, hostA, pubS, false)
					h := w.from(1, f)
					w.sent(h, 1)
					return packetOf(f), packetOf(h.frame), 1, hostS, pub, 1, hostA, pubS
				},
			} {
				t.Run(k.name+"/"+how+"/"+way, func(t *testing.T) {
					w := newWorld(t, 1, open)
					w.t = t
					wrote, came, port, from, to, out, sender, seenFrom := play(w)
					q, good := change(append([]byte(nil), came...), k)
					h := w.from(port, icmpErr(t, port, from, to, 3, 3, 0, q))
					if !good {
						if h.verdict != verdict.Drop || h.reason != verdict.ICMPBadInner {
							t.Fatalf("%s (%s) %x", h.verdict, h.reason, h.frame)
						}
						w.whole()
						return
					}
					got := w.reachesICMPAt(h, out, 3, 3, seenFrom, sender)
					if string(got.inner[12:20]) != string(wrote[12:20]) {
						t.Fatalf("quotes %s > %s", got.qsrc, got.qdst)
					}
					n := int(got.inner[0]&15) * 4
					if len(got.inner) != len(q) || len(q) >= n+8 && k.ports > 0 && k.name != "echo" && string(got.inner[n:n+4]) != string(wrote[20:24]) ||
						len(q) >= n+8 && k.name == "echo" && string(got.inner[n+4:n+6]) != string(wrote[24:26]) {
						t.Fatalf("quotes %x, the sender wrote %x", got.inner, wrote)
					}
					if k.ports == 0 && string(got.inner[n:]) != string(q[n:]) {
						t.Fatalf("what is no port was changed: %x", got.inner)
					}
					if how == "whole" && string(got.inner[20:]) != string(wrote[20:]) { // the transport's checksum is right again
						t.Fatalf("quotes %x, the sender wrote %x", got.inner, wrote)
					}
					if how == "options" && string(got.inner[20:n]) != string(q[20:n]) {
						t.Fatalf("options became %x", got.inner[20:n])
					}
					w.whole()
				})
			}
		}
	}
}
