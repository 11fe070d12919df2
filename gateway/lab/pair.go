package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	wire "demarc/gateway/netlab/judge"
	"demarc/gateway/trio"
)

// PairStages are what Options.Break may switch off in the demo of a pair: takeover, the witness is gone too, so that nobody may take over; download, the gateways do not hear each
// other, so that no session is copied; protect, the killed node does not come back. The promise that must then be broken has the same name.
var PairStages = []string{"takeover", "download", "protect"}

// What the demo of a pair does.
const (
	downloadRate  = 8e6                     // bit/s
	callPPS       = 50                      // as a G.711 call of 20 ms frames
	callPort      = 16384                   // own one of who calls
	filePort      = 80                      // outside
	probeInterval = 2 * time.Millisecond    // of the flows that gaps are measured on
	pairSteady    = 1500 * time.Millisecond // between events
	quietAfter    = 40 * time.Millisecond   // a packet of the call comes every 20
	protectWithin = 10 * time.Second
	takeWithin    = 3 * time.Second
)

const pairPicture = `
  alpha 198.18.10.11 ──┐ ┌─────┐ ┌── 203.0.113.11     each side is a switch that both gateways are plugged into;
                       ├─┤ gw1 ├─┤   a web server     hosts know the group's addresses alone
  beta  198.18.10.11 ──┤ └──┬──┘ │   a phone
                       │    ├────┼─ witness           download: alpha, TCP through NAT, one connection, every byte compared
                       │ ┌──┴──┐ │                    call:     beta, UDP through NAT, 50 packets a second each way, numbered
                       └─┤ gw2 ├─┘                    probes:   both tenants, IPv4 and IPv6, 500 packets a second each way
                         └─────┘

`

// pairSeen is everything that the promises of a pair are judged by.
type pairSeen struct {
	Kill, Move             pairEvent
	Back                   time.Duration // from when the killed node was started again until the group was protected; 0 = it never was
	WhyNot                 []string      // it was not
	Download               host.Download
	DownloadStill          time.Duration // longest time without a byte
	Fetched                int           // how many requests the server saw
	Call                   host.Probe
	CallPeers              int // different addresses and ports that the phone outside was called from
	CallHeard              uint64
	Verdict                *wire.Verdict
	MovedFlows, TotalFlows int
	Errors                 []string
}

// pairEvent is one handing over.
type pairEvent struct {
	From, To string
	Gap      time.Duration // the worst flow and direction's
	Flow     string        // which
	Median   time.Duration // of all
	Paused   time.Duration // senders did not send for so long meanwhile
	Says     *api.GroupMove
	Done     bool
}

// RunPair is the demo of a redundant pair: the node that serves is killed, comes back, and the group is moved back to it, under a download and a call. The error says that there
// is no verdict.
func RunPair(ctx context.Context, o Options) (Result, error) {
	return play(ctx, o, PairStages, pairPicture, func(o Options, dir string) (show, error) {
		p, err := trio.NewPair(trio.Options{Lab: "demo", Dir: dir, Binary: o.Binary}, 1)
		if err != nil {
			return nil, err
		}
		return &pairDemo{stage: stage{o: o, start: time.Now()}, p: p, dir: dir, came: map[string]bool{}}, nil
	})
}

// pairDemo is one run.
type pairDemo struct {
	stage
	p    *trio.Pair
	dir  string
	seen pairSeen

	still time.Duration   // mu: the longest silence of the download so far
	came  map[string]bool // mu: of what something has come
}

func (d *pairDemo) close() error      { return d.p.Close() }
func (d *pairDemo) judged() []Promise { return judgePair(&d.seen) }

