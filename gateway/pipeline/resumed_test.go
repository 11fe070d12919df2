package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

func alone(*snapshot.Group) bool { return true }

// leave is what a world's shards leave behind, as frames.
func leave(w *world, lone func(*snapshot.Group) bool) (frames [][]byte) {
	for i, sh := range w.shards {
		l := sh.Leaves(w.now, lone)
		p := replica.NewPacker(l, uint8(i), 7)
		take := func(all bool) {
			for f := p.Take(all); f != nil; f = p.Take(all) {
				frames = append(frames, append([]byte(nil), f...))
			}
		}
		for slot := range l.Slots() {
			if l.Has(slot) {
				p.Add(slot)
				take(false)
			}
		}
		take(true)
	}
	return frames
}

// resume has a world go on from them, after so long.
func resume(t testing.TB, w *world, frames [][]byte, past time.Duration, lone func(*snapshot.Group) bool) (*replica.Unpacker, *Resumed) {
	t.Helper()
	r := Resume(w.shards, w.view, w.now, lone)
	u := replica.NewUnpacker(r, uint32(past/time.Millisecond))
	for _, f := range frames {
		if err := u.Frame(f); err != nil {
			t.Fatal(err)
		}
	}
	if !r.End() {
		t.Error("ports of what is over do not rest")
	}
	return u, r
}

// held is the sum of what sessions stand for, and how many sessions, mappings and resting ports there are.
func (w *world) holds() (sum uint64, sessions, mappings, rest int) {
	use := make([]nat.Use, w.space.Addrs())
	for _, sh := range w.shards {
		sh.NAT.Use(use)
		mappings += sh.NAT.Len()
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
			var r replica.Record
			Copies{sh}.Fill(slot, &r)
			s := &r.Session
			sum += r.Hash(3, replica.HashName(3, replica.NameTenant, w.view.Tenant(se.Tenant).Name)) + s.Bytes[0] + s.Bytes[1]<<20 + uint64(s.State)<<40 + uint64(s.End[0])
			sessions++
			return true
		})
	}
	for _, u := range use {
		rest += int(u.Held)
	}
	return sum, sessions, mappings, rest
}

// TestResumed: what one process leaves the next one has, with more workers or fewer and other seeds: each session with its state, counters and binding, and each port that rests. Answers reach
// the same inside hosts, what hosts send again leaves from the same ports, and sessions end when they would have.
func TestResumed(t *testing.T) {
	for _, workers := range [][2]int{{1, 2}, {2, 3}, {3, 1}, {2, 2}} {
		t.Run(fmt.Sprintf("%d to %d workers", workers[0], workers[1]), func(t *testing.T) {
			dice := rand.New(rand.NewPCG(uint64(workers[0]), uint64(workers[1])))
			c := newCopying(t, workers[0], workers[1])
			answers := c.open(dice, 1400)
			for _, f := range answers[:len(answers)/2] {
				c.a.arrive(arrival{worker: 0, port: 0, frame: f})
			}
			for _, sh := range c.a.shards {
				sh.Cut(func(se *conntrack.Session) bool { return se.Proto == flow.TCP && dice.IntN(2) == 0 })
			}
			for i, sh := range c.b.shards { // another process: nothing is where it was
				sh.rnd = uint64(i) * 77
			}
			c.b.view.HomeSeed = 99
			const past = 3 * time.Second
			u, _ := resume(t, c.b, leave(c.a, alone), past, alone)
			sa, na, ma, ra := c.a.holds()
			sb, nb, mb, rb := c.b.holds()
			if sa != sb || na != nb || ma != mb || ra != rb {
				t.Fatalf("%d sessions with %d mappings, %d ports rest; the next process has %d with %d, %d rest; equal: %v; %v", na, ma, ra, nb, mb, rb, sa == sb, u.Sessions)
			}
			if na < 600 || ma < 300 || ra < 50 || len(answers) < 100 {
				t.Fatalf("%d sessions, %d mappings, %d ports rest, %d answers: nothing was tested", na, ma, ra, len(answers))
			}
			c.b.now = c.a.now + uint64(past)
			for _, sh := range c.b.shards { // what its groups have it serves once it has their leases
				sh.setNow(c.b.now)
				sh.TakeOver(1)
				sh.TakeOver(200)
			}
			for _, f := range answers {
				x, y := c.a.arrive(arrival{worker: 0, port: 0, frame: f}), c.b.arrive(arrival{worker: 0, port: 0, frame: f})
				if ends2(t, x) != ends2(t, y) {
					t.Fatalf("an answer goes to %s, and after the restart to %s", ends2(t, x), ends2(t, y))
				}
			}
			for _, x := range c.sent {
				if was, is := ends2(t, c.a.arrive(x)), ends2(t, c.b.arrive(x)); was != is {
					t.Fatalf("a packet leaves as %s, and after the restart as %s", was, is)
				}
			}
			for _, sh := range c.b.shards {
				for !sh.Settled() {
					sh.Rejudge(c.b.now, 1<<14)
				}
			}
			c.b.wait(3 * time.Hour)
			if _, n, m, rest := c.b.holds(); n != 0 || m != 0 || rest != 0 {
				t.Errorf("hours later %d sessions, %d mappings and %d resting ports are left", n, m, rest)
			}
		})
	}
}

