package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
	nodes "demarc/gateway/trio"
)

// wireTables are enough for all conversations that begin in a run.
const wireTables = "[tables]\nsessions = 131072\nframes = 4096\n"

// wireHosts is how many addresses a tenant's host has.
const wireHosts = 6

// wireLab is a pair that harm is done to.
type wireLab struct {
	*nodes.Pair
	t     testing.TB
	plan  *wirePlan
	flows *netlab.Flows
	fresh *nodes.Fresh

	began  time.Time              // of the harm
	procs  map[string]*sync.Mutex // by node: harm is done to its processes
	mu     sync.Mutex
	story  strings.Builder // mu
	failed []error         // mu: what could not be done or undone
	done   []doneHarm      // mu
}

// doneHarm is harm that was done, and when that was: not before from, and undone by to.
type doneHarm struct {
	harm
	from, to time.Time
	conceded int // frames that the node had in hand
}

// wireOpen has the nodes agree on the plan's policy. binary is the program; a program that can be told has its clocks at the plan's pace.
func wireOpen(t testing.TB, p *wirePlan, binary string, told bool, env ...string) *wireLab {
	t.Helper()
	roottest.Require(t)
	dir := t.TempDir()
	lab, err := nodes.NewPair(nodes.Options{Lab: labName(t, "wire"), Dir: dir, Binary: binary, Lines: true, Two: p.two, Gateway: wireTables, Offload: offloaded() && !told}, wireHosts)
	check(t, err)
	l := &wireLab{Pair: lab, t: t, plan: p, procs: map[string]*sync.Mutex{}}
	for _, n := range l.Nodes() {
		l.procs[n.Name] = new(sync.Mutex)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.mu.Lock()
			t.Logf("%s\nbegan %s\n%s", p, l.began.Format("15:04:05.000000"), &l.story)
			l.mu.Unlock()
			for _, n := range l.Nodes() {
				t.Logf("the logs of %s:\n%s", n.Name, n.Logs(60))
			}
		}
		for _, n := range l.Nodes() { // one that a failed test left stopped would not end
			if n.Runs() {
				_ = unix.Kill(n.Parent(), unix.SIGCONT)
				_ = unix.Kill(n.Pid(), unix.SIGCONT)
			}
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, l.Name())
	})
	for _, n := range l.Nodes() {
		ahead := fmt.Sprint(int64(p.ahead[n.Name].Seconds()))
		n.Wrap = []string{"unshare", "--time", "--monotonic", ahead, "--boottime", ahead}
		if ahead == "0" {
			n.Wrap = nil
		}
		if told {
			n.Env = slices.Concat(clockEnv(p, n.Name), env)
		}
	}
	for _, n := range l.Gateways() {
		if p.tcp != "" {
			check(t, l.Sysctl(n.Name, "net.ipv4.tcp_congestion_control", p.tcp))
		}
	}
	file := filepath.Join(dir, "pair.toml")
	more := fmt.Sprintf("alone = %q\nstale = %q\n", p.alone, p.stale)
	text := nodes.PairPolicy(more)
	check(t, os.WriteFile(file, []byte(text), 0o644))
	check(t, l.Begin(t.Context(), file, time.Minute))
	return l
}

// start has flows and new conversations go through the group, watched. It ends when they do, however long that takes a busy machine.
func (l *wireLab) start() {
	l.t.Helper()
	h := &pairLab{Pair: l.Pair, t: l.t}
	var why string
	if !until(30*time.Second, func() bool { // on a busy machine gw2 may have been the first
		g, err := h.says(l.GW1)
		why = fmt.Sprintf("%+v (%v)", g, err)
		if err == nil && g.Owner == l.GW2.Name {
			_, err = l.GW1.Run(l.t.Context(), "group", "move", nodes.PairGroup, l.GW1.Name)
			why += fmt.Sprintf(", %v", err)
		}
		return err == nil && g.Serving
	}) {
		l.t.Fatalf("gw1 does not come to serve: %s", why)
	}
	check(l.t, l.Watch())
	var err error
	l.flows, err = l.StartFlows(l.FlowSpecs(1, 10*time.Millisecond)...)
	check(l.t, err)
	check(l.t, l.Serves(l.t.Context(), 10*time.Second, l.GW1))
	l.fresh, err = l.StartFresh(l.plan.fresh)
	check(l.t, err)
	many := uint64(200 + l.plan.fresh/2)
	if !until(40*time.Second, func() bool {
		g, err := h.says(l.GW1)
		why = fmt.Sprintf("%+v (%v)", g, err)
		return err == nil && slices.Contains(g.InSync, l.GW2.Name) && len(g.Copies) > 0 && g.Copies[0].Whole && g.Copies[0].Records >= many
	}) {
		l.t.Fatalf("gw2 has no whole copy of %d conversations: %s", many, why)
	}
	// Conversations, too: those that begin after the first harm may find that ports rest for the rest of a round.
	var begun int
	if !until(20*time.Second, func() bool {
		var list api.Sessions
		if err := l.GW1.Client.Get(l.t.Context(), fmt.Sprint(api.PathSessions, "?proto=udp&limit=2000&port=", nodes.PairNewPort), &list); err != nil {
			why = err.Error()
			return false
		}
		begun = len(list.Sessions)
		return begun >= 150
	}) {
		l.t.Fatalf("%d conversations have begun: %s", begun, why)
	}
	l.began = time.Now()
}

