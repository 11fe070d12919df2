package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"demarc/cluster/failover"
	"demarc/gateway/api"
	"demarc/gateway/handed"
	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// maxHanded is how old what a process has left may be for the next one to take it up: what was asleep for longer has been given up by both its ends.
const maxHanded = 5 * time.Minute

// handover is what this process has of the one before it.
type handover struct {
	file   *handed.Reader // taken, and not yet done with
	result api.Resumed    // written before anybody asks
	found  bool           // there was something

	left  map[string]handed.Term // by group, the terms that this process had to its end: written before the workers end
	kept  map[uint8]uint64       // groups of which the process before has left something, and the epoch that it had. Written before workers run
	whole bool                   // everything was entered that it has left
	lost  uint64                 // how much of copies had been lost by a policy when it was entered

	mu     sync.Mutex
	all    map[string]bool // mu: where a release before this one has not said its terms: groups that no other node may serve, of which everything was in it. Good for the first term alone, see knowsOf
	served bool            // sockets are open: the file is nobody's any more
}

// bootID names this boot of the kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// lone reports whether no other node can have taken over a group from this one: the policy names none.
func (g *Gateway) lone(x *snapshot.Group) bool {
	return len(x.Nodes) == 1 && x.Nodes[0] == g.o.Node.Name
}

// leaves reports whether what this process has of a group goes to the next one: where another node may have it by then, the next one sees by the term in the log whether that is so.
func (g *Gateway) leaves(x *snapshot.Group) bool {
	_, left := g.handover.left[x.Name]
	return left || g.lone(x)
}

// leftBehind notes which terms this process had to its end. knows says of which groups it knew all that was in use as it ceased to serve them.
func (g *Gateway) leftBehind(knows map[string]bool) {
	groups, err := g.groups.driver.Left(context.Background())
	if err != nil {
		g.log.Warn("sessions of groups end with this process", "err", err)
		return
	}
	left := map[string]handed.Term{}
	for name, k := range groups {
		if x := g.view.Load().GroupByName(name); k.At > 0 && x != nil { // it was left to this process, which has not served it
			if g.standby.Took(x.ID) {
				continue
			}
			k.All = k.All && g.lostCopies() == g.handover.lost
		}
		left[name] = handed.Term{Epoch: k.Term.Epoch, Life: k.Term.Life, At: cmp.Or(uint64(k.At), uint64(bootTime())), All: k.All || knows[name]}
	}
	g.handover.left = left
}

// knowsAll says of which groups that this node serves it knows all that is in use.
func (g *Gateway) knowsAll(serves map[string]failover.Term) map[string]bool {
	out := map[string]bool{}
	for name := range serves {
		if x := g.view.Load().GroupByName(name); x != nil {
			g.common.with(func(c *pipeline.Common, now int64) { out[name] = c.Knows(x.ID, now) })
		}
	}
	return out
}

// handOver leaves what the shards have to the next process: sessions of tenants that no other node has come to serve, and ports that rest. The workers have ended. A node that cannot write it ends as well,
// and its sessions with it.
func (g *Gateway) handOver() {
	began := time.Now()
	if err := handed.Drop(g.o.Node.DataDir); err != nil {
		g.log.Warn("what an earlier process left stays, too old to be used", "err", err)
	}
	n, size, err := g.writeHanded()
	switch {
	case err != nil:
		g.log.Error("sessions end with this process", "err", err)
	case n > 0:
		g.log.Info("sessions are left to the next process", "records", n, "bytes", size, "took", time.Since(began).String())
	}
}

func (g *Gateway) writeHanded() (records, size int64, err error) {
	boot, err := bootID()
	if err != nil {
		return 0, 0, fmt.Errorf("which boot this is: %w", err)
	}
	r := g.revision.Load()
	most := int64(16 << 20)
	left := make([]*pipeline.Left, len(g.shards))
	for i, sh := range g.shards {
		left[i] = sh.Leaves(g.clock.Now(), g.leaves)
		records += int64(left[i].Slots())
		most += 256 * int64(left[i].Slots())
	}
	if records == 0 && !slices.ContainsFunc(g.view.Load().Groups(), g.leaves) {
		return 0, 0, nil
	}
	w, err := handed.Create(g.o.Node.DataDir, &handed.Header{Node: g.o.Node.Name, Version: g.o.Version, Boot: boot, At: uint64(bootTime()), Revision: r.Number, Digest: r.Digest, Terms: g.handover.left}, most)
	if err != nil {
		return 0, 0, err
	}
	if records, err = g.pack(left, w.Chunk); err != nil {
		return 0, 0, errors.Join(err, w.Abort())
	}
	return records, w.Size(), w.Commit()
}