// run lets traffic go, kills and moves, and fills seen.
func (d *pairDemo) run(ctx context.Context) (err error) {
	p := d.p
	policy := filepath.Join(d.dir, "pair.toml")
	if err := os.WriteFile(policy, []byte(trio.PairPolicy("")), 0o644); err != nil {
		return err
	}
	d.say("gw1 starts with its policy; gw2 and the witness join by a token each")
	if err := p.Begin(ctx, policy, time.Minute); err != nil {
		return err
	}
	if d.o.Break == "download" { // before the first session: by the witness they agree all the same
		if err := p.Cut(p.GW1, p.GW2, true); err != nil {
			return err
		}
	}
	if err := p.Watch(); err != nil {
		return err
	}
	traffic, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		stop()
		wg.Wait()
	}()
	t, err := d.traffic(traffic, &wg)
	if err != nil {
		return err
	}
	owner, err := p.Owner(ctx, 5*time.Second)
	if err != nil {
		return err
	}
	d.say("%s serves the group east: the addresses that hosts use as their router, and those that they are translated to", owner.Name)
	// What begins later than the fault would prove nothing.
	if err := d.until(ctx, 10*time.Second, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.came) == 2
	}); err != nil {
		return fmt.Errorf("download and call do not begin: %w", err)
	}
	if d.o.Break != "download" {
		if _, err := d.protected(ctx, owner); err != nil {
			return fmt.Errorf("before anything has happened: %w", err)
		}
		d.say("%s has a whole copy of its sessions", p.Other(owner).Name)
	}
	if err := d.rest(ctx, pairSteady); err != nil {
		return err
	}
	if d.o.Break == "takeover" {
		p.Witness.Kill()
	}
	kill := d.kill(ctx, owner)
	if err := d.rest(ctx, pairSteady); err != nil {
		return err
	}
	move := event{}
	if d.seen.Kill.Done {
		if move, err = d.back(ctx, owner); err != nil {
			return err
		}
	}
	if err := d.rest(ctx, pairSteady); err != nil {
		return err
	}
	stop()
	wg.Wait()
	if err := t.end(d); err != nil {
		return err
	}
	d.seen.Kill.measure(t.seen, kill)
	if d.seen.Move.Done {
		d.seen.Move.measure(t.seen, move)
	}
	d.seen.DownloadStill = d.still
	d.seen.MovedFlows, d.seen.TotalFlows = len(t.seen.Moved()), len(t.seen.Flows)/2
	if d.seen.Verdict, err = p.Judge(); err != nil {
		return err
	}
	d.seen.Errors = d.errors
	return nil
}

// event is when something was done, and when what it cost was over.
type event struct{ from, to time.Time }

// kill ends the owner as a fault does.
func (d *pairDemo) kill(ctx context.Context, owner *trio.Node) event {
	other := d.p.Other(owner)
	d.seen.Kill = pairEvent{From: owner.Name, To: other.Name}
	d.say("$ kill -9 %-30d # the data plane of %s, which serves", owner.Pid(), owner.Name)
	e := event{from: time.Now()}
	gone := make(chan struct{})
	go func() { // the kernel takes its time to close what the process had
		owner.Kill()
		close(gone)
	}()
	defer func() { <-gone }()
	if err := d.p.Serves(ctx, takeWithin, other); err != nil {
		d.say("nobody has taken over: %v", err)
	} else {
		d.say("%s serves", other.Name)
		d.seen.Kill.Done = true
	}
	if d.rest(ctx, time.Second) == nil && d.seen.Kill.Done {
		d.seen.Kill.Says = d.last(ctx, other)
		d.tell(&d.seen.Kill)
	}
	e.to = time.Now()
	return e
}

// tell shows what the new owner says of how it came to the group.
func (d *pairDemo) tell(e *pairEvent) {
	if says := e.says(); says != "" {
		d.say("%s says: %s of silence (hosts' figures below)", e.To, says)
	}
}

