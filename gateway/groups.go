package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster"
	"demarc/cluster/beat"
	"demarc/cluster/failover"
	"demarc/configs"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/worker"
)

// groups is this node's part in who serves a group: the driver of cluster, and what the gateway tells it and carries out for it.
type groups struct {
	driver  *cluster.Driver
	carrier atomic.Pointer[beat.Carrier] // nil = there is no [cluster] section, or it cannot be opened yet
	problem atomic.Pointer[string]       // why this node takes no part; nil = it does

	mu  sync.Mutex
	ids map[string]uint8 // mu: every name that a deadline was ever written for; a group that the policy does not know any more is closed by it

	turns turns
	owns  chan struct{} // has room for one: something may have changed in which terms are this node's
	links chan struct{} // has room for one: a port may carry something that did not, or nothing any more; or the policy is another

	told     map[conditionKey]int // conditions: what counts against this node, as it was told last
	panics   uint64               // conditions: of all workers, when they were looked at last
	panicked time.Time            // conditions: when there was last one
	parts    [256]part            // by id: what workers were told last
	looks    looks                // conditions: at the workers
}

type conditionKey struct {
	group string
	cause failover.Cause
}

// bootTime reads CLOCK_BOOTTIME itself: the workers' clock is the runtime's, which stands still in a suspend until it is measured again.
func bootTime() failover.Time {
	now, err := worker.BootTime()
	if err != nil {
		return 0 // a clock that goes back stands still, so the lease ends; New has read it once
	}
	return failover.Time(now)
}

// spare is a CPU for the thread of the leases, where the node file pins the workers: one that no worker spins on. Negative = any.
func spare(n *configs.Node) int {
	if len(n.Workers.CPUs) == 0 {
		return -1
	}
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return -1
	}
	for cpu := range 1024 {
		if set.IsSet(cpu) && !slices.Contains(n.Workers.CPUs, cpu) {
			return cpu
		}
	}
	return -1
}

// openGroups makes the driver. It serves nothing before Run.
func (g *Gateway) openGroups() (err error) {
	g.groups.ids, g.groups.told, g.groups.owns = map[string]uint8{}, map[conditionKey]int{}, make(chan struct{}, 1)
	g.groups.links = make(chan struct{}, 1)
	g.groups.driver, err = cluster.NewDriver(cluster.DriverConfig{Name: g.o.Node.Name, Clock: bootTime, Wall: g.o.Wall, Log: g.log, Leases: leases{g}, Words: words{g}, Roles: roles{g}, Flush: g.flushGroup, CPU: spare(g.o.Node)})
	return err
}

// carryAgain is how long to wait before a carrier that could not be opened is tried again.
const carryAgain = time.Second

// runGroups starts what keeps leases and carries messages. A node whose datagrams cannot be carried takes no part, and serves no group: what has none goes on as before. It is
// tried again: an address may come later than this process, and whoever has the port may end.
func (g *Gateway) runGroups(run func(what string, fn func(context.Context) error)) (end func()) {
	c, err := openCarrier(g.o.Node, g.groups.driver, g.log)
	if err != nil {
		g.log.Error("this node takes no part in who serves a group until messages about it can be carried", "err", err)
		why := err.Error()
		g.groups.problem.Store(&why)
		g.groups.driver.Deaf(true)
	}
	run("groups", g.groups.driver.Run)
	<-g.groups.driver.Started()
	switch {
	case err != nil:
		run("datagrams", g.carryLater)
	case c != nil:
		g.groups.carrier.Store(c)
		run("datagrams", c.Run)
	}
	return func() {
		if c := g.groups.carrier.Load(); c != nil {
			c.Close()
		}
	}
}

// carryLater opens the carrier as soon as that can be done, has the node take part, and carries messages until ctx ends.
func (g *Gateway) carryLater(ctx context.Context) error {
	t := time.NewTicker(carryAgain)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		c, err := openCarrier(g.o.Node, g.groups.driver, g.log)
		if err != nil {
			if why := err.Error(); why != *g.groups.problem.Load() {
				g.log.Error("this node still takes no part in who serves a group", "err", err)
				g.groups.problem.Store(&why)
			}
			continue
		}
		g.groups.carrier.Store(c)
		g.groups.problem.Store(nil)
		g.groups.driver.Deaf(false)
		g.log.Info("messages about who serves a group are carried: this node takes part")
		return c.Run(ctx)
	}
}

