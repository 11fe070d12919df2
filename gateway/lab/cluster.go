package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/trio"
)

// ClusterStages are what Options.Break may switch off in the demo of a cluster: acl on one gateway's rules, reach its way to the others, confirm the
// patience of the operator, who confirms after all. The promise that must then be broken has the same name.
var ClusterStages = []string{"acl", "reach", "confirm"}

// What the demo of a cluster does.
const (
	doorPort    = 7008                   // a service outside that the policies open and shut
	doorPPS     = 200                    // asked for on both gateways, whether it may or not
	steadyPPS   = 200                    // to trio.EchoPort, on each of two sessions of both gateways: nobody forbids it
	doorSilence = 600 * time.Millisecond // without a packet the door is shut
	lookEvery   = 10 * time.Millisecond
	confirmTime = 3 * time.Second
	backWithin  = time.Second // of its deadline
	reachWithin = 2 * time.Second
)

const clusterPicture = `
  inside             ┌─────┐              outside              each gateway has hosts of its own, with the same addresses
  198.18.1.2 ────────┤ gw1 ├──────── 203.0.113.2              steady: UDP there and back, allowed all along
                     └──┬──┘                                  door:   UDP that the policy opens and shuts
                        ├───── witness
  198.18.1.2 ────────┐┌─┴───┐
                     └┤ gw2 ├──────── 203.0.113.2
                      └─────┘

`

const clusterPolicyText = `schema = 1
name = %q

[backbone]
interfaces = ["wan"]

[[tenant]]
name = "alpha"
interfaces = ["in"]
prefixes = ["198.18.1.0/24"]
nat.pool = ["203.0.113.10"]

[[tenant.rule]]
name = "door"
direction = "out"
action = %q
service = ["udp/%d"]
`

// passage is a time in which packets got through a door.
type passage struct{ First, Last looked }

// looked is when a packet passed: between two looks at a counter, since the demo began. Who looks may be kept from its CPU for a while.
type looked struct{ After, Before time.Duration }

// clusterSeen is everything that the promises of a cluster are judged by. Times are since the traffic began.
type clusterSeen struct {
	Doors         map[string][]passage // by gateway, by the counter on its host outside
	Steady        map[string]trio.Passed
	Shut, Open    applied                // the policy that stays; the one that nobody confirms
	Histories     map[string]api.History // of every node, at the end
	Before, After map[string]*api.Status // of gateways
	Errors        []string
}

// applied is one apply.
type applied struct {
	By          string // the node that was asked
	Began, Took time.Duration
	Revision    uint64
	Nodes       []api.Serves
	Cut         int
}

// RunCluster is the demo of a cluster: three nodes, a change that reaches all, and one that nobody confirms, while traffic runs. The error says that there is no verdict.
func RunCluster(ctx context.Context, o Options) (Result, error) {
	return play(ctx, o, ClusterStages, clusterPicture, func(o Options, dir string) (show, error) {
		t, err := trio.New(trio.Options{Lab: "demo", Dir: dir, Binary: o.Binary})
		if err != nil {
			return nil, err
		}
		if o.Break == "acl" {
			t.GW2.Args = []string{"--break", "acl"}
		}
		d := &clusterDemo{stage: stage{o: o, start: time.Now()}, t: t, dir: dir, doors: map[string][]passage{}}
		d.seen.Steady, d.seen.Histories = map[string]trio.Passed{}, map[string]api.History{}
		return d, nil
	})
}

// clusterDemo is one run.
type clusterDemo struct {
	stage
	t   *trio.Trio
	dir string

	doors map[string][]passage // mu
	seen  clusterSeen
}

func (d *clusterDemo) policy(name, door string) (string, error) {
	file := filepath.Join(d.dir, name+".toml")
	return file, os.WriteFile(file, fmt.Appendf(nil, clusterPolicyText, name, door, doorPort), 0o644)
}

func (d *clusterDemo) close() error      { return d.t.Close() }
func (d *clusterDemo) judged() []Promise { return judgeCluster(&d.seen) }

