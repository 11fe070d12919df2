package pipeline

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// copying is two nodes with workers of their own, and the streams from one to the other.
type copying struct {
	t    testing.TB
	a, b *world
	out  []*replica.Sender
	in   *replica.Receiver
	sent []arrival // of UDP from inside: what may come again
}

func newCopying(t testing.TB, workersA, workersB int) *copying {
	c := &copying{t: t, a: newWorld(t, workersA, testPolicy+testGroups), b: newWorld(t, workersB, testPolicy+testGroups)}
	c.b.follows()
	for i, sh := range c.a.shards {
		s := replica.NewSender(Copies{sh}, sh.Sessions.Capacity(), uint8(i), uint8(workersA), 7, 9, replica.Limits{})
		sh.CopyTo(s)
		s.Own(1, 1)
		s.Own(200, 1)
		c.out = append(c.out, s)
	}
	c.in = replica.NewReceiver(&Copied{Shards: c.b.shards}, 1<<16)
	c.in.Follow(1, 1)
	c.in.Follow(200, 1)
	for i, s := range c.out {
		hello := c.in.Hello("a", uint8(i))
		s.Link(0, &hello)
	}
	return c
}

// carry brings over what has changed, and a digest behind it.
func (c *copying) carry() {
	for _, sh := range c.b.shards {
		sh.setNow(c.b.now)
	}
	for i, s := range c.out {
		c.a.shards[i].setNow(c.a.now)
		for range 3 {
			c.a.now += 2e9
			s.Drain(int64(c.a.now), 1<<20)
			for f := s.Take(); f != nil; f = s.Take() {
				a, err := c.in.Frame(int64(c.a.now), "a", f)
				if err != nil {
					c.t.Fatal(err)
				}
				s.Answer(int64(c.a.now), &a)
			}
		}
	}
}

// digest is the sum and number of what shards have of groups, tenants by name.
func digest(w *world) (sum uint64, n int) {
	for _, sh := range w.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
			if w.view.GroupOf(se.Tenant) == nil {
				return true
			}
			var r replica.Record
			Copies{sh}.Fill(slot, &r)
			sum += r.Hash(3, replica.HashName(3, replica.NameTenant, w.view.Tenant(se.Tenant).Name))
			n++
			return true
		})
	}
	return sum, n
}

func (c *copying) equal() int {
	c.t.Helper()
	for _, g := range []uint8{1, 200} {
		if ok, why := c.in.Whole(g); !ok {
			c.t.Fatalf("group %d: %s", g, why)
		}
	}
	sa, na := digest(c.a)
	sb, nb := digest(c.b)
	if sa != sb || na != nb || c.in.Stats.Mismatches != 0 {
		c.t.Fatalf("the owner has %d sessions, the standby %d; equal digests: %v; %d differed on the way", na, nb, sa == sb, c.in.Stats.Mismatches)
	}
	ma, mb := 0, 0
	for _, w := range []*world{c.a, c.b} {
		for _, sh := range w.shards {
			sh.NAT.Each(0, sh.NAT.Capacity(), func(_ uint32, m *nat.Mapping) bool {
				if t, _, _ := m.Inside(); w.view.GroupOf(t) != nil {
					if w == c.a {
						ma++
					} else {
						mb++
					}
				}
				return true
			})
		}
	}
	if ma != mb {
		c.t.Fatalf("the owner has %d mappings, the standby %d", ma, mb)
	}
	return na
}

// open begins n conversations of tenants in groups, and of one in none: UDP, TCP, and from outside to a forwarded port. Some can be answered.
func (c *copying) open(dice *rand.Rand, n int) (answers [][]byte) {
	for i := range n {
		src, port, dst := fmt.Sprintf("198.18.10.%d", 20+dice.IntN(60)), 1, fmt.Sprintf("203.0.113.%d", 30+dice.IntN(100))
		sport := uint16(1024 + dice.IntN(50000))
		var f []byte
		switch i % 7 {
		case 0, 1:
			f = udp4(c.t, port, src, sport, dst, 53)
		case 2, 3:
			f = tcp4(c.t, port, src, sport, dst, 443, func(t *layers.TCP) { t.SYN = true; t.Seq = 1000 })
		case 4:
			f = udp4(c.t, 2, fmt.Sprintf("198.18.30.%d", 20+dice.IntN(60)), sport, dst, 53)
			port = 2
		case 5:
			f = tcp4(c.t, 0, dst, sport, "192.0.2.16", 8080, func(t *layers.TCP) { t.SYN = true; t.Seq = 1000 })
			port = 0
		case 6:
			f = tagged(udp4(c.t, port, src, sport, dst, 53), 20) // beta, which every node serves
		}
		for _, h := range c.a.arrive(arrival{worker: dice.IntN(len(c.a.shards)), port: port, frame: f}) {
			if h.verdict != verdict.Send {
				continue
			}
			x := readWire(c.t, h.frame)
			if i%7 < 2 || i%7 == 4 {
				c.sent = append(c.sent, arrival{port: port, frame: f})
			}
			if i%7 < 2 && dice.IntN(2) == 0 {
				answers = append(answers, udp4(c.t, 0, dst, 53, x.src.String(), x.sport))
			}
		}
	}
	return answers
}

