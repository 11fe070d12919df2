package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"demarc/cluster/clustertest"
	"demarc/cluster/command"
	"demarc/cluster/store"
)

var (
	schedules = flag.Int("schedules", 10, "how many randomised schedules TestSchedules runs")
	seed      = flag.Uint64("seed", 0, "of the first schedule; 0 = by the clock. It is printed")
	atATime   = flag.Int("at-a-time", 4, "schedules that run beside each other")
)

// A schedule: three members, four clients with 50 operations together, ten faults, from one seed. What the clients saw must be what one node without faults could have
// answered (linearizability, checked by porcupine), every member must have the same state in the end, and every text.
const (
	schedClients = 4
	schedOps     = 50
	schedFaults  = 10
	schedTimers  = 50 * time.Millisecond
)

// schedDisk is a member's disk: slow, or full.
type schedDisk struct {
	slow atomic.Int64
	full atomic.Bool
}

func (d *schedDisk) write(n int) error {
	if s := d.slow.Load(); s > 0 {
		time.Sleep(time.Duration(s))
	}
	if d.full.Load() && n > 64 { // a term may still fit, a policy not
		return syscall.ENOSPC
	}
	return nil
}

// schedMember is one member; its fields belong to sched.mu.
type schedMember struct {
	name, dir string
	n         *Node // nil = not running
	cancel    context.CancelFunc
	done      chan struct{}
	disk      *schedDisk
}

// sched is one run.
type sched struct {
	seed  uint64
	base  string
	plant func(*store.Hooks)
	net   *clustertest.Network
	begin time.Time

	mu    sync.Mutex
	ms    []*schedMember
	dirs  int
	ops   []porcupine.Operation
	calls map[string]int64 // by digest: when a revision with a confirm time was asked for
	times map[string]time.Duration
	log   []string
	count map[string]int // what happened how often

	saidMu sync.Mutex
	said   []string
	often  map[string]int    // saidMu: how often something was said, but for the numbers in it
	full   bool              // saidMu: nothing more is kept
	done   map[uint64]string // saidMu: by place in the log: the digest of the entry that was carried out
	split  error             // saidMu: two members carried out different ones
}

func (s *sched) now() int64 { return int64(time.Since(s.begin)) }

func (s *sched) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	word := strings.NewReplacer("n0", "", "n1", "", "n2", "").Replace(format)
	s.count[word]++
	s.log = append(s.log, fmt.Sprintf("%6.0f ms  ", float64(s.now())/1e6)+fmt.Sprintf(format, args...))
}

var digits = regexp.MustCompile(`[0-9]+`)

// says keeps what members log. It is printed when a schedule fails.
type says struct {
	s    *sched
	name string
}

func (w says) Write(b []byte) (int, error) {
	w.s.saidMu.Lock()
	defer w.s.saidMu.Unlock()
	line := w.name + " " + string(b)
	_, what, _ := strings.Cut(line, "level=")
	what = w.name + digits.ReplaceAllString(what, "")
	// What is said over and over would push out what happened before it.
	if w.s.often[what]++; !w.s.full && w.s.often[what] <= 20 {
		w.s.said = append(w.s.said, line)
	}
	return len(b), nil
}

// applied holds what a member carries out against what others carried out at the same place of the log.
func (s *sched) applied(name string, a store.Applied) {
	b, err := a.Entry.Encode()
	if err != nil {
		return
	}
	s.saidMu.Lock()
	defer s.saidMu.Unlock()
	d := command.Digest(b)
	if was, ok := s.done[a.State.Index]; ok && was != d && s.split == nil {
		s.split = fmt.Errorf("%s carries out another entry %d than a member before: %.120s", name, a.State.Index, b)
		s.said = append(s.said, s.split.Error()+"\n")
		s.full = true
	}
	s.done[a.State.Index] = d
}

