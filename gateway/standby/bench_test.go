package standby

import (
	"flag"
	"slices"
	"testing"
	"time"
)

var benchSessions = flag.Int("bench-sessions", 1<<20, "how many sessions BenchmarkBulk copies")

// BenchmarkBulk copies a whole table over a connection as members have it: how long that takes, and for how long at a time it holds the workers of the standby.
func BenchmarkBulk(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		f := newFar(b, 2, *benchSessions*5/8, policyText+groupText(`"alpha"`))
		f.keep = true
		n := newNear(b, 2, *benchSessions)
		n.lim.Window = 0
		n.budget = 4096
		n.open(1, 0, min(*benchSessions, 14*60000))
		dial := members(b)
		a, c := dial()
		b.StartTimer()
		began := time.Now()
		end := over(n, f, a, c)
		for whole, why := false, ""; !whole; time.Sleep(5 * time.Millisecond) {
			if whole, why = f.whole(); time.Since(began) > 2*time.Minute {
				b.Fatal("not copied: ", why)
			}
		}
		took := time.Since(began)
		b.StopTimer()
		st := f.sb.Status()
		f.mu.Lock()
		slices.Sort(f.holds)
		us := func(p float64) float64 { return float64(f.holds[int(p*float64(len(f.holds)-1))].Nanoseconds()) / 1e3 }
		b.ReportMetric(us(.5), "µs-held-p50")
		b.ReportMetric(us(.99), "µs-held-p99")
		b.ReportMetric(us(1), "µs-held-worst")
		f.mu.Unlock()
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(float64(n.count())/took.Seconds(), "sessions/s")
		b.ReportMetric(float64(st.Held.Nanoseconds())/float64(n.count()), "ns-held/session")
		b.ReportMetric(float64(st.Steps), "steps")
		end()
		f.stop()
		b.StartTimer()
	}
}
