package pipeline

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"demarc/gateway/archtest/cputime"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/packet/csum"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// benchPolicy has one tenant with NAT, a rate that never cuts, and so many rules of which the last one matches.
func benchPolicy(rules int) string {
	var b strings.Builder
	b.WriteString(`schema = 1
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.0.0/15"]
default_out = "deny"
[tenant.nat]
pool = ["192.0.2.0/27"]
[tenant.rates.out]
bits = "100G"
[tenant.rates.in]
bits = "100G"
[[tenant.route]]
prefix = "198.18.0.0/15"
via = "198.18.10.254"
`)
	for i := range rules - 1 {
		fmt.Fprintf(&b, "[[tenant.rule]]\ndirection = \"out\"\naction = \"deny\"\nfrom = [\"198.18.%d.%d/32\"]\nto = [\"198.51.100.%d/32\"]\nservice = [\"udp/%d\"]\n", i>>8&255, i&255, i%250, 1024+i)
	}
	b.WriteString("[[tenant.rule]]\ndirection = \"out\"\naction = \"allow\"\nservice = [\"udp\"]\n")
	return b.String()
}

func benchNode(sessions int) string {
	return strings.NewReplacer("sessions = 1024", fmt.Sprintf("sessions = %d", sessions), "mappings = 1024", fmt.Sprintf("mappings = %d", sessions)).Replace(testNode)
}

// flood writes 64-byte frames of many flows into the rig's buffers, as a NIC would.
type flood struct {
	r        *rig
	template []byte
	flows    int
}

func newFlood(b testing.TB, flows, rules int) *flood { return newFloodOf(b, flows, benchPolicy(rules)) }

func newFloodOf(b testing.TB, flows int, policy string) *flood {
	r := newRig(b, benchNode(max(1024, flows+flows/8)), policy)
	f := &flood{r: r, flows: flows, template: udp4(b, 1, "198.18.0.1", 1024, "203.0.113.11", 9)}
	f.template = append(f.template, make([]byte, max(0, 60-len(f.template)))...)
	return f
}

// put makes slot i a packet of flow n: 4096 inside hosts, many ports each.
func (f *flood) put(i, n int) {
	s := &f.r.slots[i]
	s.Buf, s.Off, s.Len = f.r.mem[i][:], 256, len(f.template)
	s.Port, s.Looped, s.Handed, s.Addr = 1, false, false, uint64(i)
	b := s.Buf[256:]
	copy(b, f.template)
	host, port := uint32(0xc6130000)+uint32(n%4096)+1, uint16(1024+n/4096)
	binary.BigEndian.PutUint32(b[26:], host)
	binary.BigEndian.PutUint16(b[34:], port)
	b[24], b[25] = 0, 0
	binary.BigEndian.PutUint16(b[24:], csum.Checksum(csum.Sum(0, b[14:34])))
	b[40], b[41] = 0, 0
	l4 := int(binary.BigEndian.Uint16(b[38:]))
	sum := csum.Pseudo4([4]byte(b[26:30]), [4]byte(b[30:34]), 17, l4)
	binary.BigEndian.PutUint16(b[40:], csum.NonZero(csum.Checksum(csum.Sum(sum, b[34:34+l4]))))
}

func (f *flood) establish(b testing.TB) {
	for n := 0; n < f.flows; n += Burst {
		k := min(Burst, f.flows-n)
		for i := range k {
			f.put(i, n+i)
		}
		f.r.sh.Process(f.r.slots[:k], f.r.now)
		for i := range k {
			s := &f.r.slots[i]
			if s.Verdict != verdict.Send {
				b.Fatalf("flow %d: %s (%s)", n+i, s.Verdict, s.Reason)
			}
			k := s.Key.Reverse(flow.Backbone) // as if it had been answered: unanswered ones may not fill the table
			ref, _ := f.r.sh.Sessions.Lookup(&k, f.r.sh.Sessions.Hash(&k))
			se := f.r.sh.Sessions.At(ref.Slot())
			se.Flags = se.Flags&^conntrack.FlagUnanswered | conntrack.FlagReplied
			f.r.sh.countAnswered(se)
		}
		f.r.sh.Meter.Publish()
	}
	if got := f.r.sh.Sessions.Len(); got != f.flows {
		b.Fatalf("%d sessions, want %d", got, f.flows)
	}
}

// BenchmarkHit is the established path, all included: parse, session, police, NAT, rewrite, neighbour, account. Subtract BenchmarkFrames, the cost of making frames.
func BenchmarkHit(b *testing.B) {
	for _, flows := range []int{1, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			f := newFlood(b, flows, 1000)
			f.establish(b)
			order := rand.New(rand.NewPCG(1, 2)).Perm(max(flows, Burst))
			at := 0
			b.ReportAllocs()
			spent := cputime.Spent(b)
			for b.Loop() {
				for i := range Burst {
					f.put(i, order[at]%flows)
					if at++; at == len(order) {
						at = 0
					}
				}
				f.r.now += 10000
				f.r.sh.Process(f.r.slots[:], f.r.now)
				f.r.sh.Meter.Publish()
			}
			b.ReportMetric(float64(spent().Nanoseconds())/float64(b.N)/Burst, "cpu-ns/packet")
			for i := range f.r.slots {
				if v := f.r.slots[i].Verdict; v != verdict.Send {
					b.Fatalf("%s (%s)", v, f.r.slots[i].Reason)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
		})
	}
}