// pack has all shards put into frames at once, and each frame written.
func (g *Gateway) pack(left []*pipeline.Left, write func([]byte) error) (records int64, err error) {
	frames, spare, stop := make(chan []byte, 4*len(left)), make(chan []byte, 8*len(left)), make(chan struct{})
	numbers, faults := make([]int64, len(left)), make([]error, len(left))
	var wg sync.WaitGroup
	for i, l := range left {
		wg.Go(func() {
			faults[i] = contained(g.log, "leave sessions", func() error {
				numbers[i] = packShard(l, uint8(i), g.seed|1, func(f []byte) bool {
					var b []byte
					select {
					case b = <-spare:
					default:
					}
					select {
					case frames <- append(b[:0], f...):
						return true
					case <-stop:
						return false
					}
				})
				return nil
			})
		})
	}
	go func() {
		wg.Wait()
		close(frames)
	}()
	for f := range frames {
		if err == nil {
			if err = write(f); err != nil {
				close(stop)
			}
		}
		select {
		case spare <- f:
		default:
		}
	}
	for i := range numbers {
		records += numbers[i]
	}
	return records, errors.Join(append(faults, err)...)
}

// packShard hands what a shard leaves on in frames, until nobody wants any.
func packShard(l *pipeline.Left, stream uint8, life uint64, hand func([]byte) bool) (records int64) {
	p := replica.NewPacker(l, stream, life)
	for slot := range l.Slots() {
		if !l.Has(slot) {
			continue
		}
		p.Add(slot)
		records++
		for f := p.Take(false); f != nil; f = p.Take(false) {
			if !hand(f) {
				return records
			}
		}
	}
	for f := p.Take(true); f != nil; f = p.Take(true) {
		if !hand(f) {
			break
		}
	}
	return records
}

// takeUp enters what the process before has left. The workers do not run yet. What may not be used is said and removed: a node without sessions serves, and one with wrong ones does not.
func (g *Gateway) takeUp() {
	began := time.Now()
	g.handover.left = map[string]handed.Term{}
	f, err := handed.Take(g.o.Node.DataDir)
	if errors.Is(err, handed.ErrNone) {
		return
	}
	h := &g.handover
	h.found = true
	if err == nil {
		h.result.Version = f.Version
		h.file = f
		err = g.mayTakeUp(&f.Header)
	}
	if err == nil {
		if err = contained(g.log, "take up sessions", func() error { return g.enterHanded(f) }); err != nil { // a fault in the midst of it too: all or nothing
			h.result.Taken = 0
			err = errors.Join(err, contained(g.log, "end sessions", func() error {
				for _, sh := range g.shards {
					sh.Forsake()
				}
				return nil
			}))
		}
	}
	h.result.Took = time.Since(began).Seconds()
	if err != nil {
		h.result.Problem = err.Error()
		g.log.Warn("sessions that the process before left are not taken up", "why", err)
		g.doneHanded()
		return
	}
	h.all, h.kept = map[string]bool{}, map[uint8]uint64{}
	for _, x := range g.view.Load().Groups() {
		t, left := f.Terms[x.Name]
		switch {
		case !g.keptOf(f, x):
		case left:
			h.kept[x.ID] = t.Epoch
			t.At, t.All = min(t.At, f.At), t.All && h.whole
			h.left[x.Name] = t // should this process come to nothing
			g.groups.driver.Kept(failover.Kept{Group: x.Name, Term: failover.Term{Epoch: t.Epoch, Node: f.Node, Life: t.Life}, At: failover.Time(t.At), All: t.All})
		case f.Terms == nil:
			h.kept[x.ID], h.all[x.Name] = math.MaxUint64, h.whole // until this node serves it
		}
	}
	h.lost = g.lostCopies()
	g.log.Info("sessions of the process before are taken up", "taken", h.result.Taken, "refused", h.result.Refused, "over", h.result.Over, "away", time.Duration(h.result.Away*1e9).String(), "took", time.Since(began).String())
}

