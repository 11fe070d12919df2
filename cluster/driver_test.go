package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/clustertest"
	"demarc/cluster/command"
	"demarc/cluster/failover"
)

// driven is members with drivers over one test network: requests, Raft's own messages and datagrams are cut by the same partitions. Each has a clock of its own, which is
// fast or slow, begins anywhere, and stands while the member is stopped.
type driven struct {
	t       testing.TB
	network *clustertest.Network
	boxes   []*drivenBox
	judge   frames
	sync    bool // copies are in sync
	timers  time.Duration
	mute    atomic.Bool // no datagram comes through, and Raft's messages do
}

type drivenBox struct {
	w       *driven
	name    string
	role    command.Role
	dir     string
	rate    float64
	offset  int64
	began   time.Time
	stopped sync.RWMutex // a stopped process reads no clock and emits nothing
	m       *member
	d       *Driver
	drv     atomic.Pointer[Driver] // d, for those who send to it
	end     func()                 // the process, as by kill -9
	door    chan net.Conn

	mu      sync.Mutex
	leases  map[string]lease
	words   map[string]int // announcements by group
	brought []string       // mu: groups of which the last changes were brought, and to whom
}

type lease struct {
	epoch uint64
	until failover.Time
}

func (b *drivenBox) clock() failover.Time {
	b.stopped.RLock()
	defer b.stopped.RUnlock()
	return failover.Time(b.offset + int64(float64(time.Since(b.began))*b.rate))
}

func (b *drivenBox) Write(group string, epoch uint64, until, _ failover.Time, done func()) {
	b.mu.Lock()
	b.leases[group] = lease{epoch, until}
	b.mu.Unlock()
	if done != nil { // the workers look a moment later
		time.AfterFunc(time.Millisecond, done)
	}
}

func (b *drivenBox) Announce(group string, _ uint64, _ int) {
	b.mu.Lock()
	b.words[group]++
	b.mu.Unlock()
}

func (b *drivenBox) Send(to string, m failover.Message) {
	go func() {
		if b.w.mute.Load() || b.w.network.Pass(b.name, to) != nil {
			return
		}
		for _, o := range b.w.boxes {
			if d := o.drv.Load(); o.name == to && d != nil {
				o.stopped.RLock() // who is stopped reads it when it wakes
				o.stopped.RUnlock()
				d.Receive(b.name, m)
			}
		}
	}()
}

// Dial implements Peers: what is written is lost with the link.
func (b *drivenBox) Dial(ctx context.Context, address string) (net.Conn, error) {
	if err := b.w.network.Pass(b.name, address); err != nil {
		return nil, err
	}
	for _, o := range b.w.boxes {
		if o.name == address {
			here, there := net.Pipe()
			select {
			case o.door <- &wire{there, b.w.network, o.name, b.name}:
				return &wire{here, b.w.network, b.name, o.name}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return nil, errors.New("no such member")
}

func (b *drivenBox) Requests() net.Listener { return &door{b.door, make(chan struct{}), sync.Once{}} }

type wire struct {
	net.Conn
	n        *clustertest.Network
	from, to string
}

func (w *wire) Write(p []byte) (int, error) {
	if err := w.n.Pass(w.from, w.to); err != nil {
		w.Close()
		return 0, err
	}
	return w.Conn.Write(p)
}

type door struct {
	in   chan net.Conn
	shut chan struct{}
	once sync.Once
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.in:
		return c, nil
	case <-d.shut:
		return nil, net.ErrClosed
	}
}
func (d *door) Close() error   { d.once.Do(func() { close(d.shut) }); return nil }
func (d *door) Addr() net.Addr { return &net.UnixAddr{} }

// frames is what was emitted, judged as it comes: nothing of an older term after the first frame of a newer one.
type frames struct {
	mu     sync.Mutex
	last   map[string]frameSeen
	faults []string
	gap    map[string]time.Duration // by group: the longest silence since reset
	paused map[string]time.Duration // by node: the longest that its data plane has not looked, since it was asked last
}

type frameSeen struct {
	at    time.Time
	node  string
	epoch uint64
}

func (f *frames) see(group, node string, epoch uint64, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.last[group]
	switch {
	case at.Before(last.at): // another emitter came to the lock first
		return
	case epoch < last.epoch, epoch == last.epoch && node != last.node:
		f.faults = append(f.faults, fmt.Sprintf("%s: %s emits under epoch %d %s after %s did under epoch %d", group, node, epoch, at.Sub(last.at), last.node, last.epoch))
		return
	}
	if !last.at.IsZero() {
		f.gap[group] = max(f.gap[group], at.Sub(last.at))
	}
	f.last[group] = frameSeen{at, node, epoch}
}

func (f *frames) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.gap)
}

