package beat

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/cluster/failover"
)

// between is a network between two members: whoever sends to its address reaches the one behind it, or does not.
type between struct {
	conn *net.UDPConn
	to   atomic.Pointer[netip.AddrPort]
	mu   sync.Mutex
	do   func(b []byte) [][]byte // mu: what becomes of a datagram; nil = it arrives
	seen [][]byte                // mu
}

func network(t testing.TB) *between {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	n := &between{conn: c}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			size, _, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			got := bytes.Clone(b[:size])
			n.seen = append(n.seen, got)
			out := [][]byte{got}
			if n.do != nil {
				out = n.do(got)
			}
			n.mu.Unlock()
			for _, o := range out {
				n.inject(o)
			}
		}
	}()
	return n
}

func (n *between) inject(b []byte) {
	if to := n.to.Load(); to != nil {
		_, _ = n.conn.WriteToUDPAddrPort(b, *to)
	}
}

func (n *between) set(do func(b []byte) [][]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.do = do
}

func (n *between) addr() netip.AddrPort { return n.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// behind has a member be reached through a network.
func (n *between) behind(c *Config) { c.Paths[0].Tell = n.addr() }

func (n *between) reaches(m *member) { n.to.Store(&m.c.socks[0].local) }

// through is two members; what gw-a sends goes through a network.
func through(t testing.TB) (a, b *member, n *between) {
	t.Helper()
	ca, n := authority(t), network(t)
	now := func() time.Time { return noon }
	a, b = start(t, ca, "gw-a", "", now, nil), start(t, ca, "gw-b", "", now, n.behind)
	n.reaches(b)
	a.knows(b)
	b.knows(a)
	meet(t, a, b)
	return a, b, n
}

func numbered(i int) failover.Message {
	m := message
	m.Seq = uint64(i)
	return m
}

// collect takes what comes until the message with the last number has.
func (m *member) collect(last int) (got []int) {
	for {
		h := m.next()
		got = append(got, int(h.m.Seq))
		if int(h.m.Seq) == last {
			return got
		}
	}
}

// TestLossDoublingReordering: what arrives is handed over once, whatever the network does with it.
func TestLossDoublingReordering(t *testing.T) {
	a, b, n := through(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	var held [][]byte
	lost := 0
	n.set(func(d []byte) (out [][]byte) {
		switch r.IntN(5) {
		case 0:
			lost++
			return nil
		case 1:
			held = append(held, d)
			return nil
		case 2:
			out = append(held, d, d)
			held = nil
			return out
		}
		return [][]byte{d}
	})
	const all = 500
	for i := range all {
		a.c.Send("gw-b", numbered(i+1))
		time.Sleep(100 * time.Microsecond) // the socket's buffer is not what is tested
	}
	n.set(func(d []byte) [][]byte { return append(held, d) })
	a.c.Send("gw-b", numbered(all+1))
	got := b.collect(all + 1)
	ordered := slices.IsSorted(got)
	slices.Sort(got)
	if len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Error("a message was handed over twice")
	}
	if ordered || len(got) < all/2 || len(got) > all || lost == 0 {
		t.Errorf("%d of %d came, in order: %v, %d datagrams were lost: the network did not do what the test wants", len(got), all+1, ordered, lost)
	}
	if s := b.peer("gw-a"); s.Repeated == 0 {
		t.Errorf("nothing is counted as having come again: %+v", s)
	}
}

// TestAttacker plays back, cuts, changes and makes up datagrams. None is handed over, each is counted as what it is, and what is real goes on.
func TestAttacker(t *testing.T) {
	a, b, n := through(t)
	a.c.Send("gw-b", numbered(1))
	b.collect(1)
	n.mu.Lock()
	seen := slices.Clone(n.seen)
	n.mu.Unlock()
	real := seen[len(seen)-1]
	before := b.c.Status().Dropped
	for _, d := range seen {
		n.inject(d)
	}
	eventually(t, "repeats are counted", func() bool {
		return b.c.Status().Dropped[DropRepeated]-before[DropRepeated] >= uint64(len(seen))
	})
	ahead := bytes.Clone(real)
	binary.BigEndian.PutUint64(ahead[9:], 1<<60) // the window must not follow
	n.inject(ahead)
	for i := range real {
		if i < 1 || i > 16 {
			d := bytes.Clone(real)
			binary.BigEndian.PutUint64(d[9:], 1<<50+uint64(i))
			d[i] ^= 1
			n.inject(d)
		}
	}
	other := bytes.Clone(real)
	other[3] ^= 1
	n.inject(other)
	for i := range headLen + 1 + tagLen {
		n.inject(real[:i])
	}
	n.inject(make([]byte, 60000))
	eventually(t, "forgeries are counted", func() bool {
		d := b.c.Status().Dropped
		return d[DropForged] >= uint64(len(real)-17) && d[DropKey] >= 1 && d[DropForm] >= headLen+tagLen+1
	})
	a.c.Send("gw-b", numbered(2))
	if got := b.collect(2); len(got) != 1 {
		t.Errorf("%v was handed over, and only the second message is real", got)
	}
}

// TestRestart: a member that has ended and starts again talks and is talked to at once, although the other one had keys of before.
func TestRestart(t *testing.T) {
	ca := authority(t)
	now := func() time.Time { return noon }
	a, b := start(t, ca, "gw-a", "", now, nil), start(t, ca, "gw-b", "", now, nil)
	a.knows(b)
	b.knows(a)
	meet(t, a, b)
	var took []time.Duration
	for _, knows := range []bool{true, true, true, false, false} { // knows whom to dial, or must be found
		address, at := b.tr.Address(), b.c.socks[0].local
		b.stop()
		began := time.Now()
		b = begin(t, b.keys, "gw-b", address, func(c *Config) { c.Paths[0].Listen = at })
		if knows {
			b.knows(a)
		}
		for got := false; !got; {
			a.c.Send("gw-b", message)
			select {
			case <-b.in:
				got = true
			case <-time.After(5 * time.Millisecond):
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("nothing is heard after a restart: %+v", b.c.Status())
			}
		}
		took = append(took, time.Since(began))
		eventually(t, "the restarted one is keyed", func() bool { return b.peer("gw-a").Keyed })
		drain(a.in)
		b.c.Send("gw-a", message)
		a.next()
	}
	if best := min(took[0], took[1], took[2]); best > 200*time.Millisecond { // a busy machine may be late once
		t.Errorf("from start to the first message it takes %v at best", best)
	}
	t.Logf("from start to the first message: %v where it knows the other, %v where it must be found", took[:3], took[3:])
}

func drain(c chan heard) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

// TestRenewalUnderLoad: keys are made anew again and again, and not one message is lost.
func TestRenewalUnderLoad(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.renew, c.grace = 100*time.Millisecond, 300*time.Millisecond })
	sent := 0
	for end := time.Now().Add(20 * time.Second); a.peer("gw-b").Met < 6; sent++ {
		if time.Now().After(end) {
			t.Fatalf("keys were made anew too seldom: %+v", a.peer("gw-b"))
		}
		a.c.Send("gw-b", numbered(sent+1))
		if h := b.next(); int(h.m.Seq) != sent+1 {
			t.Fatalf("message %d came where %d was sent", h.m.Seq, sent+1)
		}
	}
	if d := b.c.Status().Dropped; d[DropKey] != 0 || d[DropForged] != 0 {
		t.Errorf("dropped: %v", d)
	}
	a.c.cfg.grace, b.c.cfg.grace = 300*time.Millisecond, 300*time.Millisecond
	eventually(t, "old keys are forgotten", func() bool { return a.peer("gw-b").Keys < 5 })
	t.Logf("%d messages over %d pairs of keys", sent, a.peer("gw-b").Met)
}

