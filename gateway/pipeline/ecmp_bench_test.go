package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"demarc/gateway/verdict"
)

// BenchmarkNextHops is the established path and the first packet of a flow by a route with so many next hops; BenchmarkHit and BenchmarkNewSession have
// one.
func BenchmarkNextHops(b *testing.B) {
	for _, hops := range []int{1, 4, 16} {
		list := make([]string, hops)
		for i := range list {
			list[i] = fmt.Sprintf("%q", fmt.Sprintf("203.0.113.%d", 200+i))
		}
		policy := strings.Replace(benchPolicy(10), `via = "203.0.113.254"`, "via = ["+strings.Join(list, ", ")+"]", 1)
		const flows = 64 << 10
		newOne := func(b *testing.B, size int) *flood {
			f := &flood{r: newRig(b, benchNode(size), policy), flows: flows}
			f.template = udp4(b, 1, "198.18.0.1", 1024, "198.51.100.7", 9)
			f.template = append(f.template, make([]byte, max(0, 60-len(f.template)))...)
			for _, h := range f.r.view.NextHops() {
				h.State.Answered(1)
			}
			return f
		}
		b.Run(fmt.Sprintf("hit/hops=%d", hops), func(b *testing.B) {
			f := newOne(b, flows+flows/8)
			f.establish(b)
			order := rand.New(rand.NewPCG(1, 2)).Perm(flows)
			at := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range Burst {
					f.put(i, order[at])
					at = (at + 1) % flows
				}
				f.r.now += 10000
				f.r.sh.Process(f.r.slots[:], f.r.now)
				f.r.sh.Meter.Publish()
			}
			if s := &f.r.slots[0]; s.Verdict != verdict.Send {
				b.Fatalf("%s (%s)", s.Verdict, s.Reason)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
		})
		b.Run(fmt.Sprintf("new/hops=%d", hops), func(b *testing.B) {
			f := newOne(b, 4*flows)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				if n+Burst > flows {
					b.StopTimer()
					f.r.sh.Cut(func(*sessionT) bool { return true })
					f.r.now += 300e9
					for range 4 {
						f.r.sh.Maintain(f.r.now, 8*flows)
						f.r.now += 1e9
					}
					n = 0
					b.StartTimer()
				}
				for i := range Burst {
					f.put(i, n+i)
				}
				n += Burst
				f.r.now += 10000
				f.r.sh.Process(f.r.slots[:], f.r.now)
				f.r.sh.Meter.Publish()
			}
			if s := &f.r.slots[0]; s.Verdict != verdict.Send {
				b.Fatalf("%s (%s)", s.Verdict, s.Reason)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
		})
	}
}