// looked takes in how long a data plane did not look.
func (f *frames) looked(node string, after time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused == nil {
		f.paused = map[string]time.Duration{}
	}
	f.paused[node] = max(f.paused[node], after)
}

// stood is for how long that of any node but one did not look.
func (f *frames) stood(but string) (long time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for node, d := range f.paused {
		if node != but {
			long = max(long, d)
		}
	}
	clear(f.paused)
	return long
}

func (f *frames) of(group string) (frameSeen, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last[group], f.gap[group]
}

// start begins a process.
func (b *drivenBox) start(groups ...failover.Group) {
	w := b.w
	w.t.Helper()
	log := logOf(w.t, b.name)
	c := DriverConfig{Name: b.name, Clock: b.clock, Log: log, CPU: -1}
	if b.role == command.RoleGateway {
		c.Leases, c.Words = b, b
		c.Flush = func(group, peer string, done func()) {
			b.mu.Lock()
			b.brought = append(b.brought, group+" to "+peer)
			b.mu.Unlock()
			time.AfterFunc(3*time.Millisecond, done)
		}
	}
	d, err := NewDriver(c)
	if err != nil {
		w.t.Fatal(err)
	}
	d.Carry(b)
	if len(groups) > 0 { // it is not told yet which there are
		d.Policy(groups)
	}
	g := &gw{}
	n, err := Open(Config{Dir: b.dir, Name: b.name, Role: b.role, Version: "test", Serve: g.serve, Mono: func() uint64 { return uint64(time.Since(b.began)) + 1<<40 }, Wall: time.Now,
		Groups: d, transport: w.network.Join(b.name), peers: b, timers: w.timers})
	if err != nil {
		w.t.Fatal(err)
	}
	n.address = b.name
	b.m = running(w.t, n, g)
	b.mu.Lock()
	b.leases, b.words = map[string]lease{}, map[string]int{}
	b.mu.Unlock()
	b.d = d
	b.drv.Store(d)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	wg.Go(func() { b.emit(ctx) })
	if w.sync {
		wg.Go(func() { b.copies(ctx) })
	}
	b.end = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		b.m.stop()
	})
	w.t.Cleanup(b.end)
}

// emit is the data plane: a look, a frame, a look. A frame counts as of a moment at which the deadline had not passed, whatever the scheduler did to this goroutine.
func (b *drivenBox) emit(ctx context.Context) {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		b.w.judge.looked(b.name, now.Sub(last))
		last = now
		b.mu.Lock()
		all := map[string]lease{}
		for g, l := range b.leases {
			all[g] = l
		}
		b.mu.Unlock()
		for g, l := range all {
			at := time.Now()
			if failover.May(b.clock(), l.until) {
				b.w.judge.see(g, b.name, l.epoch, at)
			}
		}
	}
}

// copies says that all standbys have the whole of it, as session sync does.
func (b *drivenBox) copies(ctx context.Context) {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		own, err := b.d.Owns(ctx)
		if err != nil {
			return
		}
		for g, term := range own {
			for _, o := range b.w.boxes {
				if o != b && o.role == command.RoleGateway && b.w.network.Pass(b.name, o.name) == nil {
					o.drv.Load().Marked(failover.Marked{Group: g, Epoch: term.Epoch})
					b.d.Copied(failover.Copied{Group: g, Peer: o.name, Equal: true, Seq: 1})
				}
			}
		}
	}
}

// stop is SIGSTOP; what it returns is SIGCONT.
func (b *drivenBox) stop() (cont func()) {
	b.stopped.Lock()
	return b.stopped.Unlock
}

func newDriven(t testing.TB, synced bool, groups ...failover.Group) *driven {
	t.Helper()
	return newDrivenOf(t, []string{"gw-a", "gw-b", "wit"}, synced, groups...)
}

func newDrivenOf(t testing.TB, all []string, synced bool, groups ...failover.Group) *driven {
	t.Helper()
	return newDrivenAt(t, 100*time.Millisecond, all, synced, groups...)
}

// newDrivenAt has Raft's timers as long as that; 0 = as they are everywhere. gw-a serves when it returns: gw-b hears of the groups then, since where gw-a is held up, it may be faster with its claim.
func newDrivenAt(t testing.TB, timers time.Duration, all []string, synced bool, groups ...failover.Group) *driven {
	t.Helper()
	w := boxes(t, timers, all, synced, "gw-b", groups...)
	w.served("gw-a")
	for _, b := range w.boxes {
		if b.name == "gw-b" {
			b.d.Policy(groups)
		}
	}
	return w
}

// newRace has both gateways claim at once: who serves is open.
func newRace(t testing.TB, groups ...failover.Group) *driven {
	t.Helper()
	return boxes(t, 100*time.Millisecond, []string{"gw-a", "gw-b", "wit"}, false, "", groups...)
}

