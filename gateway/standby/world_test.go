package standby

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/lease"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

const nodeText = `
schema = 1
name = "test"
[tables]
sessions = %d
mappings = %d
tenants = 8
frames = 1024
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]
[[interface]]
name = "beta"
port = "t0"
vlan = 20
addresses = ["198.18.20.1/24"]
`

const policyText = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]
[tenant.nat]
pool = ["192.0.2.16/28"]
`

const betaText = `
[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.20.0/24"]
[tenant.nat]
pool = ["192.0.2.32/28"]
`

// groupText has the named tenants move together.
func groupText(tenants string) string {
	return `
[[group]]
name = "east"
id = 1
nodes = ["a", "b"]
tenants = [` + tenants + `]
[[group.address]]
interface = "backbone"
addresses = ["203.0.113.250/24"]
`
}

// far is a node that is a standby: workers that run, without ports.
type far struct {
	t      testing.TB
	node   *configs.Node
	space  *nat.Space
	clock  *worker.Clock
	ws     []*worker.Worker
	shards []*pipeline.Shard
	view   atomic.Pointer[snapshot.View]
	sb     *Standby
	marks  atomic.Int64 // of group 1
	epoch  atomic.Uint64
	stop   func()
	until  lease.Deadlines // of the groups that it serves, where it is an owner

	silence time.Duration                                   // 0 = as usual
	member  atomic.Pointer[func(name string) (bool, error)] // nil = that is not known
	quiet   time.Duration                                   // 0 = for as long as a test lasts

	mu    sync.Mutex
	holds []time.Duration // mu
	keep  bool            // holds
}

func newFar(t testing.TB, workers, sessions int, policy string) *far {
	return impatient(t, workers, sessions, policy, 0)
}

// impatient waits for so long for what a peer has begun.
func impatient(t testing.TB, workers, sessions int, policy string, silence time.Duration) *far {
	t.Helper()
	f := &far{t: t, space: nat.NewSpace(64), silence: silence}
	var err error
	if f.node, err = configs.DecodeNode("node.toml", fmt.Appendf(nil, nodeText, sessions, sessions)); err != nil {
		t.Fatal(err)
	}
	f.node.Workers.Count = workers
	if f.clock, err = worker.NewClock(); err != nil {
		t.Fatal(err)
	}
	v := f.compile(policy)
	neigh := fib.NewNeighbors(4096, 1)
	for i := range workers {
		sh, err := pipeline.NewShard(pipeline.Config{Worker: i, SessionMem: memory(t, conntrack.Bytes(sessions)), Sessions: sessions, NATMem: memory(t, nat.Bytes(sessions)), PermitMem: memory(t, nat.PermitBytes(sessions)),
			Mappings: sessions, Tenants: snapshot.MaxTenantID(f.node), ShaperMax: 256, Seed: uint64(i) + 1, Space: f.space, Neighbors: neigh, Deadlines: &f.until})
		if err != nil {
			t.Fatal(err)
		}
		u, err := xsk.NewUMEM(512, 2048)
		if err != nil {
			t.Fatal(err)
		}
		w, err := worker.New(worker.Config{ID: i, CPU: -1, Ports: 2, Areas: []*xsk.UMEM{u}, Shard: sh, Clock: f.clock, Spin: 1, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close(); _ = u.Close() })
		f.ws, f.shards = append(f.ws, w), append(f.shards, sh)
	}
	worker.Connect(f.ws)
	f.publish(v)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, w := range f.ws {
		wg.Go(func() { _ = w.Run(ctx) })
	}
	f.start()
	wg.Go(func() { _ = f.sb.Run(ctx) })
	f.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(f.stop)
	return f
}

// memory is zeroed.
func memory(t testing.TB, n int) []byte {
	t.Helper()
	return make([]byte, n+64)
}

func (f *far) start() {
	f.sb = New(Config{Silence: f.silence, Quiet: cmp.Or(f.quiet, time.Hour), Shards: f.shards, View: f.view.Load, Now: func() int64 { return int64(f.clock.Exact()) },
		Steps: func(w int, fn func(*pipeline.Shard, time.Duration) bool) error {
			return f.ws[w].Steps(context.Background(), fn)
		},
		Taken: func(v *snapshot.View) bool {
			for _, w := range f.ws {
				if int32(w.Stats().Gen-v.Gen) < 0 {
					return false
				}
			}
			return true
		},
		Member: func(name string) (bool, error) {
			if m := f.member.Load(); m != nil {
				return (*m)(name)
			}
			return false, errors.New("it is not known who is a member")
		},
		Marked: func(_ uint8, epoch uint64) { f.epoch.Store(epoch); f.marks.Add(1) },
		Held: func(_ int, d time.Duration) {
			if f.keep {
				f.mu.Lock()
				f.holds = append(f.holds, d)
				f.mu.Unlock()
			}
		}})
}

func (f *far) compile(policy string) *snapshot.View {
	f.t.Helper()
	p, err := configs.DecodePolicy("policy.toml", []byte(policy))
	if err != nil {
		f.t.Fatal(err)
	}
	v, err := snapshot.Compile(snapshot.Input{Policy: p, Node: f.node, Prev: f.view.Load(), HomeSeed: 1,
		Links:     []snapshot.Link{{MAC: [6]byte{2, 0, 0, 0, 0, 1}, MTU: 1500}, {MAC: [6]byte{2, 0, 0, 0, 0, 2}, MTU: 1500}},
		LinkLocal: func(m [6]byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: m[5]}) }})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := v.Register(f.space); err != nil {
		f.t.Fatal(err)
	}
	v.Activate(f.space)
	return v
}

func (f *far) publish(v *snapshot.View) {
	f.view.Store(v)
	for _, w := range f.ws {
		w.Publish(v)
	}
}

// sessions counts what the tables hold, by tenant.
func (f *far) sessions() (all int, of map[string]int) {
	f.t.Helper()
	of = map[string]int{}
	for _, w := range f.ws {
		for from, done := uint32(0), false; !done; {
			if err := w.Do(context.Background(), func(sh *pipeline.Shard) {
				from, done = sh.Sessions.Each(from, 4096, func(_ uint32, se *conntrack.Session) bool {
					all++
					if t := sh.View().Tenant(se.Tenant); t != nil {
						of[t.Name]++
					}
					return true
				})
			}); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	return all, of
}

func (f *far) whole() (bool, string) {
	f.sb.mu.Lock()
	defer f.sb.mu.Unlock()
	f.sb.tell()
	return f.sb.r.Whole(1)
}

// near is an owner: tables of records, and the streams of them, which a goroutine of its own drains.
type near struct {
	t       testing.TB
	mu      sync.Mutex
	tables  []*table
	senders []*replica.Sender
	life    uint64
	lim     replica.Limits
	budget  int
	refused atomic.Pointer[string]
	linked  atomic.Bool
	answers atomic.Int64
}

// table is one worker's.
type table struct {
	n    *near
	recs []replica.Record
	live []bool
	gens []uint32
}

func (x *table) Slots() uint32 { return uint32(len(x.recs)) }

func (x *table) Look(slot uint32) replica.Look {
	l := replica.Look{Gen: x.gens[slot], Early: slot%2 == 0}
	if x.live[slot] {
		l.Group = 1
	}
	return l
}

func (x *table) Fill(slot uint32, r *replica.Record) {
	was := *r
	*r = x.recs[slot]
	r.Kind, r.Slot, r.Gen, r.Group = replica.KindSession, was.Slot, was.Gen, was.Group
	r.Session.Hop = [2]uint16{replica.NoName, replica.NoName}
}

func (x *table) Name(kind replica.NameKind, local uint16) string {
	return [...]string{"", "alpha", "beta"}[local]
}

// newNear makes an owner with workers, each with room for so many sessions.
func newNear(t testing.TB, workers, room int) *near {
	n := &near{t: t, budget: 1024}
	for range workers {
		n.tables = append(n.tables, &table{n: n})
	}
	n.reborn(room)
	return n
}

// reborn is a process with the sessions that it has: another life.
func (n *near) reborn(room int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.life, n.senders = rand.Uint64()|1, nil
	for i, x := range n.tables {
		s := replica.NewSender(x, room, uint8(i), uint8(len(n.tables)), n.life, n.life^7, n.lim)
		s.Own(1, 5)
		n.senders = append(n.senders, s)
	}
}

// record is session number i of a tenant: 1 = alpha, 2 = beta.
func record(tenant uint16, i int) replica.Record {
	r := replica.Record{Kind: replica.KindSession, Tenant: tenant, Revision: 1}
	s := &r.Session
	port := uint16(1024 + i%60000)
	far := [4]byte{203, 0, 113, byte(2 + i/60000%200)}
	inside := [4]byte{198, 18, byte(10 * tenant), byte(2 + i/64%200)}
	copy(s.OrigSrc[:], inside[:])
	copy(s.OrigDst[:], far[:])
	s.XlatSrc, s.XlatDst = [4]byte{192, 0, 2, byte(16*tenant) + byte(i/60000%14)}, far
	s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort, s.Proto, s.State = port, 443, port, 443, flow.TCP, conntrack.TCPEstablished
	s.Flags, s.Left, s.Packets, s.Bytes = replica.FlagToBackbone|replica.FlagNAT|replica.FlagReplied|replica.FlagMapped, 7200000, [2]uint32{10, 20}, [2]uint64{1000, 3000}
	return r
}

// open begins sessions from to to, spread over the workers. The caller holds mu.
func (n *near) open(tenant uint16, from, to int) {
	for i := from; i < to; i++ {
		w := i % len(n.tables)
		x := n.tables[w]
		x.recs, x.live, x.gens = append(x.recs, record(tenant, i)), append(x.live, true), append(x.gens, 1)
		n.senders[w].Mark(uint32(len(x.recs)-1), true)
	}
}

// end ends what match says. The caller holds mu.
func (n *near) end(match func(i int) bool) {
	for w, x := range n.tables {
		for slot := range x.recs {
			if x.live[slot] && match(slot) {
				x.live[slot] = false
				x.gens[slot]++
				n.senders[w].Gone(uint32(slot))
			}
		}
	}
}

func (n *near) count() (live int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, x := range n.tables {
		for _, l := range x.live {
			if l {
				live++
			}
		}
	}
	return live
}

// now is the owner's clock.
func (n *near) now() int64 { return time.Now().UnixNano() }

// talk has the streams go over a connection until it ends.
func (n *near) talk(c net.Conn) error {
	defer c.Close()
	n.mu.Lock()
	h := replica.Hello{Version: replica.WireVersion, Streams: uint16(len(n.senders)), Life: n.life}
	senders := n.senders
	n.mu.Unlock()
	if _, err := c.Write(h.Append(nil)); err != nil {
		return err
	}
	in := bufio.NewReaderSize(c, replica.MaxAnswer+4)
	for range senders {
		a, err := replica.ReadAnswer(in)
		if err != nil {
			if r := replica.Refused(""); errors.As(err, &r) {
				s := string(r)
				n.refused.Store(&s)
			}
			return err
		}
		n.mu.Lock()
		senders[a.Stream].Link(n.now(), &a)
		n.mu.Unlock()
	}
	n.linked.Store(true)
	defer n.linked.Store(false)
	defer func() {
		n.mu.Lock()
		for _, s := range senders {
			s.Unlink()
		}
		n.mu.Unlock()
	}()
	ended := make(chan error, 1)
	go func() {
		for {
			a, err := replica.ReadAnswer(in)
			if err != nil {
				ended <- err
				return
			}
			n.answers.Add(1)
			n.mu.Lock()
			senders[a.Stream].Answer(n.now(), &a)
			n.mu.Unlock()
		}
	}()
	for {
		wrote := 0
		n.mu.Lock()
		var frames [][]byte
		for _, s := range senders {
			wrote += s.Drain(n.now(), n.budget)
			for f := s.Take(); f != nil; f = s.Take() {
				frames = append(frames, append([]byte(nil), f...)) // they are used anew when they are acknowledged
			}
		}
		n.mu.Unlock()
		for _, f := range frames {
			if _, err := c.Write(f); err != nil {
				<-ended
				return err
			}
		}
		if wrote == 0 && len(frames) == 0 {
			select {
			case err := <-ended:
				return err
			case <-time.After(200 * time.Microsecond):
			}
		}
		select {
		case err := <-ended:
			return err
		default:
		}
	}
}

// connect joins the two over a pipe, and returns what ends it and waits.
func connect(n *near, f *far) (end func() (owner, standby error)) {
	a, b := net.Pipe()
	return over(n, f, a, b)
}

func over(n *near, f *far, a, b net.Conn) (end func() (owner, standby error)) {
	return overAs("a", n, f, a, b)
}

// overAs has the owner be a member of that name.
func overAs(name string, n *near, f *far, a, b net.Conn) (end func() (owner, standby error)) {
	out, in := make(chan error, 1), make(chan error, 1)
	go func() { out <- n.talk(a) }()
	go func() { in <- f.sb.Serve(name, b) }()
	return sync.OnceValues(func() (error, error) {
		a.Close()
		return <-out, <-in
	})
}

// members are two of one cluster. dial makes a connection between them, both ends of which it returns.
func members(t testing.TB) (dial func() (a, b net.Conn)) {
	t.Helper()
	ca, err := transport.NewAuthority(t.TempDir()+"/ca", "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	member := func(name string) *transport.Transport {
		dir := t.TempDir()
		if err := ca.Issue(dir, name, time.Now()); err != nil {
			t.Fatal(err)
		}
		k, err := transport.OpenKeyring(dir, time.Now, nil)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := transport.Listen(transport.Config{Address: "127.0.0.1:0", Keys: k})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Close() })
		return tr
	}
	one, two := member("a"), member("b")
	return func() (net.Conn, net.Conn) {
		came := make(chan net.Conn, 1)
		go func() {
			c, _ := two.SessionConns().Accept()
			came <- c
		}()
		c, err := one.DialSessions(t.Context(), two.Address())
		if err != nil {
			t.Fatal(err)
		}
		return c, <-came
	}
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}
