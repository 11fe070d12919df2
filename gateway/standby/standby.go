package standby

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// Config is what New needs. Shards, Steps, View, Taken and Now are required.
type Config struct {
	Shards []*pipeline.Shard
	// Steps has a worker run fn on its shard between two bursts, once a turn for as long as room says, until it is done, and waits for that. An error says that it did not come to its end,
	// and never will.
	Steps func(w int, fn func(sh *pipeline.Shard, room time.Duration) (done bool)) error
	// View is the newest, Taken says whether all workers have it.
	View  func() *snapshot.View
	Taken func(*snapshot.View) bool
	// Now is a clock that only goes on, ns. Workers read it too.
	Now func() int64
	// Marked is told that the copy of a group is whole and that its digests were equal, each time that they were found to be. It must not block. nil = nobody asks.
	Marked func(group uint8, epoch uint64)
	// Member says whether a gateway is one of the cluster's; nil, or an error = that is not known now, and nothing is forgotten.
	Member func(name string) (bool, error)
	// Owner is whom the log of this node has as the owner of a group, and under which epoch; ok = that is known. nil = nobody looks at it.
	Owner func(group string) (node string, epoch uint64, ok bool)
	// Common keeps what is no session: see pipeline.Copied. nil = nothing does.
	Common replica.Sink
	// Slots is how many slots of what is no session an owner may have; asked for again every second, since policies bring addresses. nil = none.
	Slots func() int
	// Held is told for how long each step held a worker; nil = nobody asks. The worker calls it.
	Held func(w int, d time.Duration)
	Log  *slog.Logger
	// Silence is replica.Silence, shorter in tests: for what has begun. Quiet is for how long nothing may come at all.
	Silence, Quiet time.Duration
}

// Standby keeps copies of what other gateways own.
type Standby struct {
	c    Config
	log  *slog.Logger
	sink *sink
	roles
	wake chan struct{} // 1: roles has something to be told, there is another View, or a connection

	mu      turns
	r       *replica.Receiver // mu
	links   map[string]*link  // mu: by peer, the one that counts
	gone    map[string]gone   // mu: how the last connection of a peer ended
	seen    [256]int64        // mu: by group, when digests were equal that Marked was told of
	looked  int64             // mu: when it was last looked who is a member
	refused uint64            // mu: Stats.Refused that was told of

	shown atomic.Pointer[Status] // as it was when mu was last free
	since []atomic.Int64         // by worker: since when it has something to write, 0 = it has not

	steps   atomic.Uint64
	heldNs  atomic.Int64
	longest atomic.Int64 // ns that a step has held a worker
	failed  atomic.Uint64
	odd     atomic.Uint64 // records that could not be read
	said    atomic.Int64  // seconds of the last complaint
}

// gone is the end of a connection.
type gone struct {
	at  int64
	why string
}

// memberEvery is how often is looked whether peers are members still.
const memberEvery = time.Second

// New makes a standby. Run keeps it going, Serve takes a connection.
func New(c Config) *Standby {
	c.Silence = cmp.Or(c.Silence, replica.Silence)
	c.Quiet = cmp.Or(c.Quiet, replica.Silence)
	s := &Standby{c: c, log: c.Log, wake: make(chan struct{}, 1), mu: newTurns(), links: map[string]*link{}, gone: map[string]gone{}, since: make([]atomic.Int64, len(c.Shards))}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.sink = &sink{&pipeline.Copied{Shards: c.Shards, View: c.View(), Deaf: func(group uint8) bool { return s.deaf[group].Load() }, Common: c.Common}, s}
	s.r = replica.NewReceiver(s.sink, s.items())
	s.r.May = s.may
	s.shown.Store(s.status())
	return s
}

// items is how many slots of owners are remembered: an owner's need not be used one after the other, and there may be two owners.
func (s *Standby) items() int {
	items := 0
	if s.c.Slots != nil {
		items = s.c.Slots()
	}
	for _, sh := range s.c.Shards {
		items += sh.Sessions.Capacity()
	}
	return 2*items + 1<<16
}

// may says why a peer may not be the owner of a group under an epoch. The caller holds mu.
func (s *Standby) may(peer string, group uint8, epoch uint64) error {
	x := s.sink.View.Group(group)
	if x == nil {
		return fmt.Errorf("the policy that is served here has no group with id %d", group)
	}
	if !slices.Contains(x.Nodes, peer) {
		return fmt.Errorf("it is not one of the nodes of group %s, which are %s", x.Name, strings.Join(x.Nodes, ", "))
	}
	if s.c.Owner == nil {
		return nil
	}
	switch node, agreed, ok := s.c.Owner(x.Name); {
	case !ok:
		return fmt.Errorf("who owns group %s is not known here: %w", x.Name, replica.ErrEarly)
	case epoch > agreed:
		return fmt.Errorf("it says that it owns group %s under epoch %d, and agreed on is %s, epoch %d: %w", x.Name, epoch, cmp.Or(node, "nobody"), agreed, replica.ErrEarly)
	case epoch == agreed && node != peer:
		return fmt.Errorf("it says that it owns group %s under epoch %d, which is that of %s", x.Name, epoch, node)
	}
	return nil // of an earlier term it may have been told last words; the receiver knows which it still hears
}

