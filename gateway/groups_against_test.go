package gateway

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/cluster/failover"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/fib"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
)

// against is what counts against this node for its two groups, in words.
func against(t *testing.T, g *Gateway) (east, west string) {
	t.Helper()
	x, err := groupsOf(t.Context(), "gw1", g.groups.driver, g.membership().group)
	if err != nil || len(x.Groups) != 2 {
		t.Fatalf("%+v, %v", x, err)
	}
	return strings.Join(x.Groups[0].Against, "; "), strings.Join(x.Groups[1].Against, "; ")
}

// TestUplinksAreTold: routers of the backbone count where none of them answers any more, and not where one is left or where it is the port that has no link.
func TestUplinksAreTold(t *testing.T) {
	g := driven(t, pairGateway(t))
	hops := g.view.Load().NextHops()
	if len(hops) != 2 {
		t.Fatalf("%d routers: %+v", len(hops), hops)
	}
	const none = "no next hop of the backbone answers, backups aside"
	for _, c := range []struct {
		name string
		do   func()
		want string
	}{
		{"nothing is known yet", func() {}, ""},
		{"one does not answer", func() { hops[0].State.Silent(1) }, ""},
		{"none does", func() { hops[1].State.Silent(2) }, none},
		{"one answers again", func() { hops[0].State.Answered(3) }, ""},
		{"and is silent again", func() { hops[0].State.Silent(4) }, none},
		{"the port has no link", func() { hops[0].State.Link(false, 5); hops[1].State.Link(false, 5) }, ""},
		{"it has one again, and nobody is asked yet", func() { hops[0].State.Link(true, 6); hops[1].State.Link(true, 6) }, ""},
		{"none answers there", func() { hops[0].State.Silent(7); hops[1].State.Silent(7) }, none},
	} {
		c.do()
		g.conditions(t.Context())
		if east, west := against(t, g); east != c.want || west != c.want {
			t.Errorf("%s: east %q, west %q, want %q", c.name, east, west, c.want)
		}
	}
}

// TestUplinksAreAskedOften: a lone router of the backbone is asked as one that shares its route, where a group may go to another node because of it; else not.
func TestUplinksAreAskedOften(t *testing.T) {
	for _, c := range []struct {
		nodes []string
		want  bool
	}{{[]string{"gw1", "gw2"}, true}, {[]string{"gw1"}, false}} {
		v := *pairGateway(t).view.Load()
		for _, x := range v.Groups() {
			x.Nodes = c.nodes
		}
		hops := watchedHops(&v)
		if len(hops) != 2 || hops[0].Often != c.want || hops[1].Often != c.want {
			t.Errorf("groups of %v: %+v", c.nodes, hops)
		}
	}
}