// lostCopies is how much of copies was lost by a policy.
func (g *Gateway) lostCopies() (n uint64) {
	n = (&pipeline.Copied{Shards: g.shards}).Lost()
	if g.common != nil {
		n += g.common.Lost()
	}
	return n
}

// keepLeft has what was taken up wait for its group: before workers run.
func (g *Gateway) keepLeft() {
	for id, epoch := range g.handover.kept {
		g.common.with(func(c *pipeline.Common, _ int64) { c.Keep(id, epoch) })
	}
}

// keptOf reports whether what the process before has left of a group is entered: what another node may have had since is a copy of the past, until it is known that none has.
func (g *Gateway) keptOf(f *handed.Reader, x *snapshot.Group) bool {
	_, left := f.Terms[x.Name]
	return g.lone(x) || left && slices.Contains(x.Nodes, g.o.Node.Name)
}

// mayTakeUp says why what a process has left must not be used.
func (g *Gateway) mayTakeUp(h *handed.Header) error {
	boot, err := bootID()
	now := uint64(bootTime())
	switch {
	case err != nil:
		return fmt.Errorf("which boot this is: %w", err)
	case h.Node != g.o.Node.Name:
		return fmt.Errorf("they are those of node %q, and this is %q: give each node its own data_dir", h.Node, g.o.Node.Name)
	case h.Boot != boot:
		return errors.New("they are from before the machine was started: their other ends have not waited")
	case h.At > now:
		return errors.New("they are from a time that has not come yet: another container's or time namespace's clock")
	case now-h.At > uint64(maxHanded):
		return fmt.Errorf("they are %s old, and are good for %s", time.Duration(now-h.At).Round(time.Second), maxHanded)
	}
	g.handover.result.Away = float64(now-h.At) / 1e9
	return nil
}

// enterHanded enters what the file has.
func (g *Gateway) enterHanded(f *handed.Reader) error {
	out := &g.handover.result
	sink := pipeline.Resume(g.shards, g.view.Load(), g.clock.Now(), func(x *snapshot.Group) bool { return g.keptOf(f, x) })
	sink.Judge = f.Digest != g.revision.Load().Digest // a number may stand for another text: its data directory is another one's copy
	sink.Beside = beside
	u := replica.NewUnpacker(sink, uint32(out.Away*1e3))
	err := error(nil)
	for err == nil {
		var b []byte
		if b, err = f.Next(); err == nil {
			err = u.Frame(b)
		}
	}
	out.Over, out.Refused = u.Over, map[string]uint64{}
	g.handover.whole = true
	for _, o := range replica.Outcomes() {
		if o == replica.Taken {
			out.Taken = u.Sessions[o]
		} else {
			out.Refused[o.Key()] = u.Sessions[o]
			g.handover.whole = g.handover.whole && u.Sessions[o] == 0 && u.Others[o] == 0
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if !sink.End() {
		g.handover.whole = false
	}
	return nil
}

// beside calls fn for 0 to n-1, each in a goroutine of its own but the last. A panic of one is the caller's.
func beside(n int, fn func(int)) {
	var wg sync.WaitGroup
	faults := make([]any, n)
	call := func(i int) {
		defer func() { faults[i] = recover() }()
		fn(i)
	}
	for i := range n - 1 {
		wg.Go(func() { call(i) })
	}
	call(n - 1)
	wg.Wait()
	for _, f := range faults {
		if f != nil {
			panic(f)
		}
	}
}

// doneHanded ends with the file: what was in it is in use or not to be used, and it is removed, though nobody else would have read it from the moment on at which it was taken. A process that
// has not come as far as to forward leaves it to the next one.
func (g *Gateway) doneHanded() {
	h := &g.handover
	if h.file == nil {
		return
	}
	end := h.file.GiveBack
	if h.served || h.result.Problem != "" {
		end = h.file.Done
	}
	h.file = nil
	if err := end(); err != nil {
		g.log.Warn("what the process before has left", "err", err)
	}
}
