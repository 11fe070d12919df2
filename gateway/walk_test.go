package gateway

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/lease"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

const walkNode = `
schema = 1
name = "test"
[tables]
sessions = 16384
tenants = 16
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24"]
`

const walkPolicy = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.16", "192.0.2.17"]
`

// walkPer is how many sessions each worker of a walkGateway has.
const walkPer = 3*walkLook + 100

// walkGateway is a node without ports: running workers with sessions in their tables.
func walkGateway(t *testing.T, workers int) *Gateway {
	t.Helper()
	return walkGatewayOf(t, workers, walkPolicy)
}

func walkGatewayOf(t *testing.T, workers int, text string) *Gateway {
	t.Helper()
	node, err := configs.DecodeNode("node.toml", []byte(walkNode))
	if err != nil {
		t.Fatal(err)
	}
	node.Workers.Count = workers
	policy, err := configs.DecodePolicy("policy.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v, err := snapshot.Compile(snapshot.Input{Policy: policy, Node: node, HomeSeed: 1, Links: []snapshot.Link{{MAC: [6]byte{2, 1}, MTU: 1500}, {MAC: [6]byte{2, 2}, MTU: 1500}}})
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{o: Options{Node: node}, log: slog.New(slog.DiscardHandler), space: nat.NewSpace(16), neigh: fib.NewNeighbors(64, 1)}
	if g.clock, err = worker.NewClock(); err != nil {
		t.Fatal(err)
	}
	if err := v.Register(g.space); err != nil {
		t.Fatal(err)
	}
	v.Activate(g.space)
	g.view.Store(v)
	tenant := v.TenantByName("alpha").ID
	g.slow = slowpath.New(slowpath.Config{Neighbors: g.neigh, Now: g.clock.Now, Workers: workers})
	until := &lease.Deadlines{}
	until.Write(1, 1, 1<<63)
	for i := range workers {
		const n = 8192
		sh, err := pipeline.NewShard(pipeline.Config{Worker: i, SessionMem: make([]byte, conntrack.Bytes(n)+64), Sessions: n, NATMem: make([]byte, nat.Bytes(n)+64), Mappings: n,
			PermitMem: make([]byte, nat.PermitBytes(n)+64), Tenants: 4 * askTenants, ShaperMax: 64, Seed: uint64(i) + 1, Space: g.space, Neighbors: g.neigh, Deadlines: until})
		if err != nil {
			t.Fatal(err)
		}
		now := uint32(g.clock.Now() >> 20)
		for k := range uint32(walkPer) {
			se := conntrack.Session{OrigSrc: flow.Addr{198, 18, 10, byte(1 + i)}, OrigDst: flow.Addr{203, 0, 113, 11}, XlatSrc: [4]byte{198, 18, 10, byte(1 + i)}, XlatDst: [4]byte{203, 0, 113, 11},
				OrigSPort: uint16(k), OrigDPort: 53, XlatSPort: uint16(k), XlatDPort: 53, Proto: flow.UDP, Tenant: tenant, Mapping: conntrack.NoMapping, ViewGen: v.Gen, LastSeen: [2]uint32{now, now}}
			if _, r := sh.Sessions.Create(&se, now, 1<<20); r != verdict.Pass {
				t.Fatalf("session %d: %s", k, r)
			}
		}
		u, err := xsk.NewUMEM(64, 2048)
		if err != nil {
			t.Fatal(err)
		}
		w, err := worker.New(worker.Config{ID: i, CPU: -1, Ports: 2, Areas: []*xsk.UMEM{u}, Shard: sh, Clock: g.clock, Slow: g.slow, Spin: time.Microsecond, Log: g.log})
		if err != nil {
			t.Fatal(err)
		}
		w.Publish(v)
		t.Cleanup(func() { _ = w.Close(); _ = u.Close() })
		g.shards, g.workers = append(g.shards, sh), append(g.workers, w)
	}
	worker.Connect(g.workers)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, w := range g.workers {
		wg.Go(func() {
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return g
}

// orders is how often a worker was asked something.
func (g *Gateway) orders() (n uint64) {
	for _, w := range g.workers {
		n += w.Stats().Orders
	}
	return n
}

// However many sessions there are, a worker looks at no more than a step's worth of them before it goes on with packets, and every session is met.
func TestAWalkGoesInSteps(t *testing.T) {
	g := walkGateway(t, 2)
	for _, budget := range []int{walkLook, walkJudge} {
		type step struct {
			worker int
			order  uint64
		}
		steps := map[step]int{}
		seen := map[[2]uint32]int{}
		if err := g.walk(t.Context(), budget, func(w int, _ *pipeline.Shard, slot uint32, _ *conntrack.Session) bool {
			steps[step{w, g.workers[w].Stats().Orders}]++
			seen[[2]uint32{uint32(w), slot}]++
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for s, n := range steps {
			if n > budget {
				t.Errorf("worker %d looked at %d sessions between two bursts, of %d that it may", s.worker, n, budget)
			}
		}
		if len(seen) != 2*walkPer {
			t.Errorf("%d sessions were met of %d", len(seen), 2*walkPer)
		}
		for s, n := range seen {
			if n != 1 {
				t.Fatalf("session %d of worker %d was met %d times", s[1], s[0], n)
			}
		}
	}
}

// Each report that goes over all sessions does so in steps.
func TestReportsOfSessionsGoInSteps(t *testing.T) {
	g := walkGateway(t, 2)
	b := backend{g}
	for name, r := range map[string]struct {
		budget int
		ask    func() (met int, err error)
	}{
		"sessions": {walkLook, func() (int, error) {
			s, err := b.Sessions(t.Context(), api.SessionFilter{Limit: 10})
			if err == nil && (len(s.Sessions) != 10 || !s.Truncated || s.Sessions[0].Src != "198.18.10.1:0" || s.Sessions[0].Tenant != "alpha") {
				t.Errorf("listed %+v", s.Sessions)
			}
			return s.Total, err
		}},
		"what would be cut": {walkLook, func() (int, error) {
			c, err := b.Cut(t.Context(), api.CutRequest{Filter: api.SessionFilter{Tenant: "alpha"}, DryRun: true})
			if err == nil && (len(c.Sessions) != 20 || c.Cut != 0) {
				t.Errorf("%d listed, %d cut", len(c.Sessions), c.Cut)
			}
			return c.Matched, err
		}},
		"diff": {walkJudge, func() (int, error) {
			x, err := g.impact(t.Context(), g.view.Load(), 100)
			return x.checked, err
		}},
		"block": {walkLook, func() (int, error) {
			x, err := b.Block(t.Context(), api.BlockRequest{Address: "203.0.113.11", Seconds: 60, DryRun: true})
			return x.Sessions, err
		}},
	} {
		before := g.orders()
		met, err := r.ask()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if met != 2*walkPer {
			t.Errorf("%s: met %d sessions of %d", name, met, 2*walkPer)
		}
		if n, want := g.orders()-before, uint64(2*(walkPer/r.budget)); n < want {
			t.Errorf("%s: %d steps for %d sessions, want %d at least", name, n, met, want)
		}
	}
}

// What status asks of the workers is right, also where there are more tenants than one step asks about.
func TestStatusAsksForSums(t *testing.T) {
	g := walkGateway(t, 2)
	real := g.view.Load()
	many := *real
	many.Tenants = make([]*snapshot.Tenant, 3*askTenants)
	copy(many.Tenants, real.Tenants)
	last := flow.TenantID(len(many.Tenants) - 1)
	many.Tenants[last] = &snapshot.Tenant{ID: last}
	t0 := real.TenantByName("alpha")
	for i, w := range g.workers {
		err := w.Do(t.Context(), func(sh *pipeline.Shard) {
			for n := range 10 * (i + 1) {
				inside := [4]byte{198, 18, 10, byte(i)}
				r := nat.Request{Tenant: t0.ID, Class: nat.UDP, Inside: inside, Port: uint16(4000 + n), Pool: t0.Pool[i:], First: 0, Hold: 1 << 20}
				id, why := sh.NAT.Map(&r, uint64(binary.BigEndian.Uint32(inside[:]))+uint64(n)<<32)
				if why != verdict.Pass {
					t.Errorf("map: %s", why)
				}
				sh.NAT.Ref(id)
				if n < 3 {
					sh.NAT.Unref(id, uint32(g.clock.Now()>>20))
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	g.view.Store(&many)
	before := g.orders()
	in := backend{g}.ask(t.Context())
	if n := g.orders() - before; n != 2*(1+3) {
		t.Errorf("asked in %d steps, want one of each worker and one for each %d tenants", n, askTenants)
	}
	if !in.conservation.OK {
		t.Errorf("account: %s", in.conservation.Detail)
	}
	a, c := in.useOf(t0.Pool[0]), in.useOf(t0.Pool[1])
	if a != (nat.Use{InUse: 7, Held: 3}) || c != (nat.Use{InUse: 17, Held: 3}) {
		t.Errorf("in use and held: %v, %v", a, c)
	}
	if in.useOf(999) != (nat.Use{}) || in.queuedOf(65000, 0) != 0 {
		t.Error("what was not asked for is not nothing")
	}
}

// Each step counts for the tenants that it is about.
func TestQueuedIsOfTheRightTenant(t *testing.T) {
	const tenants = 3 * askTenants
	sh := &pipeline.Shard{Shaper: police.NewShaper(64, 2*tenants)}
	d, words := police.Dir{Bits: police.BitRate(8000, time.Millisecond), QueueNs: 1e12, Shape: true}, police.Words{}
	waits := []int{1, 2*askTenants - 1, 2 * askTenants, 4*askTenants + 7, 2*tenants - 1}
	for _, q := range waits {
		for range 3 {
			sh.Shaper.Offer(q, &d, &words, &police.Item{IPLen: 1500, Len: 1514}, 1e12)
		}
	}
	got, n := make([]int, 2*tenants), 0
	for from := 0; from < len(got); from += 2 * askTenants {
		addQueued(sh, got, from)
	}
	for q, k := range got {
		want, _ := sh.Shaper.HeldIn(q)
		if n += k; k != want {
			t.Errorf("queue %d: %d, want %d", q, k, want)
		}
	}
	if n != sh.Shaper.Held() || n < len(waits) {
		t.Errorf("%d packets in all queues, the shaper holds %d", n, sh.Shaper.Held())
	}
}
