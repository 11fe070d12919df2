package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"demarc/gateway/netlab"
)

// Stages are what Options.Break may switch off. The promise that must then be broken has the same name.
var Stages = []string{"nat", "acl", "limit", "tenant"}

// MinDuration is the shortest traffic that the limit can be measured on.
const MinDuration = 8 * time.Second

// Options of a demo.
type Options struct {
	Keep     bool          // after the verdict leave the lab up until ctx ends
	Break    string        // "" or one of Stages: start the gateway with that stage off, to see that the demo notices
	Duration time.Duration // of the traffic; 0 = 15 s, at least MinDuration
	Out      io.Writer     // live view and verdict; nil = nowhere
	Binary   string        // the gateway's program; "" = this one
}

// Result is the verdict.
type Result struct {
	OK       bool      `json:"ok"`
	Promises []Promise `json:"promises"`
	Seconds  float64   `json:"seconds"` // the whole demo, without the time that it was kept
}

// Broken are the names of the promises that did not hold.
func (r *Result) Broken() (list []string) {
	for _, p := range r.Promises {
		if !p.OK {
			list = append(list, p.Name)
		}
	}
	return list
}

// Run is the demo. The error says that there is no verdict: the lab could not be built, the gateway did not start, or ctx ended. A
// verdict that says no is not an error. All that was made is gone when it returns.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Break != "" && !slices.Contains(Stages, o.Break) {
		return Result{}, fmt.Errorf("break %q: want one of %s", o.Break, strings.Join(Stages, ", "))
	}
	if o.Duration == 0 {
		o.Duration = 15 * time.Second
	}
	if o.Duration < MinDuration {
		return Result{}, fmt.Errorf("duration %s: want at least %s, or the limit cannot be measured", o.Duration, MinDuration)
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Binary == "" {
		o.Binary = "/proc/self/exe"
	}
	start := time.Now()
	dir, err := os.MkdirTemp("", "demarc-lab-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	f, err := writeFiles(dir)
	if err != nil {
		return Result{}, fmt.Errorf("configuration of the lab: %w", err)
	}
	fmt.Fprint(o.Out, picture)
	top, err := netlab.Standard("demo", netlab.Options{})
	if err != nil {
		return Result{}, fmt.Errorf("build the lab: %w", err)
	}
	defer top.Close()
	g, err := startGateway(ctx, top.Lab, o.Binary, o.Break, f)
	if err != nil {
		return Result{}, err
	}
	defer g.stop()

	result, err := demo(ctx, o, top, g)
	result.Seconds = time.Since(start).Seconds()
	if err != nil {
		return result, err
	}
	writeVerdict(o.Out, &result)
	if o.Keep {
		keep(ctx, o.Out, top, f)
	}
	return result, top.Close()
}

// demo runs the traffic with the view beside it, and judges. Unless the lab is kept, the gateway is stopped before the judgement, since
// how it ends is judged too.
func demo(ctx context.Context, o Options, top *netlab.Topology, g *gateway) (Result, error) {
	v := newView(o.Out)
	// A gateway that ends early ends the traffic: waiting for its time-outs would tell nothing.
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	viewDone := make(chan struct{})
	go func() {
		defer close(viewDone)
		tick := time.NewTicker(v.every)
		defer tick.Stop()
		for {
			select {
			case <-run.Done():
				return
			case <-g.ended:
				cancel()
				return
			case <-tick.C:
				if st, err := g.status(run); err == nil {
					v.show(st, time.Now())
				}
			}
		}
	}()
	t := &traffic{top: top, g: g, phase: v.setPhase}
	calm := o.Duration * 45 / 100
	err := t.run(run, calm, o.Duration-calm)
	cancel()
	<-viewDone
	select {
	case <-g.ended:
		t.seen.GatewayEnd = fmt.Sprintf("ended by itself: %v\n%s", g.err, g.lastLines())
	default:
		if err != nil {
			return Result{}, errors.Join(err, ctx.Err())
		}
		if !o.Keep {
			if err := g.stop(); err != nil {
				t.seen.GatewayEnd = fmt.Sprintf("did not end in order: %v\n%s", err, g.lastLines())
			}
		}
	}
	r := Result{Promises: judge(&t.seen)}
	r.OK = len(r.Broken()) == 0
	return r, nil
}

const picture = `
  alpha1  198.18.10.11 ─┐                 ┌─────────┐
  alpha2  198.18.10.12 ─┴─ switch ─ alpha0│         │bb0 ─ switch ─┬─ public1 203.0.113.11  web, echo
                                          │ gateway │              └─ public2 203.0.113.12  names, sink
  beta1   198.18.10.11 ─┬─ switch ── beta0│         │
  beta2   198.18.10.12 ─┘                 └─────────┘   alpha leaves as 192.0.2.16/28, beta as 192.0.2.32/28

`

// writeVerdict prints the table of promises and, last, one line that says it all.
func writeVerdict(out io.Writer, r *Result) {
	fmt.Fprintf(out, "\n%-4s %-10s %s\n", "", "promise", "what was promised / what the hosts saw / what the gateway says")
	for _, p := range r.Promises {
		mark := "ok"
		if !p.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(out, "%-4s %-10s %s\n", mark, p.Name, p.Text)
		fmt.Fprintf(out, "%15s hosts:   %s\n", "", p.Hosts)
		if p.Gateway != "" {
			fmt.Fprintf(out, "%15s gateway: %s\n", "", p.Gateway)
		}
		for _, why := range p.Why {
			fmt.Fprintf(out, "%15s WRONG:   %s\n", "", strings.ReplaceAll(why, "\n", "\n"+strings.Repeat(" ", 25)))
		}
	}
	if r.OK {
		fmt.Fprintf(out, "\nall %d promises held (%.0f s)\n", len(r.Promises), r.Seconds)
		return
	}
	fmt.Fprintf(out, "\nBROKEN: %s (%.0f s)\n", strings.Join(r.Broken(), ", "), r.Seconds)
}

// keep leaves everything running until ctx ends.
func keep(ctx context.Context, out io.Writer, top *netlab.Topology, f files) {
	self, err := os.Executable()
	if err != nil {
		self = "demarc"
	}
	fmt.Fprintf(out, "\nThe lab stays up until you press Ctrl-C. Its hosts (namespace, addresses):\n%s", top)
	fmt.Fprintf(out, "  %-28s the gateway\n\nTry, in another terminal:\n", top.NetNS(netlab.GW))
	fmt.Fprintf(out, "  ip netns exec %s ping %s\n", top.NetNS(top.Alpha1.Name), top.Public1.V4)
	fmt.Fprintf(out, "  %s status --socket %s\n", filepath.Base(self), f.socket)
	fmt.Fprintf(out, "  %s (policy), %s (log)\n", f.policy, f.log)
	<-ctx.Done()
}