// boxes starts them; later is who is not told of the groups yet.
func boxes(t testing.TB, timers time.Duration, all []string, synced bool, later string, groups ...failover.Group) *driven {
	t.Helper()
	w := &driven{t: t, network: &clustertest.Network{}, sync: synced, timers: timers}
	w.judge.last, w.judge.gap = map[string]frameSeen{}, map[string]time.Duration{}
	t.Cleanup(func() {
		for _, b := range w.boxes {
			if t.Failed() && b.m != nil {
				t.Logf("in the end by the log of %s: %+v", b.name, b.m.State().Groups)
			}
		}
	})
	var names []string
	for i, name := range all {
		role := command.RoleGateway
		if name == "wit" {
			role = command.RoleWitness
		}
		w.boxes = append(w.boxes, &drivenBox{w: w, name: name, role: role, dir: t.TempDir(), rate: []float64{0.95, 1.05, 1}[i], offset: rand.Int64N(1e15), began: time.Now(), door: make(chan net.Conn)})
		names = append(names, name)
	}
	var ms []*member
	for _, b := range w.boxes {
		if b.name == later {
			b.start()
		} else {
			b.start(groups...)
		}
		ms = append(ms, b.m)
	}
	together(t, ms, names...)
	return w
}

func east() failover.Group {
	return failover.Group{Name: "east", Nodes: []string{"gw-a", "gw-b"}, Stale: true}
}

func (w *driven) served(by string) {
	w.t.Helper()
	eventually(w.t, by+" serves", func() bool { f, _ := w.judge.of("east"); return f.node == by && time.Since(f.at) < 50*time.Millisecond })
}

// paused is the longest time beyond the guard for which a driver has not read its clock, or a data plane has not looked, since it was asked last, those of one box aside: what the
// machine adds to what a test does.
func (w *driven) paused(but *drivenBox) (long time.Duration) {
	name := ""
	if but != nil {
		name = but.name
	}
	if long = w.judge.stood(name); long <= failover.Default.Guard {
		long = 0
	}
	for _, b := range w.boxes {
		if was := b.d.longest.Swap(0); b != but {
			long = max(long, time.Duration(was))
		}
	}
	return long
}

// fences waits until all know that another node may take over: while two vote the owner is to serve on alone, and with the third it is not.
func (w *driven) fences() {
	w.t.Helper()
	for _, b := range w.boxes {
		eventually(w.t, b.name+" knows that another node may take over", func() bool { return b.m.State().Groups.Groups["east"].Alone == failover.Fence })
	}
}

func (w *driven) sound() {
	w.t.Helper()
	w.judge.mu.Lock()
	defer w.judge.mu.Unlock()
	for _, f := range w.judge.faults {
		w.t.Error(f)
	}
}

func (b *drivenBox) status() (s GroupStatus) {
	b.w.t.Helper()
	all, err := b.d.Status(b.w.t.Context())
	if err != nil {
		b.w.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s GroupStatus) bool { return s.Group.Name == "east" })
	if i >= 0 {
		s = all[i]
	}
	return s
}

// TestDriverTakesOver: the preferred node serves; it is killed and the other one serves, within a lease and an entry of the log; the killed one comes back as standby. Clocks
// are five percent slow and fast and begin anywhere.
func TestDriverTakesOver(t *testing.T) {
	w := newDriven(t, false, east())
	a, b := w.boxes[0], w.boxes[1]
	w.served("gw-a")
	eventually(t, "it was announced", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.words["east"] > 1 })
	eventually(t, "gw-b has seen gw-a serve", func() bool { l := b.status().Last; return l != nil && l.To == "gw-a" })
	w.fences()
	w.judge.reset()
	w.paused(nil)
	w.network.Split([]string{"gw-b", "wit"})
	killed := time.Now()
	a.end()
	w.served("gw-b")
	f, gap := w.judge.of("east")
	long := w.paused(nil)
	t.Logf("served %s after the kill, silence of %s, the machine paused for %s", f.at.Sub(killed), gap, long)
	if gap > 3*time.Second+long { // far more than it takes: a loaded machine elects slowly
		t.Errorf("silence of %s, the machine paused for %s", gap, long)
	}
	s := b.status()
	if s.Last == nil || s.Last.From != "gw-a" || s.Last.To != "gw-b" || s.Last.Cause != failover.CauseLease || !s.Last.Seen || s.Last.Gap < 20*time.Millisecond || s.Last.Gap > 2*gap+100*time.Millisecond {
		t.Errorf("last failover: %+v, silence %s", s.Last, gap)
	}
	eventually(t, "it says why it is not protected", func() bool { return strings.Contains(strings.Join(b.status().Why, "; "), "nothing is heard of gw-a") })
	w.network.Split()
	a.start(east())
	eventually(t, "it knows its place", func() bool { s := a.status(); return s.Node == "gw-b" && !s.Serving })
	w.served("gw-b")
	if w := strings.Join(a.status().Why, "; "); !strings.Contains(w, "the copy of gw-a is not in sync") {
		t.Errorf("why it is not protected: %s", w)
	}
	var lines []string
	for _, l := range b.m.State().Audit {
		if l.Kind == command.KindGroup {
			lines = append(lines, l.What)
		}
	}
	if all := strings.Join(lines, "\n"); !strings.Contains(all, "gw-b owns it, epoch 2: lease; its copy was not in sync by agreement") {
		t.Errorf("the audit log says %s", all)
	}
	// Who ends gives up what nobody has a whole copy of, and says so: that it has stopped is proof, and no lease is waited for.
	b.d.Leave(t.Context())
	if own, err := b.d.Owns(t.Context()); err != nil || len(own) > 0 {
		t.Errorf("after it has left: %v, %v", own, err)
	}
	w.served("gw-a")
	if s := a.status(); s.Cause != failover.CauseReleased {
		t.Errorf("gw-a has the group because of %q, want %q", s.Cause, failover.CauseReleased)
	}
	w.sound()
}

