package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/fib"
	"demarc/gateway/guard"
	"demarc/gateway/hostnet"
	"demarc/gateway/lease"
	"demarc/gateway/metrics"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/revisions"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/standby"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

// Options is what a node is started with.
type Options struct {
	Node     *configs.Node
	NodeText []byte    // that Node was decoded from, for a ticket
	Lines    *LogLines // that Log writes to as well, for a ticket; may be nil
	Policy   []byte    // text of the policy given at start; served only when no applied one is kept
	NoPolicy error     // why there is none although one was named; see KeepsPolicy
	Source   string    // where that text came from
	Version  string
	Log      *slog.Logger
	Break    snapshot.Break   // switches a stage off, for the lab's own test
	Ready    func()           // called once when traffic is forwarded; may be nil
	Seed     uint64           // 0 = random; of hashes and port choice
	Wall     func() time.Time // wall time, of certificates and for the history; nil = the machine's
	Parent   *guard.Parent    // waits for the end of this process, and says so; nil = nobody does
}

// Gateway is one running node.
//
// It has many fields because it is the one place where everything meets.
type Gateway struct {
	o       Options
	log     *slog.Logger
	clock   *worker.Clock
	started time.Time
	ports   []*port
	workers []*worker.Worker
	shards  []*pipeline.Shard
	mem     [][]byte      // mmapped tables
	ahead   []*ahead      // by worker
	grown   chan struct{} // has room for one: a worker has come further in its tables

	tableBytes []uint64 // of mem, by worker
	areas      []*xsk.UMEM
	chunk      int                // bytes a frame of packet memory
	deadlines  *xsk.Deadlines     // of groups, read by programs and workers
	leaving    lease.Deadlines    // of groups: until when what is in tx rings may leave though their deadlines are over; workers read it
	ending     []*lease.Deadlines // by worker: until when it carries what had come by then; see worker.Config
	handOn     worker.HandOn      // what the workers share of groups that have just been handed over
	fencing    sync.WaitGroup     // ports that are closed because a lease ended, and views that workers have not taken up yet
	off        *offload           // nil = workers carry everything
	slow       *slowpath.Slow
	space      *nat.Space
	neigh      *fib.Neighbors
	blocks     blocks
	prober     prober
	store      *revisions.Store
	dir        io.Closer // the lock of the data directory
	eph        [2]uint16
	seed       uint64

	linkMu    sync.Mutex // of portFacts, which reports read without mu
	mu        sync.Mutex // serialises apply, link changes
	agreed    agreed
	prepared  *prepared // under mu
	outcomes  []outcome // of the last revisions, the latest last; under mu
	view      atomic.Pointer[snapshot.View]
	policy    *configs.Policy // of view; under mu
	text      []byte          // of policy; under mu
	unkept    bool            // policy was given at start and is not on disk yet; under mu
	revision  atomic.Pointer[api.Revision]
	settled   atomic.Uint32
	problems  atomic.Pointer[[]string] // kept policies that were damaged, found at start
	later     []string                 // kept policies of a later release, passed over at start; New: wo
	ready     atomic.Bool
	slowDrops [verdict.NumReasons]atomic.Uint64 // packets that waited for a neighbour in vain
	busy      []float64                         // per worker, under busyMu
	busyMu    sync.Mutex
	look      looking
	fatal     chan error

	groups  groups           // who serves a group, and this node's part in it
	common  *commons         // what workers have in common and standbys must know; set before anything asks it
	standby *standby.Standby // copies of what other nodes own; set before anything asks it
	copying copying          // of sessions of what it serves, to others

	handover handover // what this process has of the one before it. Run alone; others: ro once the interface answers

	remote  *api.Remote // what the interface on TCP needs; nil where there is none
	revoked *revoked    // whom it does not let in
	server  *api.Server // set before anything asks it

	startFailed bool        // of Run alone
	abandoned   bool        // of Run alone: a worker is stuck and may touch whatever it has
	keepPorts   atomic.Bool // another start follows
}

// mapTable takes zeroed memory outside the Go heap, in huge pages where the kernel has them.
func mapTable(n int) ([]byte, error) {
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("take %d MiB for tables: %w: make tables.sessions smaller or add memory", n>>20, err)
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // a wish: without it the tables are only slower
	return m, nil
}