// TestCertificateEnds: keys go on when certificates have ended, and no connection comes about any more.
func TestCertificateEnds(t *testing.T) {
	ca := authority(t)
	var later atomic.Int64
	now := func() time.Time { return noon.Add(time.Duration(later.Load())) }
	short := func(c *Config) { c.renew = 50 * time.Millisecond }
	a, b := start(t, ca, "gw-a", "", now, short), start(t, ca, "gw-b", "", now, short)
	a.knows(b)
	b.knows(a)
	meet(t, a, b)
	later.Store(int64(400 * 24 * time.Hour))
	eventually(t, "keys cannot be made anew", func() bool { return a.peer("gw-b").Problem != "" })
	drain(b.in)
	for i := range 20 {
		a.c.Send("gw-b", numbered(i+1))
		if h := b.next(); int(h.m.Seq) != i+1 {
			t.Fatalf("message %d came where %d was sent", h.m.Seq, i+1)
		}
	}
}

// TestOtherAuthority: who has a certificate of another cluster's authority gets no keys.
func TestOtherAuthority(t *testing.T) {
	now := func() time.Time { return noon }
	a, b := start(t, authority(t), "gw-a", "", now, nil), start(t, authority(t), "gw-b", "", now, nil)
	a.knows(b)
	b.knows(a)
	eventually(t, "both have tried", func() bool { return a.peer("gw-b").Problem != "" && b.peer("gw-a").Problem != "" })
	a.c.Send("gw-b", message)
	if a.peer("gw-b").Keyed || b.peer("gw-a").Keyed || a.peer("gw-b").NoKey != 1 {
		t.Errorf("%+v", a.peer("gw-b"))
	}
}