// BenchmarkResume is what a process leaves and the next one takes up, with a NAT mapping each: all of it lies between two processes that forward.
func BenchmarkResume(b *testing.B) {
	for _, sessions := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(sessions), func(b *testing.B) {
			policy := strings.Replace(testPolicy, `pool = ["192.0.2.16"]`, `pool = ["192.0.2.16", "192.0.2.128/27"]`, 1)
			node, err := configs.DecodeNode("node.toml", []byte(testNode))
			if err != nil {
				b.Fatal(err)
			}
			const workers = 2
			node.Workers.Count = workers
			tables := func() (out []*Shard) {
				space := nat.NewSpace(64)
				v := compileView(b, node, space, nil, policy)
				each := sessions * 11 / 10 / workers
				for w := range workers {
					sh, err := NewShard(Config{Worker: w, SessionMem: tableMem(b, conntrack.Bytes(each)), Sessions: each, NATMem: tableMem(b, nat.Bytes(each)), Mappings: each,
						PermitMem: make([]byte, nat.PermitBytes(each)), Tenants: snapshot.MaxTenantID(node), ShaperMax: 64, Seed: 42, Space: space, Neighbors: fib.NewNeighbors(4096, 1), Deadlines: always()})
					if err != nil {
						b.Fatal(err)
					}
					sh.SetView(v)
					sh.setNow(1e12)
					out = append(out, sh)
				}
				return out
			}
			from := tables()
			fill := &Copied{Shards: from}
			v := from[0].view
			alpha := v.TenantByName("alpha").ID
			for i := range sessions {
				r := replica.Record{Kind: replica.KindSession, Tenant: uint16(alpha), Revision: v.Text}
				s := &r.Session
				s.OrigSrc, s.OrigDst = flow.Addr{198, 18, 10, byte(20 + i%200)}, flow.Addr{203, 0, 113, byte(1 + i%250)}
				s.XlatSrc, s.XlatDst = [4]byte{192, 0, 2, byte(128 + i/50000)}, [4]byte{203, 0, 113, byte(1 + i%250)}
				s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort, s.Proto, s.State = uint16(1024+i/200), 443, uint16(1024+i%50000), 443, flow.TCP, conntrack.TCPEstablished
				s.Flags, s.Left, s.Packets, s.Bytes = replica.FlagToBackbone|replica.FlagNAT|replica.FlagReplied|replica.FlagMapped, 7200000, [2]uint32{1000, 2000}, [2]uint64{1e6, 3e6}
				s.Hop = [2]uint16{1, 2}
				se := entered(&r)
				if _, out := from[fill.home(v, &se)].enterNew(&r); out != replica.Taken {
					b.Fatal(i, out)
				}
			}
			var wrote, took time.Duration
			var bytes int
			for b.Loop() {
				b.StopTimer()
				to := tables()
				b.StartTimer()
				start := time.Now()
				frames := leave(&world{shards: from, now: 1e12}, alone)
				wrote += time.Since(start)
				start = time.Now()
				u := replica.NewUnpacker(Resume(to, to[0].view, 1e12, alone), 0)
				for _, f := range frames {
					bytes += len(f)
					if err := u.Frame(f); err != nil {
						b.Fatal(err)
					}
				}
				took += time.Since(start)
				if u.Sessions[replica.Taken] != uint64(sessions) {
					b.Fatal(u.Sessions)
				}
			}
			n := float64(b.N)
			b.ReportMetric(wrote.Seconds()*1e3/n, "ms/written")
			b.ReportMetric(took.Seconds()*1e3/n, "ms/taken")
			b.ReportMetric(float64(bytes)/n/float64(sessions), "bytes/session")
		})
	}
}