// openCarrier binds a node's addresses for datagrams; nil where it has none.
func openCarrier(n *configs.Node, d *cluster.Driver, log *slog.Logger) (*beat.Carrier, error) {
	if n.Cluster == nil {
		return nil, nil
	}
	c, err := cluster.OpenCarrier(clusterNet(n.Cluster), n.Name, d.Receive, log)
	if err != nil {
		return nil, err
	}
	d.Carry(c)
	return c, nil
}

// failoverGroups is what the machine is to know of a policy.
func failoverGroups(p *configs.Policy) (out []failover.Group) {
	for i := range p.Groups {
		c := &p.Groups[i]
		out = append(out, failover.Group{Name: c.Name, Nodes: c.Nodes, Alone: failover.Alone(c.Alone), Stale: c.Stale != "wait", Prefer: c.Prefer})
	}
	return out
}

// tellGroups tells the driver the groups of the policy whose view is served. The caller holds mu, or is New.
func (g *Gateway) tellGroups(p *configs.Policy, v *snapshot.View) {
	g.groups.mu.Lock()
	for _, x := range v.Groups() {
		g.groups.ids[x.Name] = x.ID
	}
	g.groups.mu.Unlock()
	if list := failoverGroups(p); len(list) > 0 || v.Revision > 0 { // who has no policy yet does not know which groups have ended
		g.groups.driver.Policy(list)
	}
	// Who looks at what groups need stands still in a policy without any.
	poke(g.groups.links)
	g.copying.call()
	poke(g.copying.renewed)
	if g.common != nil {
		g.common.call() // it takes the policy up, so that who makes a group ready need not
	}
	if g.standby != nil {
		g.standby.Call()
	}
}

// poke puts a word into a channel that has room for one.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// paced is a ticker that stands still while there is nothing to look at: a node without groups would else wake some fifty times a second for nothing, and each time the runtime's threads with it.
type paced struct {
	*time.Ticker
	every time.Duration
	on    bool
}

func newPaced(every time.Duration) *paced { return &paced{time.NewTicker(every), every, true} }

// goOn has it tick, or stand still. After it has stood still the first tick comes a whole pace later.
func (p *paced) goOn(on bool) {
	switch {
	case on && !p.on:
		p.Reset(p.every)
	case !on:
		p.Stop()
	}
	p.on = on
}

// leases writes deadlines where workers and XDP programs look.
type leases struct{ g *Gateway }

func (l leases) Write(group string, epoch uint64, until, leave failover.Time, done func()) {
	l.g.groups.mu.Lock()
	id, ok := l.g.groups.ids[group]
	l.g.groups.mu.Unlock()
	if !ok { // no policy of this process had it, so nothing of it was ever served
		if done != nil {
			done()
		}
		return
	}
	l.g.writeLease(id, epoch, uint64(until), uint64(leave), done)
}

// roles makes the node ready for what it becomes to a group.
type roles struct{ g *Gateway }

// Role has serving called beside the driver, for each group in order.
func (r roles) Role(group string, epoch uint64, serving bool, known failover.Known, done func()) {
	select {
	case r.g.groups.owns <- struct{}{}:
	default:
	}
	r.g.groups.mu.Lock()
	id, ok := r.g.groups.ids[group]
	r.g.groups.mu.Unlock()
	if done == nil {
		done = func() {}
	}
	r.g.groups.turns.add(id, func() {
		if !ok {
			done()
			return
		}
		r.g.serving(id, epoch, serving, known, done)
	})
}

