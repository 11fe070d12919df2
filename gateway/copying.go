package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"demarc/cluster/failover"
	"demarc/gateway/api"
	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/stream"
)

// copying is the owner's end of copies of sessions: for each node that may take over something that this one serves, a set of streams, one from each worker.
type copying struct {
	changed chan struct{} // has room for one
	renewed chan struct{} // has room for one: tellCopied is to look whether the policy has groups

	mu   sync.Mutex
	own  map[uint8]served     // mu: by group
	why  string               // mu: why no further set is made; "" = nothing is in the way
	sets map[string]*outbound // mu: by node

	ends handovers
}

// handovers is what the last changes of groups that are handed over need to know. Nobody who has it locked waits for anything.
type handovers struct {
	mu   sync.Mutex
	sets map[string]*stream.Set // mu: by node
	last map[uint8]lastChanges  // mu: by group
}

// lastChanges is what a node that hands a group over brings those that may be the heir, by node: each stream's as soon as nothing is added to it any more, before anybody asks for it.
type lastChanges map[string]*stream.Flushing

// begin begins with it, or where the group is not handed over forgets what was begun.
func (h *handovers) begin(group uint8, over bool) lastChanges {
	h.mu.Lock()
	defer h.mu.Unlock()
	if delete(h.last, group); !over {
		return nil
	}
	l := lastChanges{}
	for peer, s := range h.sets {
		l[peer] = s.Flushing()
	}
	if h.last == nil {
		h.last = map[uint8]lastChanges{}
	}
	h.last[group] = l
	return l
}

// add has a node's streams be those.
func (h *handovers) add(peer string, s *stream.Set) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sets == nil {
		h.sets = map[string]*stream.Set{}
	}
	h.sets[peer] = s
}

// drop ends that, unless others have taken their place.
func (h *handovers) drop(peer string, s *stream.Set) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sets[peer] == s {
		delete(h.sets, peer)
	}
}

// worker: worker i has changed what it had to.
func (l lastChanges) worker(i int) {
	for _, f := range l {
		f.Stream(i)
	}
}

// common: so have all, and nothing more is counted.
func (l lastChanges) common() {
	for _, f := range l {
		f.Stream(f.Streams() - 1)
	}
}

// served is a group that this node serves, or did until a moment ago.
type served struct {
	epoch uint64
	until time.Time // zero = it serves it; else what was done up to the end is told until then
}

// outbound is the streams to one node. What is beside set belongs to the goroutine of copySessions.
type outbound struct {
	set   *stream.Set
	told  map[uint8]uint64 // group -> epoch under which it is sent
	ended context.CancelFunc

	equal map[uint8]uint64 // tellCopied: group -> epoch in which the copy was whole once
}

const (
	copiedPace = 100 * time.Millisecond // the driver is told how copies stand
	remakePace = time.Second            // a set that has ended because of a fault is made again
	orderTime  = 2 * time.Second        // for a worker to take up a stream
	// afterword is for how long a group goes on being told of after this node has ceased to serve it, for what its last packets have changed.
	afterword = 100 * time.Millisecond
)

func newCopying() copying {
	return copying{changed: make(chan struct{}, 1), renewed: make(chan struct{}, 1), own: map[uint8]served{}, sets: map[string]*outbound{}}
}

// serving tells which groups are this node's. It waits for nothing.
func (c *copying) serving(group uint8, epoch uint64, serving bool) {
	c.mu.Lock()
	if serving {
		c.own[group] = served{epoch: epoch}
	} else if s, was := c.own[group]; was && s.until.IsZero() {
		s.until = time.Now().Add(afterword)
		c.own[group] = s
	}
	c.mu.Unlock()
	c.call()
}

// call has what is there looked at soon: the policy is another, say.
func (c *copying) call() { poke(c.changed) }

// any reports whether there is something to be copied, or was until now.
func (c *copying) any() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.own) > 0 || len(c.sets) > 0
}

// hang notes why no set can be made, nil = nothing is in the way.
func (c *copying) hang(err error, log *slog.Logger) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if why != "" && c.why == "" {
		log.Warn("sessions cannot be copied to further nodes", "err", err)
	}
	c.why = why
}