// TestCopiesMeetTheirNeighbours: a standby has those asked for that packets of the sessions it has copies of go to, at both ends, but not those it knows.
func TestCopiesMeetTheirNeighbours(t *testing.T) {
	c := newCopying(t, 1, 2)
	wanted := map[string]int{}
	none := fib.NewNeighbors(64, 1)
	for _, sh := range c.b.shards {
		sh.Neighbors = none
		sh.Want = func(iface uint16, by flow.TenantID, family uint8, hop *flow.Addr) {
			wanted[hop.Netip(family).String()]++
		}
	}
	c.open(rand.New(rand.NewPCG(3, 4)), 200)
	c.carry()
	c.equal()
	missing := 0
	for _, sh := range c.a.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			if c.a.view.GroupOf(se.Tenant) == nil {
				return true
			}
			for dir := range 2 {
				h, to := c.b.view.Hop(se.NextHop[dir]), se.Key(1-dir)
				if h.OnLink && wanted[to.Src.Netip(to.Family).String()] == 0 {
					missing++
				}
			}
			return true
		})
	}
	if missing > 0 || len(wanted) < 10 {
		t.Errorf("%d ends of sessions are not asked for; asked for are %d", missing, len(wanted))
	}
	clear(wanted) // all are known now, as far as this node's world goes
	for _, sh := range c.b.shards {
		sh.Neighbors = c.b.neigh
	}
	c.open(rand.New(rand.NewPCG(3, 5)), 200)
	c.carry()
	if c.equal(); len(wanted) != 0 {
		t.Errorf("who is known is asked for: %v", wanted)
	}
}

// TestCopiesAreEqual: what one node's tables have comes into another's that has more workers, or fewer, and both have the same by count, digest and mappings: after
// a copy, after changes, after deletes. An answer that comes to the other node reaches the same inside host.
func TestCopiesAreEqual(t *testing.T) {
	for _, workers := range [][2]int{{1, 2}, {2, 3}, {3, 1}, {2, 2}} {
		t.Run(fmt.Sprintf("%d to %d workers", workers[0], workers[1]), func(t *testing.T) {
			dice := rand.New(rand.NewPCG(uint64(workers[0]), uint64(workers[1])))
			c := newCopying(t, workers[0], workers[1])
			answers := c.open(dice, 700)
			c.carry()
			first := c.equal()
			answers = append(answers, c.open(dice, 700)...)
			for _, f := range answers[:len(answers)/2] {
				c.a.arrive(arrival{worker: 0, port: 0, frame: f})
			}
			c.carry()
			second := c.equal()
			if first < 400 || second < first+400 || len(answers) < 100 {
				t.Fatalf("%d, then %d sessions, %d answers: nothing was tested", first, second, len(answers))
			}
			c.b.takesOver()
			for _, f := range answers {
				if x, y := c.a.arrive(arrival{worker: 0, port: 0, frame: f}), c.b.arrive(arrival{worker: 0, port: 0, frame: f}); ends2(t, x) != ends2(t, y) {
					t.Fatalf("an answer goes to %s at the owner, and to %s at the standby", ends2(t, x), ends2(t, y))
				}
			}
			for _, x := range c.sent { // and what a host sends again leaves from the same public port
				if x, y := c.a.arrive(x), c.b.arrive(x); ends2(t, x) != ends2(t, y) {
					t.Fatalf("a packet leaves as %s at the owner, and as %s at the standby", ends2(t, x), ends2(t, y))
				}
			}
			c.b.follows()
			for _, sh := range c.a.shards {
				sh.Cut(func(*conntrack.Session) bool { return dice.IntN(2) == 0 })
			}
			c.carry()
			third := c.equal()
			c.open(dice, 200)
			c.carry()
			if c.equal() <= third || third > second*2/3 {
				t.Errorf("%d sessions, %d after half of them were cut", second, third)
			}
		})
	}
}

// enterNew enters what is in nobody's way.
func (sh *Shard) enterNew(r *replica.Record) (slot uint32, out replica.Outcome) {
	var e entering
	new(Copied).comes(sh, &replica.Op{At: replica.NoPlace, Rec: *r}, &e)
	return sh.enter(&e)
}