// start opens and runs a member. The caller holds mu.
func (s *sched) start(m *schedMember) error {
	h := &store.Hooks{Write: m.disk.write}
	if s.plant != nil {
		s.plant(h)
	}
	m.disk.full.Store(false)
	n, err := Open(Config{Dir: m.dir, Name: m.name, Version: "test", Wall: time.Now, Mono: func() uint64 { return uint64(s.now()) + 1<<40 },
		Serve:     func(context.Context, command.Revision, []byte) error { return nil },
		Log:       slog.New(slog.NewTextHandler(says{s, m.name}, nil)),
		transport: s.net.Join(m.name), timers: schedTimers,
		tune: func(c *store.Config) {
			c.Hooks, c.TrailingEntries = h, 2 // so that members need what only a snapshot has
			next := c.Applied
			c.Applied = func(a store.Applied) {
				s.applied(m.name, a)
				next(a)
			}
		}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.n, m.cancel, m.done = n, cancel, make(chan struct{})
	go func() {
		defer close(m.done)
		_ = n.Run(ctx)
	}()
	return nil
}

// stop ends a member. The caller holds mu.
func (s *sched) stop(m *schedMember) error {
	if m.n == nil {
		return nil
	}
	n := m.n
	m.n = nil
	m.disk.full.Store(false)
	m.cancel()
	<-m.done
	return n.Close()
}

// members is a copy of them as they are now.
func (s *sched) members() (out []schedMember) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.ms {
		out = append(out, *m)
	}
	return out
}

func (s *sched) nodes() (out []*Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.ms {
		out = append(out, m.n)
	}
	return out
}

// lead is the node that leads; nil = none does.
func (s *sched) lead() *Node {
	for _, n := range s.nodes() {
		if n != nil && n.st.Leads() {
			return n
		}
	}
	return nil
}

func (s *sched) until(what string, ok func() bool) error {
	// Long, because with timers of 50 ms a machine that is busy with something else keeps members from electing anybody: 20 s were too short beside a build.
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			err := fmt.Errorf("waited in vain: %s", what)
			for _, m := range s.members() {
				if m.n == nil {
					err = fmt.Errorf("%w; %s is not there", err, m.name)
					continue
				}
				v, _ := m.n.st.Voters()
				err = fmt.Errorf("%w; %s (%.6s): entry %d, leads %v, %q, voters %.300v", err, m.name, m.n.id, m.n.State().Index, m.n.st.Leads(), m.n.Problem(), v)
			}
			return err
		}
	}
	return nil
}

// join makes a member a voter, and takes the one out whose place it has. What was not agreed on when the lead changes is done again. When it returns all of it is agreed
// on, and not everybody may know yet.
func (s *sched) join(m *schedMember, old string) error {
	id := m.n.id
	return s.until(m.name+" votes", func() bool {
		l := s.lead()
		if l == nil {
			return false
		}
		v, err := l.st.Voters()
		if err != nil {
			return false
		}
		if slices.ContainsFunc(v, func(v store.Voter) bool { return v.ID == old }) {
			_ = l.st.Remove(old, time.Second)
			return false
		}
		if i := slices.IndexFunc(v, func(v store.Voter) bool { return v.ID == id }); i < 0 {
			_ = l.st.AddLearner(id, m.name, time.Second) // looked at again
			return false
		} else if !v[i].Votes {
			_ = l.st.Promote(id, m.name, time.Second)
			return false
		}
		return l.st.Barrier(time.Second) == nil
	})
}