// TestResumedUnderAnotherPolicy: what the policy of the next process denies ends without a packet, also under a number that says the same; what it allows goes on, and what is of a tenant or of a
// public address that it does not have is refused.
func TestResumedUnderAnotherPolicy(t *testing.T) {
	a := newWorld(t, 2, testPolicy)
	port := uint16(0)
	for i := range uint16(60) {
		w := a.out(fmt.Sprintf("198.18.10.%d", 20+i%30), 5000+i, "203.0.113.30", 53)
		a.out(fmt.Sprintf("198.18.10.%d", 20+i%30), 7000+i, "203.0.113.30", 123)
		if i == 0 {
			port = w.sport
		}
	}
	frames := leave(a, alone)
	const rule = "[[tenant.rule]]\nname = \"no-smtp\"\n"
	for _, c := range []struct {
		what, policy string
		judge        bool
		taken, left  int
	}{
		{"the same", testPolicy, false, 120, 120},
		{"judged, and allowed", testPolicy, true, 120, 120},
		{"judged, and denied", strings.Replace(testPolicy, rule, "[[tenant.rule]]\nname = \"no-dns\"\ndirection = \"out\"\naction = \"deny\"\nservice = [\"udp/53\"]\n"+rule, 1), true, 120, 60},
		{"without the tenant's address", strings.Replace(testPolicy, `"192.0.2.16"]`, `"192.0.2.17"]`, 1), true, 0, 0},
		{"without the tenant", strings.Replace(testPolicy, `name = "alpha"
interfaces`, `name = "alfa"
interfaces`, 1), true, 0, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			policy := c.policy
			if c.taken == 0 && strings.Contains(policy, "192.0.2.17") {
				policy = strings.Replace(policy, "public = \"192.0.2.16\"", "public = \"192.0.2.17\"", 1)
			}
			b := newWorld(t, 1, policy)
			b.now = a.now
			r := Resume(b.shards, b.view, b.now, alone)
			r.Judge = c.judge
			u := replica.NewUnpacker(r, 0)
			for _, f := range frames {
				if err := u.Frame(f); err != nil {
					t.Fatal(err)
				}
			}
			if u.Sessions[replica.Taken] != uint64(c.taken) || u.Sessions[replica.Taken]+u.Sessions[replica.NoTenant] != 120 {
				t.Errorf("of 120 sessions: %v, want %d taken", u.Sessions, c.taken)
			}
			for _, sh := range b.shards {
				for !sh.Settled() {
					sh.Rejudge(b.now, 64)
				}
			}
			if _, n, _, _ := b.holds(); n != c.left {
				t.Errorf("%d sessions are left, want %d", n, c.left)
			}
			if c.left == 120 {
				b.reaches(b.in("203.0.113.30", 53, "192.0.2.16", port), "198.18.10.20", 5000)
			}
		})
	}
}

