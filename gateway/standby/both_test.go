package standby

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"demarc/gateway/conntrack"
	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/stream"
)

// serves makes a node the owner of a group, with a set of streams to another node's standby end, over pipes.
func (f *far) serves(group uint8, epoch uint64, name string, to *far) *bothEnds {
	f.t.Helper()
	b := &bothEnds{t: f.t, from: f, to: to, group: group}
	life, key := rand.Uint64()|1, rand.Uint64()
	b.set = stream.NewSet("standby", life)
	for i, w := range f.ws {
		sh := f.shards[i]
		out := replica.NewSender(pipeline.Copies{Shard: sh}, sh.Sessions.Capacity(), uint8(i), uint8(len(f.ws)), life, key, replica.Limits{Digest: 50 * time.Millisecond})
		if err := w.CopyTo(f.t.Context(), b.set.Add(out, w.Call)); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, w := range f.ws {
		if err := w.Do(f.t.Context(), func(sh *pipeline.Shard) { sh.TakeOver(group) }); err != nil {
			f.t.Fatal(err)
		}
	}
	f.until.Write(group, epoch, 1<<63)
	to.sb.Serving(group, epoch, false)
	if err := b.set.Own(f.t.Context(), group, epoch); err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		b.set.Run(ctx, func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			b.mu.Lock()
			b.conn = there
			b.mu.Unlock()
			wg.Go(func() { _ = to.sb.Serve(name, there) })
			return here, nil
		})
	})
	f.t.Cleanup(func() { cancel(); b.cut(); wg.Wait() })
	return b
}

// bothEnds is an owner's workers, the streams of them, and a standby's workers.
type bothEnds struct {
	t        testing.TB
	from, to *far
	group    uint8
	set      *stream.Set
	mu       sync.Mutex
	conn     net.Conn
}

func (b *bothEnds) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		_ = b.conn.Close()
	}
}

func (b *bothEnds) copy() stream.Copy { return b.set.Copy(int64(b.from.clock.Now()), b.group) }

// equal waits until the copy is whole and both tables have the same of the group, by count and digest. It returns how many.
func (b *bothEnds) equal(what string) (n int) {
	b.t.Helper()
	eventually(b.t, what+": the copy is whole", func() bool { c := b.copy(); return c.Whole && c.Lag == 0 })
	var words string
	eventually(b.t, what+": both have the same", func() bool {
		sa, na := b.from.digest(b.group)
		sb, nb := b.to.digest(b.group)
		n, words = na, fmt.Sprintf("the owner has %d sessions, the standby %d", na, nb)
		return sa == sb && na == nb
	})
	b.t.Logf("%s: %s", what, words)
	return n
}

// digest is the sum and number of what a node has of a group, tenants by name.
func (f *far) digest(group uint8) (sum uint64, n int) {
	f.t.Helper()
	for _, w := range f.ws {
		if err := w.Do(context.Background(), func(sh *pipeline.Shard) {
			v := sh.View()
			sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
				if g := v.GroupOf(se.Tenant); g != nil && g.ID == group {
					var r replica.Record
					pipeline.Copies{Shard: sh}.Fill(slot, &r)
					sum += r.Hash(3, replica.HashName(3, replica.NameTenant, v.Tenant(se.Tenant).Name))
					n++
				}
				return true
			})
		}); err != nil {
			f.t.Fatal(err)
		}
	}
	return sum, n
}

// send has a node judge the first packets of UDP conversations from to to of alpha (vlan 0) or beta (20).
func (f *far) send(vlan uint16, from, to int) {
	f.t.Helper()
	f.process(f.frames(vlan, from, to))
}

func (f *far) frames(vlan uint16, from, to int) (frames [][]byte) {
	f.t.Helper()
	net := byte(10)
	if vlan == 20 {
		net = 20
	}
	for i := from; i < to; i++ {
		eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 9}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
		all := []gopacket.SerializableLayer{eth}
		if vlan != 0 {
			eth.EthernetType = layers.EthernetTypeDot1Q
			all = append(all, &layers.Dot1Q{VLANIdentifier: vlan, Type: layers.EthernetTypeIPv4})
		}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: []byte{198, 18, net, byte(20 + i%50)}, DstIP: []byte{203, 0, 113, byte(10 + i/50%100)}}
		udp := &layers.UDP{SrcPort: layers.UDPPort(1024 + i), DstPort: 53}
		_ = udp.SetNetworkLayerForChecksum(ip)
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(all, ip, udp, gopacket.Payload("payload"))...); err != nil {
			f.t.Fatal(err)
		}
		frames = append(frames, buf.Bytes())
	}
	return frames
}