// run is one schedule. Its error is what was wrong.
func (s *sched) run() (err error) {
	dice := rand.New(rand.NewPCG(s.seed, 0))
	s.net, s.begin, s.calls, s.times = &clustertest.Network{}, time.Now(), map[string]int64{}, map[string]time.Duration{}
	s.count, s.done, s.often = map[string]int{}, map[uint64]string{}, map[string]int{}
	s.net.Dice(s.seed)
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range s.ms {
			err = errors.Join(err, s.stop(m))
		}
	}()
	for i := range 3 {
		m := &schedMember{name: fmt.Sprint("n", i), dir: filepath.Join(s.base, fmt.Sprint("d", i)), disk: &schedDisk{}}
		s.ms, s.dirs = append(s.ms, m), i+1
		if err := s.start(m); err != nil {
			return err
		}
	}
	first := s.ms[0].n
	first.Serving(1, command.Digest([]byte("first")))
	if _, err := first.Begin(context.Background(), First{Text: []byte("first")}); err != nil {
		return err
	}
	for _, m := range s.ms[1:] {
		if err := s.join(m, ""); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	for c := range schedClients {
		n := schedOps / schedClients
		if c < schedOps%schedClients {
			n++
		}
		d := rand.New(rand.NewPCG(s.seed, uint64(c)+100))
		wg.Go(func() {
			for done := 0; done < n; {
				if s.operate(c, d) {
					done++
				}
				time.Sleep(time.Duration(d.IntN(25)) * time.Millisecond)
			}
		})
	}
	var ferr error
	for range schedFaults {
		if ferr = errors.Join(s.mend(), s.fault(dice)); ferr != nil {
			break
		}
	}
	s.heal()
	ferr = errors.Join(ferr, s.mend())
	wg.Wait()
	if ferr == nil {
		ferr = s.judge()
	}
	s.saidMu.Lock()
	defer s.saidMu.Unlock()
	return errors.Join(s.split, ferr)
}

// heal takes every fault away but a damaged file.
func (s *sched) heal() {
	s.net.Split()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.ms {
		m.disk.slow.Store(0)
		m.disk.full.Store(false)
	}
}

// fault makes one fault, and heals it after a while.
func (s *sched) fault(d *rand.Rand) error {
	s.mu.Lock()
	ms := slices.Clone(s.ms)
	s.mu.Unlock()
	d.Shuffle(3, func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	a, b, c := ms[0], ms[1], ms[2]
	last := time.Duration(20+d.IntN(130)) * time.Millisecond
	restart := func(which ...*schedMember) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range which {
			if err := s.stop(m); err != nil {
				return err
			}
		}
		time.Sleep(last / 2)
		for _, m := range which {
			if err := s.start(m); err != nil {
				return err
			}
		}
		return nil
	}
	switch kind := d.IntN(10); kind {
	case 0:
		s.note("%s | %s %s for %s", a.name, b.name, c.name, last)
		s.net.Split([]string{a.name}, []string{b.name, c.name})
	case 1:
		s.note("%s and %s do not hear %s for %s", b.name, c.name, a.name, last)
		s.net.Cut(a.name, b.name)
		s.net.Cut(a.name, c.name)
	case 2:
		s.note("%s does not hear %s, 30 %% is lost to %s, for %s", b.name, a.name, c.name, last)
		s.net.Cut(a.name, b.name)
		s.net.Lose(a.name, c.name, 0.3)
		s.net.Lose(b.name, c.name, 0.3)
	case 3:
		s.note("the disk of %s is slow for %s", a.name, last)
		a.disk.slow.Store(int64(5+d.IntN(20)) * 1e6)
		s.net.Slow(10 * time.Millisecond)
	case 4:
		s.note("the disk of %s is full for %s", a.name, last)
		a.disk.full.Store(true)
	case 5:
		s.note("%s is restarted", a.name)
		return restart(a)
	case 6:
		s.note("all are restarted")
		return restart(a, b, c)
	case 7:
		s.note("%s writes a snapshot and is restarted", a.name)
		if n := s.nodeOf(a); n != nil {
			_ = n.st.Compact() // on a full disk it fails
		}
		return restart(a)
	case 8:
		s.note("all write snapshots, the disk of %s is full for %s", a.name, last)
		a.disk.full.Store(true)
		// A member whose log's end was taken off waits for room, and its snapshot with it.
		room := time.AfterFunc(last, func() { a.disk.full.Store(false) })
		defer room.Stop()
		for _, n := range s.nodes() {
			_ = n.st.Compact()
		}
	case 9:
		return s.tear(d, a)
	}
	time.Sleep(last)
	s.heal()
	return nil
}

