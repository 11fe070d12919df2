package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"demarc/cluster/beat"
	"demarc/cluster/command"
	"demarc/cluster/failover"
	"demarc/cluster/store"
	"demarc/cluster/transport"
)

// Config is what a Node is opened with. Dir, Name, Mono and Wall are required, and Serve but on a witness.
type Config struct {
	Dir     string // of the replicated state; belongs to this node alone
	Name    string // from the node file
	Version string // of the binary

	Features []string     // of policies that the binary knows, sorted; see command.Member
	Role     command.Role // empty = gateway
	Log      *slog.Logger

	Net      *Net     // where other members reach this node; nil = nobody does, it is a cluster of one
	Compiler Compiler // nil = every text is taken as one that can be served

	// Serve has the gateway serve a revision and returns when every worker does, or why not. One goroutine calls it. A revision that is not
	// confirmed yet has command.FateProvisional.
	Serve func(ctx context.Context, r command.Revision, text []byte) error
	// Keep has the gateway keep a revision, which it serves and which is confirmed, where a start finds it without the cluster. It is tried again while
	// it fails. The same goroutine calls it. nil = nobody keeps any.
	Keep func(ctx context.Context, r command.Revision, text []byte) error
	// Revoked is told the clients whose certificates are refused: once this node knows what was agreed on, and again whenever that changes. It must not
	// block. Before, ReadRevoked is what it last knew. nil = nobody asks.
	Revoked func([]command.Revoked)
	// Groups drives who serves a group. It is not this node's own: it lives longer. nil = this node neither votes for nor serves any.
	Groups *Driver
	// Carrier is given its keys, and told who is a member. It lives longer too; see OpenCarrier. It may come later than the node: nil while there is none.
	Carrier func() *beat.Carrier
	// Sessions takes what another gateway has dialled to have its sessions copied here. It returns when the connection has ended, and says why where that was the other side's fault. Each
	// has a goroutine of its own; of one member there is one, but for a moment. nil = this node copies none.
	Sessions func(peer string, c net.Conn) error
	// Mono is CLOCK_BOOTTIME in ns: confirm times are counted by it. Wall is wall time, which is shown and decides nothing.
	Mono func() uint64
	Wall func() time.Time

	transport store.Transport // nil = a cluster of one
	peers     Peers           // nil with it
	timers    time.Duration   // of Raft, for tests; 0 = its defaults
	tune      func(*store.Config)
}

// Net is the [cluster] section of a node file.
type Net struct {
	Listen    string
	Advertise string        // empty = Listen
	Paths     []string      // further addresses of this machine, for datagrams alone
	Keys      string        // directory, see transport.Keyring
	RoundTrip time.Duration // to the farthest member, where that is long: timers follow it
}

// RoundTrip is how long an answer takes from the farthest member, as the node file says.
func (c *Config) RoundTrip() time.Duration {
	if c.Net == nil {
		return 0
	}
	return c.Net.RoundTrip
}

// Node is one member of a cluster.
type Node struct {
	cfg Config
	id  string
	log *slog.Logger
	st  *store.Store

	wake  chan struct{} // something changed: look again
	ready chan struct{} // closed when current

	mu      sync.Mutex
	served  served        // mu: what the gateway serves
	kept    kept          // mu: what of it is kept
	changed chan struct{} // mu: closed and replaced when served changes
	applied chan struct{} // mu: closed and replaced when an entry was applied
	pending *pending      // mu: the confirm time that runs
	current atomic.Bool   // Run: wo, all: ro; the log of before the start has been gone through

	keys    *transport.Keyring   // nil without Net
	tr      *transport.Transport // nil without Net
	address string               // where others reach this node; "" = nowhere
	joined  *Joined              // what it was told when it joined; nil = it did not
	pool    pool
	large   chan struct{}

	sessions sessions               // of copies
	opened   chan struct{}          // closed when st is there: Raft dials before Open has it
	turned   atomic.Pointer[turned] // that another member would not let this one in

	peersMu  sync.Mutex
	seen     map[string]seen // peersMu: by id, of other members
	changing sync.Mutex      // of Raft's list of members
	entering sync.Mutex      // who leads: a member joins, or an entry that not every release reads is proposed

	telling sync.Mutex         // of who is revoked, in order
	told    *[]command.Revoked // telling: what was told last; nil = nothing yet
	copied  copied

	groupsMu   sync.Mutex      // of what the driver of groups was told last, in order
	toldVoters failover.Voters // groupsMu
	toldGroups failover.Agreed // groupsMu
	before     *command.State  // groupsMu: what was carried out before the start; nil = it is not known yet
	toldAt     uint64          // groupsMu: the entry that toldGroups is of; 0 = nothing was told yet

	stood atomic.Uint64 // how often this node stood for election because the leader was silent beside Raft, or nobody led

	came atomic.Uint64 // how often it has come to lead, as tend saw it

	led    time.Time     // tend only: since when this node leads
	handed time.Time     // tend only: when it last handed the lead to a witness
	hold   time.Duration // tend only: how long it leads before the next time
}