// copyTable is a shard with room for so many sessions whose memory was made ahead, as a node's is.
func copyTable(b *testing.B, sessions int) *Shard {
	node, err := configs.DecodeNode("node.toml", []byte(testNode))
	if err != nil {
		b.Fatal(err)
	}
	made := func(n int) []byte {
		mem := tableMem(b, n)
		for i := 0; i < len(mem); i += 4096 {
			mem[i] = 0
		}
		return mem
	}
	space := nat.NewSpace(16)
	v := compileView(b, node, space, nil, testPolicy+testGroups)
	sh, err := NewShard(Config{SessionMem: made(conntrack.Bytes(sessions)), Sessions: sessions, NATMem: made(nat.Bytes(sessions)), Mappings: sessions,
		PermitMem: make([]byte, nat.PermitBytes(sessions)), Tenants: snapshot.MaxTenantID(node), ShaperMax: 64, Seed: 42, Space: space, Neighbors: fib.NewNeighbors(4096, 1), Deadlines: always()})
	if err != nil {
		b.Fatal(err)
	}
	sh.SetView(v)
	sh.setNow(1e12)
	return sh
}

// copyFill enters so many sessions of alpha.
func copyFill(b *testing.B, sh *Shard, n int) {
	alpha := sh.view.TenantByName("alpha")
	for i := range n {
		r := replica.Record{Kind: replica.KindSession, Tenant: uint16(alpha.ID), Revision: sh.view.Text}
		s := &r.Session
		port := uint16(1024 + i%50000)
		s.OrigSrc, s.OrigDst = flow.Addr{198, 18, 10, byte(20 + i%200)}, flow.Addr{203, 0, 113, byte(1 + i/50000)}
		s.XlatSrc, s.XlatDst = [4]byte{192, 0, 2, 16}, [4]byte{203, 0, 113, byte(1 + i/50000)}
		s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort, s.Proto, s.State = port, 443, port, 443, flow.TCP, conntrack.TCPEstablished
		s.Flags, s.Left, s.Packets, s.Bytes = replica.FlagToBackbone|replica.FlagNAT|replica.FlagReplied|replica.FlagMapped, 7200000, [2]uint32{1000, 2000}, [2]uint64{1e6, 3e6}
		if _, out := sh.enterNew(&r); out != replica.Taken {
			b.Fatal(out)
		}
	}
}

// ownTime is the processor time of this thread, which the caller keeps: others may have the processor meanwhile.
func ownTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkCopy is a copy of a whole table: what one record costs the owner's worker, and what it costs the standby.
func BenchmarkCopy(b *testing.B) {
	const sessions, made = 1 << 18, 200000
	from, to := copyTable(b, sessions), copyTable(b, sessions)
	copyFill(b, from, made)
	var wrote, took time.Duration
	var bytes, records int
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for b.Loop() {
		s := replica.NewSender(Copies{from}, sessions, 0, 1, 7, 9, replica.Limits{Window: 1 << 30})
		in := replica.NewReceiver(&Copied{Shards: []*Shard{to}}, sessions)
		s.Own(1, 1)
		s.Link(1, &replica.Answer{})
		start := ownTime(b)
		records += s.Drain(2, 10*sessions)
		wrote += ownTime(b) - start
		start = ownTime(b)
		for f := s.Take(); f != nil; f = s.Take() {
			bytes += len(f)
			if _, err := in.Frame(1, "a", f); err != nil {
				b.Fatal(err)
			}
		}
		took += ownTime(b) - start
		if ok, why := in.Whole(1); !ok || to.Sessions.Len() != made {
			b.Fatal(to.Sessions.Len(), why)
		}
		b.StopTimer()
		to.Cut(func(*conntrack.Session) bool { return true })
		to = copyTable(b, sessions) // ports rest in the old one
		b.StartTimer()
	}
	b.ReportMetric(float64(wrote.Nanoseconds())/float64(records), "ns/written")
	b.ReportMetric(float64(took.Nanoseconds())/float64(records), "ns/taken")
	b.ReportMetric(float64(bytes)/float64(records), "bytes/record")
}

// BenchmarkRefresh is what it costs a standby's worker that a session lives on: those that a batch names lie anywhere.
func BenchmarkRefresh(b *testing.B) {
	const sessions, made, batch = 1 << 18, 200000, 2048
	sh := copyTable(b, sessions)
	copyFill(b, sh, made)
	order, at := make([]replica.Place, made), 0
	for i, slot := range rand.New(rand.NewPCG(1, 2)).Perm(made) {
		order[i] = sh.place(0, uint32(slot))
	}
	ops, c, ctx := make([]replica.Op, batch), &Copied{Shards: []*Shard{sh}}, new(replica.Context)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var took time.Duration
	for b.Loop() {
		for i := range ops {
			at = (at + 1) % made
			ops[i] = replica.Op{Do: replica.Live, At: order[at]}
			ops[i].Rec.Kind = replica.KindTouch
		}
		start := ownTime(b)
		c.Do(ops, ctx)
		took += ownTime(b) - start
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N)/batch, "ns/refreshed")
}

// ends2 is where packets leave to: each end as it left.
func ends2(t testing.TB, hops []hop) (s string) {
	for _, h := range hops {
		if h.verdict == verdict.Send {
			s += readWire(t, h.frame).String() + " "
		}
	}
	if s == "" {
		s = "nobody"
	}
	return s
}