// TestAPolicyThatIsNotServedIsTold: what is agreed on and cannot be served here counts, until something is served again; a node that has agreed on nothing is held against nothing.
func TestAPolicyThatIsNotServedIsTold(t *testing.T) {
	g := driven(t, pairGateway(t))
	var fails atomic.Bool
	n, err := cluster.Open(cluster.Config{Dir: t.TempDir(), Name: "gw1", Version: "test", Mono: func() uint64 { return uint64(bootTime()) }, Wall: time.Now,
		Serve: func(context.Context, command.Revision, []byte) error {
			if fails.Load() {
				return errors.New("worker 1 is late")
			}
			return nil
		},
		Keep: func(context.Context, command.Revision, []byte) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	g.agreed.set(&member{n, ctx, make(chan struct{})}, nil)
	told := func(what, want string) {
		t.Helper()
		g.conditions(t.Context())
		if east, west := against(t, g); east != want || west != want {
			t.Errorf("%s: east %q, west %q, want %q", what, east, west, want)
		}
	}
	told("nothing is agreed on", "")
	n.Serving(1, command.Digest([]byte("first")))
	if _, err := n.Begin(t.Context(), cluster.First{Text: []byte("first"), Name: "f"}); err != nil {
		t.Fatal(err)
	}
	told("the first is served", "")
	for _, c := range []struct {
		text  string
		fails bool
		want  string
	}{{"second", true, "it could not serve the policy that is agreed on"}, {"third", false, ""}} {
		fails.Store(c.fails)
		r, err := n.Revise(t.Context(), cluster.Change{Text: []byte(c.text)})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Await(t.Context(), r.Number); (err != nil) != c.fails {
			t.Fatalf("%s: %v", c.text, err)
		}
		told(c.text, c.want)
	}
}

// TestAStuckWorkerIsTold: a worker that does not come back from a turn counts from stuckAfter on, whoever looks is not held up by it, and when it goes on it counts no more.
func TestAStuckWorkerIsTold(t *testing.T) {
	roottest.MostlyWaits(t)
	g := copyGateway(t, 2)
	if err := g.openGroups(); err != nil {
		t.Fatal(err)
	}
	driven(t, g)
	g.groups.driver.Policy([]failover.Group{{Name: "east", Nodes: []string{"test", "gw-b"}}})
	counts := func() int {
		began := time.Now()
		g.conditions(t.Context())
		if took := time.Since(began); took > stuckAfter {
			t.Errorf("a look took %s", took)
		}
		all, err := g.groups.driver.Status(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0].Against[failover.CauseWorker]
	}
	await := func(what string, want int) time.Duration {
		t.Helper()
		began := time.Now()
		for counts() != want {
			if time.Since(began) > 5*stuckAfter {
				t.Fatalf("%s: %d workers are told of, want %d", what, counts(), want)
			}
			time.Sleep(time.Millisecond)
		}
		return time.Since(began)
	}
	if n := counts(); n != 0 {
		t.Errorf("%d of two that answer are stuck", n)
	}
	hang, hangs := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(goOn)
	go func() {
		_ = g.workers[1].Do(context.Background(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	if took := await("it hangs", 1); took < stuckAfter-100*time.Millisecond {
		t.Errorf("told after %s, and a worker may take %s", took, stuckAfter)
	}
	goOn()
	await("it goes on", 0)
	answered(t, &g.groups.looks)
}

// answered waits for what workers were asked last: they end behind it.
func answered(t *testing.T, l *looks) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); slices.ContainsFunc(l.asked, func(a *asked) bool { return a.out.Load() }); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a worker does not answer")
		}
	}
}

// TestWhoLooksMayHaveBeenAway: a worker is not stuck because nobody has looked for a while, and all that do not answer are, each for itself.
func TestWhoLooksMayHaveBeenAway(t *testing.T) {
	g := copyGateway(t, 2)
	hang, hangs := make(chan struct{}), make(chan struct{}, len(g.workers))
	goOn := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(goOn)
	for _, w := range g.workers {
		go func() {
			_ = w.Do(context.Background(), func(*pipeline.Shard) { hangs <- struct{}{}; <-hang })
		}()
	}
	for range g.workers {
		<-hangs
	}
	var l looks
	now := time.Now()
	look := func(behind time.Duration, want int) {
		t.Helper()
		now = now.Add(behind)
		if n := l.count(t.Context(), g.workers, now); n != want {
			t.Errorf("%s behind the last look %d workers are stuck, want %d", behind, n, want)
		}
	}
	look(0, 0)
	look(time.Minute, 0) // everybody was away
	look(time.Minute, 0)
	for range (stuckAfter - 5*lookPace) / lookPace {
		look(lookPace, 0)
	}
	look(lookPace/2, 0)
	look(-time.Second, 0) // no clock that is used here goes back; it would count for nothing
	look(lookPace, 2)
	goOn()
	answered(t, &l)
	look(lookPace, 0)
	answered(t, &l)
}

// TestPolicyIsWhatTheMachineKnows: what a policy says of a group's takeovers is what the machine goes by.
func TestPolicyIsWhatTheMachineKnows(t *testing.T) {
	b, err := os.ReadFile("../configs/examples/pair.policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		more string
		want failover.Group // of east
	}{
		{"", failover.Group{Stale: true}},
		{"prefer = true", failover.Group{Stale: true, Prefer: true}},
		{`stale = "wait"`, failover.Group{}},
		{"stale = \"serve\"\nalone = \"keep\"", failover.Group{Stale: true, Alone: failover.Keep}},
		{"alone = \"fence\"\nstale = \"wait\"\nprefer = true", failover.Group{Alone: failover.Fence, Prefer: true}},
		{`alone = "auto"`, failover.Group{Stale: true, Alone: failover.Auto}},
	} {
		text := strings.Replace(string(b), "name = \"east\"\n", "name = \"east\"\n"+c.more+"\n", 1)
		p, err := configs.DecodePolicy("policy.toml", []byte(text))
		if err != nil {
			t.Fatalf("%s: %v", c.more, err)
		}
		c.want.Name, c.want.Nodes = "east", []string{"gw1", "gw2"}
		want := []failover.Group{c.want, {Name: "west", Nodes: []string{"gw2", "gw1"}, Stale: true}}
		if d := cmp.Diff(want, failoverGroups(p)); d != "" {
			t.Errorf("%q: %s", c.more, d)
		}
	}
}

// TestWhyACopyIsNotWhole: the owner's reason stands behind what the machine says of that node's copy, and behind nothing else.
func TestWhyACopyIsNotWhole(t *testing.T) {
	const full = "3 sessions were not taken: its tables have no room for them"
	for _, c := range []struct {
		name   string
		why    []string
		copies []api.GroupCopy
		want   []string
	}{
		{name: "no copies", why: []string{failover.NotInSync("gw2")}, want: []string{failover.NotInSync("gw2")}},
		{name: "smaller tables", why: []string{failover.NotInSync("gw2")}, copies: []api.GroupCopy{{Node: "gw2", Why: full}}, want: []string{failover.NotInSync("gw2") + ": " + full}},
		{name: "no reason yet", why: []string{failover.NotInSync("gw2")}, copies: []api.GroupCopy{{Node: "gw2"}}, want: []string{failover.NotInSync("gw2")}},
		{name: "another's copy", why: []string{"the witness is not heard", failover.NotInSync("gw2"), failover.NotInSync("gw3")}, copies: []api.GroupCopy{{Node: "gw3", Why: full}, {Node: "gw2", Whole: true}},
			want: []string{"the witness is not heard", failover.NotInSync("gw2"), failover.NotInSync("gw3") + ": " + full}},
	} {
		x := &api.Group{Why: slices.Clone(c.why), Copies: c.copies}
		if whyNot(x); !slices.Equal(x.Why, c.want) {
			t.Errorf("%s: %q, want %q", c.name, x.Why, c.want)
		}
	}
}

// TestBackupsAreJudgedByRoute: a route with backups counts where none of its own next hops is up and settled, more where no backup is left either, and what is settled elsewhere hides nothing of it.
func TestBackupsAreJudgedByRoute(t *testing.T) {
	hop := func(backup bool) (snapshot.RouteHop, *fib.HopState) {
		s := &fib.HopState{}
		return snapshot.RouteHop{Hop: &snapshot.Hop{State: s}, Backup: backup}, s
	}
	via, a := hop(false)
	backup, b := hop(true)
	for _, c := range []struct {
		name string
		do   func()
		want int
	}{
		{"nothing is known yet", func() {}, 0},
		{"the first answers", func() { a.Answered(1); b.Answered(1) }, 0},
		{"it is silent", func() { a.Silent(2) }, 1},
		{"the backup too", func() { b.Silent(3) }, 2},
		{"the first answers, and nothing else does", func() { a.Answered(4) }, 0},
		{"the backup answers, and is better", func() { b.Answered(5) }, 1},
		{"the first is settled", func() { a.Settle(6, 0) }, 0},
		{"it has no link, which is its port's", func() { a.Link(false, 7) }, 0},
		{"and the backup is silent", func() { b.Silent(8) }, 1},
	} {
		c.do()
		if got := deadWithBackups([]snapshot.RouteHop{via, backup}); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