// serving makes the node ready for what it becomes to a group: it is about to serve it under an epoch, or another node has it under that epoch, or (an epoch that it had itself) the
// policy knows the group no more. Nothing is sent for the group before done is called, once, so that takes some milliseconds at most, also where a worker hangs, and walks no table. Where all is known of what owners
// before have used, it is called before public addresses are gone through (some microseconds each): sessions go on, and new conversations have no ports until then. Of one
// group one call runs at a time, of several groups several do.
func (g *Gateway) serving(group uint8, epoch uint64, serving bool, known failover.Known, done func()) {
	if serving {
		g.standby.Serving(group, epoch, true) // nobody else's word is taken from here on
		served := false
		serve := func(forget bool) {
			g.takeOver(group, true, forget)
			served = true
			done()
		}
		if forget := g.common.serving(group, epoch, true, g.knowsOf(group, known), func() { serve(false) }); !served {
			serve(forget)
		}
	} else {
		g.takeOver(group, false, false)
		g.common.serving(group, epoch, false, pipeline.Known{}, nil)
		g.standby.Serving(group, epoch, false)
		done()
	}
	g.copying.serving(group, epoch, serving)
}

// roleWait is how long a group waits for workers that do not take the order about it. Who takes it late serves nothing of the group before.
const roleWait = 20 * time.Millisecond

// part is this node's in one group.
type part struct {
	serves atomic.Bool
	given  atomic.Uint64 // how often it was given up
}

func (p *part) set(serving bool) {
	p.serves.Store(serving)
	if !serving {
		p.given.Add(1)
	}
}

// knowsOf is how much this node knows of what owners before it have used, where it is about to serve a group. What the process before has left counts as far as nothing has been done to it here since; one of a release
// that did not say its terms has left all of a group that no other node may serve.
func (g *Gateway) knowsOf(group uint8, k failover.Known) pipeline.Known {
	out := pipeline.Known{All: k.All, Here: k.Here, Age: -1, Unagreed: k.Unagreed}
	if k.Last > 0 {
		out.Age = max(int64(bootTime()-k.Last), 0) + int64(onItsWay)
	}
	if x := g.view.Load().Group(group); x != nil {
		g.handover.mu.Lock()
		out.All = out.All || g.lone(x) && g.handover.all[x.Name]
		delete(g.handover.all, x.Name)
		g.handover.mu.Unlock()
	}
	if out.Here && (out.Age > int64(maxHanded) || g.lostCopies() != g.handover.lost) { // given up by both ends by now; or a policy has taken something away since
		out.All, out.Here = false, false
	}
	if out.Here && g.standby != nil && g.standby.Took(group) { // what a node has that believed to serve it under an earlier term
		out.All, out.Here, out.Age = false, false, -1
	}
	return out
}

// onItsWay is how old what comes by a session stream may be at most: who writes it gives it up when it cannot for 10 s, or is not answered for 3 s.
const onItsWay = 15 * time.Second

// forgetLook is at how many sessions a worker looks before it asks whether it has time for more.
const forgetLook = 64

// forget has a worker end what is too old of a group, as long as this node is to serve it.
func (p *part) forget(group uint8) func(*pipeline.Shard, time.Duration) bool {
	at := uint32(0)
	return func(sh *pipeline.Shard, room time.Duration) (done bool) {
		for end := time.Now().Add(room); !done && p.serves.Load() && time.Now().Before(end); {
			at, done = sh.ForgetSome(group, at, forgetLook)
		}
		return done || !p.serves.Load()
	}
}