// Serving notes that this node has begun to serve a group under an epoch, or that another one does. From when it returns no worker writes a record of a group that this node serves. It
// waits for nothing.
func (s *Standby) Serving(group uint8, epoch uint64, own bool) {
	s.roles.mu.Lock()
	s.turn[group]++
	if own {
		s.deaf[group].Store(true)
	}
	s.told = append(s.told, role{group, own, epoch, s.turn[group]})
	s.roles.mu.Unlock()
	s.Call()
}

func (s *Standby) takes(group uint8) {
	if took := &s.took[group]; !took.Load() {
		took.Store(true)
	}
}

// Took reports whether anything of a group was ever taken from another node.
func (s *Standby) Took(group uint8) bool { return s.took[group].Load() }

// Call has Run look: there is another View. It waits for nothing.
func (s *Standby) Call() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// tell tells the receiver who owns what. The caller holds mu.
func (s *Standby) tell() {
	s.roles.mu.Lock()
	list := s.told
	s.told = nil
	s.roles.mu.Unlock()
	for _, x := range list {
		if x.own {
			s.r.Own(x.group, x.epoch)
			continue
		}
		s.r.Follow(x.group, x.epoch)
		s.roles.mu.Lock()
		if s.turn[x.group] == x.turn { // else it has become this node's again meanwhile
			s.deaf[x.group].Store(false)
		}
		s.roles.mu.Unlock()
	}
}

// renew goes by the newest View as soon as all workers have it. The caller holds mu.
func (s *Standby) renew() {
	if v := s.c.View(); v != s.sink.View && s.c.Taken(v) {
		s.sink.View = v
		s.r.Renew()
	}
}

// take takes in frames of a connection, those of each stream together, and answers them.
func (s *Standby) take(l *link, list [][]byte) ([]replica.Answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links[l.peer] != l {
		return nil, errReplaced
	}
	s.tell()
	s.renew()
	answers, err := s.r.Frames(s.c.Now(), l.peer, list)
	if err != nil { // has cost nothing but that record or frame, and is told by the answer
		s.odd.Add(1)
		s.complain("what a gateway sends is not all understood", "peer", l.peer, "err", err)
	}
	return answers, nil
}

// answers are for all streams of a connection. While a worker does not write its part they are the last ones again: the owner hears that this node lives, and that it comes no further.
func (s *Standby) answers(l *link) (out []replica.Answer, ok bool) {
	if !s.mu.lockFor(replica.Beat) {
		return l.last, true
	}
	defer s.mu.Unlock()
	defer func() { l.last = out }()
	now := s.c.Now()
	for n := range l.hello.Streams {
		out = append(out, s.r.Answer(now, l.peer, uint8(n)))
	}
	return out, s.links[l.peer] == l
}

// Run looks after what recurs until ctx ends. Where there is nothing to copy it stands still until it is called.
func (s *Standby) Run(ctx context.Context) error {
	t := time.NewTicker(replica.Beat / 2)
	defer t.Stop()
	for still := false; ; {
		s.mu.Lock()
		s.tell()
		s.renew()
		s.judge()
		marks := s.marks()
		s.forget()
		s.shown.Store(s.status())
		switch now := s.still(); {
		case now:
			t.Stop()
			still = true
		case still:
			t.Reset(replica.Beat / 2)
			still = false
		}
		s.mu.Unlock()
		for _, m := range marks {
			s.c.Marked(m.group, m.epoch)
		}
		select {
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, l := range s.links {
				l.conn.Close()
			}
			return nil
		case <-s.wake:
		case <-t.C:
		}
	}
}

// still reports whether nothing recurs: the policy has no group, nobody is connected, and nothing is left of anybody. The caller holds mu.
func (s *Standby) still() bool {
	return s.c.View() == s.sink.View && len(s.sink.View.Groups()) == 0 && len(s.links) == 0 && len(s.r.Peers()) == 0
}

// judge looks again at what peers say is theirs, and says who says what it may not. The caller holds mu.
func (s *Standby) judge() {
	s.r.Judge(s.c.Now())
	if n := s.r.Stats.Refused; n != s.refused {
		s.refused = n
		for _, x := range s.r.Refused() {
			s.log.Warn("what a gateway says is its own is not taken", "peer", x.Peer, "group", x.Group, "epoch", x.Epoch, "why", x.Why)
		}
	}
}

// marks are the groups whose digests were found to be equal anew. The caller holds mu.
func (s *Standby) marks() (out []role) {
	if s.c.Marked == nil {
		return nil
	}
	now := s.c.Now()
	for _, x := range s.sink.View.Groups() {
		age, whole := s.r.Marked(now, x.ID)
		if at := now - int64(age); whole && at > s.seen[x.ID] {
			s.seen[x.ID] = at
			out = append(out, role{group: x.ID, epoch: s.r.Epoch(x.ID)})
		}
	}
	return out
}

