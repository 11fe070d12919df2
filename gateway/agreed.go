package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/revisions"
)

// agreed is this node's part in what the cluster agrees on; a node by itself is a cluster of one. It is opened when packets flow and not
// before: no damaged file and no disk may keep a node from serving what it has.
type agreed struct {
	mu     sync.Mutex
	member *member       // nil while the replicated state is not open
	why    error         // why it is not
	final  bool          // and it will not be tried again before the next start
	tried  chan struct{} // closed and replaced after each try to open it
	again  chan struct{} // 1: try now
}

// member is an open cluster.Node.
type member struct {
	*cluster.Node
	life context.Context // ends before the node is closed
	up   chan struct{}   // closed when changes can be proposed
}

func newAgreed() agreed {
	return agreed{tried: make(chan struct{}), again: make(chan struct{}, 1), why: errStarting}
}

var errStarting = errors.New("the node is starting")

// openAgain is how long to wait before a replicated state that could not be opened is tried again. An apply does not wait.
const openAgain = 3 * time.Second

func (g *Gateway) clusterDir() string { return filepath.Join(g.o.Node.DataDir, "cluster") }

// openCluster is the one place where a node of the cluster is made.
func (g *Gateway) openCluster() (n *cluster.Node, err error) {
	// A file that was cut short is memory that is not there.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if e := recover(); e != nil {
			g.log.Error("panic", "in", "open the replicated state", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %s: %v", cluster.ErrDamaged, filepath.Join(g.clusterDir(), "raft.db"), e)
		}
	}()
	return cluster.Open(cluster.Config{Dir: g.clusterDir(), Name: g.o.Node.Name, Version: g.o.Version, Features: configs.Features(), Log: g.log,
		Serve: g.serveRevision, Keep: g.keepRevision, Compiler: compiler{g}, Net: clusterNet(g.o.Node.Cluster), Mono: g.clock.Now, Wall: g.o.Wall, Revoked: g.revoked.set, Groups: g.groups.driver, Carrier: g.groups.carrier.Load, Sessions: g.standby.Serve})
}