// flush calls done, once, when a node has acknowledged all that has been done to sessions of a group that this node serves, or cannot. It waits for nothing.
func (h *handovers) flush(group uint8, peer string, done func()) {
	h.mu.Lock()
	s, f := h.sets[peer], h.last[group][peer]
	delete(h.last, group)
	h.mu.Unlock()
	switch {
	case s == nil:
		done()
	case f.Of(s):
		f.Done(func(bool) { done() })
	default: // the streams were made since
		s.Flush(func(bool) { done() })
	}
}

// copySessions keeps a set of streams to each node that may take over something that this one serves.
func (g *Gateway) copySessions(ctx context.Context) error {
	tick := newPaced(remakePace)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, o := range g.copying.sets { // nobody else writes it
			o.set.Close()
		}
	}()
	for ctx.Err() == nil {
		next := g.arrange(ctx, &wg)
		tick.goOn(g.copying.any())
		var soon <-chan time.Time
		if next > 0 {
			soon = time.After(next)
		}
		select {
		case <-g.copying.changed:
		case <-tick.C:
		case <-soon:
		case <-ctx.Done():
		}
	}
	return nil
}

// arrange makes the sets what they are to be. It returns when there is something to be done again, 0 = nothing that is known yet.
func (g *Gateway) arrange(ctx context.Context, wg *sync.WaitGroup) (next time.Duration) {
	c, v := &g.copying, g.view.Load()
	want := map[string]map[uint8]uint64{}
	c.mu.Lock()
	for id, s := range c.own {
		if left := time.Until(s.until); !s.until.IsZero() && left <= 0 {
			delete(c.own, id)
			continue
		} else if !s.until.IsZero() && (next == 0 || left < next) {
			next = left
		}
		x := v.Group(id)
		if x == nil {
			continue
		}
		for _, n := range x.Nodes {
			if n == g.o.Node.Name {
				continue
			}
			if want[n] == nil {
				want[n] = map[uint8]uint64{}
			}
			want[n][id] = s.epoch
		}
	}
	sets := map[string]*outbound{}
	for peer, o := range c.sets {
		sets[peer] = o
	}
	c.mu.Unlock()
	for peer, o := range sets {
		select {
		case <-o.set.Ended():
			g.log.Error("the streams of sessions to a node have ended by a fault: they begin anew", "node", peer)
		default:
			if want[peer] != nil {
				continue
			}
		}
		g.endSet(peer, o)
		delete(sets, peer)
	}
	var hangs error
	asked := false
	for peer, groups := range want {
		o := sets[peer]
		if o == nil {
			if !asked {
				asked, hangs = true, g.answering(ctx)
				c.hang(hangs, g.log)
			}
			if hangs != nil {
				continue // at the next tick
			}
			if o = g.beginSet(ctx, peer, wg); o == nil {
				continue // at the next tick
			}
		}
		soon, done := context.WithTimeout(ctx, orderTime)
		for id := range o.told {
			if _, still := groups[id]; !still && o.set.Disown(soon, id) == nil {
				delete(o.told, id)
			}
		}
		for id, epoch := range groups {
			if o.told[id] == epoch {
				continue
			}
			if x := v.Group(id); g.inSync(x.Name, epoch, peer) {
				g.common.guardNow(id, peer)
			}
			if o.set.Own(soon, id, epoch) == nil {
				o.told[id] = epoch
			}
		}
		done()
	}
	return next
}

// inSync reports whether the log has a node's copy as in sync with a group that this one serves under an epoch: after it has handed over, from the start.
func (g *Gateway) inSync(group string, epoch uint64, peer string) bool {
	m, err := g.known()
	if err != nil {
		return false
	}
	o := m.State().Groups.Groups[group]
	return o.Epoch == epoch && slices.Contains(o.InSync, peer)
}

