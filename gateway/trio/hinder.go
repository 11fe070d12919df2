package trio

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// hinder is what stands in the way of a pair that was made with Options.Lines. It may be used by several goroutines.
type hinder struct {
	mu     sync.Mutex
	lines  map[string]*netlab.Line       // by node
	faults map[string][]netlab.LineFault // mu: by the node whose line has them
	gates  map[gateKey]*gate
}

type gateKey struct {
	node, side string
	in         bool // what the gateway receives
}

// gate is open as far as everybody who has shut it lets it be.
type gate struct {
	g      *netlab.Gate
	shares []float64 // hinder.mu
}

func (h *hinder) begin(o *Options) {
	h.lines, h.faults = map[string]*netlab.Line{}, map[string][]netlab.LineFault{}
	o.Wire = func(l *netlab.Lab, e netlab.End) (err error) {
		h.lines[e.NS], err = l.PlugByLine(Switch, e)
		return err
	}
}

// addGates makes gates where there are none yet.
func (p *Pair) addGates() error {
	if len(p.hinder.gates) > 0 {
		return nil
	}
	p.hinder.gates = map[gateKey]*gate{}
	for _, n := range p.Gateways() {
		for side, s := range p.sides {
			for d, in := range map[netlab.Direction]bool{netlab.Egress: true, netlab.Ingress: false} { // of the switch's port
				g, err := p.Gate(s.sw, n.Name+"-"+s.dev, d)
				if err != nil {
					return err
				}
				p.hinder.gates[gateKey{n.Name, side, in}] = &gate{g: g}
			}
		}
	}
	return nil
}

// Hinder has a share of what one node sends another over the cluster's network be lost, and the rest take longer, for one protocol or (0) all of them, until undo is
// called. What several ask for adds up.
func (p *Pair) Hinder(from, to *Node, proto uint8, lose float64, wait time.Duration) (undo func() error, err error) {
	a, err := netip.ParseAddrPort(from.Address)
	if err != nil {
		return nil, err
	}
	h := &p.hinder
	line := h.lines[to.Name]
	if line == nil {
		return nil, errors.New("the pair was made without lines")
	}
	b, err := netip.ParseAddrPort(to.Address)
	if err != nil {
		return nil, err
	}
	f := netlab.LineFault{From: a.Addr(), To: b.Addr(), Proto: proto, Lose: lose, Wait: wait}
	set := func(change func([]netlab.LineFault) []netlab.LineFault) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.faults[to.Name] = change(slices.Clone(h.faults[to.Name]))
		line.Set(h.faults[to.Name]...)
	}
	set(func(list []netlab.LineFault) []netlab.LineFault { return append(list, f) })
	return sync.OnceValue(func() error {
		set(func(list []netlab.LineFault) []netlab.LineFault {
			i := slices.Index(list, f)
			return slices.Delete(list, i, i+1)
		})
		return nil
	}), nil
}

// Shut has a share of what a gateway receives from the switch of a side (a tenant's name, or "" for the backbone's), or of what it sends there, be lost until undo is called.
// Of several the worst counts. What a gateway sends is captured before that.
func (p *Pair) Shut(n *Node, side string, in bool, share float64) (undo func() error, err error) {
	h := &p.hinder
	g := h.gates[gateKey{n.Name, side, in}]
	if g == nil {
		return nil, fmt.Errorf("no gate of %s at %q", n.Name, side)
	}
	set := func(change func([]float64) []float64) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		g.shares = change(g.shares)
		return g.g.Lose(slices.Max(append([]float64{0}, g.shares...)))
	}
	if err := set(func(list []float64) []float64 { return append(list, share) }); err != nil {
		return nil, err
	}
	return sync.OnceValue(func() error {
		return set(func(list []float64) []float64 {
			i := slices.Index(list, share)
			return slices.Delete(list, i, i+1)
		})
	}), nil
}

// LoseAll has a share of everything be lost that nodes send each other, and that the gateways send to and receive from the networks that they serve; 0 = nothing any more. It is not for use beside Shut.
func (p *Pair) LoseAll(share float64) error {
	errs := []error{p.addGates()}
	for _, a := range p.Nodes() {
		for _, b := range p.Nodes() {
			if a != b {
				errs = append(errs, p.Lose(a, b, share))
			}
		}
	}
	for _, g := range p.hinder.gates {
		errs = append(errs, g.g.Lose(share))
	}
	return errors.Join(errs...)
}

// Fresh is conversations of both tenants that begin all the time, and what remote hosts go on sending to all that have begun.
type Fresh struct {
	inside  []*netlab.Server
	outside *netlab.Server
}

// StartFresh has so many begin in a second, of both tenants together, and the outside send as many packets to those before.
func (p *Pair) StartFresh(rate float64) (n *Fresh, err error) {
	n = &Fresh{}
	to := netip.AddrPortFrom(p.Outside(false), PairNewPort).String()
	if n.outside, err = p.Serve(PairOut, "flows-remind", "-addr", to, "-rate", fmt.Sprint(rate)); err != nil {
		return nil, err
	}
	for _, side := range []string{PairAlpha, PairBeta} {
		var from string
		for i, a := range p.Addresses(side, false) {
			if i > 0 {
				from += ","
			}
			from += a.String()
		}
		s, err := p.Serve(side, "flows-new", "-dst", to, "-from", from, "-rate", fmt.Sprint(rate/2), "-again", fmt.Sprint(rate/20), "-tag", "new"+side)
		if err != nil {
			_, _, end := n.End()
			return nil, errors.Join(err, end)
		}
		n.inside = append(n.inside, s)
	}
	return n, nil
}

// End ends them, and says how many have begun, and of how many the outside has heard.
func (n *Fresh) End() (begun, heard uint64, err error) {
	for _, s := range n.inside {
		var r host.NewSeen
		err = errors.Join(err, s.Stop(&r))
		begun += r.New
	}
	var r host.NewSeen
	err = errors.Join(err, n.outside.Stop(&r))
	return begun, r.New, err
}
