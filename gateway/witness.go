package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"demarc/cluster"
	"demarc/cluster/beat"
	"demarc/cluster/command"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/metrics"
	"demarc/gateway/worker"
)

// A witness keeps its memory small: what it handles are texts of up to 8 MiB, one after the other, of which nothing stays.
const (
	witnessMemory = 24 << 20 // for the collector to aim at
	witnessGrowth = 40       // percent

	witnessReads = 256 << 10 // bytes of a policy's text: decoding takes a multiple of it
)

// Witness is a member without ports: it votes, and takes what operators ask of the cluster.
type Witness struct {
	node *configs.Node
	log  *slog.Logger
	n    *cluster.Node
	dir  interface{ Close() error }

	version string
	started time.Time // by wall
	began   time.Time
	wall    func() time.Time
	revoked *revoked
	driver  *cluster.Driver
	carrier *beat.Carrier
	groups  atomic.Pointer[map[string]int] // ids of the groups of the policy that is agreed on, by name
}

// OpenWitness reads what is on disk and listens. Run does the work. wall is wall time, time.Now.
func OpenWitness(n *configs.Node, version string, log *slog.Logger, wall func() time.Time) (*Witness, error) {
	clock, err := worker.NewClock()
	if err != nil {
		return nil, err
	}
	w := &Witness{node: n, log: log, version: version, started: wall(), began: time.Now(), wall: wall}
	if w.dir, err = lockDir(n.DataDir); err != nil {
		return nil, err
	}
	w.driver, err = cluster.NewDriver(cluster.DriverConfig{Name: n.Name, Clock: bootTime, Wall: wall, Log: log, CPU: -1})
	if err != nil {
		return nil, errors.Join(err, w.dir.Close())
	}
	if w.carrier, err = openCarrier(n, w.driver, log); err != nil {
		w.driver.Discard()
		return nil, errors.Join(err, w.dir.Close())
	}
	dir := filepath.Join(n.DataDir, "cluster")
	w.revoked = readRevoked(dir, log)
	w.n, err = cluster.Open(cluster.Config{Dir: dir, Name: n.Name, Version: version, Features: configs.Features(), Role: command.RoleWitness, Log: log, Net: clusterNet(n.Cluster), Mono: clock.Now, Wall: wall,
		Revoked: w.revoked.set, Groups: w.driver, Carrier: func() *beat.Carrier { return w.carrier }, Serve: w.follow})
	if err != nil {
		w.carrier.Close()
		w.driver.Discard()
		return nil, errors.Join(err, w.dir.Close())
	}
	if !w.n.Begun() {
		w.carrier.Close()
		w.driver.Discard()
		return nil, errors.Join(fmt.Errorf("witness %s belongs to no cluster yet: demarc cluster join ADDRESS --token TOKEN --node FILE", n.Name), w.n.Close(), w.dir.Close())
	}
	debug.SetGCPercent(witnessGrowth)
	debug.SetMemoryLimit(witnessMemory)
	return w, nil
}

// Run votes and answers until ctx ends. ready is called once it does.
func (w *Witness) Run(ctx context.Context, ready func()) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, w.n.Close(), w.dir.Close())
		w.carrier.Close()
	}()
	var srv *api.Server // there before anybody asks it
	b := witnessBackend{w, func() api.APIState { return srv.State() }, membership{name: w.node.Name, dir: filepath.Join(w.node.DataDir, "cluster"), node: func() (*cluster.Node, error) { return w.n, nil },
		ready: w.changer, driver: w.driver, carrier: func() *beat.Carrier { return w.carrier }, group: w.group}}
	remote, err := openRemote(w.node.API, w.revoked, w.wall, w.log)
	if err != nil {
		return err
	}
	srv, err = api.Listen(api.ServerConfig{Socket: w.node.API.Socket, Metrics: w.node.API.Metrics, Remote: remote, Backend: b,
		Handler: metrics.Witness(b), Log: w.log, Listen: listening(w.log), Lacks: "this node is a witness, which forwards nothing and has none of this"})
	if err != nil {
		return err
	}
	done := make(chan error, 4)
	go func() { done <- contained(w.log, "interface", func() error { return srv.Run(ctx) }) }()
	go func() { done <- contained(w.log, "cluster", func() error { return w.n.Run(ctx) }) }()
	go func() { done <- contained(w.log, "groups", func() error { return w.driver.Run(ctx) }) }()
	go func() { done <- contained(w.log, "datagrams", func() error { return w.carrier.Run(ctx) }) }()
	ready()
	w.log.Info("witness", "node", w.node.Name, "address", w.n.Address())
	select {
	case <-ctx.Done():
		err = <-done
	case err = <-done: // one without the others is no witness
		cancel()
	}
	return errors.Join(err, <-done, <-done, <-done)
}