// TestDriverPairAlone: two gateways without a witness. The owner serves on when the other one is gone; started again while that is away it serves by what its own copy of the log says,
// although nobody can say how much of the log is agreed on; and not when the log goes on with a claim of the other one's.
func TestDriverPairAlone(t *testing.T) {
	for tries, claimed := 0, false; ; claimed = true {
		w := newDrivenOf(t, []string{"gw-a", "gw-b"}, false, east())
		a, b := w.boxes[0], w.boxes[1]
		w.served("gw-a")
		eventually(t, "it is to serve on alone, and that is in its copy", func() bool {
			return a.m.st.Carried().Groups.Groups["east"].Alone == failover.Keep && a.m.st.Leads() || yield(b)
		})
		time.Sleep(300 * time.Millisecond) // the copy is written ten times a second
		if claimed {                       // gw-b's, which comes into gw-a's log, and whether it is agreed on nobody hears
			eventually(t, "gw-b leads", func() bool { return b.m.st.Leads() || yield(a) })
			w.network.Cut("gw-a", "gw-b")
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			g := a.m.State().Groups.Groups["east"]
			_, err := b.m.st.Propose(ctx, &command.Entry{Level: 1, Kind: command.KindGroup, Group: &failover.Entry{Kind: failover.KindClaim, Group: "east", After: g.Rev,
				Term: failover.Term{Epoch: g.Epoch + 1, Node: "gw-b", Life: 7}, Alone: failover.Keep, Cause: failover.CauseForce, Why: failover.RightForce}})
			cancel()
			there := false
			for end := time.Now().Add(200 * time.Millisecond); !there && time.Now().Before(end); time.Sleep(time.Millisecond) {
				berr := a.m.st.Beyond(a.m.State().Index, func(e *command.Entry) bool {
					there = there || e.Kind == command.KindGroup && e.Group.Term.Node == "gw-b"
					return true
				})
				if berr != nil {
					t.Fatal(berr)
				}
			}
			if !there { // on a busy machine gw-b may have lost the lead between the look and the claim: all again, for it may be agreed on later
				if tries++; tries == 10 {
					t.Fatalf("the claim is not in the log: %v", err)
				}
				a.end()
				b.end()
				continue
			}
		}
		w.network.Split([]string{"gw-a"}, []string{"gw-b"})
		b.end()
		began := time.Now()
		eventually(t, "it serves on", func() bool {
			f, _ := w.judge.of("east")
			return f.node == "gw-a" && f.at.After(began.Add(300*time.Millisecond))
		})
		eventually(t, "it says that it serves alone", func() bool { // a pause of the machine is a gap: it listens first
			s := a.status()
			return s.Status.Alone && strings.Contains(strings.Join(s.Why, ";"), "without a majority")
		})
		a.end()
		ended, _ := w.judge.of("east")
		a.start(east())
		if !claimed {
			eventually(t, "it serves again", func() bool { f, _ := w.judge.of("east"); return f.node == "gw-a" && f.epoch > ended.epoch })
			if a.m.st.CaughtUp() {
				t.Error("somebody leads: nothing is shown")
			}
		} else {
			time.Sleep(600 * time.Millisecond) // four leases: it would have served
			if f, _ := w.judge.of("east"); f != ended {
				t.Errorf("it serves although its log may have another owner: %+v after %+v", f, ended)
			}
		}
		a.end()
		w.sound()
		if claimed {
			return
		}
	}
}

// yield has a member hand the lead on.
func yield(b *drivenBox) bool {
	if b.m.st.Leads() {
		_ = b.m.st.Yield("", "")
	}
	return false
}