// run lets traffic go, makes both changes, and fills seen.
func (d *clusterDemo) run(ctx context.Context) (err error) {
	d.say("gw1 starts with its policy; gw2 and the witness join by a token each")
	first, err := d.policy("open", "allow")
	if err != nil {
		return err
	}
	if err := d.t.Begin(ctx, first, time.Minute); err != nil {
		return err
	}
	d.say("three nodes agree, %s leads", d.t.Witness.Name)
	shut, err := d.policy("shut", "deny")
	if err != nil {
		return err
	}
	open := filepath.Join(d.dir, "open.toml")
	if d.seen.Before, err = d.statuses(ctx); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		stop()
		wg.Wait()
	}()
	var streams []*trio.Stream
	for _, g := range d.t.Gateways() { // before anything is counted: a device that gets a counter may lose what it is sending
		if err := d.door(watching, &wg, g); err != nil {
			return err
		}
	}
	for _, g := range d.t.Gateways() {
		s, err := g.Stream(ctx, 2, steadyPPS)
		if err != nil {
			return err
		}
		streams = append(streams, s)
	}
	for _, n := range d.t.Nodes() {
		wg.Go(func() { d.follow(watching, n) })
	}
	if err := d.until(ctx, 5*time.Second, func() bool { return d.passing("gw1") && d.passing("gw2") }); err != nil {
		return fmt.Errorf("traffic does not begin: %w", err)
	}
	if err := d.rest(ctx, time.Second); err != nil {
		return err
	}
	if d.o.Break == "reach" {
		if err := d.t.SetUp(d.t.GW2.Name, "mgmt", false); err != nil {
			return err
		}
	}
	d.say("$ demarc apply shut.toml                    # on %s: nobody may use the door any more", d.t.Witness.Name)
	if d.seen.Shut, err = d.apply(ctx, d.t.Witness, shut); err != nil {
		return err
	}
	if err := d.rest(ctx, time.Second+doorSilence); err != nil {
		return err
	}
	d.say("$ demarc apply open.toml --confirm %s        # on %s: and nobody confirms", confirmTime, d.t.GW1.Name)
	if d.seen.Open, err = d.apply(ctx, d.t.GW1, open, "--confirm", confirmTime.String()); err != nil {
		return err
	}
	if d.o.Break == "confirm" {
		if _, err := d.t.GW1.Run(ctx, "confirm"); err != nil {
			return err
		}
	}
	if err := d.rest(ctx, confirmTime+backWithin+doorSilence); err != nil {
		return err
	}
	for _, s := range streams {
		p, err := s.End()
		d.fail(err)
		d.seen.Steady[s.Node.Name] = p
	}
	stop()
	wg.Wait()
	d.seen.Doors = d.doors
	for _, n := range d.t.Nodes() {
		var h api.History
		if err := n.Client.Get(ctx, api.PathHistory, &h); err != nil {
			d.fail(fmt.Errorf("history of %s: %w", n.Name, err))
		}
		d.seen.Histories[n.Name] = h
	}
	d.seen.Errors = d.errors
	d.seen.After, err = d.statuses(ctx)
	return err
}

func (d *clusterDemo) statuses(ctx context.Context) (map[string]*api.Status, error) {
	out := map[string]*api.Status{}
	for _, g := range d.t.Gateways() {
		s, err := g.Status(ctx)
		if err != nil {
			return nil, fmt.Errorf("status of %s: %w", g.Name, err)
		}
		out[g.Name] = s
	}
	return out, nil
}

