//go:build linux && amd64

package pipeline

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/archtest/instructions"
	"demarc/gateway/verdict"
)

// costs is what a packet may cost the pipeline, in instructions, with 1,000 rules, translation, rates and accounting: what it costs now and some 4 % more, for processors on
// which the runtime copies in another way. A change that makes packets cheaper lowers the figure in the same commit. They are those of code that is compiled as make compiles it, with default.pgo.
var costs = map[string]float64{
	"established, out, translated": 1545,
	"established, in, translated":  1625,
	"established, IPv6":            1515,
	"first packet, 1,000 rules":    6000,
	"first packet, IPv6":           3200,
	"refused by a rule":            2500,
	"spoofed source":               1045,
}

// unprofiled is what a packet costs at most where the compiler was not shown the profile: 7 to 11 % more were counted. A plain go test does so.
const unprofiled = 1.11

// A burst of each kind of packet is counted instruction by instruction, so that what a change costs is seen whatever else the machine does. With -v it says which
// functions they are in: make profile.
func TestInstructionsOfAPacket(t *testing.T) {
	const flows = 4096
	f := newFloodOf(t, flows, strings.Replace(benchPolicy(1000), `prefixes = ["198.18.0.0/15"]`, `prefixes = ["198.18.0.0/15", "2001:db8:a::/64"]`, 1))
	f.establish(t)
	r := f.r
	process := func(n int) {
		r.now += 10000
		r.sh.Process(r.slots[:n], r.now)
		r.sh.Meter.Publish()
	}
	established := func() {
		for i := range Burst {
			f.put(i, 1000+i)
		}
	}
	from := func(port int, make func(i int) []byte) func() {
		return func() {
			var frames [Burst][]byte
			for i := range frames {
				frames[i] = make(i)
			}
			for i, b := range frames {
				s := &r.slots[i]
				s.Buf, s.Off, s.Len = r.mem[i][:], 256, len(b)
				copy(s.Buf[256:], b)
				s.Port, s.Looped, s.Handed, s.Addr = uint16(port), false, false, uint64(i)
			}
		}
	}
	six := from(1, func(i int) []byte {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("2001:db8:a::11"), DstIP: net.ParseIP("2001:db8:ff::11")}
		return frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, udp(uint16(4000+i), 53), gopacket.Payload("x"))
	})
	port := 5000
	fresh := func(src, dst string, dport uint16) func() {
		return func() {
			from(1, func(i int) []byte { return udp4(t, 1, src, uint16(port+i), dst, dport) })()
			port += Burst
		}
	}
	var cases []instructions.Case
	want := map[string]verdict.Verdict{}
	count := func(name string, n int, v verdict.Verdict, ready func()) {
		want[name] = v
		cases = append(cases, instructions.Case{Name: name, Units: n, Ready: ready, Do: func() { process(n) }})
	}
	count("established, out, translated", 32, verdict.Send, func() { established(); process(Burst); established() })
	count("established, in, translated", 8, verdict.Send, func() {
		established()
		process(Burst)
		from(0, func(i int) []byte { // the answer to what has just left
			b := r.slots[i].Buf[r.slots[i].Off+14:]
			return udp4(t, 0, "203.0.113.11", 9, netip.AddrFrom4([4]byte(b[12:16])).String(), binary.BigEndian.Uint16(b[20:]))
		})()
	})
	count("established, IPv6", 8, verdict.Send, func() { six(); process(Burst); six() })
	count("first packet, 1,000 rules", 8, verdict.Send, fresh("198.18.77.1", "203.0.113.11", 9))
	count("first packet, IPv6", 8, verdict.Send, func() {
		from(1, func(i int) []byte {
			ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("2001:db8:a::12"), DstIP: net.ParseIP("2001:db8:ff::11")}
			return frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, udp(uint16(port+i), 53), gopacket.Payload("x"))
		})()
		port += Burst
	})
	refused := fresh("198.18.0.5", "198.51.100.5", 1029)
	count("refused by a rule", 8, verdict.Drop, func() { refused(); process(8); refused() }) // a flood of them: where sessions have just begun, more is looked ahead
	count("spoofed source", 8, verdict.Drop, fresh("198.51.100.1", "203.0.113.11", 9))
	for _, c := range cases { // here and not in the process that is counted: it is what the figures are worth
		c.Ready()
		c.Do()
		for i := range c.Units {
			if s := &r.slots[i]; s.Verdict != want[c.Name] {
				t.Fatalf("%s: packet %d: %s (%s)", c.Name, i, s.Verdict, s.Reason)
			}
		}
	}
	more := 1.0
	if !strings.Contains(os.Getenv("GOFLAGS"), "-pgo=/") {
		more = unprofiled
	}
	for _, x := range instructions.Count(t, cases...) {
		t.Logf("%-30s %7.1f instructions a packet, in\n%s", x.Name, x.Per(), x.Top(20))
		if most := more * costs[x.Name]; x.Per() > most {
			t.Errorf("%s: %.1f instructions a packet, at most %.0f: make it cheaper, or say in the commit what it buys and raise the figure", x.Name, x.Per(), most)
		}
	}
}