// back starts the killed node again and moves the group back to it.
func (d *pairDemo) back(ctx context.Context, killed *trio.Node) (e event, err error) {
	owner := d.p.Other(killed)
	if d.o.Break != "protect" {
		if err := killed.Start(ctx); err != nil {
			return e, err
		}
		d.say("%s is started again: it is a standby now", killed.Name)
	}
	began := d.now()
	if d.seen.WhyNot, err = d.protected(ctx, owner); err != nil {
		d.say("%s is not protected: %s", trio.PairGroup, strings.Join(d.seen.WhyNot, "; "))
		return e, ctx.Err()
	}
	d.seen.Back = d.now() - began
	d.say("%s has a whole copy of the sessions again, %d ms after it was ready", killed.Name, d.seen.Back.Milliseconds())
	if err := d.rest(ctx, pairSteady); err != nil {
		return e, err
	}
	d.seen.Move = pairEvent{From: owner.Name, To: killed.Name}
	d.say("$ demarc group move %s %s", trio.PairGroup, killed.Name)
	e.from = time.Now()
	if _, err := owner.Run(ctx, "group", "move", trio.PairGroup, killed.Name); err != nil {
		d.fail(err)
	}
	if err := d.p.Serves(ctx, takeWithin, killed); err != nil {
		d.say("it was not moved: %v", err)
	} else {
		d.say("%s serves", killed.Name)
		d.seen.Move.Done = true
	}
	if err := d.rest(ctx, time.Second); err != nil {
		return e, err
	}
	d.seen.Move.Says = d.last(ctx, killed)
	d.tell(&d.seen.Move)
	e.to = time.Now()
	return e, nil
}

// group is what a node says of the group.
func (d *pairDemo) group(ctx context.Context, n *trio.Node) *api.Group {
	var all api.Groups
	if err := n.Client.Get(ctx, api.PathGroups, &all); err != nil {
		return nil
	}
	for i := range all.Groups {
		if all.Groups[i].Name == trio.PairGroup {
			return &all.Groups[i]
		}
	}
	return nil
}

// last is how the group came to a node, by its own word.
func (d *pairDemo) last(ctx context.Context, n *trio.Node) *api.GroupMove {
	if g := d.group(ctx, n); g != nil {
		return g.Last
	}
	return nil
}

// protected waits until the owner says that its standby may take over without loss, and returns what kept it from that last.
func (d *pairDemo) protected(ctx context.Context, owner *trio.Node) (why []string, err error) {
	err = d.until(ctx, protectWithin, func() bool {
		g := d.group(ctx, owner)
		if g == nil {
			return false
		}
		why = g.Why
		return len(g.Why) == 0 && slices.Contains(g.InSync, d.p.Other(owner).Name)
	})
	return why, err
}

// pairTraffic is what runs all along.
type pairTraffic struct {
	flows *netlab.Flows
	seen  *netlab.FlowsSeen
	file  *netlab.Server
	phone *netlab.Server
}

// traffic begins the probes, the download and the call, and shows them.
func (d *pairDemo) traffic(ctx context.Context, wg *sync.WaitGroup) (t *pairTraffic, err error) {
	p, t := d.p, &pairTraffic{}
	at := func(port int) string { return netip.AddrPortFrom(p.Outside(false), uint16(port)).String() }
	down, err := p.Meter(trio.PairAlpha, netlab.HostDevice, netlab.Ingress, netlab.Match{Proto: unix.IPPROTO_TCP})
	if err != nil {
		return nil, err
	}
	call, err := p.Meter(trio.PairBeta, netlab.HostDevice, netlab.Ingress, netlab.Match{Proto: unix.IPPROTO_UDP, DstPort: callPort})
	if err != nil {
		return nil, err
	}
	if t.flows, err = p.StartFlows(p.FlowSpecs(1, probeInterval)...); err != nil {
		return nil, err
	}
	if t.file, err = p.Serve(trio.PairOut, "http-serve", "-addr", at(filePort)); err != nil {
		return nil, err
	}
	if t.phone, err = p.Serve(trio.PairOut, "udp-echo", "-addr", at(trio.EchoPort)); err != nil {
		return nil, err
	}
	wg.Go(func() {
		d.fail(p.Run(ctx, trio.PairAlpha, &d.seen.Download, "http-get", "-url", "http://"+at(filePort), "-part", "-size", fmt.Sprint(int64(1)<<32), "-rate", fmt.Sprint(downloadRate), "-timeout", "1h"))
	})
	wg.Go(func() {
		d.fail(p.Run(ctx, trio.PairBeta, &d.seen.Call, "udp-probe", "-dst", at(trio.EchoPort), "-local", netip.AddrPortFrom(p.Inside(trio.PairBeta, false), callPort).String(),
			"-pps", fmt.Sprint(callPPS), "-size", "172", "-duration", "1h", "-wait", "1s", "-tag", "call"))
	})
	wg.Go(func() { d.watch(ctx, "download", down, true) })
	wg.Go(func() { d.watch(ctx, "call", call, false) })
	return t, nil
}