// answering reports whether all workers take orders, and says which does not. A set of streams has tables of its own for each worker, and one that is given up stays in memory until the worker that hangs has let go
// of it: so none is made while one hangs.
func (g *Gateway) answering(ctx context.Context) error {
	soon, done := context.WithTimeout(ctx, orderTime)
	defer done()
	for i, w := range g.workers {
		if err := w.Do(soon, func(*pipeline.Shard) {}); err != nil {
			return fmt.Errorf("worker %d does not take up a stream of its sessions: %w", i, err)
		}
	}
	return nil
}

// beginSet makes the streams to a node, and has them carried; nil when a worker does not take its own up.
func (g *Gateway) beginSet(ctx context.Context, peer string, wg *sync.WaitGroup) *outbound {
	life, key := rand.Uint64()|1, rand.Uint64()
	run, cancel := context.WithCancel(ctx)
	o := &outbound{set: stream.NewSet(peer, life), told: map[uint8]uint64{}, ended: cancel, equal: map[uint8]uint64{}}
	for i, w := range g.workers {
		sh := g.shards[i]
		out := replica.NewSender(pipeline.Copies{Shard: sh}, sh.Sessions.Capacity(), uint8(i), uint8(len(g.workers)+1), life, key, replica.Limits{})
		s := o.set.Add(out, w.Call)
		soon, done := context.WithTimeout(ctx, orderTime)
		err := w.CopyTo(soon, s)
		done()
		if err != nil {
			g.log.Warn("a worker does not take up the stream of its sessions to a node", "node", peer, "worker", i, "err", err)
			g.endSet(peer, o)
			return nil
		}
	}
	g.common.add(o.set, peer, life, key, len(g.workers)+1)
	g.copying.mu.Lock()
	g.copying.sets[peer] = o
	g.copying.mu.Unlock()
	g.copying.ends.add(peer, o.set)
	wg.Go(func() { o.set.Run(run, g.dialSessions(peer)) })
	g.log.Info("sessions are copied to a node", "node", peer)
	return o
}

// endSet ends the streams to a node.
func (g *Gateway) endSet(peer string, o *outbound) {
	g.copying.mu.Lock()
	if g.copying.sets[peer] == o {
		delete(g.copying.sets, peer)
	}
	g.copying.mu.Unlock()
	g.copying.ends.drop(peer, o.set)
	o.set.Close()
	o.ended()
	g.common.drop(peer, o.set)
	for i, s := range o.set.Streams()[:min(len(g.workers), len(o.set.Streams()))] {
		go func() { // a worker that hangs does so when it goes on: what marks go to nobody cost it little
			_ = g.workers[i].CopyNoMore(context.Background(), s)
		}()
	}
}

// dialSessions connects to a node's end of the streams.
func (g *Gateway) dialSessions(peer string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		m, err := g.known()
		if err != nil {
			var f *api.Fault
			if errors.As(err, &f) {
				err = f.Err
			}
			return nil, err
		}
		return m.DialSessions(ctx, peer)
	}
}

// tellCopied tells the driver how far copies of what this node serves are.
func (g *Gateway) tellCopied(ctx context.Context) error {
	tick := newPaced(copiedPace)
	defer tick.Stop()
	var agreed map[string]agreedOn
	for n := 0; ; {
		tick.goOn(g.view.Load().Grouped())
		select {
		case <-tick.C:
		case <-g.copying.renewed:
			continue
		case <-ctx.Done():
			return nil
		}
		if n++; n%wholeEvery == 0 {
			g.tellWhole()
		}
		agreed = g.agreedOn(ctx, agreed)
		for _, e := range g.copied(agreed) {
			g.groups.driver.Copied(e)
		}
	}
}

// wholeEvery is at every how many looks at its copies the node takes note of which copies it holds itself are whole.
const wholeEvery = 5

// tellWhole has it known of which groups this node has all sessions, though others serve them.
func (g *Gateway) tellWhole() {
	v, whole := g.view.Load(), map[uint8]bool{}
	if !v.Grouped() {
		return
	}
	for _, c := range g.standby.Status().Groups {
		if x := v.GroupByName(c.Name); x != nil && c.Whole {
			whole[x.ID] = true
		}
	}
	g.common.whole(whole)
}