// TestDriverStopped: an owner that is stopped for a while and wakes emits nothing that another one emits; one that is stopped for less than half a lease stays the owner.
func TestDriverStopped(t *testing.T) {
	w := newRace(t, east())
	eventually(t, "somebody serves", func() bool { f, _ := w.judge.of("east"); return time.Since(f.at) < 50*time.Millisecond })
	w.fences()
	dice := rand.New(rand.NewPCG(1, 1))
	judged, waited, half := 0, 0, failover.Default.Lease/2
	for i := 0; i < 12; i++ {
		w.paused(nil)
		renewed := time.Now().Add(failover.Default.Lease) // what was held up before is no stop of now
		eventually(t, "it serves on", func() bool { f, _ := w.judge.of("east"); return f.at.After(renewed) })
		calm := w.paused(nil) == 0
		if !calm && i%2 == 0 && waited < 40 {
			waited++
			i--
			continue
		}
		f, _ := w.judge.of("east")
		owner := w.boxes[slices.IndexFunc(w.boxes, func(b *drivenBox) bool { return b.name == f.node })]
		began, cont := time.Now(), owner.stop()
		d := time.Duration(dice.Int64N(int64(half-15*time.Millisecond))) + time.Duration(i%2)*150*time.Millisecond
		time.Sleep(d) // it is how long it is stopped
		cont()
		took := time.Since(began)
		eventually(t, "somebody serves", func() bool { f, _ := w.judge.of("east"); return f.at.After(began.Add(took + 20*time.Millisecond)) })
		now, _ := w.judge.of("east")
		// What the machine adds is no stop of the owner's: of it, and of those that it asks for their promises.
		if !calm || took > half-5*time.Millisecond || owner.d.Figures().Longest > half || w.paused(owner) > 0 {
			continue
		}
		if judged++; now.epoch != f.epoch {
			t.Errorf("stopped for %s: epoch %d became %d", took, f.epoch, now.epoch)
		}
	}
	t.Logf("%d short stops were judged", judged)
	w.sound()
}

// TestDriverPartition: an owner that is cut off stops before another one begins, whatever has been cut; together again one of them serves.
func TestDriverPartition(t *testing.T) {
	w := newRace(t, east())
	w.fences()
	for i := range 3 {
		var owner, other string
		serves := func() {
			eventually(t, "somebody serves", func() bool {
				f, _ := w.judge.of("east")
				owner = f.node
				return time.Since(f.at) < 30*time.Millisecond
			})
			other = map[string]string{"gw-a": "gw-b", "gw-b": "gw-a"}[owner]
		}
		serves()
		if i == 1 { // each gateway hears the witness and not the other one: nothing moves, but for what the machine does to them
			for try := 0; ; try++ {
				w.paused(nil)
				w.network.Cut(owner, other)
				w.network.Cut(other, owner)
				f, _ := w.judge.of("east")
				eventually(t, "it goes on", func() bool { now, _ := w.judge.of("east"); return now.at.After(f.at.Add(600 * time.Millisecond)) })
				now, _ := w.judge.of("east")
				if now.node == owner {
					break
				}
				if long := w.paused(nil); long == 0 || try == 9 {
					t.Errorf("%s took over from %s, which the witness helps; the machine paused for %s", now.node, owner, long)
					break
				}
				w.network.Split()
				serves()
			}
		} else {
			w.network.Split([]string{other, "wit"})
			w.served(other)
			b := w.boxes[slices.IndexFunc(w.boxes, func(b *drivenBox) bool { return b.name == owner })]
			if s := b.status(); s.Serving {
				t.Errorf("%s says that it serves: %+v", owner, s)
			}
		}
		w.network.Split()
	}
	w.sound()
}

// held asks again while the owner's lease is late, or nothing is agreed on, as it may be on a busy machine.
func held(ask func() error) (err error) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err = ask()
		if err == nil || time.Now().After(end) {
			return err
		}
		// A lease that is late, or a log that nobody leads for a second.
		if !strings.Contains(err.Error(), "does not own the group with a majority behind it") && !strings.Contains(err.Error(), "was begun and is not done after") && !strings.Contains(err.Error(), "was not agreed on within a second") {
			return err
		}
	}
}

// refuses: what is asked for is not done, in these words.
func refuses(t *testing.T, what, says string, ask func() error) {
	t.Helper()
	if err := held(ask); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want %q", what, err, says)
	}
}