// turned is what a member said that would not let this node in.
type turned struct {
	by   string // address
	why  string
	kind transport.Refusal
	at   time.Time
}

// served is what the gateway was last told.
type served struct {
	number uint64
	digest string
	err    error  // why the gateway does not serve number
	alone  bool   // it went back by itself, without an entry that says so
	at     uint64 // Mono
}

// pending is a confirm time that runs.
type pending struct {
	number   uint64
	deadline uint64 // Mono
	written  uint64 // Mono, when the rest was last put on disk
}

const (
	lookEvery   = 50 * time.Millisecond  // while a confirm time runs
	writeEvery  = 500 * time.Millisecond // the rest of a confirm time, to disk
	grace       = 300 * time.Millisecond // after the deadline, for the leader's entry, before a node goes back by itself
	leaderWait  = 5 * time.Second
	againAfter  = time.Second // until what the gateway could not serve or keep is tried again
	restFile    = "confirm.json"
	identityTxt = "id"
)

// Open reads what is on disk and takes part. Run does the work.
func Open(c Config) (*Node, error) {
	c.Role = cmp.Or(c.Role, command.RoleGateway)
	n := &Node{cfg: c, log: c.Log, wake: make(chan struct{}, 1), ready: make(chan struct{}), changed: make(chan struct{}), applied: make(chan struct{}), large: make(chan struct{}, maxLarge),
		opened: make(chan struct{})}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the replicated state: %w", err)
	}
	var err error
	if n.id, err = identity(filepath.Join(c.Dir, identityTxt)); err != nil {
		return nil, err
	}
	if n.joined, err = readJoined(c.Dir); err != nil {
		return nil, err
	}
	if c.Net != nil {
		if err := n.connect(); err != nil {
			return nil, err
		}
	}
	t := n.cfg.timers
	if rt := c.RoundTrip(); t == 0 && rt > 0 {
		t = 500*time.Millisecond + 4*rt
	}
	// Over a long way each message takes its time until it is answered, and only so many are under way: those that say nothing new must not hold up those that do.
	commit := max(20*time.Millisecond, c.RoundTrip())
	sc := store.Config{Dir: c.Dir, Commit: commit, ID: n.id, Transport: n.cfg.transport, Log: n.log, Heartbeat: t, Election: t, Lease: t / 2,
		Applied: func(store.Applied) { n.look() }, Reset: func(*command.State) { n.look() }, Members: n.tellVoters}
	if c.tune != nil {
		c.tune(&sc)
	}
	n.st, err = store.Open(sc)
	if err != nil {
		if n.tr != nil {
			err = errors.Join(err, n.tr.Close())
		}
		return nil, err
	}
	close(n.opened)
	n.attach()
	if n.tr != nil {
		n.tr.Open()
	}
	return n, nil
}

// connect listens on the cluster's port. Nothing is accepted before the store is there.
func (n *Node) connect() (err error) {
	c := n.cfg.Net
	if n.keys, err = transport.OpenKeyring(c.Keys, n.cfg.Wall, n.log); err != nil {
		return keysError(c.Keys, n.cfg.Name, err)
	}
	if name := n.keys.Name(); name != n.cfg.Name {
		return fmt.Errorf("the certificate in %s is %s's, the node file says that this node is %s", c.Keys, name, n.cfg.Name)
	}
	n.tr, err = transport.Listen(transport.Config{Address: c.Listen, Advertise: c.Advertise, Keys: n.keys, Log: n.log, Timeout: 5*time.Second + 4*c.RoundTrip, InFlight: inFlight(c.RoundTrip), Held: true,
		Allowed: func(p transport.Peer) error {
			<-n.opened
			if !p.Raft || !p.Dialed {
				return nil // who comes is judged by what it says and asks, and is told why not: TLS could not say it
			}
			return n.mayEnter(p, "")
		},
		Self: func() transport.Hello {
			<-n.opened
			return transport.Hello{Cluster: n.ClusterID(), ID: n.id}
		},
		Greet: func(p transport.Peer, h transport.Hello) error {
			if id := n.ClusterID(); h.Cluster != id && h.Cluster != "" && id != "" {
				return transport.Refuse(transport.RefusedCluster, "%s belongs to cluster %s, %s is of %s", p.Name, h.Cluster, n.cfg.Name, id)
			}
			return n.mayEnter(p, h.ID)
		},
		Turned: func(address string, kind transport.Refusal, why string) {
			n.turnedAway(address, why, kind)
		},
	})
	if err != nil {
		return err
	}
	n.address = n.tr.Address()
	n.cfg.transport, n.cfg.peers = n.tr.Raft(), n.tr
	return nil
}