// follow reads the groups of a policy that is agreed on. It serves nothing, so a policy that it cannot read is no trouble of the cluster's: it votes by the log.
func (w *Witness) follow(_ context.Context, r command.Revision, text []byte) error {
	if len(text) > witnessReads {
		w.log.Warn("the policy is too large for a witness to look for its groups: who serves them is shown by the log alone", "revision", r.Number, "bytes", len(text))
		return nil
	}
	p, err := configs.DecodePolicy(r.Source, text)
	if err != nil {
		w.log.Warn("the groups of the policy cannot be read here: who serves them is shown by the log alone", "revision", r.Number, "err", err)
		return nil
	}
	ids := map[string]int{}
	for i := range p.Groups {
		ids[p.Groups[i].Name] = p.Groups[i].ID
	}
	w.groups.Store(&ids)
	w.driver.Policy(failoverGroups(p))
	return nil
}

func (w *Witness) group(name string) int {
	if ids := w.groups.Load(); ids != nil {
		return (*ids)[name]
	}
	return 0
}

// changer is the node once it knows what the cluster had agreed on at its start: before, it knows of no gateway that could compile a policy.
func (w *Witness) changer(ctx context.Context) (context.Context, *cluster.Node, func(), error) {
	wait, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	select {
	case <-w.n.Current():
		return ctx, w.n, func() {}, nil
	case <-wait.Done():
	}
	why := "it is still reading the log"
	if p := w.n.Problem(); p != "" {
		why = p
	} else if name, _ := w.n.Lead(); name == "" {
		why = "nobody leads it"
	}
	return nil, nil, nil, &api.Fault{Status: http.StatusServiceUnavailable, Err: errors.New("nothing is changed, because this node does not know yet what the cluster has agreed on: " + why)}
}

// Headline is the witness in a line, for systemd.
func (w *Witness) Headline() string {
	if p := w.n.Problem(); p != "" {
		return p
	}
	for _, m := range w.n.Members() {
		if m.Leads {
			return "witness; " + m.Member.Name + " leads"
		}
	}
	return "witness; nobody leads"
}

// witnessBackend is what a witness can be asked: all of the cluster, nothing of packets.
type witnessBackend struct {
	w     *Witness
	state func() api.APIState
	membership
}

// Status is what a witness has of it: no ports, no workers, no tenants.
func (w witnessBackend) Status(ctx context.Context, _ bool) (*api.Status, error) {
	n := w.own()
	s := &api.Status{Node: w.name, Role: string(command.RoleWitness), Version: w.w.version, Started: w.w.started, Uptime: time.Since(w.w.began).Seconds(), Ready: true,
		Cluster: clusterOf(n, n.Current()), Workers: []api.Worker{}, Ports: []api.Port{}, Tenants: []api.Tenant{}, Blocks: []api.Block{}, Drops: map[string]uint64{},
		Conservation: api.Conservation{OK: true}, API: w.state()}
	if r, ok := n.State().Revision(n.State().Serving); ok {
		s.Revision = wireRevision(r)
	}
	if x, err := w.Groups(ctx); err == nil && (len(x.Groups) > 0 || len(x.Drained) > 0) {
		s.Groups = x
	}
	return s, nil
}

func (w witnessBackend) own() *cluster.Node {
	n, _ := w.node() // of a witness it is there from the start
	return n
}

// Policy is what gateways serve.
func (w witnessBackend) Policy(context.Context) ([]byte, error) {
	s, err := shownOf(w.own(), 0)
	if err != nil {
		return nil, err
	}
	return []byte(s.Policy), nil
}