// TestWhatRestsWaitsForItsGroup: ports that rest for another node's group are nobody's matter here and are let go, but not those that the process before has left, as long as nobody else is known to have had the group since:
// they are there when this node takes it over.
func TestWhatRestsWaitsForItsGroup(t *testing.T) {
	c := newCopying(t, 2, 2)
	c.open(rand.New(rand.NewPCG(3, 1)), 600)
	for _, sh := range c.a.shards {
		sh.Cut(func(se *conntrack.Session) bool { return se.Proto == flow.TCP })
	}
	frames := leave(c.a, alone)
	for _, kept := range []bool{true, false} {
		w := newWorld(t, 2, testPolicy+testGroups)
		w.follows()
		w.now = c.a.now
		resume(t, w, frames, 0, alone)
		_, _, _, before := w.holds()
		x := NewCommon(w.space, w.shards, 64, 5)
		x.Renew(w.view, int64(w.now))
		for _, g := range []uint8{1, 200} {
			if kept {
				x.Keep(g, 6)
			}
			x.GiveUp(g, 6, int64(w.now)) // whose the term is that the process before had
		}
		for range 200 { // two seconds
			w.now += 1e7
			for _, sh := range w.shards {
				sh.Maintain(w.now, 4096)
			}
			x.Turn(int64(w.now))
		}
		_, _, _, rest := w.holds()
		if before < 50 || kept && rest != before || !kept && rest >= before {
			t.Errorf("kept %v: %d ports rest, %d did at first", kept, rest, before)
		}
		for _, g := range []uint8{1, 200} {
			x.TakeOver(g, 7, Known{All: true, Here: true}, int64(w.now), nil)
			for _, sh := range w.shards {
				sh.TakeOver(g)
			}
		}
		for _, sh := range w.shards {
			sh.Maintain(w.now, 4096)
		}
		if _, _, _, n := w.holds(); kept && n != before {
			t.Errorf("%d ports rest behind the takeover, want %d", n, before)
		}
		x.GiveUp(1, 99, int64(w.now))
		x.Keep(1, 9)
		if x.GiveUp(1, 99, int64(w.now)); x.groups[1].kept > 0 {
			t.Error("another node has the group, and what rested is kept")
		}
	}
}

// TestWhatIsOverRests: a session whose time ran out while no process was there is not entered, and its public port rests as it would have, unless something that lives has the same mapping: by whatever worker, wherever it
// stands in the file.
func TestWhatIsOverRests(t *testing.T) {
	some, all := false, false
	for _, past := range []time.Duration{0, 10 * time.Second, 45 * time.Second, 4 * time.Minute, 20 * time.Minute} {
		c := newCopying(t, 2, 3)
		c.b.view.HomeSeed = 99
		answers := c.open(rand.New(rand.NewPCG(4, 1)), 600)
		for i := range 400 { // many far ends of few inside ports, some of which answer
			far, port := fmt.Sprintf("203.0.113.%d", 50+i%100), uint16(53+i/100)
			for _, h := range c.a.arrive(arrival{worker: 0, port: 1, frame: udp4(t, 1, fmt.Sprintf("198.18.10.%d", 20+i%8), uint16(6000+i%5), far, port)}) {
				if h.verdict == verdict.Send {
					x := readWire(t, h.frame)
					answers = append(answers, udp4(t, 0, far, port, x.src.String(), x.sport))
				}
			}
		}
		for i, f := range answers {
			if i%2 == 0 {
				c.a.arrive(arrival{worker: 0, port: 0, frame: f})
			}
		}
		_, sessions, mappings, _ := c.a.holds() // nothing rests
		frames := leave(c.a, alone)
		u, _ := resume(t, c.b, frames, past, alone)
		_, n, m, r := c.b.holds()
		if n != sessions-int(u.Over) || m+r != mappings || len(frames) < 4 || sessions < mappings+100 {
			t.Errorf("after %s: %d sessions with %d mappings in %d frames; behind it %d and %d, %d ports rest and %d are over: %v", past, sessions, mappings, len(frames), n, m, r, u.Over, u.Sessions)
		}
		some, all = some || n > 0 && r > 0, all || n == 0 && r > 300
		for o, k := range u.Others {
			if k > 0 && replica.Outcome(o) != replica.Taken {
				t.Errorf("after %s %d records are refused: %s", past, k, replica.Outcome(o).Key())
			}
		}
	}
	if !some || !all {
		t.Errorf("some were over at one time: %v; and all at another: %v", some, all)
	}
}