// process has each worker judge frames that came in on the tenants' port, and take those that are at home there.
func (f *far) process(frames [][]byte) {
	f.t.Helper()
	room := make([]byte, pipeline.Burst*2048)
	for _, w := range f.ws {
		for at := 0; at < len(frames); at += pipeline.Burst {
			if err := w.Do(context.Background(), func(sh *pipeline.Shard) {
				var slots [pipeline.Burst]pipeline.Slot
				part := frames[at:min(at+pipeline.Burst, len(frames))]
				for k, fr := range part {
					slots[k].Buf, slots[k].Off, slots[k].Len, slots[k].Port = room[k*2048:(k+1)*2048], 256, len(fr), 1
					copy(slots[k].Buf[256:], fr)
				}
				sh.Process(slots[:len(part)], f.clock.Now())
			}); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// cut ends some sessions of a node, as an operator's cut does.
func (f *far) cut(match func(*conntrack.Session) bool) {
	for _, w := range f.ws {
		if err := w.Do(context.Background(), func(sh *pipeline.Shard) { sh.Cut(match) }); err != nil {
			f.t.Fatal(err)
		}
	}
}

const betaOnly = `
[[group]]
name = "west"
id = 2
nodes = ["b", "a"]
tenants = ["beta"]
[[group.address]]
interface = "backbone"
addresses = ["203.0.113.251/24"]
`

// TestBothEnds: what packets do to an owner's tables is in the tables of a standby with more workers, or fewer: after a copy, after changes, over connections that break, and when a
// policy brings a further tenant with its sessions into the group.
func TestBothEnds(t *testing.T) {
	for _, workers := range [][2]int{{1, 2}, {2, 1}, {2, 3}} {
		t.Run(fmt.Sprintf("%d to %d workers", workers[0], workers[1]), func(t *testing.T) {
			first := policyText + betaText + groupText(`"alpha"`)
			a, b := newFar(t, workers[0], 8192, first), newFar(t, workers[1], 8192, first)
			both := a.serves(1, 5, "a", b)
			a.send(0, 0, 1000)
			a.send(20, 0, 300)
			if n := both.equal("a first copy"); n != 1000 {
				t.Fatalf("%d sessions, want 1000: nothing was tested", n)
			}
			for round := range 4 {
				both.cut()
				a.send(0, 1000+200*round, 1200+200*round)
				a.cut(func(se *conntrack.Session) bool { return se.OrigSPort%7 == uint16(round) && se.Tenant == 1 })
				both.equal(fmt.Sprintf("cut %d times", round+1))
			}
			if _, of := b.sessions(); of["beta"] != 0 {
				t.Fatalf("the standby has %d sessions of a tenant that is in no group", of["beta"])
			}
			second := policyText + betaText + groupText(`"alpha", "beta"`)
			a.publish(a.compile(second)) // the owner first
			a.send(0, 3000, 3100)
			b.publish(b.compile(second))
			alpha := both.equal("both have the second policy")
			if _, of := b.sessions(); of["beta"] != 300 || of["alpha"]+300 != alpha {
				t.Errorf("the standby has %v: 300 sessions of beta are in the group now", of)
			}
			a.publish(a.compile(first))
			b.publish(b.compile(first))
			eventually(t, "what has left the group is copied no more", func() bool { _, of := b.sessions(); return of["beta"] == 0 })
			both.equal("both have the first policy again")
		})
	}
}

// TestCrosswise: two nodes own a group each and are standby for the other's; what happens to the one's says nothing about the other's.
func TestCrosswise(t *testing.T) {
	policy := policyText + betaText + groupText(`"alpha"`) + betaOnly
	a, b := newFar(t, 2, 8192, policy), newFar(t, 1, 8192, policy)
	a.sb.Serving(1, 5, true)
	b.sb.Serving(2, 8, true)
	east, west := a.serves(1, 5, "a", b), b.serves(2, 8, "b", a)
	dice := rand.New(rand.NewPCG(1, 2))
	sent := 0
	for range 5 {
		a.send(0, sent, sent+300)
		b.send(20, sent, sent+200)
		sent += 300
		for _, f := range []*far{a, b} {
			tenant := f.view.Load().TenantByName(map[*far]string{a: "alpha", b: "beta"}[f]).ID
			f.cut(func(se *conntrack.Session) bool { return se.Tenant == tenant && dice.IntN(3) == 0 })
		}
		if n := east.equal("east"); n < 100 {
			t.Fatalf("%d sessions: nothing was tested", n)
		}
		if n := west.equal("west"); n < 100 {
			t.Fatalf("%d sessions: nothing was tested", n)
		}
	}
	for name, c := range map[string]*bothEnds{"east": east, "west": west} {
		if got := c.copy(); got.Missing > 0 || !got.Whole {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestSmallerStandby: an owner is told that tables are too small at the other end, in words, and when there is room again the copy is whole by itself.
func TestSmallerStandby(t *testing.T) {
	policy := policyText + groupText(`"alpha"`)
	a, b := newFar(t, 1, 8192, policy), newFar(t, 1, 1024, policy)
	both := a.serves(1, 5, "a", b)
	a.send(0, 0, 1500)
	eventually(t, "the copy has no room", func() bool {
		c := both.copy()
		return !c.Whole && c.Missing > 400 && strings.Contains(c.Words, "its tables have no room")
	})
	a.cut(func(se *conntrack.Session) bool { return se.OrigSPort%3 != 0 })
	if n := both.equal("there is room again"); n != 500 {
		t.Errorf("%d sessions, want 500", n)
	}
}

// BenchmarkEvents is sessions that begin by a packet and end by a cut, from an owner's worker to a standby's tables: how many of these a second come over while both ends share the
// machine, and what the lag is at 50,000 a second.
func BenchmarkEvents(b *testing.B) {
	const flows = 40000
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8)) // as Gateway.Run does: a worker that sleeps keeps its processor from others for up to a millisecond
	policy := policyText + groupText(`"alpha"`)
	from, to := newFar(b, 1, 1<<17, policy), newFar(b, 1, 1<<17, policy)
	both := from.serves(1, 5, "a", to)
	all := from.frames(0, 0, flows)
	there := func() {
		eventually(b, "it is over there", func() bool { c := both.copy(); return c.Whole && c.Lag == 0 })
	}
	there()
	b.Run("rate", func(b *testing.B) {
		var spent, made time.Duration
		cpu := usedCPU(b)
		n := 0
		for b.Loop() {
			began := time.Now()
			from.process(all)
			made += time.Since(began)
			from.cut(func(*conntrack.Session) bool { return true })
			there()
			spent += time.Since(began)
			n += 2 * flows
		}
		b.ReportMetric(float64(n)/spent.Seconds(), "events/s")
		b.ReportMetric(float64(usedCPU(b)-cpu)/float64(n), "cpu-ns/event")
		b.ReportMetric(float64(n/2)/made.Seconds(), "new/s")
	})
	b.Run("lag", func(b *testing.B) {
		var lags []time.Duration
		for b.Loop() {
			began := time.Now()
			for i := 0; i+50 <= flows; i += 50 {
				from.process(all[i : i+50])
				lags = append(lags, both.copy().Lag)
				time.Sleep(time.Until(began.Add(time.Duration(i/50+1) * time.Millisecond)))
			}
			b.StopTimer()
			from.cut(func(*conntrack.Session) bool { return true })
			there()
			b.StartTimer()
		}
		slices.Sort(lags)
		b.ReportMetric(float64(lags[len(lags)/2].Microseconds())/1e3, "lag-p50-ms")
		b.ReportMetric(float64(lags[len(lags)*99/100].Microseconds())/1e3, "lag-p99-ms")
		b.ReportMetric(50*float64(len(lags))/b.Elapsed().Seconds(), "events/s")
	})
}

// usedCPU is what this process has used of CPUs: on a machine that others use too it says more than time does.
func usedCPU(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
