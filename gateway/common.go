package gateway

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/stream"
)

// commons is what this node's workers have in common and standbys must know, see pipeline.Common: one at a time works with it, and none of them for long.
type commons struct {
	view func() *snapshot.View
	now  func() uint64
	wake chan struct{} // has room for one
	news chan struct{} // has room for one: something of reserves is to be put on disk

	mu      sync.Mutex
	c       *pipeline.Common          // mu
	at      *snapshot.View            // mu: that c has taken up
	streams map[string]*stream.Stream // mu: by node
	guards  map[guardKey]time.Time    // mu: when there was last a reason for a guard

	file string // of reserves. keep: wo
	log  *slog.Logger
}

// guardKey is a node that may take over a group.
type guardKey struct {
	group uint8
	node  string
}

const (
	commonPace = 10 * time.Millisecond // a block that was asked for waits no longer for the next step
	calmPace   = time.Second           // in a policy without groups

	// turnsAtOnce is how many turns of a stream are taken before this goroutine rests: no packet waits for it, and until its copy is done the group is not protected. That holds who takes over up by a
	// millisecond at most.
	turnsAtOnce = 4

	// guardRest is for how long blocks wait for a standby's word after the last reason for that: a proposal that its copy is in sync may be under way. It is longer than
	// failover.Times.Waits, which a standby counts from a digest that this node may hear of a second later.
	guardRest = 10 * time.Second

	// guardLinger is for how long they do where nobody can take that copy for one in sync: one that is about as far behind as it may be does not have them closed and opened at each look, which is
	// more to be told of than what it is behind by. With a second 313 of 40,000 conversations were refused in TestWireSlowCopy.
	guardLinger = 300 * time.Millisecond
)

const reservesMagic = "demarc reserves 1 "

func (g *Gateway) openCommons() {
	g.common = &commons{view: g.view.Load, now: g.clock.Exact, wake: make(chan struct{}, 1), news: make(chan struct{}, 1), streams: map[string]*stream.Stream{}, guards: map[guardKey]time.Time{},
		c: pipeline.NewCommon(g.space, g.shards, snapshot.MaxTenantID(g.o.Node)+1, g.seed^0xbf58476d1ce4e5b9), file: filepath.Join(g.o.Node.DataDir, "reserves"), log: g.log}
	if g.off != nil {
		g.common.c.Carried = g.off.last
	}
	kept := map[string]pipeline.Reserve{}
	if err := readKept(g.common.file, reservesMagic, &kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.log.Warn("which reserves of ports are unused is not known: where this node takes over without knowing all, new conversations find no port for the hold time", "file", g.common.file, "err", err)
		clear(kept)
	}
	g.common.soon(func(c *pipeline.Common, _ int64) { c.Reserve(g.o.Node.Name, kept) })
}

// keepAgain is how long to wait before what could not be put on disk is tried again.
const keepAgain = time.Second

// keep puts on disk which reserves are unused, where that has changed, until ctx ends. A reserve that is needed is not opened before. A slow disk holds nothing else up.
func (x *commons) keep(ctx context.Context) error {
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-x.news:
		}
		var list map[string]pipeline.Reserve
		x.with(func(c *pipeline.Common, _ int64) { list = c.Reserves() })
		if list == nil {
			continue
		}
		err := writeKept(x.file, reservesMagic, list)
		if err == nil {
			said = ""
			x.with(func(c *pipeline.Common, _ int64) { c.Kept(list) })
			continue
		}
		x.with(func(c *pipeline.Common, _ int64) { c.Unkept() })
		if err.Error() != said {
			said = err.Error()
			x.log.Warn("which reserves of ports are unused cannot be kept: none is used before it is", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keepAgain):
		}
	}
}

// with has fn work with what is common, under the policy that is served.
func (x *commons) with(fn func(c *pipeline.Common, now int64)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := int64(x.now())
	x.renew(now)
	fn(x.c, now)
}

// renew takes up the policy that is served. That goes through all tenants and addresses, so run is called to do it as soon as there is another one. The caller holds mu.
func (x *commons) renew(now int64) {
	if v := x.view(); v != x.at {
		x.at = v
		x.c.Renew(v, now)
	}
}

// soon is with for who cannot wait for another policy to be taken up: that comes behind it.
func (x *commons) soon(fn func(c *pipeline.Common, now int64)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := int64(x.now())
	if x.at == nil {
		x.renew(now)
	}
	fn(x.c, now)
}

// serving makes ready for what this node becomes to a group. forget: sessions that have a mapping must end. early is called, once, before addresses are gone through, where it need not be waited for that.
func (x *commons) serving(group uint8, epoch uint64, serving bool, known pipeline.Known, early func()) (forget bool) {
	x.soon(func(c *pipeline.Common, now int64) {
		if serving {
			forget = c.TakeOver(group, epoch, known, now, early)
		} else {
			c.GiveUp(group, epoch, now)
		}
	})
	x.call()
	return forget
}

// guardNow has blocks of a group wait for a standby's word from here on, before that is sent anything of the group: it counts as in sync from the start, since it has just handed the group over, so it may be the
// next owner as soon as its copy is whole, and each block that it is not sent by then must wait for it.
func (x *commons) guardNow(group uint8, peer string) {
	for from, done := 0, false; !done; {
		x.with(func(c *pipeline.Common, now int64) {
			x.guards[guardKey{group, peer}] = time.Now()
			from, done = c.GuardNow(group, peer, from, now)
		})
	}
}