// forget ends what came from those who are no members any more, and makes room for what there is more of. The caller holds mu.
func (s *Standby) forget() {
	now := s.c.Now()
	if now-s.looked < int64(memberEvery) {
		return
	}
	s.looked = now
	s.r.Room(s.items())
	if s.c.Member == nil {
		return
	}
	for _, peer := range s.r.Peers() {
		if s.links[peer] != nil {
			continue
		}
		if is, err := s.c.Member(peer); err == nil && !is {
			s.log.Info("what was copied from a gateway that is no member any more is nobody's", "peer", peer)
			s.r.Forget(peer)
			delete(s.gone, peer)
		}
	}
}

// complain says something at most once a second.
func (s *Standby) complain(what string, args ...any) {
	if now := s.c.Now() / int64(time.Second); s.said.Swap(now) != now {
		s.log.Warn(what, args...)
	}
}

// Status is how copies stand at this node.
type Status struct {
	Groups []Group // of the policy, those that this node does not own
	Peers  []Peer
	replica.Stats
	Steps   uint64        // of workers, and
	Held    time.Duration // for how long they held them in all
	Longest time.Duration // and at most
	Failed  uint64        // batches that a worker did not write to their end
	Odd     uint64        // records that could not be read
}

// Group is the copy of one group.
type Group struct {
	ID    uint8
	Name  string
	Epoch uint64
	Whole bool
	Why   string        // not whole
	Age   time.Duration // whole: since its digests were last found to be equal
}

// Peer is a gateway whose sessions are copied here, or were.
type Peer struct {
	Name      string
	Connected bool
	Since     time.Duration // that it is, or is not any more
	Streams   int
	Why       string   // its last connection ended
	Refused   []string // what it says of groups and may not, in words: nothing of them is taken from it
}

// statusWait is how long who asks for a status waits for a batch that is under way; more than that and they are told how it was before, and which worker it is that does not come to its end.
const (
	statusWait = 20 * time.Millisecond
	lateAfter  = time.Second
)

// Status says how copies stand. It does not wait for a worker that hangs.
func (s *Standby) Status() Status {
	if s.mu.lockFor(statusWait) {
		defer s.mu.Unlock()
		s.tell()
		return *s.status()
	}
	st := *s.shown.Load()
	if why := s.late(); why != "" {
		st.Groups = slices.Clone(st.Groups)
		for i := range st.Groups {
			st.Groups[i].Whole, st.Groups[i].Why, st.Groups[i].Age = false, why, 0
		}
	}
	return st
}

// late says which worker has not written its part of what has come for long; "" = none.
func (s *Standby) late() string {
	now := s.c.Now()
	for w := range s.since {
		if at := s.since[w].Load(); at != 0 && now-at > int64(lateAfter) {
			return fmt.Sprintf("worker %d has not written what came for it for %s: nothing more is taken until it has", w, time.Duration(now-at).Round(time.Second))
		}
	}
	return ""
}

// status is how copies stand. The caller holds mu.
func (s *Standby) status() *Status {
	now := s.c.Now()
	st := &Status{Stats: s.r.Stats, Steps: s.steps.Load(), Held: time.Duration(s.heldNs.Load()), Longest: time.Duration(s.longest.Load()), Failed: s.failed.Load(), Odd: s.odd.Load()}
	for _, x := range s.sink.View.Groups() {
		if s.deaf[x.ID].Load() {
			continue
		}
		g := Group{ID: x.ID, Name: x.Name, Epoch: s.r.Epoch(x.ID)}
		if g.Whole, g.Why = s.r.Whole(x.ID); g.Whole {
			g.Age, _ = s.r.Marked(now, x.ID)
		} else if len(s.links) == 0 {
			g.Why = s.alone(now)
		}
		st.Groups = append(st.Groups, g)
	}
	for _, name := range slices.Sorted(maps.Keys(s.links)) {
		l := s.links[name]
		st.Peers = append(st.Peers, Peer{Name: name, Connected: true, Since: time.Duration(now - l.since), Streams: int(l.hello.Streams)})
	}
	for _, name := range slices.Sorted(maps.Keys(s.gone)) {
		if g := s.gone[name]; s.links[name] == nil {
			st.Peers = append(st.Peers, Peer{Name: name, Since: time.Duration(now - g.at), Why: g.why})
		}
	}
	for _, x := range s.r.Refused() {
		i := slices.IndexFunc(st.Peers, func(p Peer) bool { return p.Name == x.Peer })
		if i < 0 {
			i, st.Peers = len(st.Peers), append(st.Peers, Peer{Name: x.Peer})
		}
		st.Peers[i].Refused = append(st.Peers[i].Refused, x.Why)
	}
	slices.SortFunc(st.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	return st
}

// alone says why nothing comes. The caller holds mu.
func (s *Standby) alone(now int64) string {
	for _, name := range slices.Sorted(maps.Keys(s.gone)) {
		g := s.gone[name]
		return fmt.Sprintf("the connection of %s ended %s ago: %s", name, time.Duration(now-g.at).Round(time.Second), g.why)
	}
	return "no gateway has connected to have its sessions copied here"
}
