//go:build faults

package e2e

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// harm is one thing that is done to a pair, and undone a while later.
type harm struct {
	at, last time.Duration
	kind     string
	node     string     // whom it is done to
	ways     []harmWay  // of the cluster's network
	sides    []harmSide // of the networks that the gateways serve
	lose     float64
	wait     time.Duration
}

// harmWay is what one node sends another by one protocol: UDP is leases and beats; TCP is the log, and between the two gateways the copies.
type harmWay struct {
	from, to string
	proto    uint8
}

// harmSide is a gateway's port on a switch ("" = the backbone's), one direction.
type harmSide struct {
	node, side string
	in         bool
}

// The kinds of harm.
const (
	harmKill    = "kill"    // the data plane, which its parent process tells of
	harmVanish  = "vanish"  // all of the node, without a word
	harmWitness = "witness" // the witness is killed
	harmStop    = "stop"    // SIGSTOP, and SIGCONT later
	harmFreeze  = "freeze"  // the parent process with it
	harmCut     = "cut"     // ways of the cluster's network
	harmLoss    = "loss"
	harmDelay   = "delay"
	harmShut    = "shut" // networks that are served: what a gateway sends or receives there is lost
	harmPort    = "port" // a port goes down
	harmRestart = "restart"
	harmMove    = "move"
	harmDrain   = "drain"
)

var wireNodes = []string{"gw1", "gw2", "witness"}

func (h harm) String() string {
	var on []string
	if h.node != "" {
		on = append(on, h.node)
	}
	for _, w := range h.ways {
		on = append(on, fmt.Sprintf("%s>%s/%s", w.from, w.to, map[uint8]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp", 0: "all"}[w.proto]))
	}
	for _, s := range h.sides {
		name, dir := s.side, "out"
		if name == "" {
			name = "backbone"
		}
		if s.in {
			dir = "in"
		}
		on = append(on, fmt.Sprintf("%s:%s-%s", s.node, name, dir))
	}
	text := fmt.Sprintf("%s %s for %s", h.kind, strings.Join(on, ","), h.last.Round(100*time.Microsecond))
	if h.lose > 0 && h.lose < 1 {
		text += fmt.Sprintf(", %.0f %% lost", 100*h.lose)
	}
	if h.wait > 0 {
		text += fmt.Sprintf(", %s late", h.wait.Round(100*time.Microsecond))
	}
	return text
}

// wirePlan is a run: what the pair is like, and what is done to it.
type wirePlan struct {
	alone string
	stale string
	fresh float64                  // new conversations a second
	ahead map[string]time.Duration // of each node's CLOCK_MONOTONIC and CLOCK_BOOTTIME
	rate  map[string]float64       // of its clock, against true time; only where the program can be told
	wall  map[string]time.Duration // of its wall clock, likewise
	harms []harm
}

func (p *wirePlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "alone %q, stale %q, %.0f new conversations/s\n", p.alone, p.stale, p.fresh)
	for _, n := range wireNodes {
		fmt.Fprintf(&b, "  %s: clock ahead by %s, at %.4f of its pace, wall clock by %s\n", n, p.ahead[n], p.rate[n], p.wall[n])
	}
	for _, h := range p.harms {
		fmt.Fprintf(&b, "  %8.3f s  %s\n", h.at.Seconds(), h)
	}
	return b.String()
}