func (x *commons) call() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// run keeps blocks of ports ready, and writes to standbys what has changed.
func (x *commons) run(ctx context.Context) error {
	for ctx.Err() == nil {
		more, pace := 0, commonPace
		x.with(func(c *pipeline.Common, now int64) {
			if !x.at.Grouped() {
				pace = calmPace
			}
			for k, last := range x.guards { // of a node that nothing is sent to any more too
				if time.Since(last) >= guardRest {
					delete(x.guards, k)
					c.Guard(k.group, k.node, false)
				}
			}
			c.Turn(now)
			if c.Reserved() {
				select {
				case x.news <- struct{}{}:
				default:
				}
			}
			for _, s := range x.streams {
				for n, turns := 1, 0; n > 0 && turns < turnsAtOnce; turns++ {
					n = s.Turn(now, false)
					more += n
				}
			}
		})
		if more > 0 {
			pace = time.Millisecond
		}
		select {
		case <-x.wake:
		case <-time.After(pace):
		case <-ctx.Done():
		}
	}
	return nil
}

// add begins the stream to a node; it is the last one of a set, and drop ends it.
func (x *commons) add(set *stream.Set, peer string, life, key uint64, of int) {
	x.with(func(c *pipeline.Common, _ int64) {
		c.Drop(peer)
		x.streams[peer] = set.Add(c.Peer(peer, life, key, uint8(of-1), uint8(of), replica.Limits{}), x.call)
	})
}

func (x *commons) drop(peer string, of *stream.Set) {
	x.with(func(c *pipeline.Common, _ int64) {
		for _, s := range of.Streams() {
			if x.streams[peer] == s {
				delete(x.streams, peer)
				c.Drop(peer)
			}
		}
	})
}

// waits is why blocks wait for a standby's word, or need not.
type waits struct {
	equal bool // all else of its copy is whole, however far behind
	soon  bool // and it is no further behind than a copy in sync may be: it may be proposed
	may   bool // it counts as in sync, or may come to
	alone bool // the group is served without a majority, so nothing can be agreed on, and waiting for a standby that is gone would leave no ports: but for a while, in which it may count itself in sync
	over  bool // whatever it was before, it is not by agreement, and cannot come to be without another word of this node's; and nobody takes over without agreement
	dry   bool // somebody may find no port until that word comes
}

// hold says whether blocks wait, and when there was last a reason for it, which was last before (zero = never).
func (w waits) hold(last, now time.Time) (reason time.Time, on bool) {
	if w.soon || w.may && (w.equal || !w.alone) {
		last = now
	}
	rest := guardRest
	switch { // a slow standby costs its own freshness, and no new conversation waits for it
	case w.over && w.dry && !w.soon:
		rest = 0
	case w.over:
		rest = guardLinger
	}
	return last, !last.IsZero() && now.Sub(last) < rest
}

// settled says whether a copy is whole as far as blocks of ports go, and takes care that it will be.
func (x *commons) settled(group uint8, peer string, w waits) (ok bool) {
	x.with(func(c *pipeline.Common, _ int64) {
		k, now := guardKey{group, peer}, time.Now()
		w.dry = w.over && c.Waits(group) > 0
		last, on := w.hold(x.guards[k], now)
		if x.guards[k] = last; !on {
			delete(x.guards, k)
		}
		c.Guard(group, peer, on)
		ok = c.Settled(group, peer)
	})
	return ok
}

// knows reports whether a node knows all blocks that may have mappings.
func (x *commons) knows(group uint8, peer string) (ok bool) {
	x.with(func(c *pipeline.Common, _ int64) { ok = c.Settled(group, peer) })
	return ok
}

// slots is how many records there may be of all that is common, on this node or on another: policies are the same, and so are addresses but for their numbers.
func (x *commons) slots() (n int) {
	x.with(func(c *pipeline.Common, _ int64) { n = int(c.Slots()) })
	return n
}

// ports is what keeps new conversations of a group from public ports.
func (x *commons) ports(group uint8) *api.GroupPorts {
	out := &api.GroupPorts{}
	x.with(func(c *pipeline.Common, _ int64) {
		left, reserve := c.Rests(group)
		*out = api.GroupPorts{Rest: float64(left) / 1e9, Reserve: reserve && left > 0, Waiting: c.Waits(group)}
	})
	return out
}

// whole says of which groups this node's copy is whole.
func (x *commons) whole(groups map[uint8]bool) {
	x.with(func(c *pipeline.Common, _ int64) { c.Whole(groups) })
}

// usage is what was counted for a tenant by all nodes that have served it.
func (x *commons) usage(t *snapshot.Tenant) (u pipeline.Usage) {
	x.with(func(c *pipeline.Common, _ int64) { u = c.Usage(t.ID) })
	return u
}

// Local, Do, Lost and Sweep make it a replica.Sink.
func (x *commons) Local(kind replica.NameKind, name string) (local uint16, ok bool) {
	x.with(func(c *pipeline.Common, _ int64) { local, ok = c.Local(kind, name) })
	return local, ok
}

// Do carries out ops.
func (x *commons) Do(ops []replica.Op, ctx *replica.Context) {
	x.with(func(c *pipeline.Common, now int64) { c.Do(ops, ctx, uint64(now)) })
}

// Lost is how often what Do had put was ended by a policy.
func (x *commons) Lost() (n uint64) {
	x.with(func(c *pipeline.Common, _ int64) { n = c.Lost() })
	return n
}

// Sweep removes what it has of a group and keep does not want.
func (x *commons) Sweep(group uint8, keep func(replica.Place) bool) {
	x.with(func(c *pipeline.Common, _ int64) { c.Sweep(group, keep) })
}