// Apply has the gateways compile a policy, the cluster agree on it and the gateways serve it. What it changes only a gateway can say.
func (w witnessBackend) Apply(ctx context.Context, r api.ApplyRequest) (*api.Applied, error) {
	confirm, err := confirmTime(r.Confirm)
	if err != nil {
		return nil, err
	}
	if err := short(r.Source, r.Comment); err != nil {
		return nil, err
	}
	return w.change(ctx, cluster.Change{Text: withoutHeader([]byte(r.Policy)), Source: r.Source, Comment: r.Comment, Expected: r.Expected, Confirm: confirm, Who: w.who(ctx)}, r.Except)
}

func (w witnessBackend) change(ctx context.Context, c cluster.Change, except []string) (*api.Applied, error) {
	start := time.Now()
	ctx, n, done, err := w.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if c.Expected == 0 { // another change in between is a conflict, also for whoever named no revision
		c.Expected = n.State().Serving
	}
	o, err := n.Apply(ctx, c, except...)
	if err != nil {
		return nil, refusal(err)
	}
	a := &api.Applied{Revision: wireRevision(&o.Revision), CutByTenant: map[string]int{}}
	if o.Revision.Fate == command.FateProvisional {
		a.Confirm = o.Revision.Confirm.Seconds()
	}
	for _, k := range o.Checked {
		for _, text := range k.Report.Warnings { // each gateway has the same to say of the members
			if !slices.Contains(a.Warnings, text) {
				a.Warnings = append(a.Warnings, text)
			}
		}
		a.Cut += k.Report.Cut
		for t, cut := range k.Report.Tenants {
			a.CutByTenant[t] += cut
		}
	}
	outcomeOf(a, &o, w.name)
	a.Took = time.Since(start).Seconds()
	return a, nil
}

// Confirm keeps the provisional revision.
func (w witnessBackend) Confirm(ctx context.Context, r api.ConfirmRequest) (*api.Confirmed, error) {
	ctx, n, done, err := w.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	number := r.Revision
	if number == 0 {
		p, ok := n.Pending()
		if !ok {
			return nil, &api.Fault{Status: http.StatusConflict, Err: nothingPends(n)}
		}
		number = p.Number
	}
	if err := n.Confirm(ctx, number, w.who(ctx)); err != nil {
		return nil, refusal(err)
	}
	s, err := shownOf(n, number)
	if err != nil {
		return nil, err
	}
	return &api.Confirmed{Revision: s.Revision}, nil
}

// Rollback has an earlier text served again, or takes the provisional revision back.
func (w witnessBackend) Rollback(ctx context.Context, r api.RollbackRequest) (*api.Applied, error) {
	start := time.Now()
	confirm, err := rollbackTime(&r)
	if err != nil {
		return nil, err
	}
	ctx, n, done, err := w.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if r.To != 0 {
		old, text, err := earlier(n, r.To)
		if err != nil {
			return nil, err
		}
		return w.change(ctx, cluster.Change{Text: text, Source: old.Source, Comment: r.Comment, Expected: r.Expected, Back: r.To, Confirm: confirm, Who: w.who(ctx)}, nil)
	}
	p, err := provisional(n, r.Expected)
	if err != nil {
		return nil, err
	}
	if err := n.TakeBack(ctx, p.Number, w.who(ctx)); err != nil {
		return nil, refusal(err)
	}
	s, err := shownOf(n, 0)
	if err != nil {
		return nil, err
	}
	a := &api.Applied{Revision: s.Revision, CutByTenant: map[string]int{}}
	outcomeOf(a, &cluster.Outcome{Acks: n.Acknowledged(ctx, s.Number, nil)}, w.name)
	a.Took = time.Since(start).Seconds()
	return a, nil
}

// History lists the kept revisions.
func (w witnessBackend) History(context.Context) (*api.History, error) {
	return historyOf(w.own()), nil
}

// Show is one of them with its text.
func (w witnessBackend) Show(_ context.Context, number uint64) (*api.Shown, error) {
	return shownOf(w.own(), number)
}

// Audit is who did what after an index.
func (w witnessBackend) Audit(_ context.Context, after uint64) (*api.Audit, error) {
	return auditOf(w.own().State(), after), nil
}