func (l *wireLab) tell(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.story, "%8.3f s  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

func (l *wireLab) note(err error) {
	if err != nil {
		l.mu.Lock()
		l.failed = append(l.failed, err)
		l.mu.Unlock()
	}
}

// harm does all that the plan says, each at its time, and returns when all of it is undone.
func (l *wireLab) harm(ctx context.Context) {
	var wg sync.WaitGroup
	for _, h := range l.plan.harms {
		wg.Go(func() {
			if !sleep(ctx, time.Until(l.began.Add(h.at))) {
				return
			}
			switch h.kind {
			case harmKill, harmVanish, harmWitness, harmRestart, harmStop, harmFreeze:
				m := l.procs[h.node]
				if !m.TryLock() { // what was done before took longer than it should
					l.tell("%s: harm is done to it already", h)
					return
				}
				defer m.Unlock()
			}
			d := doneHarm{harm: h, from: time.Now()}
			defer func() {
				d.to = time.Now()
				l.mu.Lock()
				l.done = append(l.done, d)
				l.mu.Unlock()
			}()
			undo, err := l.do(ctx, h)
			if err != nil {
				l.tell("%s: %v", h, err)
				return
			}
			l.tell("%s", h)
			if undo == nil {
				return
			}
			sleep(ctx, time.Until(l.began.Add(h.at+h.last)))
			l.note(undo())
			l.tell("  over: %s", h)
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	check(l.t, errors.Join(l.failed...))
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(max(d, 0)):
		return true
	case <-ctx.Done():
		return false
	}
}

// do does one thing. undo may be nil. An error is that it could not be done as things are, which is no fault of anybody.
func (l *wireLab) do(ctx context.Context, h harm) (undo func() error, err error) {
	n := l.Node(h.node)
	launch := func() error { return l.launch(n) }
	switch h.kind {
	case harmKill, harmWitness:
		if !n.Runs() {
			return nil, errors.New("it does not run")
		}
		n.Kill()
		return launch, nil
	case harmVanish:
		n.Vanish()
		return launch, nil
	case harmRestart:
		l.note(n.Stop())
		return launch, nil
	case harmStop, harmFreeze:
		pids := []int{n.Pid()}
		if h.kind == harmFreeze {
			pids = []int{n.Parent(), n.Pid()}
		}
		if pids[0] == 0 {
			return nil, errors.New("it does not run")
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				return nil, err
			}
		}
		return func() error {
			for _, pid := range slices.Backward(pids) {
				_ = unix.Kill(pid, unix.SIGCONT) // one that was ended meanwhile is none of ours any more, and pids are not used again so soon
			}
			return nil
		}, nil
	case harmCut, harmDelay, harmLoss, harmShut:
		return l.hinder(h)
	case harmPort:
		s := h.sides[0]
		dev := map[string]string{"alpha": "alpha0", "beta": "beta0", "": "wan0"}[s.side]
		return func() error { return l.SetUp(s.node, dev, true) }, l.SetUp(s.node, dev, false)
	case harmLead:
		return nil, l.ask(ctx, "cluster", "lead", h.node)
	case harmMove, harmDrain:
		if h.kind == harmMove {
			return nil, l.ask(ctx, "group", "move", nodes.PairGroup, h.node)
		}
		if err := l.ask(ctx, "node", "drain", h.node); err != nil {
			l.tell("%s: %v", h, err) // it may have been agreed on all the same
		}
		return func() (err error) {
			for end := time.Now().Add(30 * time.Second); ; {
				if err = l.ask(l.t.Context(), "node", "undrain", h.node); err == nil || time.Now().After(end) {
					return err
				}
				sleep(l.t.Context(), 50*time.Millisecond)
			}
		}, nil
	}
	return nil, fmt.Errorf("%q is no kind of harm", h.kind)
}

// launch starts a node, again where it refused because a port was down just then, as a service manager does.
func (l *wireLab) launch(n *nodes.Node) error {
	for end := time.Now().Add(20 * time.Second); ; {
		if err := n.Launch(); err != nil {
			return err
		}
		err := n.Ready(l.t.Context())
		if err == nil || n.Runs() || time.Now().After(end) || !strings.Contains(n.Log(3), " is down: ip link set ") {
			return err
		}
		sleep(l.t.Context(), 100*time.Millisecond)
	}
}

// ask has whichever node answers do something.
func (l *wireLab) ask(ctx context.Context, args ...string) (err error) {
	for _, by := range l.Nodes() {
		one, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
		_, err = by.Run(one, args...)
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}

func undoAll(all []func() error) func() error {
	return func() error {
		var errs []error
		for _, u := range all {
			errs = append(errs, u())
		}
		return errors.Join(errs...)
	}
}

// hinder has a share of what goes these ways be lost, and on the cluster's network the rest be late.
func (l *wireLab) hinder(h harm) (undo func() error, err error) {
	var all []func() error
	for _, w := range h.ways {
		u, err := l.Hinder(l.Node(w.from), l.Node(w.to), w.proto, h.lose, h.wait)
		if err != nil {
			return nil, errors.Join(err, undoAll(all)())
		}
		all = append(all, u)
	}
	for _, s := range h.sides {
		u, err := l.Shut(l.Node(s.node), s.side, s.in, h.lose)
		if err != nil {
			return nil, errors.Join(err, undoAll(all)())
		}
		all = append(all, u)
	}
	return undoAll(all), nil
}

// clockEnv tells a program that can be told at what pace its clock goes, from when on, and by how much its wall clock is off.
func clockEnv(p *wirePlan, node string) []string {
	return []string{
		fmt.Sprintf("DEMARC_CLOCK_RATE=%.6f", p.rate[node]),
		fmt.Sprintf("DEMARC_CLOCK_BASE=%d", int64(p.ahead[node].Truncate(time.Second))),
		fmt.Sprintf("DEMARC_WALL=%s", p.wall[node].Truncate(time.Second)),
	}
}