// BenchmarkFrames is what the other benchmarks spend on making their frames.
func BenchmarkFrames(b *testing.B) {
	f := newFlood(b, 1, 10)
	order := rand.New(rand.NewPCG(1, 2)).Perm(1 << 20)
	at := 0
	for b.Loop() {
		for i := range Burst {
			f.put(i, order[at])
			if at++; at == len(order) {
				at = 0
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
}

// BenchmarkNewSession is the first packet of a flow, with so many rules of which the last one matches.
func BenchmarkNewSession(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			const flows = 256 << 10
			f := newFlood(b, 4*flows, rules) // unanswered ones get a third of the table
			n := 0
			b.ReportAllocs()
			spent, apart := cputime.Spent(b), time.Duration(0)
			for b.Loop() {
				if n+Burst > flows {
					b.StopTimer()
					ending := cputime.Spent(b)
					f.r.sh.Cut(func(*sessionT) bool { return true })
					f.r.now += 300e9 // past the hold time of the ports
					for range 4 {
						f.r.sh.Maintain(f.r.now, 2*flows)
						f.r.now += 1e9
					}
					n = 0
					apart += ending()
					b.StartTimer()
				}
				for i := range Burst {
					f.put(i, n+i)
				}
				n += Burst
				f.r.now += 10000
				f.r.sh.Process(f.r.slots[:], f.r.now)
				f.r.sh.Meter.Publish()
				for i := range f.r.slots {
					if v := f.r.slots[i].Verdict; v != verdict.Send {
						b.Fatalf("%s (%s)", v, f.r.slots[i].Reason)
					}
				}
			}
			b.ReportMetric(float64((spent()-apart).Nanoseconds())/float64(b.N)/Burst, "cpu-ns/packet")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
		})
	}
}

// BenchmarkTrial is how long explain holds a worker: from Run to End, one worker, tables of the default size with a quarter of a million sessions, so
// many tenants. What a trial prepares before it holds anybody is not in it.
func BenchmarkTrial(b *testing.B) {
	for _, tenants := range []int{1, 1000} {
		text := strings.NewReplacer("tenants = 8", "tenants = 1024").Replace(benchNode(288 << 10))
		r := newRig(b, text, benchPolicy(1000))
		for id := len(r.view.Tenants); id <= tenants; id++ {
			r.view.Tenants = append(r.view.Tenants, &snapshot.Tenant{ID: flow.TenantID(id), Shared: &snapshot.Shared{Words: &[2]police.Words{}}})
		}
		r.sh.Shaper = police.NewShaper(8192, 2*(snapshot.MaxTenantID(r.node)+1))
		fl := &flood{r: r, flows: 256 << 10, template: udp4(b, 1, "198.18.0.1", 1024, "203.0.113.11", 9)}
		fl.template = append(fl.template, make([]byte, max(0, 60-len(fl.template)))...)
		fl.establish(b)
		for name, f := range map[string][]byte{
			"new":         udp4(b, 1, "198.18.10.77", 1024, "203.0.113.11", 9),
			"established": fl.frame(7),
			"denied":      tcp4(b, 1, "198.18.10.77", 1024, "203.0.113.11", 9, func(t *layers.TCP) { t.SYN = true }),
		} {
			b.Run(fmt.Sprintf("tenants=%d/%s", tenants, name), func(b *testing.B) {
				var took []time.Duration
				buf := make([]byte, 2048)
				for b.Loop() {
					tr := NewTrial(r.view)
					var j trace.Journey
					s := Slot{Port: 1}
					s.Buf, s.Off, s.Len = buf, 256, copy(buf[256:], f)
					began := time.Now()
					if err := tr.Run(r.sh, &s, r.now, &j); err != nil {
						b.Fatal(err)
					}
					tr.End()
					took = append(took, time.Since(began))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "ns-held")
				b.ReportMetric(float64(took[len(took)*9/10].Nanoseconds()), "ns-held-p90")
			})
		}
	}
}

// frame is the packet of flow n.
func (f *flood) frame(n int) []byte {
	f.put(0, n)
	return append([]byte(nil), f.r.slots[0].Frame()...)
}

// BenchmarkDropped is a flood of frames that are dropped by their MAC already: nothing else is spent on them, so what the recorder costs shows most.
func BenchmarkDropped(b *testing.B) {
	f := newFlood(b, 1, 10)
	order := rand.New(rand.NewPCG(1, 2)).Perm(1 << 20)
	at := 0
	b.ReportAllocs()
	for b.Loop() {
		for i := range Burst {
			f.put(i, order[at])
			f.r.slots[i].Buf[256+5] ^= 1
			if at++; at == len(order) {
				at = 0
			}
		}
		f.r.now += 10000
		f.r.sh.Process(f.r.slots[:], f.r.now)
		f.r.sh.Meter.Publish()
	}
	for i := range f.r.slots {
		if s := &f.r.slots[i]; s.Reason != verdict.ForeignMAC {
			b.Fatalf("%s (%s)", s.Verdict, s.Reason)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/Burst, "ns/packet")
}