// takeOver tells each worker whether what it has of a group is this node's own now, or copies; forget has those end that have a public port. A worker that hangs does what holds by then.
func (g *Gateway) takeOver(group uint8, serving, forget bool) {
	part := &g.groups.parts[group]
	part.set(serving)
	done := make(chan struct{}, len(g.workers))
	release := func() {}
	if serving { // a program asks for the deadline alone, so it would carry what its worker has not looked at: nothing, before every worker has
		release = g.off.up()
	}
	var left atomic.Int32
	left.Store(int32(len(g.workers)))
	for _, w := range g.workers {
		go func() {
			var err error
			if forget { // before they are this node's own; packets of others go on in between
				err = w.Steps(context.Background(), part.forget(group))
			}
			if err == nil {
				err = w.Do(context.Background(), func(sh *pipeline.Shard) {
					given := part.given.Load() // before serves: what is given up in between is done by the order about that
					sh.Hold(group, part.serves.Load(), given)
				})
			}
			if err != nil && !errors.Is(err, worker.ErrStopped) {
				g.log.Error("a worker was not told whether this node serves a group: it serves it no further than before", "group", group, "err", err)
			} else if left.Add(-1) == 0 { // else never
				release()
			}
			done <- struct{}{}
		}()
	}
	late := time.After(roleWait)
	for range g.workers {
		select {
		case <-done:
		case <-late:
			g.log.Warn("a worker is late to take over a group", "group", group)
			return
		}
	}
}

// turns runs functions: of one group one after the other, of several beside each other.
type turns struct {
	mu   sync.Mutex
	wait map[uint8][]func() // mu: by group; a group that is there has a goroutine
}

func (t *turns) add(group uint8, fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wait == nil {
		t.wait = map[uint8][]func(){}
	}
	_, runs := t.wait[group]
	if t.wait[group] = append(t.wait[group], fn); runs {
		return
	}
	go func() {
		for {
			t.mu.Lock()
			list := t.wait[group]
			if len(list) == 0 {
				delete(t.wait, group)
				t.mu.Unlock()
				return
			}
			t.wait[group] = nil
			t.mu.Unlock()
			for _, fn := range list {
				fn()
			}
		}
	}()
}

// flushGroup has a planned move wait for what changed to the end; see failover.Flush.
func (g *Gateway) flushGroup(group, peer string, done func()) {
	g.groups.mu.Lock()
	id, ok := g.groups.ids[group]
	g.groups.mu.Unlock()
	if !ok {
		done()
		return
	}
	g.copying.ends.flush(id, peer, done)
}

// words announces addresses.
type words struct{ g *Gateway }

// Announce has the slow path tell hosts and switches. Each round is the same to it: what moves the switches first, and all else at its own pace.
func (w words) Announce(group string, _ uint64, _ int) {
	if x := w.g.view.Load().GroupByName(group); x != nil {
		w.g.slow.Announce(x.ID)
	}
}

const panicRest = time.Minute // so long a panic counts against the node: the flow that causes it is blocked for as long

// lookPace is how often it is looked what counts against this node. A link that changes is looked at when it does.
const lookPace = 50 * time.Millisecond

// tendGroups has what counts against this node be told for as long as ctx lasts.
func (g *Gateway) tendGroups(ctx context.Context) error {
	g.lookAtGroups(ctx, lookPace)
	return nil
}

// lookAtGroups looks at that pace where there is a group, and whenever a link has changed or the policy.
func (g *Gateway) lookAtGroups(ctx context.Context, pace time.Duration) {
	turn := newPaced(pace)
	defer turn.Stop()
	for {
		turn.goOn(g.conditional())
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
		case <-g.groups.links:
		}
		g.conditions(ctx)
	}
}

// conditional reports whether there is a group that something counts for, or was.
func (g *Gateway) conditional() bool {
	return len(g.view.Load().Groups()) > 0 || len(g.groups.told) > 0
}

