package pipeline

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/verdict"
)

// BenchmarkKinds is a bit of everything that is carried all day: UDP and TCP of established sessions out and back, translated, IPv6 out and back, and what a rule refuses. It is what the compiler is shown
// (make pgo) beside first packets (BenchmarkNewSession), so that no kind is fast because another is slow.
func BenchmarkKinds(b *testing.B) {
	policy := strings.Replace(benchPolicy(1000), `prefixes = ["198.18.0.0/15"]`, `prefixes = ["198.18.0.0/15", "2001:db8:a::/64"]`, 1)
	r := newRig(b, benchNode(64<<10), strings.Replace(policy, `service = ["udp"]`, `service = ["udp", "tcp"]`, 1))
	type kind struct {
		name   string
		port   int
		want   verdict.Verdict
		frames [Burst][]byte
	}
	var kinds []*kind
	send := func(name string, port int, want verdict.Verdict, frame func(i int) []byte) *kind {
		k := &kind{name: name, port: port, want: want}
		for i := range k.frames {
			k.frames[i] = frame(i)
		}
		for i := range r.send(port, k.frames[:]...) {
			if s := &r.slots[i]; s.Verdict != want {
				b.Fatalf("%s, frame %d: %s (%s), want %s", name, i, s.Verdict, s.Reason, want)
			}
		}
		return k
	}
	add := func(name string, port int, want verdict.Verdict, frame func(i int) []byte) {
		kinds = append(kinds, send(name, port, want, frame))
	}
	var public [Burst]netip.AddrPort // of what has just left
	learn := func() {
		for i := range public {
			ip := r.slots[i].Frame()[14:]
			public[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(ip[20:]))
		}
	}
	inside := func(i int) string { return fmt.Sprintf("198.18.10.%d", 10+i) }
	const outside = "203.0.113.11"

	add("UDP out", 1, verdict.Send, func(i int) []byte { return udp4(b, 1, inside(i), 4000, outside, 9) })
	learn()
	add("UDP in", 0, verdict.Send, func(i int) []byte { return udp4(b, 0, outside, 9, public[i].Addr().String(), public[i].Port()) })

	tcp := func(seq, ack uint32, syn bool) func(*layers.TCP) {
		return func(t *layers.TCP) { t.Seq, t.Ack, t.SYN, t.ACK = seq, ack, syn, ack != 0 }
	}
	send("SYN", 1, verdict.Send, func(i int) []byte { return tcp4(b, 1, inside(i), 5000, outside, 80, tcp(1000, 0, true)) })
	learn()
	send("SYN, ACK", 0, verdict.Send, func(i int) []byte {
		return tcp4(b, 0, outside, 80, public[i].Addr().String(), public[i].Port(), tcp(7000, 1001, true))
	})
	add("TCP out", 1, verdict.Send, func(i int) []byte { return tcp4(b, 1, inside(i), 5000, outside, 80, tcp(1001, 7001, false)) })
	add("TCP in", 0, verdict.Send, func(i int) []byte {
		return tcp4(b, 0, outside, 80, public[i].Addr().String(), public[i].Port(), tcp(7001, 1001, false))
	})

	add("IPv6 out", 1, verdict.Send, func(i int) []byte {
		return udp6of(b, 1, fmt.Sprintf("2001:db8:a::%x", 16+i), 4000, "2001:db8:ff::11", 53)
	})
	add("IPv6 in", 0, verdict.Send, func(i int) []byte {
		return udp6of(b, 0, "2001:db8:ff::11", 53, fmt.Sprintf("2001:db8:a::%x", 16+i), 4000)
	})
	add("refused", 1, verdict.Drop, func(i int) []byte { return udp4(b, 1, "198.18.0.5", uint16(6000+i), "198.51.100.5", 1029) })

	n := 0
	for b.Loop() {
		k := kinds[n%len(kinds)]
		r.now += 10000
		r.send(k.port, k.frames[:]...)
		n++
	}
	for _, k := range kinds {
		for i := range r.send(k.port, k.frames[:]...) {
			if s := &r.slots[i]; s.Verdict != k.want {
				b.Fatalf("%s, frame %d: %s (%s) at the end, want %s", k.name, i, s.Verdict, s.Reason, k.want)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
}