// TestRemovedMember: keys of who was removed are good for nothing at once, though it goes on sending; and it gets no new ones.
func TestRemovedMember(t *testing.T) {
	a, b := pair(t, nil)
	b.refuse("gw-a", true)
	eventually(t, "its keys end", func() bool { return !b.peer("gw-a").Keyed })
	drain(b.in)
	for i := range 10 {
		a.c.Send("gw-b", numbered(i))
	}
	eventually(t, "what it sends is counted", func() bool { return b.c.Status().Dropped[DropMember] >= 10 })
	eventually(t, "it asks for new keys in vain", func() bool { return a.peer("gw-b").Problem != "" })
	select {
	case h := <-b.in:
		t.Errorf("%+v was handed over", h)
	default:
	}
	if b.peer("gw-a").Keyed {
		t.Error("it has got keys again")
	}
}

// TestPaths: each message goes over every path, is handed over once, and one path that is cut is shown as such and costs nothing.
func TestPaths(t *testing.T) {
	ca, first := authority(t), network(t)
	now := func() time.Time { return noon }
	two := func(c *Config) {
		c.Paths = append(c.Paths, Path{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	}
	a, b := start(t, ca, "gw-a", "", now, two), start(t, ca, "gw-b", "", now, func(c *Config) {
		two(c)
		first.behind(c)
	})
	first.reaches(b)
	a.knows(b)
	b.knows(a)
	meet(t, a, b)
	for i := range 50 {
		a.c.Send("gw-b", numbered(i+1))
	}
	b.collect(50)
	eventually(t, "they come twice", func() bool { return b.peer("gw-a").Repeated >= 50 })
	drain(b.in)
	first.set(func([]byte) [][]byte { return nil })
	eventually(t, "the cut is seen", func() bool {
		a.c.Send("gw-b", message)
		b.next()
		p := a.peer("gw-b").Paths
		return len(p) == 2 && p[0].Loss > 0.2 && p[1].Loss < 0.2 && p[1].RoundTrip > 0
	})
}

// TestParting: a release that was sealed beforehand is taken from whoever sends it, once; nothing else may be sealed so.
func TestParting(t *testing.T) {
	a, b := pair(t, nil)
	release := failover.Message{Kind: failover.Release, Life: 7, Group: "east", Term: failover.Term{Epoch: 3, Node: "gw-a", Life: 7}}
	if list := a.c.Parting("gw-b", message); list != nil {
		t.Error("something else than a release was sealed")
	}
	list := a.c.Parting("gw-b", release)
	if len(list) != 1 {
		t.Fatalf("%d datagrams", len(list))
	}
	if keys := a.c.PartingKeys(); len(keys) != 1 || keys["gw-b"] == 0 {
		t.Errorf("it was sealed with %v", keys)
	}
	drain(b.in)
	a.c.Send("gw-b", release)
	if h := b.next(); h.m.Last || h.m.Term != release.Term {
		t.Errorf("its own word: %+v", h)
	}
	a.stop()
	drain(b.in)
	o := NewOutbox()
	defer o.Close()
	for range 3 {
		if err := o.Post(list); err != nil {
			t.Fatal(err)
		}
	}
	if h := b.next(); h.from != "gw-a" || h.m.Kind != failover.Release || h.m.Term != release.Term || !h.m.Last {
		t.Errorf("%+v", h)
	}
	eventually(t, "it is taken once", func() bool { return b.peer("gw-a").Repeated >= 2 })
	if len(b.in) != 0 {
		t.Error("it was taken again")
	}
}

// TestPartingKeys: what is sealed by the keys for releases and is none, a probe or another message, is dropped.
func TestPartingKeys(t *testing.T) {
	a, b := pair(t, nil)
	drain(b.in)
	before := b.c.Status().Dropped[DropContent]
	p := (*a.c.peers.Load())["gw-b"]
	p.mu.Lock()
	d, err := appendMessage(append(make([]byte, headLen, 256), carriesMessage), &message)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range [][]byte{d, binary.BigEndian.AppendUint64(append(make([]byte, headLen, 64), carriesProbe), 1)} {
		a.c.put((*p.paths.Load())[0], p.send.partOut.seal(d))
	}
	p.mu.Unlock()
	eventually(t, "both are dropped", func() bool { return b.c.Status().Dropped[DropContent] == before+2 })
	if len(b.in) != 0 {
		t.Error("a message was handed over")
	}
}

// TestDeaf: where no datagram arrives, keys are agreed on ever more seldom.
func TestDeaf(t *testing.T) {
	ca, n := authority(t), network(t)
	now := func() time.Time { return noon }
	n.set(func([]byte) [][]byte { return nil })
	deaf := func(c *Config) { n.behind(c); c.quiet = 20 * time.Millisecond }
	a, b := start(t, ca, "gw-a", "", now, deaf), start(t, ca, "gw-b", "", now, deaf)
	a.knows(b)
	eventually(t, "keys were agreed on", func() bool { return a.peer("gw-b").Met >= 1 })
	began := time.Now()
	eventually(t, "and again", func() bool { a.c.Send("gw-b", message); return a.peer("gw-b").Met >= 2 })
	if took := time.Since(began); took < restFirst/2 {
		t.Errorf("again after %v already", took)
	}
}

func TestSendAllocatesNothing(t *testing.T) {
	a, b := pair(t, nil)
	a.c.Send("gw-b", message)
	b.next()
	b.stop()
	if n := testing.AllocsPerRun(200, func() { a.c.Send("gw-b", message) }); n > 0.1 {
		t.Errorf("%.1f allocations for a message sent", n)
	}
	var buf []byte
	if n := testing.AllocsPerRun(200, func() {
		buf, _ = appendMessage(buf[:0], &message)
		if _, err := decode(buf, known); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%.1f allocations for a message written and read", n)
	}
}

var known = names{}

func BenchmarkSend(b *testing.B) {
	x, y := pair(b, nil)
	for b.Loop() {
		x.c.Send("gw-b", message)
	}
	_ = y
}

// BenchmarkSealOpen is all but the kernel: write, seal, open, read.
func BenchmarkSealOpen(b *testing.B) {
	secret := make([]byte, exportLen)
	for i := range secret {
		secret[i] = byte(i)
	}
	x, err := split(bytes.Clone(secret), true)
	if err != nil {
		b.Fatal(err)
	}
	y, err := split(secret, false)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 2048)
	for b.Loop() {
		d, _ := appendMessage(append(buf[:headLen], carriesMessage), &message)
		plain, why := y.in.open(x.out.seal(d))
		if why != "" {
			b.Fatal(why)
		}
		if _, err := decode(plain[1:], known); err != nil {
			b.Fatal(err)
		}
	}
}
