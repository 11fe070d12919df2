package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
	harmLead    = "lead" // a node comes to lead the log
)

var wireNodes = []string{"gw1", "gw2", "witness"}

// nodes of a plan.
func (p *wirePlan) nodes() []string {
	if p.two {
		return wireNodes[:2]
	}
	return wireNodes
}

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
	two   bool // no witness
	stale string
	fresh float64                  // new conversations a second
	ahead map[string]time.Duration // of each node's CLOCK_MONOTONIC and CLOCK_BOOTTIME
	rate  map[string]float64       // of its clock, against true time; only where the program can be told
	wall  map[string]time.Duration // of its wall clock, likewise
	tcp   string                   // the gateways' congestion control; "" = the machine's
	harms []harm
}

func (p *wirePlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "alone %q, stale %q, %d nodes, %.0f new conversations/s\n", p.alone, p.stale, len(p.nodes()), p.fresh)
	for _, n := range p.nodes() {
		fmt.Fprintf(&b, "  %s: clock ahead by %s, at %.4f of its pace, wall clock by %s\n", n, p.ahead[n], p.rate[n], p.wall[n])
	}
	for _, h := range p.harms {
		fmt.Fprintf(&b, "  %8.3f s  %s\n", h.at.Seconds(), h)
	}
	return b.String()
}

// wireDraw is a plan by chance: harm of all kinds begins again and again for so long, one on top of the other. `auto` is for two nodes without a witness, and `keep` is what two do by themselves: every other plan of it is of two. clocks has those of the nodes differ: for a program that can be told.
func wireDraw(seed uint64, alone, stale string, last time.Duration, clocks bool) *wirePlan {
	dice := rand.New(rand.NewPCG(seed, 5))
	between := func(a, b time.Duration) time.Duration { return a + time.Duration(dice.Int64N(int64(b-a))) }
	p := &wirePlan{alone: alone, two: alone == "auto" || alone == "keep" && seed/4%2 == 1, stale: stale, fresh: 300, ahead: map[string]time.Duration{}, rate: map[string]float64{}, wall: map[string]time.Duration{}}
	for _, n := range p.nodes() {
		p.ahead[n], p.rate[n] = time.Duration(dice.IntN(1_000_000))*time.Second, 1
		if clocks {
			// Ahead, for the authority is as young as the lab, and a clock that stands before it meets nobody. They differ from each other by weeks all the same.
			p.rate[n], p.wall[n] = 0.95+0.1*dice.Float64(), between(0, 60*24*time.Hour)
		}
	}
	busy := map[string]time.Duration{} // until when harm is done to a process or a port
	free := func(what string, at, last time.Duration) bool {
		if at < busy[what] {
			return false
		}
		busy[what] = at + last + 300*time.Millisecond
		return true
	}
	pick := func(list []string) string { return list[dice.IntN(len(list))] }
	for at := time.Duration(0); at < last; at += between(20*time.Millisecond, 500*time.Millisecond) {
		h := harm{at: at, last: between(30*time.Millisecond, 1200*time.Millisecond)}
		gw := pick(wireNodes[:2])
		switch x := dice.IntN(100); {
		case x < 30: // a process
			h.node = pick(p.nodes())
			switch y := dice.IntN(10); {
			case y < 2:
				h.kind = harmKill
			case y < 4:
				h.kind = harmVanish
			case y < 5:
				h.kind = harmRestart
			case y < 8:
				h.kind = harmStop
			default:
				h.kind = harmFreeze
			}
			if h.node == "witness" && (h.kind == harmKill || h.kind == harmVanish || h.kind == harmRestart) {
				h.kind = harmWitness
			}
			if (h.kind == harmStop || h.kind == harmFreeze) && dice.IntN(2) == 0 {
				h.last = between(50*time.Millisecond, 300*time.Millisecond) // about a lease
			}
			if !free(h.node, h.at, h.last) {
				continue
			}
		case x < 75: // ways of the cluster's network
			from, to := pick(p.nodes()), pick(p.nodes())
			if from == to {
				to = pick(slices.DeleteFunc(slices.Clone(p.nodes()), func(n string) bool { return n == from }))
			}
			proto := []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, 0}[dice.IntN(3)]
			h.ways = []harmWay{{from, to, proto}}
			if dice.IntN(2) == 0 {
				h.ways = append(h.ways, harmWay{to, from, proto})
			}
			switch y := dice.IntN(12); {
			case y < 4:
				h.kind, h.lose = harmCut, 1
			case y < 6: // one is alone
				h.kind, h.lose, h.ways = harmCut, 1, nil
				for _, n := range p.nodes() {
					if n != from {
						h.ways = append(h.ways, harmWay{from, n, proto}, harmWay{n, from, proto})
					}
				}
			case y < 8: // all links
				h.kind, h.lose, h.ways = harmLoss, 0.05, nil
				for _, a := range p.nodes() {
					for _, b := range p.nodes() {
						if a != b {
							h.ways = append(h.ways, harmWay{a, b, 0})
						}
					}
				}
				for _, n := range wireNodes[:2] { // those of the networks that are served too
					for _, side := range []string{"", "alpha", "beta"} {
						h.sides = append(h.sides, harmSide{n, side, true}, harmSide{n, side, false})
					}
				}
			case y < 10: // what goes from gateway to gateway is late
				h.kind, h.wait = harmDelay, 200*time.Millisecond
				h.ways = []harmWay{{"gw1", "gw2", unix.IPPROTO_TCP}, {"gw2", "gw1", unix.IPPROTO_TCP}}
			default:
				h.kind, h.wait, h.lose = harmDelay, between(5*time.Millisecond, 300*time.Millisecond), 0.2*dice.Float64()
			}
		case x < 85: // networks that are served
			h.kind, h.node = harmShut, gw
			h.sides, h.lose = []harmSide{{gw, pick([]string{"", "alpha", "beta"}), dice.IntN(2) == 0}}, 0.05+0.95*dice.Float64()
			h.node = ""
		case x < 90:
			side := pick([]string{"", "alpha", "beta"})
			h.kind, h.sides = harmPort, []harmSide{{gw, side, true}}
			if !free(gw+" "+side, h.at, h.last) {
				continue
			}
		case x < 97:
			h.kind, h.node, h.last = harmMove, gw, 0
		default:
			h.kind, h.node = harmDrain, gw
			if !free(gw+" drained", h.at, h.last) {
				continue
			}
		}
		p.harms = append(p.harms, h)
	}
	return p
}

// waysOf are what these nodes send those, by one protocol or (0) both.
func waysOf(from, to []string, protos ...uint8) (list []harmWay) {
	for _, f := range from {
		for _, t := range to {
			for _, p := range protos {
				if f != t {
					list = append(list, harmWay{f, t, p})
				}
			}
		}
	}
	return list
}

const (
	ms1  = time.Millisecond
	wUDP = unix.IPPROTO_UDP
	wTCP = unix.IPPROTO_TCP
)

func cutOff(at, last time.Duration, ways ...harmWay) harm {
	return harm{at: at, last: last, kind: harmCut, ways: ways, lose: 1}
}

// both are ways of a pair of sets, there and back.
func both(a, b []string, protos ...uint8) []harmWay {
	return append(waysOf(a, b, protos...), waysOf(b, a, protos...)...)
}