// inFlight is how many messages of Raft to one member may wait for their answer; 0 = Raft's own choice, two. An entry and the word that it is agreed on take two, and the
// next change must not wait a round trip behind them. Each may hold two texts in memory, so they are not many.
func inFlight(roundTrip time.Duration) int {
	if roundTrip == 0 {
		return 0
	}
	return 8
}

// pace is how often what recurs is done, shorter in tests.
func (n *Node) pace(usual time.Duration) time.Duration {
	if n.cfg.timers > 0 {
		return min(usual, n.cfg.timers)
	}
	return max(usual, n.cfg.RoundTrip())
}

// leaderWait is how long a change waits for a leader.
func (n *Node) leaderWait() time.Duration { return leaderWait + 8*n.cfg.RoundTrip() }

// Refused counts the connections that other members and strangers were refused, by kind.
func (n *Node) Refused() map[transport.Refusal]uint64 {
	if n.tr == nil {
		out := map[transport.Refusal]uint64{}
		for _, r := range transport.Refusals {
			out[r] = 0
		}
		return out
	}
	return n.tr.Refused()
}

// Address is where other members reach this node; "" = nowhere.
func (n *Node) Address() string { return n.address }

// identity is the member's id: made once for a data directory.
func identity(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil {
		id := strings.TrimSpace(string(b))
		if len(id) != 32 {
			return "", fmt.Errorf("%s: is damaged: want 32 hex digits", file)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read this member's id: %w", err)
	}
	id := random()
	if err := store.ReplaceFile(file, []byte(id+"\n")); err != nil {
		return "", fmt.Errorf("keep this member's id: %w", err)
	}
	return id, nil
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// look has Run look again, and those that wait for an entry.
func (n *Node) look() {
	select {
	case <-n.opened:
		n.tellRevoked() // not by Run, which may be waiting for workers
		n.tellGroups(n.st.State())
	default:
	}
	if c := n.carrier(); c != nil {
		c.Look()
	}
	n.mu.Lock()
	close(n.applied)
	n.applied = make(chan struct{})
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Begun reports whether this node is part of a cluster: it has begun one or joined one.
func (n *Node) Begun() bool { return n.joined != nil || n.st.Begun() }

// First is the policy that a cluster begins with.
type First struct {
	Text   []byte
	Name   string
	Source string
	Last   uint64 // revisions up to this number were given before there was a cluster

	Features []string // that the text uses, sorted
}

// Begin makes this node a cluster of one that serves f. The gateway serves it already. One that was cut short is carried on with.
func (n *Node) Begin(ctx context.Context, f First) (command.Revision, error) {
	if n.joined != nil {
		return command.Revision{}, errors.New("this node has joined a cluster: it begins none")
	}
	if err := n.st.Bootstrap(); err != nil && !n.Halfway() {
		return command.Revision{}, err
	}
	who, me := command.Who{Author: "start", From: n.cfg.Name}, n.self()
	for _, e := range []*command.Entry{
		{Kind: command.KindInit, Init: &command.Init{Cluster: random(), Bounds: command.DefaultBounds(), Last: f.Last}},
		{Kind: command.KindMember, Member: &me},
	} {
		e.Who = who
		ref := (*command.Refusal)(nil)
		if _, err := n.propose(ctx, e); err != nil && !(errors.As(err, &ref) && ref.Why == command.WhyBegun) {
			return command.Revision{}, err
		}
	}
	return n.Revise(ctx, Change{Text: f.Text, Name: f.Name, Source: f.Source, Who: who, Features: f.Features})
}

// Change is a policy that somebody wants served.
type Change struct {
	Text     []byte
	Name     string // free text from the policy
	Source   string
	Comment  string
	Expected uint64        // 0 = whichever is served
	Back     uint64        // whose text it is
	Confirm  time.Duration // 0 = it stays
	Who      command.Who
	Checked  bool   // this node has compiled it already
	Asked    *Asked // what others say of it; nil = they are asked by Apply

	Features []string // that the text uses, sorted, as far as who wants it knows
	except   []string // ids of gateways that go on with what they serve
}

// Revise has the cluster agree on a change and returns when it has. The gateway is told meanwhile: see Await. The error is a *command.Refusal when
// the cluster said no.
func (n *Node) Revise(ctx context.Context, c Change) (command.Revision, error) {
	r, err := n.propose(ctx, &command.Entry{Kind: command.KindRevise, Who: c.Who, Text: c.Text, Revise: &command.Revise{Expected: c.Expected,
		Digest: command.Digest(c.Text), Bytes: len(c.Text), Name: c.Name, Source: c.Source, Comment: c.Comment, Back: c.Back, Confirm: c.Confirm, Features: c.Features, Except: c.except}})
	if err != nil {
		return command.Revision{}, err
	}
	err = n.heard(ctx, r.Revision, func(s *command.State) bool {
		_, ok := s.Revision(r.Revision)
		return ok || s.Last >= r.Revision
	})
	if err != nil {
		return command.Revision{}, err
	}
	rev, ok := n.st.State().Revision(r.Revision)
	if !ok {
		return command.Revision{}, fmt.Errorf("revision %d was replaced and forgotten already", r.Revision)
	}
	return *rev, nil
}

// Confirm keeps the provisional revision.
func (n *Node) Confirm(ctx context.Context, number uint64, who command.Who) error {
	if _, err := n.propose(ctx, &command.Entry{Kind: command.KindConfirm, Who: who, Confirm: &command.Confirm{Revision: number}}); err != nil {
		return err
	}
	return n.decided(ctx, number)
}

// TakeBack ends a provisional revision before its time.
func (n *Node) TakeBack(ctx context.Context, number uint64, who command.Who) error {
	if _, err := n.propose(ctx, &command.Entry{Kind: command.KindExpire, Who: who, Expire: &command.Expire{Revision: number, Manual: true}}); err != nil {
		return err
	}
	return n.decided(ctx, number)
}

// hearTime is for how long a node that does not lead waits for what was agreed on.
const hearTime = 30 * time.Second

// decided waits until this node, too, has the entry by which a revision is provisional no more.
func (n *Node) decided(ctx context.Context, number uint64) error {
	return n.heard(ctx, number, func(s *command.State) bool {
		rev, ok := s.Revision(number)
		return s.Last >= number && (!ok || rev.Fate != command.FateProvisional)
	})
}

// heard waits until what is agreed on about a revision has come here: where another node leads, its answer may be here before the entry is.
func (n *Node) heard(ctx context.Context, number uint64, has func(*command.State) bool) error {
	ctx, cancel := context.WithTimeout(ctx, hearTime)
	defer cancel()
	for {
		n.mu.Lock()
		changed := n.applied
		n.mu.Unlock()
		if has(n.st.State()) {
			return nil
		}
		if why := n.st.Stopped(); why != "" {
			return fmt.Errorf("revision %d: %w: %s", number, ErrLate, why)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("revision %d: %w: %w", number, ErrLate, ctx.Err())
		}
	}
}

// propose has the cluster carry an entry out, if this node can.
func (n *Node) propose(ctx context.Context, e *command.Entry) (command.Result, error) {
	if err := n.able(); err != nil {
		return command.Result{}, err
	}
	return n.hand(ctx, e)
}

// hand fills in what every entry has and hands it to whoever leads, again and again until there is an answer or ctx ends. That an entry may get
// there twice does no harm: by its nonce a change is carried out once, and each answer is that of the first time.
func (n *Node) hand(ctx context.Context, e *command.Entry) (command.Result, error) {
	e.Level, e.Time = e.Least(), n.cfg.Wall().UTC()
	if (e.Kind == command.KindRevise || e.Kind == command.KindConfirm || e.Kind == command.KindExpire) && e.Who.Nonce == "" {
		e.Who.Nonce = random()
	}
	b, err := e.Encode()
	if err != nil {
		return command.Result{}, err
	}
	if why := unreadable(n.st.State(), e); why != "" { // who leads may be one of those that do not know it
		return command.Result{}, errors.New(why)
	}
	ctx, cancel := context.WithTimeout(ctx, n.leaderWait())
	defer cancel()
	a, _, err := n.atLeader(ctx, request{Kind: askPropose}, b, func(ctx context.Context) (answer, []byte) { return n.here(ctx, e), nil })
	return a.Result, err
}

// State is what the cluster has agreed on as far as this node knows.
func (n *Node) State() *command.State { return n.st.State() }

// Text is the text of a kept revision.
func (n *Node) Text(number uint64) (command.Revision, []byte, error) {
	r, ok := n.st.State().Revision(number)
	if !ok {
		return command.Revision{}, nil, fmt.Errorf("revision %d is not kept: see the history for those that are", number)
	}
	text, err := n.st.Text(r.Digest)
	return *r, text, err
}

// Left is how much of the confirm time of the provisional revision is left here.
func (n *Node) Left() (number uint64, left time.Duration, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending == nil {
		return 0, 0, false
	}
	if now := n.cfg.Mono(); now < n.pending.deadline {
		left = time.Duration(n.pending.deadline - now)
	}
	return n.pending.number, left, true
}

// Problem is what an operator should know of this node; "" when there is nothing.
func (n *Node) Problem() string {
	if p := n.st.Problem(); p != "" {
		return p
	}
	if g, gone := n.st.State().Left(n.id); gone {
		return g.Words() + "; it serves what it served last"
	}
	if t := n.turned.Load(); t != nil && (t.kind == transport.RefusedRemoved || time.Since(t.at) < 10*time.Second) {
		return t.why
	}
	if e := n.expiring(); e != "" {
		return e
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.kept.err != nil:
		return fmt.Sprintf("revision %d is served and not in this node's own copy, so a start would begin with an older one: %v", n.kept.number, n.kept.err)
	case n.served.err != nil:
		return fmt.Sprintf("revision %d is agreed on and not served: %v", n.served.number, n.served.err)
	case n.served.alone:
		return fmt.Sprintf("revision %d is served again because nobody could say that its successor is confirmed", n.served.number)
	}
	return ""
}

// NotServed reports whether what was agreed on could not be served here.
func (n *Node) NotServed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.served.err != nil
}

// Await waits until the gateway has been told revision number, or a later one. It does not wait for room on a disk.
func (n *Node) Await(ctx context.Context, number uint64) error {
	again := time.NewTicker(5 * lookEvery)
	defer again.Stop()
	for {
		n.mu.Lock()
		s, changed := n.served, n.changed
		n.mu.Unlock()
		if s.number == number {
			return s.err
		}
		if why := n.st.Stopped(); why != "" {
			return errors.New("no entry is applied there any more: " + why)
		}
		if st := n.st.State(); st.Last >= number && st.Serving != number {
			return fmt.Errorf("revision %d has been replaced by %d already", number, st.Serving)
		} else if err := n.st.Refused(); err != nil && st.Last < number {
			return err
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Serving tells the node what the gateway serves at its start, so that it is not told again.
func (n *Node) Serving(number uint64, digest string) {
	n.set(served{number: number, digest: digest})
}

func (n *Node) set(s served) {
	s.at = n.cfg.Mono()
	n.mu.Lock()
	n.served = s
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
}

// Run carries revisions to the gateway and counts confirm times until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	if n.cfg.peers != nil {
		defer n.attend(ctx)()
	}
	for {
		idle := false
		if !n.current.Load() && n.st.CaughtUp() {
			n.current.Store(true)
			close(n.ready)
			n.tellRevoked()
			n.tellGroups(n.st.State())
		}
		if n.current.Load() {
			copied := n.keepRevoked()
			n.follow(ctx)
			done := n.keep(ctx)
			idle = n.count(ctx) && done && copied
		}
		var clock <-chan time.Time
		if !idle {
			clock = tick.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.st.Again(): // whoever opened this node does so again
			return errors.New(n.st.Problem())
		case <-n.wake:
		case <-clock:
		case <-n.st.Leadership():
		}
	}
}

// attend starts what answers other members and looks after them. What it returns ends it.
func (n *Node) attend(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	l := n.cfg.peers.Requests()
	wg.Go(func() { n.listen(ctx, l) })
	wg.Go(func() { n.watch(ctx) })
	wg.Go(func() { n.tend(ctx) })
	wg.Go(func() { n.standDown(ctx) })
	if n.cfg.Groups != nil {
		wg.Go(func() { n.missLeader(ctx) })
	}
	if n.keys != nil {
		wg.Go(func() { n.renewals(ctx) })
	}
	if n.tr != nil {
		wg.Go(func() { n.takeSessions(ctx) })
		if n.cfg.Carrier != nil {
			wg.Go(func() { n.serveCarrier(ctx) })
		}
	}
	return func() {
		cancel()
		l.Close()
		n.pool.close(nil)
		wg.Wait()
	}
}

// follow has the gateway serve what the state says.
func (n *Node) follow(ctx context.Context) {
	s := n.st.State()
	r, ok := s.Revision(s.Serving)
	n.mu.Lock()
	now := n.served
	n.mu.Unlock()
	if !ok || now.alone && now.number == s.Confirmed {
		return
	}
	if now.number == r.Number && now.digest == r.Digest && (now.err == nil || n.cfg.Mono()-now.at < uint64(againAfter)) {
		return
	}
	n.serve(ctx, *r, false)
}

func (n *Node) serve(ctx context.Context, r command.Revision, alone bool) {
	if n.cfg.Serve == nil { // a witness has nobody to tell
		n.set(served{number: r.Number, digest: r.Digest, alone: alone})
		return
	}
	text, err := n.st.Text(r.Digest)
	if err == nil {
		err = n.cfg.Serve(ctx, r, text)
	}
	if err != nil && ctx.Err() == nil {
		n.log.Error("serve revision", "revision", r.Number, "err", err)
	}
	n.set(served{number: r.Number, digest: r.Digest, err: err, alone: alone})
}

// count looks after the confirm time. It reports whether none runs.
func (n *Node) count(ctx context.Context) (idle bool) {
	s := n.st.State()
	p, runs := s.Pending()
	now := n.cfg.Mono()
	n.mu.Lock()
	t := n.pending
	switch {
	case !runs:
		n.pending = nil
	case t == nil || t.number != p.Number:
		t = &pending{number: p.Number, deadline: now + uint64(n.rest(p))}
		n.pending = t
	}
	alone := n.served.alone
	n.mu.Unlock()
	if !runs {
		if t != nil {
			_ = os.Remove(filepath.Join(n.cfg.Dir, restFile)) // names a number that never comes again
			if alone {                                        // the log has caught up with what this node did by itself, or says otherwise
				n.mu.Lock()
				n.served.alone = false
				n.mu.Unlock()
				n.follow(ctx)
			}
		}
		return true
	}
	if now < t.deadline {
		if t.written == 0 || now-t.written >= uint64(writeEvery) {
			n.write(rest{p.Number, time.Duration(t.deadline - now)})
			t.written = now
		}
		return false
	}
	if n.st.Leads() {
		_, err := n.st.Propose(ctx, &command.Entry{Level: 1, Kind: command.KindExpire, Time: n.cfg.Wall().UTC(), Who: command.Who{Author: "confirm time"},
			Expire: &command.Expire{Revision: p.Number}})
		if err == nil {
			n.st.Spread()
			return false // the state has changed: the next look follows it
		}
	}
	if now-t.deadline >= uint64(grace) && !alone {
		if c, ok := s.Revision(s.Confirmed); ok {
			n.log.Warn("nobody leads: back to the confirmed revision", "revision", c.Number, "unconfirmed", p.Number)
			n.serve(ctx, *c, true)
		}
	}
	return false
}

// rest is how much of a confirm time was left when it was written.
type rest struct {
	Revision uint64        `json:"revision"`
	Left     time.Duration `json:"left_ns"`
}

// rest is what is left of the confirm time of p: all of it, unless this node counted before it was started again.
func (n *Node) rest(p *command.Revision) time.Duration {
	var r rest
	b, err := os.ReadFile(filepath.Join(n.cfg.Dir, restFile))
	if err == nil && json.Unmarshal(b, &r) == nil && r.Revision == p.Number {
		return min(max(r.Left, 0), p.Confirm)
	}
	return p.Confirm
}

func (n *Node) write(r rest) {
	b, err := json.Marshal(r)
	if err == nil {
		err = store.ReplaceFile(filepath.Join(n.cfg.Dir, restFile), b)
	}
	if err != nil {
		n.log.Warn("keep the rest of the confirm time", "err", err) // after a restart it is counted from the beginning
	}
}

// Close leaves everything as it is on disk. After Run has returned.
func (n *Node) Close() error {
	n.detach()
	if n.tr != nil {
		n.tr.HangUp()
	}
	err := n.st.Close()
	if n.tr != nil {
		err = errors.Join(err, n.tr.Close())
	}
	return err
}