// New checks everything that can be checked without touching a device, and compiles the policy.
func New(o Options) (*Gateway, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Wall == nil {
		o.Wall = Wall
	}
	g := &Gateway{o: o, log: o.Log, started: time.Now(), fatal: make(chan error, 8), seed: o.Seed, look: looking{slow: trace.NewRecorder()}, grown: make(chan struct{}, 1), agreed: newAgreed(), copying: newCopying()}
	if g.seed == 0 {
		g.seed = rand.Uint64() | 1
	}
	var err error
	if g.clock, err = worker.NewClock(); err != nil {
		return nil, err
	}
	if lo, hi, err := hostnet.EphemeralRange(); err == nil {
		g.eph = [2]uint16{lo, hi}
	}
	n := o.Node
	if g.neigh = fib.NewNeighbors(n.Tables.Neighbors, g.seed); g.neigh == nil {
		return nil, fmt.Errorf("tables.neighbors = %d: no table of that size", n.Tables.Neighbors)
	}
	g.space = nat.NewSpace(configs.MaxPool)
	g.space.Idents.Seed = g.seed ^ 0x94d049bb133111eb
	if err := g.findPorts(); err != nil {
		return nil, err
	}
	g.revoked = readRevoked(g.clusterDir(), g.log)
	if g.remote, err = openRemote(n.API, g.revoked, g.o.Wall, g.log); err != nil {
		return nil, err
	}
	if g.store, err = revisions.Open(filepath.Join(n.DataDir, "policies")); err != nil {
		return nil, err
	}
	if g.dir, err = lockDir(n.DataDir); err != nil {
		return nil, err
	}
	if err := g.openGroups(); err != nil {
		return nil, errors.Join(err, g.dir.Close())
	}
	if err := g.firstPolicy(); err != nil {
		g.groups.driver.Discard()
		return nil, errors.Join(err, g.dir.Close())
	}
	g.loadBlocks()
	return g, nil
}

// Run opens the ports, moves packets until ctx ends, and gives back what it took. XDP programs stay attached and closed.
func (g *Gateway) Run(outer context.Context) (err error) {
	// What it is told to end by does not end its workers: first it hands over what it serves.
	ctx, cancel := context.WithCancel(context.WithoutCancel(outer))
	defer cancel()
	starting := context.AfterFunc(outer, cancel)
	// Spinning workers hold a processor of the Go scheduler each: control needs its own.
	if need := len(g.o.Node.Workers.CPUs) + max(1, g.o.Node.Workers.Count) + 2; runtime.GOMAXPROCS(0) < need {
		runtime.GOMAXPROCS(need)
	}
	defer func() { err = errors.Join(err, g.release()) }()
	if err := g.open(); err != nil {
		return err
	}
	defer g.doneHanded()
	g.takeUp()
	if err := g.republishBlocks(ctx); err != nil {
		return errors.Join(err, g.restorePorts())
	}
	g.openStandby(ctx)
	srv, err := g.listen()
	if err != nil {
		return errors.Join(err, g.restorePorts())
	}
	var wg sync.WaitGroup
	run := func(what string, fn func(context.Context) error) {
		wg.Go(func() {
			if err := contained(g.log, what, func() error { return fn(ctx) }); err != nil && ctx.Err() == nil {
				select {
				case g.fatal <- err:
				default:
				}
			}
		})
	}
	for _, w := range g.workers {
		w.Publish(g.view.Load())
		run("worker", w.Run)
	}
	g.startBlocks()
	run("slow path", g.slow.Run)
	run("watch links", g.watchLinks)
	run("what devices take", g.watchTargets)
	run("interface", srv.Run)
	run("upkeep", g.upkeep)
	run("what programs carry", g.readOffload)
	run("memory of tables", g.makeAhead)
	run("conditions", g.tendGroups)
	run("copies", g.standby.Run)
	defer g.runGroups(run)()
	run("copies of sessions", g.copySessions)
	run("what workers have in common", g.common.run)
	run("reserves of ports", g.common.keep)
	run("how copies stand", g.tellCopied)
	run("ports", g.mendPorts)
	run("last words", g.lastWords)
	agree := sync.OnceFunc(func() { run("replicated state", g.agree) })
	// A start that is told to end has not failed: its programs stay, closed.
	if err := g.begin(ctx, agree); err != nil && ctx.Err() == nil {
		cancel()
		wg.Wait()
		return errors.Join(err, g.restorePorts())
	}
	agree()
	starting()
	select {
	case <-ctx.Done(): // while it was starting
	case <-outer.Done():
		g.leaveGroups()
	case err = <-g.fatal:
	}
	g.endBlocks()
	g.closeSockets() // nothing new comes in while the workers finish
	cancel()
	if stuck := g.ends(&wg); stuck != nil {
		return errors.Join(err, stuck)
	}
	if g.handover.served && err == nil {
		g.handOver()
	}
	g.log.Info("stopped", "node", g.o.Node.Name)
	return err
}

// endTime is how long workers may take to end in order, and endMost how long all that runs may. systemd would wait for 20 s.
const (
	endTime = 5 * time.Second
	endMost = 15 * time.Second
)

// ends waits for that, or says what has not ended: then memory and sockets are the process's until its end, which follows, and its sessions are lost.
func (g *Gateway) ends(wg *sync.WaitGroup) error {
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	what, after := "", endTime
	for _, wait := range []time.Duration{endTime, endMost - endTime} {
		select {
		case <-ended:
			return nil
		case <-time.After(wait):
		}
		for i, w := range g.workers {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			if err := w.Do(ctx, func(*pipeline.Shard) {}); !errors.Is(err, worker.ErrStopped) {
				what = fmt.Sprintf("worker %d", i)
			}
			cancel()
		}
		if what != "" {
			break
		}
		after = endMost
	}
	g.abandoned = true
	return fmt.Errorf("%s has not ended within %s: the process ends without it, and its sessions are lost", cmp.Or(what, "something of the control side"), after)
}