// conditions tells the driver what counts against this node: for each group the ports that it needs and that carry nothing, for all of them workers that are stuck, a policy
// that is agreed on and not served, and faults on packets. One goroutine calls it.
func (g *Gateway) conditions(ctx context.Context) {
	now := map[conditionKey]int{}
	v := g.view.Load()
	if !g.conditional() {
		return
	}
	dead := map[uint16]bool{}
	for i, p := range g.ports {
		f := g.facts(p)
		dead[uint16(i)] = f.state != portOpen && !f.reopens() || f.bare || !f.link.Up || !f.link.Carrier || p.dead.Load()
	}
	for _, x := range v.Groups() {
		ports := map[uint16]bool{}
		for i := 1; i < len(v.Ifaces); i++ {
			f := &v.Ifaces[i]
			if dead[f.Port] && slices.ContainsFunc(f.Groups, func(p snapshot.Presence) bool { return p.Group == x }) {
				ports[f.Port] = true
			}
		}
		now[conditionKey{x.Name, failover.CausePort}] = len(ports)
	}
	now[conditionKey{"", failover.CauseWorker}] = g.groups.looks.count(ctx, g.workers, time.Now())
	now[conditionKey{"", failover.CausePanics}] = g.panicsNow()
	now[conditionKey{"", failover.CauseUplink}] = g.deadUplinks(v)
	if m, err := g.known(); err == nil {
		if s := m.State(); s.Serving != 0 && m.NotServed() {
			now[conditionKey{"", failover.CausePolicy}] = 1
		}
	}
	for k, n := range now {
		if g.groups.told[k] != n {
			g.groups.told[k] = n
			g.groups.driver.Condition(failover.Condition{Group: k.group, Cause: k.cause, Count: n})
		}
	}
	for k, n := range g.groups.told {
		if _, still := now[k]; !still && n != 0 {
			delete(g.groups.told, k)
			g.groups.driver.Condition(failover.Condition{Group: k.group, Cause: k.cause})
		}
	}
}

func (g *Gateway) panicsNow() int {
	sum := uint64(0)
	for _, w := range g.workers {
		sum += w.Stats().Panics
	}
	if sum > g.groups.panics {
		g.groups.panics, g.groups.panicked = sum, time.Now()
	}
	if !g.groups.panicked.IsZero() && time.Since(g.groups.panicked) < panicRest {
		return 1
	}
	return 0
}

// deadUplinks counts the next hops of the backbone that do not answer, where none of them does any more: one that is left carries the traffic. Without a link it is the port's condition. A route with backups is judged by
// itself: a node that carries it by a backup is worse than one that need not, and better than one that cannot carry it at all.
func (g *Gateway) deadUplinks(v *snapshot.View) (dead int) {
	plain, left := map[*fib.HopState]bool{}, false
	backed := map[string]bool{}
	for _, r := range v.Routes() {
		hops := v.RouteHops(r.NextHop)
		if r.Zone != flow.Backbone || len(hops) == 0 {
			continue
		}
		if !slices.ContainsFunc(hops, func(h snapshot.RouteHop) bool { return h.Backup }) {
			for _, h := range hops {
				plain[h.State] = true
				left = left || !h.State.Dead() || h.State.NoLink()
			}
			continue
		}
		if h := &v.Hops[r.NextHop]; !backed[fmt.Sprint(h.Vias, h.Backups)] { // prefixes by the same routers are one uplink
			backed[fmt.Sprint(h.Vias, h.Backups)] = true
			dead += deadWithBackups(hops)
		}
	}
	if !left {
		dead += len(plain)
	}
	return dead
}

// deadWithBackups is deadUplinks of one route. While a backup carries it, a next hop that was dead counts until it is settled: no group moves to where conversations do not go by it yet.
func deadWithBackups(hops []snapshot.RouteHop) (dead int) {
	silent, live := 0, false // of the backups
	for _, h := range hops {
		switch {
		case !h.Backup:
		case !h.State.Dead():
			live = true
		case !h.State.NoLink():
			silent++
		}
	}
	for _, h := range hops {
		switch {
		case h.Backup || h.State.NoLink():
		case h.State.Dead() || live && h.State.Died():
			dead++
		default:
			return 0
		}
	}
	if !live {
		dead += silent
	}
	return dead
}

// leaveGroups hands over what this node serves, and gives up the rest. Bounded by the driver.
func (g *Gateway) leaveGroups() {
	began := time.Now()
	own, err := g.groups.driver.Owns(context.Background())
	if err != nil {
		return
	}
	knows := g.knowsAll(own)                    // before they are given up
	g.groups.driver.Leave(context.Background()) // also where nothing is served: something may have been claimed
	g.leftBehind(knows)
	if len(own) == 0 {
		return
	}
	g.awaitHandOn()
	g.log.Info("the groups that this node served are handed over or given up", "groups", len(own), "took", time.Since(began).String())
}