// agree takes part in the cluster until ctx ends. What it cannot open it tries again: the cause may be a disk that somebody is making room on.
func (g *Gateway) agree(ctx context.Context) error {
	a, said := &g.agreed, ""
	for {
		n, err := g.openCluster()
		if err == nil {
			if said != "" {
				g.log.Info("the replicated state is open again")
				said = ""
			}
			err = errors.Join(g.takePart(ctx, n), n.Close())
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			g.log.Error("the replicated state cannot be opened: the node serves its own copy and takes no change", "dir", g.clusterDir(), "revision", g.revision.Load().Number, "err", err)
		}
		a.set(nil, err)
		if hopeless(err) { // files do not mend themselves, and what is wrong with them should not be said otherwise a moment later
			<-ctx.Done()
			return nil
		}
		t := time.NewTimer(openAgain)
		select {
		case <-t.C:
		case <-a.again:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// hopeless is what only another start can mend.
func hopeless(err error) bool {
	return errors.Is(err, cluster.ErrDamaged) || errors.Is(err, cluster.ErrLater)
}

func (a *agreed) set(m *member, why error) {
	a.mu.Lock()
	a.member, a.why, a.final = m, why, hopeless(why)
	close(a.tried)
	a.tried = make(chan struct{})
	a.mu.Unlock()
}

// get is the open member. Where there is none it is tried to open it: twice, because the first try may have begun before its cause was mended.
func (a *agreed) get(ctx context.Context) (m *member, why error) {
	for try := 0; ; try++ {
		a.mu.Lock()
		m, why = a.member, a.why
		tried, final := a.tried, a.final
		a.mu.Unlock()
		if m != nil || final || try == 2 || ctx.Err() != nil {
			return m, why
		}
		select {
		case a.again <- struct{}{}:
		default:
		}
		select {
		case <-tried:
		case <-ctx.Done():
		}
	}
}

// takePart runs an open node until ctx ends or the node cannot go on.
func (g *Gateway) takePart(ctx context.Context, n *cluster.Node) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &member{n, ctx, make(chan struct{})}
	r := g.revision.Load()
	n.Serving(r.Number, strings.TrimPrefix(r.Digest, "sha256:"))
	g.agreed.set(m, nil)
	done := make(chan error, 1)
	go func() { done <- contained(g.log, "cluster", func() error { return n.Run(ctx) }) }()
	err := g.beginCluster(ctx, n)
	if err == nil {
		close(m.up)
		err = <-done
	} else {
		cancel()
		err = errors.Join(err, <-done)
	}
	return err
}

// beginCluster makes a node that is part of no cluster a cluster of one. The first revision is the policy that is served, under the number that it
// has here already; a damaged file's number is not given again.
func (g *Gateway) beginCluster(ctx context.Context, n *cluster.Node) error {
	if n.Begun() {
		select {
		case <-n.Current():
		case <-ctx.Done():
			return nil
		}
		if !n.Halfway() {
			return nil
		}
	}
	g.mu.Lock()
	r, text, uses := *g.revision.Load(), g.text, g.policy.Uses()
	g.mu.Unlock()
	last, err := g.store.Last()
	if err != nil {
		return err
	}
	if last == r.Number && last > 0 {
		last--
	}
	first, err := n.Begin(ctx, cluster.First{Text: text, Name: r.Name, Source: r.Source, Last: last, Features: uses})
	if err == nil {
		g.log.Info("the replicated state begins: this node is a cluster of one", "revision", first.Number)
	}
	return err
}

// changer is the open member, with what the cluster had agreed on at its start gone through, and a context that ends with it.
func (g *Gateway) changer(ctx context.Context) (context.Context, context.CancelFunc, *member, error) {
	refuse := func(err error) (context.Context, context.CancelFunc, *member, error) {
		return nil, nil, nil, &api.Fault{Status: http.StatusServiceUnavailable, Err: err}
	}
	wait, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	m, why := g.agreed.get(wait)
	if m == nil {
		return refuse(fmt.Errorf("nothing is changed, because the replicated state is not open: %w", why))
	}
	if m.Stopped() != "" {
		return refuse(errors.New("nothing is changed by this node: " + m.Problem()))
	}
	select {
	case <-m.up:
	case <-m.life.Done():
		return refuse(errors.New("nothing is changed, because the replicated state is being closed"))
	case <-wait.Done():
		return refuse(errors.New("nothing is changed, because this node does not know yet what the cluster has agreed on: " + g.without(m)))
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(m.life, cancel)
	return ctx, func() { unhook(); cancel() }, m, nil
}

// without says what a member lacks that is not up.
func (g *Gateway) without(m *member) string {
	if p := m.Problem(); p != "" {
		return p
	}
	if name, _ := m.Lead(); name == "" {
		return "nobody leads it"
	}
	return "it is still reading the log"
}

// known is the open member for those who only read, and why there is none.
func (g *Gateway) known() (*member, error) {
	g.agreed.mu.Lock()
	defer g.agreed.mu.Unlock()
	if m := g.agreed.member; m != nil {
		return m, nil
	}
	return nil, &api.Fault{Status: http.StatusServiceUnavailable, Err: fmt.Errorf("the replicated state is not open: %w; this node's own copies are in %s", g.agreed.why, g.policiesDir())}
}

func (g *Gateway) policiesDir() string { return filepath.Join(g.o.Node.DataDir, "policies") }

// keepRevision has the node's own copy follow what is confirmed: a start serves that without asking anybody.
func (g *Gateway) keepRevision(_ context.Context, r command.Revision, text []byte) error {
	_, err := g.store.SaveAs(r.Number, text, revisions.Meta{Author: r.Author, Comment: r.Comment, Time: r.Time, Source: r.Source, Features: r.Features})
	return err
}

// awaitAgreed is for a node whose own copies are gone and whose replicated state is not: what was agreed on is served, never the file that
// it was first started with.
func (g *Gateway) awaitAgreed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for g.revision.Load().Number == 0 {
		select {
		case <-poll.C:
		case <-ctx.Done():
			why := ctx.Err()
			if m, err := g.known(); err != nil {
				why = err
			} else if p := m.Problem(); p != "" {
				why = errors.New(p)
			}
			return fmt.Errorf("no applied policy is kept in %s, but there is a replicated state, which is not followed: %w: mend it, or move %s away to begin anew with --policy", g.policiesDir(), why, g.clusterDir())
		}
	}
	return nil
}

// hasAgreed reports whether there is a replicated state on disk, sound or not.
func (g *Gateway) hasAgreed() bool {
	_, err := os.Lstat(filepath.Join(g.clusterDir(), "raft.db"))
	return err == nil
}

// who is behind a request.
func (g *Gateway) who(ctx context.Context) command.Who {
	p := api.PeerOf(ctx)
	w := command.Who{Author: p.Name, From: g.o.Node.Name}
	if p.From != "" {
		w.From += ", " + p.From
	}
	return w
}

// severalGateways says whether another node may serve what this one serves, by what is agreed on.
func (g *Gateway) severalGateways() bool {
	m, err := g.known()
	if err != nil {
		return false // then nothing can be agreed on either
	}
	return gatewaysOf(m.State()) > 1
}

func gatewaysOf(s *command.State) (n int) {
	for i := range s.Members {
		if s.Members[i].Role == command.RoleGateway {
			n++
		}
	}
	return n
}