// TestDriverPlanned: with whole copies a group moves by an operator's word asked of any member, by draining and by leaving, each with hardly a gap; what cannot be is refused in words.
func TestDriverPlanned(t *testing.T) {
	w := newDriven(t, true, east())
	a, b, wit := w.boxes[0], w.boxes[1], w.boxes[2]
	w.served("gw-a")
	eventually(t, "it is protected", func() bool { s := a.status(); return len(s.Why) == 0 && s.Gap > failover.Default.Lease })
	w.paused(nil)
	root := command.Who{Author: "root"}
	ctx := t.Context()
	for _, c := range []struct {
		group, to, says string
	}{{"west", "gw-b", "has no owner: those that have one are east"}, {"east", "gw-a", "owns group east already"}, {"east", "wit", "not one of the group's nodes"}} {
		refuses(t, c.group+" to "+c.to, c.says, func() error { return wit.m.MoveGroup(ctx, c.group, c.to, root) })
	}
	if err := a.m.TakeGroup(ctx, "east", root); err == nil || !strings.Contains(err.Error(), "serves the group already") {
		t.Errorf("taking what is served: %v", err)
	}
	if err := b.m.TakeGroup(ctx, "west", root); err == nil || !strings.Contains(err.Error(), "there is no group west") {
		t.Errorf("taking what there is not: %v", err)
	}
	w.judge.reset()
	if err := held(func() error { return wit.m.MoveGroup(ctx, "east", "gw-b", root) }); err != nil {
		t.Fatal(err)
	}
	w.served("gw-b")
	_, moved := w.judge.of("east")
	l := b.m.State().Audit
	if i := slices.IndexFunc(l, func(l command.Line) bool { return strings.Contains(l.What, "gw-b owns it, epoch 2: move") }); i < 0 || l[i].Who.Author != "root" {
		t.Errorf("the audit log does not say who moved it: %+v", l)
	}
	eventually(t, "it is protected", func() bool { return len(b.status().Why) == 0 })
	w.judge.reset()
	if left, err := a.m.DrainNode(ctx, "gw-b", true, root); err != nil || len(left) > 0 {
		t.Fatalf("%v, %v", left, err)
	}
	w.served("gw-a")
	_, drained := w.judge.of("east")
	if s := a.status(); !slices.Equal(s.Drained, []string{"gw-b"}) || s.Alone || !strings.Contains(strings.Join(s.Why, ";"), "gw-b is drained") {
		t.Errorf("%+v", s)
	}
	refuses(t, "to a drained node", "is drained", func() error { return a.m.MoveGroup(ctx, "east", "gw-b", root) })
	if _, err := wit.m.DrainNode(ctx, "gw-b", false, root); err != nil {
		t.Fatal(err)
	}
	if _, err := wit.m.DrainNode(ctx, "wit", true, root); err == nil || !strings.Contains(err.Error(), "is a witness") {
		t.Errorf("draining a witness: %v", err)
	}
	eventually(t, "the copy is in sync again, and its owner fences", func() bool {
		s := a.status()
		return len(s.Why) == 0 && s.Ownership.Alone == failover.Fence && len(s.Drained) == 0
	})
	w.judge.reset()
	a.d.Leave(ctx)
	if own, err := a.d.Owns(ctx); err != nil || len(own) > 0 {
		t.Errorf("after it has left: %v, %v", own, err)
	}
	w.served("gw-b")
	_, left := w.judge.of("east")
	t.Logf("gaps: move %s, drain %s, leave %s", moved, drained, left)
	// Whoever hands over brings the last changes, each time: by the log, for on a busy machine a lease may run out before. One whose lease ran out while the log agreed has nothing
	// to bring.
	want, owner := map[string][]string{}, ""
	for _, l := range b.m.State().Audit {
		rest, ok := strings.CutPrefix(l.What, "group east: ")
		heir, why, owns := strings.Cut(rest, " owns it, ")
		if !ok || !owns {
			continue
		}
		if strings.HasSuffix(why, ": move") || strings.HasSuffix(why, ": drain") {
			want[owner] = append(want[owner], "east to "+heir)
		}
		owner = heir
	}
	if len(want["gw-a"]) == 0 {
		t.Errorf("nothing was handed over: %v", want)
	}
	long := w.paused(nil)
	for _, x := range []*drivenBox{a, b} {
		x.mu.Lock()
		if got := x.brought; !slices.Equal(got, want[x.name]) && (long == 0 || len(got) > len(want[x.name]) || slices.ContainsFunc(got, func(s string) bool { return !slices.Contains(want[x.name], s) })) {
			t.Errorf("%s has brought the last changes of %q, want %q; the machine paused for %s", x.name, got, want[x.name], long)
		}
		x.mu.Unlock()
	}
	for _, gap := range []time.Duration{moved, drained, left} {
		if gap > 2*time.Second+long {
			t.Errorf("a planned move takes %s, the machine paused for %s", gap, long)
		}
	}
	// A group that has ended stays its last owner's in the log, and is none that a drain waits for.
	if o := b.m.State().Groups.Groups["east"]; o.Node != "gw-b" {
		t.Fatalf("the log: %+v", o)
	}
	for _, x := range w.boxes {
		x.d.Policy(nil)
	}
	if left, err := wit.m.DrainNode(ctx, "gw-b", true, root); err != nil || len(left) > 0 {
		t.Errorf("gw-b is drained of a group that has ended: it still serves %q, %v", left, err)
	}
	w.sound()
}