// agreedOn is what blocks of ports go by of a group that this node owns: whose copies count as in sync or may come to, and whether it is served without a majority.
type agreedOn struct {
	epoch  uint64
	may    []string
	fenced bool // nobody serves it without agreement
	alone  bool
	old    bool // the driver was asked again since, and did not answer
}

// agreedOn asks the driver; while that does not answer, what it said last holds.
func (g *Gateway) agreedOn(ctx context.Context, last map[string]agreedOn) map[string]agreedOn {
	g.copying.mu.Lock()
	none := len(g.copying.own) == 0
	g.copying.mu.Unlock()
	if none {
		return nil
	}
	out := map[string]agreedOn{}
	all, err := g.groups.driver.Status(ctx)
	if err != nil {
		for name, is := range last {
			is.old = true
			out[name] = is
		}
		return out
	}
	for _, s := range all {
		out[s.Group.Name] = agreedOn{epoch: s.Epoch, may: s.MayTake, fenced: s.Ownership.Alone == failover.Fence, alone: s.Status.Alone}
	}
	return out
}

// copied is how copies stand. One that was never whole in a term is not spoken of: whoever handed over counts as whole until it has been looked at, and all others do not.
func (g *Gateway) copied(agreed map[string]agreedOn) (out []failover.Copied) {
	v, now := g.view.Load(), int64(g.clock.Now())
	g.copying.mu.Lock()
	defer g.copying.mu.Unlock()
	for id, s := range g.copying.own {
		x := v.Group(id)
		if x == nil || !s.until.IsZero() {
			continue
		}
		is := agreed[x.Name]
		for _, peer := range x.Nodes {
			if peer == g.o.Node.Name {
				continue
			}
			o, w := g.copying.sets[peer], waits{alone: is.alone, may: slices.Contains(is.may, peer)}
			// What was told of a copy before was taken in before the driver was asked, and nothing is told meanwhile.
			w.over = !w.may && is.fenced && !is.alone && !is.old && is.epoch == s.epoch
			var c stream.Copy
			if o != nil {
				c = o.set.Copy(now, id)
				w.equal, w.soon = c.Equal, c.Equal && c.Lag <= failover.Default.MaxLag
			}
			known := g.common.settled(id, peer, w)
			if o == nil {
				continue
			}
			if c.Equal = c.Equal && known; c.Equal {
				o.equal[id] = s.epoch
			}
			if o.equal[id] == s.epoch {
				out = append(out, failover.Copied{Group: x.Name, Peer: peer, Lag: c.Lag, Equal: c.Equal, Seq: c.Seq})
			}
		}
	}
	return out
}

// copiesOf is how the copies of a group stand that this node serves, by node; nil = it does not serve it.
func (g *Gateway) copiesOf(group string) (out []api.GroupCopy) {
	x := g.view.Load().GroupByName(group)
	if x == nil {
		return nil
	}
	g.copying.mu.Lock()
	defer g.copying.mu.Unlock()
	if s, ok := g.copying.own[x.ID]; !ok || !s.until.IsZero() {
		return nil
	}
	for _, n := range x.Nodes {
		if n == g.o.Node.Name {
			continue
		}
		a := api.GroupCopy{Node: n, Why: cmp.Or(g.copying.why, "it has not begun")}
		if o := g.copying.sets[n]; o != nil {
			c, st := o.set.Copy(int64(g.clock.Now()), x.ID), o.set.State()
			a = api.GroupCopy{Node: n, Connected: st.Problem == "", Whole: c.Whole, Lag: c.Lag.Seconds(), Done: c.Done, Records: c.Records, Missing: c.Missing, Waiting: st.Waiting, Sent: st.Sent,
				Dials: st.Dials, Why: c.Words}
		}
		if a.Whole && !g.common.knows(x.ID, n) {
			a.Whole, a.Why = false, "it has not acknowledged every block of public ports that is in use"
			if lag := time.Duration(a.Lag * 1e9); lag > failover.Default.MaxLag { // and none waits for it
				a.Why = fmt.Sprintf("it is %s behind", lag.Round(100*time.Millisecond))
			}
		}
		out = append(out, a)
	}
	return out
}