// watch shows, by a host's own counter, what comes in: a line a second, and each time that it was quiet.
func (d *pairDemo) watch(ctx context.Context, what string, m *netlab.Meter, download bool) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var last, shown netlab.Count
	moved, next := d.now(), d.now()
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
		still := now - moved
		if download && last.Packets > 0 {
			d.mu.Lock()
			d.still = max(d.still, still)
			d.mu.Unlock()
		}
		if c.Packets > last.Packets {
			d.mu.Lock()
			d.came[what] = true
			d.mu.Unlock()
			if last.Packets > 0 && still > quietAfter {
				d.say("  %-8s goes on after %d ms without a packet", what, still.Milliseconds())
			}
			moved = now
		}
		last = c
		if now >= next {
			if shown.Packets > 0 {
				d.say("  %-8s %6.2f Mbit/s, %4d packets in a second", what, float64(since(c.Bytes, shown.Bytes))*8/1e6, since(c.Packets, shown.Packets))
			}
			shown, next = c, next+time.Second
		}
	}
}

// end stops what still runs, and notes what it saw.
func (t *pairTraffic) end(d *pairDemo) (err error) {
	var served host.HTTPServed
	var echo host.Echo
	if t.seen, err = t.flows.End(); err == nil && t.seen.Wrong > 0 {
		err = fmt.Errorf("%d packets were wrong: %s", t.seen.Wrong, t.seen.Example)
	}
	d.fail(errors.Join(t.file.Stop(&served), t.phone.Stop(&echo)))
	d.seen.Fetched = served.Requests
	if e := echo.Tags["call"]; e != nil {
		d.seen.CallPeers, d.seen.CallHeard = len(e.Sources), e.Packets
	}
	return err
}

// measure is what an event cost the hosts.
func (e *pairEvent) measure(seen *netlab.FlowsSeen, at event) {
	worst, paused := seen.Worst(at.from, at.to)
	var all []time.Duration
	for _, g := range seen.Gaps(at.from, at.to) {
		all = append(all, g.Gap)
	}
	slices.Sort(all)
	e.Gap, e.Flow, e.Paused = worst.Gap, worst.Flow, paused
	if len(all) > 0 {
		e.Median = all[len(all)/2]
	}
}

// keep leaves everything running until ctx ends.
func (d *pairDemo) keep(ctx context.Context) {
	self, err := os.Executable()
	if err != nil {
		self = "demarc"
	}
	fmt.Fprintf(d.o.Out, "\nThe lab stays up until you press Ctrl-C. Try, in another terminal:\n")
	for _, n := range d.p.Nodes() {
		fmt.Fprintf(d.o.Out, "  %s group --socket %s   # %s, namespace %s\n", filepath.Base(self), n.Socket, n.Name, d.p.NetNS(n.Name))
	}
	fmt.Fprintf(d.o.Out, "  ip netns exec %s ping %s\n", d.p.NetNS(trio.PairAlpha), d.p.Outside(false))
	<-ctx.Done()
}