// TestDriverLone: a node by itself is its own majority, and serves; the log that is closed and opened again takes nothing from it, and a node whose log was never open serves nothing.
func TestDriverLone(t *testing.T) {
	w := &driven{t: t, network: &clustertest.Network{}}
	w.judge.last, w.judge.gap = map[string]frameSeen{}, map[string]time.Duration{}
	a := &drivenBox{w: w, name: "gw-a", role: command.RoleGateway, dir: t.TempDir(), rate: 1, began: time.Now(), door: make(chan net.Conn)}
	w.boxes = []*drivenBox{a}
	a.start(failover.Group{Name: "east", Nodes: []string{"gw-a"}})
	if s := a.status(); s.Serving {
		t.Errorf("it serves before anything is agreed on: %+v", s)
	}
	begun(t, a.m)
	w.served("gw-a")
	w.judge.reset()
	a.m.stop()
	began := time.Now()
	eventually(t, "it serves without its log", func() bool { f, _ := w.judge.of("east"); return f.at.After(began.Add(500 * time.Millisecond)) })
	// As long as the data plane or the driver did not run nothing can be sent.
	_, gap := w.judge.of("east")
	if long := w.paused(nil); gap > 300*time.Millisecond+long {
		t.Errorf("a silence of %s, the machine paused for %s", gap, long)
	}
	a.end()
	if f, _ := w.judge.of("east"); time.Since(f.at) > time.Second {
		t.Error("it was not serving to the end")
	}
	ended, _ := w.judge.of("east")
	d, err := NewDriver(DriverConfig{Name: "gw-a", Clock: a.clock, CPU: -1, Leases: a, Words: a})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	d.Policy([]failover.Group{east()})
	time.Sleep(400 * time.Millisecond) // more than two leases: it has nobody to ask
	if own, err := d.Owns(ctx); err != nil || len(own) > 0 {
		t.Errorf("it serves %v without knowing what is agreed on, %v", own, err)
	}
	cancel()
	<-done
	if now, _ := w.judge.of("east"); now != ended {
		t.Errorf("emitted: %+v", now)
	}
	if err := d.Move(t.Context(), "east", "gw-b", command.Who{}); err == nil || !strings.Contains(err.Error(), "takes no part") {
		t.Errorf("asked after its end: %v", err)
	}
	w.sound()
}