// contained makes a panic of one of the node's own goroutines an error: the node ends in order, its ports closed and its frames
// accounted for, instead of with whatever it was doing half done.
func contained(log *slog.Logger, what string, fn func() error) (err error) {
	defer func() {
		if e := recover(); e != nil {
			log.Error("panic", "in", what, "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: panic: %v", what, e)
		}
	}()
	if err := fn(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// begin lets traffic in once every worker serves the view. Only here is it settled that the node can serve its first policy, so only here
// is that one kept. agree has the node take part in the cluster, which comes after that, but where the node has nothing else to serve.
func (g *Gateway) begin(ctx context.Context, agree func()) error {
	taken := make(chan error, 1)
	go func() { taken <- g.waitFor(ctx, g.view.Load().Gen) }() // ends with ctx at the latest
	var err error
	select {
	case err = <-taken:
	case err = <-g.fatal: // says more than that a worker is late
	}
	if err != nil {
		return err
	}
	if g.unkept && g.hasAgreed() {
		agree()
		if err := g.awaitAgreed(ctx); err != nil {
			return err
		}
	}
	if err := g.keepFirst(); err != nil {
		return err
	}
	g.handover.served = true
	if err := g.openSockets(); err != nil {
		return err
	}
	g.doneHanded()
	g.log.Info("forwarding", "node", g.o.Node.Name, "revision", g.revision.Load().Number, "workers", len(g.workers))
	if g.o.Ready != nil {
		g.o.Ready()
	}
	return nil
}

// upkeep is the control side's clockwork: log events, busy figures, the clock.
func (g *Gateway) upkeep(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	last := make([]uint64, len(g.workers))
	lastAt := g.clock.Now()
	missed := make([]uint64, len(g.shards))
	rules := newRuleLines(g.clock.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		g.tendBlocks(ctx)
		g.useNeighbors()
		g.endRests()
		_ = g.clock.Resync() // it worked at start; a suspend is the only thing it could find
		for i, sh := range g.shards {
			sh.Events(func(e pipeline.Event) {
				if rules.take(e.Tenant) {
					g.logEvent(i, e)
				}
			})
			n := sh.EvMissed.Load()
			rules.lost += n - missed[i]
			missed[i] = n
		}
		now := g.clock.Now()
		if n := rules.told(now); n > 0 {
			g.log.Warn("more rule lines than the log takes", "lost", n)
		}
		if now-lastAt >= uint64(time.Second) {
			g.busyMu.Lock()
			for i, w := range g.workers {
				b := w.Stats().BusyNs
				g.busy[i] = float64(b-last[i]) / float64(now-lastAt)
				last[i] = b
			}
			g.busyMu.Unlock()
			lastAt = now
		}
	}
}

func (g *Gateway) logEvent(w int, e pipeline.Event) {
	v := g.view.Load()
	t := v.Tenant(e.Tenant)
	if t == nil || int64(e.Rule) >= int64(len(t.Rules[e.Dir])) {
		return
	}
	src, dst := e.Key.Src.Netip(e.Key.Family), e.Key.Dst.Netip(e.Key.Family)
	g.log.Info("rule", "tenant", t.Name, "rule", t.Rules[e.Dir][e.Rule].Name, "dir", e.Dir.String(), "allow", e.Allow, "proto", e.Key.Proto,
		"src", netip.AddrPortFrom(src, e.Key.SPort).String(), "dst", netip.AddrPortFrom(dst, e.Key.DPort).String(), "worker", w)
}

// waitFor waits until every worker works with view gen. The error names the one that does not.
func (g *Gateway) waitFor(ctx context.Context, gen uint32) error {
	deadline := time.NewTimer(5 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(200 * time.Microsecond)
	defer poll.Stop()
	for {
		late := -1
		for i, w := range g.workers {
			if int32(w.Stats().Gen-gen) < 0 {
				late = i
			}
		}
		if late < 0 {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("worker %d has not taken up view %d within 5s", late, gen)
		}
	}
}

func (g *Gateway) listen() (*api.Server, error) {
	s, err := api.Listen(api.ServerConfig{Socket: g.o.Node.API.Socket, Metrics: g.o.Node.API.Metrics, Remote: g.remote, Backend: backend{g}, Handler: metrics.Handler(backend{g}), Log: g.log, Listen: listening(g.log)})
	g.server = s
	return s, err
}

// listening listens where a node is to be asked, also before a link has the address: it is no reason not to serve.
func listening(log *slog.Logger) func(string) (net.Listener, error) {
	return func(address string) (net.Listener, error) {
		l, here, err := transport.ListenTCP(address)
		if err == nil && !here {
			log.Warn("nobody can ask this node there until a link of this host has the address; one that the gateway answers for does not count", "address", address)
		}
		return l, err
	}
}