// apply applies a policy as an operator does, and shows what the command line says.
func (d *clusterDemo) apply(ctx context.Context, by *trio.Node, file string, args ...string) (applied, error) {
	began := d.now()
	a, took, err := by.Apply(ctx, file, args...)
	if err != nil {
		return applied{}, err
	}
	var say []string
	for _, s := range a.Nodes {
		if s.Why == "" {
			say = append(say, fmt.Sprintf("%s serves it (%s cut)", s.Node, count(s.Cut, "session")))
		} else {
			say = append(say, fmt.Sprintf("%s does not serve it yet: %s", s.Node, s.Why))
		}
	}
	d.say("the command returns after %d ms: revision %d, %s", took.Milliseconds(), a.Revision.Number, strings.Join(say, ", "))
	return applied{By: by.Name, Began: began, Took: took, Revision: a.Revision.Number, Nodes: a.Nodes, Cut: a.Cut}, nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// door has the inside host of a gateway knock without end, and notes when that gets through, by the counter of the host outside.
func (d *clusterDemo) door(ctx context.Context, wg *sync.WaitGroup, g *trio.Node) error {
	m, err := d.t.Meter(g.Name+"out", "eth0", netlab.Ingress, netlab.Match{Proto: unix.IPPROTO_UDP, DstPort: doorPort})
	if err != nil {
		return err
	}
	// Somebody listens there, or the host would answer each knock with an error.
	sink, err := d.t.Serve(g.Name+"out", "udp-sink", "-addr", fmt.Sprintf(":%d", doorPort))
	if err != nil {
		return err
	}
	wg.Go(func() {
		var p host.Probe
		err := d.t.Run(ctx, g.Name+"in", &p, "udp-probe", "-dst", fmt.Sprintf("%s:%d", trio.Outside, doorPort), "-pps", fmt.Sprint(doorPPS), "-duration", "1h", "-wait", "1ms")
		d.fail(errors.Join(err, sink.Stop(nil)))
	})
	wg.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		last, before := uint64(0), d.now() // the counter, and when it was read
		told := false
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
			c, err := m.Read()
			if err != nil {
				return // the lab is being closed
			}
			now := d.now()
			d.mu.Lock()
			list := d.doors[g.Name]
			n := len(list)
			moved, when := c.Packets > last, looked{before, now}
			began := moved && (n == 0 || before-list[n-1].Last.Before > doorSilence)
			switch {
			case began:
				list = append(list, passage{when, when})
			case moved:
				list[n-1].Last = when
			}
			d.doors[g.Name] = list
			shut := !moved && !told && n > 0 && now-list[n-1].Last.Before > doorSilence
			to := time.Duration(0)
			if shut {
				to = list[n-1].Last.Before
			}
			d.mu.Unlock()
			last, before = c.Packets, now
			switch {
			case began:
				told = false
				d.say("  hosts of %s: the door is open", g.Name)
			case shut:
				told = true
				d.say("  hosts of %s: the door is shut, the last packet was let through at %.3f s", g.Name, to.Seconds())
			}
		}
	})
	return nil
}

// passing reports whether packets have got through the door of a gateway.
func (d *clusterDemo) passing(gateway string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.doors[gateway]) > 0
}

// follow shows what a node says, as soon as it says something else, and a line a second of a gateway's traffic.
func (d *clusterDemo) follow(ctx context.Context, n *trio.Node) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	said := ""
	next, was := d.now(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var h api.History
		if n.Client.Get(ctx, api.PathHistory, &h) != nil || len(h.Revisions) == 0 {
			continue
		}
		line := agreedOn(&h)
		if line != said {
			if said != "" {
				d.say("  %-7s agrees on %s", n.Name, line)
			}
			said = line
		}
		if n == d.t.Witness || d.now() < next {
			continue
		}
		s, err := n.Status(ctx)
		if err != nil {
			continue
		}
		t := tenantIn(s, "alpha")
		if sum := t.Out.Packets + t.In.Packets; was != 0 {
			d.say("  %-7s serves revision %d %q, %d packets more, %d sessions", n.Name, s.Revision.Number, s.Revision.Name, since(sum, was), t.Sessions)
			was = sum
		} else {
			was = sum
		}
		next += time.Second
	}
}

// agreedOn is what a node's history says of now.
func agreedOn(h *api.History) string {
	for _, r := range h.Revisions {
		if r.Served {
			last := h.Revisions[0]
			line := fmt.Sprintf("revision %d %q, %s", r.Number, r.Name, r.Fate)
			if last.Number != r.Number {
				line += fmt.Sprintf("; revision %d %q has %s", last.Number, last.Name, last.Fate)
			}
			return line
		}
	}
	return fmt.Sprintf("revision %d", h.Serving)
}

// keep leaves everything running until ctx ends.
func (d *clusterDemo) keep(ctx context.Context) {
	self, err := os.Executable()
	if err != nil {
		self = "demarc"
	}
	fmt.Fprintf(d.o.Out, "\nThe lab stays up until you press Ctrl-C. Try, in another terminal:\n")
	for _, n := range d.t.Nodes() {
		fmt.Fprintf(d.o.Out, "  %s cluster members --socket %s   # %s, namespace %s\n", filepath.Base(self), n.Socket, n.Name, d.t.NetNS(n.Name))
	}
	fmt.Fprintf(d.o.Out, "  %s apply %s --socket %s\n", filepath.Base(self), filepath.Join(d.dir, "open.toml"), d.t.GW2.Socket)
	<-ctx.Done()
}