func (s *sched) nodeOf(m *schedMember) *Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return m.n
}

// tear stops a member and cuts the end of its log's file off. Where that matters it must say so, and then it comes back as a new member with an empty directory.
func (s *sched) tear(d *rand.Rand, m *schedMember) error {
	s.mu.Lock()
	old := m.n.id
	file := filepath.Join(m.dir, "raft.db")
	err := s.stop(m)
	if err == nil {
		var b []byte
		if b, err = os.ReadFile(file); err == nil {
			n := len(b)
			err = os.WriteFile(file, b[:n-1-d.IntN(min(n-1, 40000))], 0o600)
		}
	}
	if err == nil {
		err = s.start(m)
	}
	switch {
	case err == nil:
		s.mu.Unlock()
		s.note("the file of %s was cut where nothing is kept", m.name)
		return nil
	case !errors.Is(err, store.ErrDamaged):
		s.mu.Unlock()
		return fmt.Errorf("damaged and not called so: %w", err)
	}
	s.mu.Unlock()
	return s.renew(m, old, d.IntN(2) == 0)
}

// renew has a damaged member come back as a new one with an empty directory, at the same address: early while the old one may still be asked for votes there, or once it is
// taken out.
func (s *sched) renew(m *schedMember, old string, early bool) error {
	when := "after the old one is taken out"
	if early {
		when = "at once"
	}
	s.note("the file of %s is cut off: it comes back as a new member, %s", m.name, when)
	s.mu.Lock()
	err := s.stop(m)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if !early {
		if err := s.until("the old member is taken out", func() bool {
			l := s.lead()
			if l == nil {
				return false
			}
			_ = l.st.Remove(old, time.Second) // looked at below
			v, err := l.st.Voters()
			return err == nil && !slices.ContainsFunc(v, func(v store.Voter) bool { return v.ID == old }) && l.st.Barrier(time.Second) == nil
		}); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.dirs++
	m.dir = filepath.Join(s.base, fmt.Sprint("d", s.dirs))
	err = s.start(m)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.join(m, old)
}

// mend renews the member, if there is one, whose damage came to light while it ran.
func (s *sched) mend() error {
	s.mu.Lock()
	i := slices.IndexFunc(s.ms, func(m *schedMember) bool { return m.n != nil && strings.Contains(m.n.Problem(), "is damaged") })
	s.mu.Unlock()
	if i >= 0 {
		return s.renew(s.ms[i], s.ms[i].n.id, false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.ms { // what its gateway does
		if m.n != nil && strings.Contains(m.n.Problem(), "is opened again") {
			if err := errors.Join(s.stop(m), s.start(m)); err != nil {
				return err
			}
		}
	}
	return nil
}

// What a client asks for, and what it hears.
type (
	schedIn struct {
		kind     string // apply, confirm, takeback, show, expire
		digest   string
		expected uint64
		confirm  bool
		number   uint64
	}
	schedOut struct {
		kind   string // ok, refused, unknown
		number uint64
		why    command.Why
		state  schedState // show
	}
	schedState struct {
		last, serving, confirmed uint64
		digests                  string // of all revisions, short, in order
	}
)

const shortDigest = 12

func (s schedState) digest(n uint64) string {
	if n == 0 || n > s.last {
		return ""
	}
	return s.digests[(n-1)*shortDigest : n*shortDigest]
}

func (s schedState) pending() uint64 {
	if s.serving == s.confirmed {
		return 0
	}
	return s.serving
}

// operate does one operation and writes down what came of it. False when there was nothing that it could do.
func (s *sched) operate(client int, d *rand.Rand) bool {
	nodes := s.nodes()
	n := nodes[d.IntN(len(nodes))]
	if l := s.lead(); l != nil && d.IntN(10) < 8 {
		n = l
	}
	if n == nil {
		return false
	}
	seen := n.State()
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	var in schedIn
	var err error
	var out schedOut
	text := fmt.Sprintf("policy %x of client %d", d.Uint64(), client)
	who := command.Who{Author: fmt.Sprint("client ", client)}
	call := s.now()
	switch k := d.IntN(20); {
	case k < 10:
		c := Change{Text: []byte(text), Who: who}
		in = schedIn{kind: "apply", digest: command.Digest(c.Text)}
		if d.IntN(3) > 0 {
			c.Expected = seen.Serving
			in.expected = c.Expected
		}
		if d.IntN(2) == 0 {
			c.Confirm, in.confirm = time.Duration(40+d.IntN(200))*time.Millisecond, true
			s.mu.Lock()
			s.calls[in.digest], s.times[in.digest] = call, c.Confirm
			s.mu.Unlock()
		}
		var r command.Revision
		r, err = n.Revise(ctx, c)
		out.number = r.Number
	case k < 12: // back to an older one: its text again
		if seen.Last == 0 {
			return false
		}
		back := 1 + uint64(d.IntN(int(seen.Last)))
		_, b, terr := n.Text(back)
		if terr != nil {
			return false
		}
		in = schedIn{kind: "apply", digest: command.Digest(b), expected: seen.Serving}
		var r command.Revision
		r, err = n.Revise(ctx, Change{Text: b, Back: back, Expected: seen.Serving, Who: who})
		out.number = r.Number
	case k < 16:
		p, ok := seen.Pending()
		if !ok {
			return false
		}
		in = schedIn{kind: "confirm", number: p.Number}
		err = n.Confirm(ctx, p.Number, who)
	case k < 17:
		p, ok := seen.Pending()
		if !ok {
			return false
		}
		in = schedIn{kind: "takeback", number: p.Number}
		err = n.TakeBack(ctx, p.Number, who)
	default:
		in = schedIn{kind: "show"}
		if n.st.Barrier(200*time.Millisecond) != nil {
			return false
		}
		out.state = schedOf(n.State())
	}
	ref := (*command.Refusal)(nil)
	switch {
	case err == nil:
		out.kind = "ok"
	case errors.As(err, &ref):
		out.kind, out.why = "refused", ref.Why
	case strings.Contains(err.Error(), "nothing was changed"):
		s.mu.Lock()
		s.count[in.kind+" not done"]++
		s.mu.Unlock()
		return true // this is a promise: if it took effect all the same, the rest does not add up
	default:
		out.kind = "unknown"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count[in.kind+" "+out.kind]++
	s.ops = append(s.ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: s.now()})
	return true
}

func schedOf(st *command.State) (out schedState) {
	out.last, out.serving, out.confirmed = st.Last, st.Serving, st.Confirmed
	for _, r := range st.Revisions {
		out.digests += r.Digest[:shortDigest]
	}
	return out
}

// schedModel is one node without faults.
var schedModel = porcupine.NondeterministicModel{
	Init: func() []any {
		return []any{schedState{1, 1, 1, command.Digest([]byte("first"))[:shortDigest]}}
	},
	Step:  func(s, in, out any) []any { return schedStep(s.(schedState), in.(schedIn), out.(schedOut)) },
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v: %+v", in, out)
	},
}

func schedStep(s schedState, in schedIn, out schedOut) []any {
	same, none := []any{s}, []any(nil)
	switch in.kind {
	case "show":
		if out.state != s {
			return none
		}
		return same
	case "apply":
		conflict := in.expected != 0 && in.expected != s.serving
		refused := conflict || s.pending() != 0
		next := s
		next.last++
		next.serving, next.digests = next.last, s.digests+in.digest[:shortDigest]
		if !in.confirm {
			next.confirmed = next.last
		}
		switch {
		case out.kind == "ok" && !refused && out.number == next.last:
			return []any{next}
		case out.kind == "refused" && (conflict && out.why == command.WhyConflict || !conflict && refused && out.why == command.WhyProvisional):
			return same
		case out.kind == "unknown" && !refused:
			return []any{s, next}
		case out.kind == "unknown":
			return same
		}
		return none
	case "expire":
		if p := s.pending(); p == 0 || s.digest(p) != in.digest[:shortDigest] {
			return none
		}
		s.serving = s.confirmed
		return []any{s}
	}
	// confirm and takeback
	now := s.pending() == in.number
	next := s
	if in.kind == "confirm" {
		next.confirmed = in.number
	} else {
		next.serving = s.confirmed
	}
	switch {
	case out.kind == "ok" && now:
		return []any{next}
	case out.kind == "ok":
		return none
	case now && out.kind == "unknown":
		return []any{s, next}
	case now: // also where the node asked twice because it did not hear an answer: it is told that of the first time
		return none
	}
	return same
}

// judge waits until all members agree and holds what the clients saw against the model.
func (s *sched) judge() error {
	var final *command.State
	if err := s.until("every member has the same state", func() bool {
		if s.mend() != nil {
			return false
		}
		l := s.lead()
		if l == nil || l.st.Barrier(time.Second) != nil {
			return false
		}
		final = l.State()
		for _, n := range s.nodes() {
			if n.State().Index != final.Index {
				return false
			}
		}
		return true
	}); err != nil {
		return err
	}
	want, err := final.EncodeState()
	if err != nil {
		return err
	}
	for i, n := range s.nodes() {
		got, err := n.State().EncodeState()
		if err != nil {
			return err
		}
		if n.State().Index == final.Index && string(got) != string(want) {
			return fmt.Errorf("n%d has another state than the leader:\n%s\n%s", i, got, want)
		}
		for _, d := range final.Digests() {
			if _, err := n.st.Text(d); err != nil {
				return fmt.Errorf("n%d: %w", i, err)
			}
		}
	}
	there := map[string]bool{}
	for _, r := range final.Revisions {
		there[r.Digest] = true
	}
	end := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops []porcupine.Operation
	for _, o := range s.ops {
		in, out := o.Input.(schedIn), o.Output.(schedOut)
		if out.kind == "unknown" {
			if in.kind == "apply" && !there[in.digest] {
				continue // it never happened, and never will: all members agree
			}
			o.Return = end
		}
		ops = append(ops, o)
	}
	for _, r := range final.Revisions { // that its time was over nobody asked for: not before that, and some time after
		if r.Fate == command.FateExpired {
			ops = append(ops, porcupine.Operation{ClientId: schedClients, Input: schedIn{kind: "expire", digest: r.Digest}, Output: schedOut{kind: "ok"},
				Call: s.calls[r.Digest] + int64(s.times[r.Digest]), Return: end})
		}
	}
	for i := range ops { // clients of their own, since porcupine wants one's operations one after the other
		if ops[i].Return == end {
			ops[i].ClientId = schedClients + 1 + i
		}
	}
	switch porcupine.CheckOperationsTimeout(schedModel.ToModel(), ops, 20*time.Second) {
	case porcupine.Illegal:
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		var b strings.Builder
		for _, o := range ops {
			fmt.Fprintf(&b, "%7.1f - %7.1f ms  client %d  %s\n", float64(o.Call)/1e6, float64(o.Return)/1e6, o.ClientId, schedModel.DescribeOperation(o.Input, o.Output))
		}
		return fmt.Errorf("what the clients saw no single node could have answered:\n%s", b.String())
	case porcupine.Unknown:
		return fmt.Errorf("it was not found out in time whether what the clients saw adds up (%d operations)", len(ops))
	}
	return nil
}

// TestSchedules runs randomised schedules; -schedules says how many and -seed from which one on.
func TestSchedules(t *testing.T) {
	from := *seed
	if from == 0 {
		from = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d -schedules %d", from, *schedules)
	var next, ran atomic.Uint64
	var failed atomic.Bool
	var wg sync.WaitGroup
	base := t.TempDir()
	began := time.Now()
	var mu sync.Mutex
	count := map[string]int{}
	missing := func() string { // what nothing came of yet; "" = all is met
		mu.Lock()
		defer mu.Unlock()
		for _, k := range []string{"apply ok", "apply refused", "confirm ok", "takeback ok", "show ok"} {
			if count[k] == 0 && *schedules >= 10 {
				return k
			}
		}
		return ""
	}
	for range *atATime {
		wg.Go(func() {
			for {
				// Dice may have little taken back, and a busy machine less: then there are more schedules.
				i := next.Add(1) - 1
				if failed.Load() || i >= uint64(*schedules) && (i >= 3*uint64(*schedules) || missing() == "") {
					return
				}
				ran.Add(1)
				s := &sched{seed: from + i, base: filepath.Join(base, fmt.Sprint(i))}
				if err := s.run(); err != nil {
					failed.Store(true)
					t.Errorf("-seed %d -schedules 1: %v\n%s\n%s", s.seed, err, strings.Join(s.log, "\n"), strings.Join(s.said[max(0, len(s.said)-600):], ""))
				}
				_ = os.RemoveAll(s.base)
				mu.Lock()
				for k, n := range s.count {
					count[k] += n
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, k := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%6d  %s", count[k], k)
	}
	if k := missing(); k != "" {
		t.Errorf("no %s: the schedules exercise nothing", k)
	}
	t.Logf("%d schedules in %s", ran.Load(), time.Since(began).Round(time.Millisecond))
}

// plants are faults that the schedules must find.
func plants() map[string]func(*store.Hooks) {
	return map[string]func(*store.Hooks){
		"answers before it is agreed on": func(h *store.Hooks) {
			h.Proposing = func(s *store.Store, e *command.Entry) (command.Result, error, bool) {
				const again = "planted"
				if e.Kind != command.KindRevise || !s.Leads() || s.State().Serving == 0 || e.Who.From == again {
					return command.Result{}, nil, false
				}
				_, r := s.State().Apply(s.State().Index+1, e)
				own := *e
				own.Who.From = again
				go func() { _, _ = s.Propose(context.Background(), &own) }()
				return r, nil, true
			}
		},
		"compares with what it knows itself": func(h *store.Hooks) {
			h.Proposing = func(s *store.Store, e *command.Entry) (command.Result, error, bool) {
				if e.Kind != command.KindRevise || e.Revise.Expected == 0 {
					return command.Result{}, nil, false
				}
				if e.Revise.Expected != s.State().Serving {
					_, r := s.State().Apply(s.State().Index+1, e)
					return r, nil, true
				}
				e.Revise.Expected = 0
				return command.Result{}, nil, false
			}
		},
		"reads a clock while it applies": func(h *store.Hooks) {
			h.Applying = func(e *command.Entry) { e.Time = time.Now() }
		},
		"leaves the confirm times out of snapshots": func(h *store.Hooks) {
			h.Picture = func(s *command.State) *command.State {
				c := *s
				c.Revisions = slices.Clone(s.Revisions)
				for i := range c.Revisions {
					c.Revisions[i].Confirm = 0
				}
				return &c
			}
		},
	}
}

// TestSchedulesFindPlants: each planted fault is found within as many schedules as the short run has.
func TestSchedulesFindPlants(t *testing.T) {
	from := *seed
	if from == 0 {
		from = uint64(time.Now().UnixNano())
	}
	for name, plant := range plants() {
		t.Run(name, func(t *testing.T) {
			var found atomic.Int64
			next := atomic.Int64{}
			var wg sync.WaitGroup
			base := t.TempDir()
			for range *atATime {
				wg.Go(func() {
					for found.Load() == 0 {
						i := next.Add(1) - 1
						if i >= int64(*schedules) {
							return
						}
						s := &sched{seed: from + uint64(i), base: filepath.Join(base, fmt.Sprint(i)), plant: plant}
						if err := s.run(); err != nil {
							found.Store(i + 1)
							t.Logf("found by schedule %d, -seed %d: %.200s", i+1, s.seed, err)
						}
					}
				})
			}
			wg.Wait()
			if found.Load() == 0 {
				t.Errorf("-seed %d: not found within %d schedules", from, *schedules)
			}
		})
	}
}