// TestDriverGroupEnds: a group that the policy has no more is shown no more, so that its series end with it; the log has it still, and one that comes back goes on from its last epoch. A node that has not heard of any policy
// shows what the log has.
func TestDriverGroupEnds(t *testing.T) {
	w := &driven{t: t, network: &clustertest.Network{}}
	w.judge.last, w.judge.gap = map[string]frameSeen{}, map[string]time.Duration{}
	a := &drivenBox{w: w, name: "gw-a", role: command.RoleGateway, dir: t.TempDir(), rate: 1, began: time.Now(), door: make(chan net.Conn)}
	w.boxes = []*drivenBox{a}
	alone := failover.Group{Name: "east", Nodes: []string{"gw-a"}}
	a.start(alone)
	begun(t, a.m)
	w.served("gw-a")
	epoch := a.status().Epoch
	shown := func() int {
		list, err := a.d.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	a.d.Policy(nil)
	eventually(t, "the group has ended", func() bool { return shown() == 0 })
	refuses(t, "a group that has ended", "there is no group east", func() error { return a.d.Move(t.Context(), "east", "gw-b", command.Who{}) })
	if g := a.m.State().Groups.Groups["east"]; g.Epoch != epoch {
		t.Errorf("the log forgets it: %+v", g)
	}
	a.d.Policy([]failover.Group{alone})
	eventually(t, "it is served again", func() bool { return a.status().Serving })
	if s := a.status(); s.Epoch < epoch {
		t.Errorf("it came back under epoch %d, it had %d", s.Epoch, epoch)
	}

	d, err := NewDriver(DriverConfig{Name: "gw-b", Clock: a.clock, CPU: -1, Leases: a, Words: a})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	d.step(a.clock(), failover.Agreed{State: a.m.State().Groups})
	if d.m.Ended("east") {
		t.Error("it has ended for a node that knows no policy")
	}
	w.sound()
}

// TestADriverRests: without a group and without another member it looks at no clock until it is told of one; with either it does.
func TestADriverRests(t *testing.T) {
	looks := new(atomic.Int64)
	d, err := NewDriver(DriverConfig{Name: "gw-a", Clock: func() failover.Time { return failover.Time(1e9 + looks.Add(1)) }, CPU: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-d.Started()
	seen := func(over time.Duration) int64 {
		before := looks.Load()
		time.Sleep(over)
		return looks.Load() - before
	}
	if own, err := d.Owns(ctx); err != nil || len(own) > 0 {
		t.Fatalf("%v, %v", own, err)
	}
	seen(20 * time.Millisecond) // it goes to sleep
	if n := seen(400 * time.Millisecond); n != 0 {
		t.Errorf("it has looked at the clock %d times, and nobody has said anything", n)
	}
	d.post(false, func(now failover.Time) { d.step(now, failover.Voters{Version: 1, Names: []string{"gw-a", "gw-b"}}) })
	// While the machine is elsewhere it looks less often, and never more often than it should.
	most := func(enough int64, over time.Duration) (n int64) {
		for try := 0; try < 10 && n < enough; try++ {
			n = max(n, seen(over))
		}
		return n
	}
	if n := most(4, 500*time.Millisecond); n < 4 { // it has somebody to tell that it lives
		t.Errorf("with another member it has looked %d times", n)
	}
	d.Policy([]failover.Group{east()})
	if n := most(20, 200*time.Millisecond); n < 20 {
		t.Errorf("with a group it has looked %d times", n)
	}
}

// TestDriverBound: messages that come faster than they are read are dropped and counted, what else is asked of the driver is not.
func TestDriverBound(t *testing.T) {
	d, err := NewDriver(DriverConfig{Name: "gw-a", Clock: func() failover.Time { return 1 }, CPU: -1})
	if err != nil {
		t.Fatal(err)
	}
	for range maxHeard + 10 {
		d.Receive("gw-b", failover.Message{Kind: failover.Beat})
	}
	d.Policy([]failover.Group{east()})
	other, err := NewDriver(DriverConfig{Name: "gw-a", Clock: func() failover.Time { return 1 }, CPU: -1})
	if err != nil || other.Life() == d.Life() || d.Life() == 0 {
		t.Errorf("two processes have the lives %d and %d: %v", d.Life(), other.Life(), err)
	}
	other.Discard()
	if f := d.Figures(); f.Lost != 10 || len(d.queue) != maxHeard+1 {
		t.Errorf("lost %d, %d wait", f.Lost, len(d.queue))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	all, err := d.Status(ctx)
	if err != nil || len(all) != 1 || all[0].Group.Name != "east" {
		t.Errorf("%+v, %v", all, err)
	}
	for i := range maxEvents + 5 {
		d.note("east", fmt.Sprint(i))
	}
	if e := d.Events(); len(e) != maxEvents || e[0].Words != "5" {
		t.Errorf("%d events, the first is %+v", len(e), e[0])
	}
	cancel()
	<-done
	if _, err := unix.FcntlInt(uintptr(d.wake), unix.F_GETFD, 0); err == nil {
		t.Error("its eventfd is still open")
	}
}

func logOf(t testing.TB, name string) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(tee{t, name}, nil))
}

type tee struct {
	t    testing.TB
	name string
}

func (l tee) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "msg=group") {
		fmt.Printf("%s %s: %s", time.Now().Format("05.000"), l.name, p)
	}
	return len(p), nil
}

// Why the last failover was is told also when the log's word comes behind what was seen, and when the term that began by it is over.
func TestLastFailoverKeepsItsCause(t *testing.T) {
	d := &Driver{c: DriverConfig{Wall: time.Now}, groups: map[string]*groupTrack{}}
	agreed := func(epoch uint64, node, from string, why failover.Cause) {
		d.learn(failover.State{Groups: map[string]failover.Ownership{"east": {Term: failover.Term{Epoch: epoch, Node: node}, From: from, Cause: why}}})
	}
	is := func(when string, epoch uint64, why failover.Cause) {
		t.Helper()
		if f := d.groups["east"].moved; f == nil || f.Epoch != epoch || f.Cause != why || f.From != "gw-a" {
			t.Errorf("%s: %+v, want epoch %d for %q from gw-a", when, f, epoch, why)
		}
	}
	d.saw("east", "gw-a", 1, 10)
	agreed(2, "gw-b", "gw-a", failover.CausePolicy)
	d.saw("east", "gw-b", 2, 20)
	is("agreed before it was seen", 2, failover.CausePolicy)
	agreed(3, "gw-a", "gw-b", failover.CauseMove)
	is("another term is agreed on", 2, failover.CausePolicy)
	d.saw("east", "gw-a", 3, 30)
	d.saw("east", "gw-b", 4, 40)
	is("seen, and not heard of", 4, "")
	agreed(4, "gw-b", "gw-a", failover.CauseLease)
	is("heard of behind that", 4, failover.CauseLease)
}
