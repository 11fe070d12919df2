package judge

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"demarc/gateway/netlab/host"
)

// Frame is one that a node sent into a switch.
type Frame struct {
	At   time.Time
	Node string // behind the port that it came in by
	Side string // whose switch it is: a tenant's name, or "" for the backbone's
	Data []byte // from the link header to the end of the flow's mark at least
}

// Case is what the frames are held against.
type Case struct {
	Groups map[uint8]string  // name by virtual router id
	Sides  map[string]string // the side of each tag of flows
	// Settle is less than any rightful term lasts that is not announced, and the next one too; 0 = 100 ms, which is less than a lease.
	Settle time.Duration
	Hold   time.Duration // for so long a public port belongs to the host that had it last; 0 = 120 s (RFC 6888 REQ-8)
	// All is the group that every packet of a flow counts for, whatever address it was sent with, and nothing else counts: for who has no group's addresses.
	// Empty = a frame is of the group whose address it was sent with.
	All string
}

// Kind is what is wrong.
type Kind string

// The kinds.
const (
	Both    Kind = "both"    // a frame of one node after the first data frame of another
	Binding Kind = "binding" // a packet that went to another host than its own
	Port    Kind = "port"    // a public port with two inside hosts
)

// Offence is one. Frames of the same kind and cause that follow it are counted, not listed.
type Offence struct {
	Kind   Kind
	At     time.Time
	Last   time.Time // Both: the last of its frames
	Group  string
	Node   string // whose frame it is
	Frames int
	After  time.Duration // Both: after the other node's first data frame
	Words  string
}

// Burst is how many frames a worker takes in hand at once (pipeline.Burst).
const Burst = 64

// Handful reports whether it is what a node that was stopped had in hand, between the look at its deadline and the system call, and sent when it went on at woke: no more
// frames than most, which is Burst where one worker was stopped once, and at once, as one call does. That much is conceded (cluster/failover/DESIGN.md). woke is taken where the node was
// let go: its thread may have run before that, and gets a processor when there is one.
func (o Offence) Handful(node string, woke time.Time, most int) bool {
	after := o.At.Sub(woke)
	return o.Kind == Both && o.Node == node && o.Frames <= most && after > -10*time.Millisecond && after < 100*time.Millisecond && o.Last.Sub(o.At) < 10*time.Millisecond
}

func (o Offence) String() string {
	return fmt.Sprintf("%s %s, %d frames of %s: %s", o.At.Format("15:04:05.000000"), o.Kind, o.Frames, o.Node, o.Words)
}

// Term is a time in which one node sent data for a group.
type Term struct {
	Node        string
	First, Last time.Time
	Word        time.Time // when it first said where the addresses are, behind the last frame of the one before; zero = it did not
	Frames      int
}

// Verdict is what was found.
type Verdict struct {
	Offences []Offence
	Terms    map[string][]Term // by group
	Frames   int               // with the address of a group
	Words    int               // of those, what is no data: ARP and neighbour discovery
	Marked   int               // packets of flows
}

// mac reads whose source address a frame has: the ranges of RFC 9568 section 7.3, IPv4 and IPv6.
func mac(b []byte) (id uint8, ok bool) {
	if len(b) < 14 || b[6] != 0 || b[7] != 0 || b[8] != 0x5e || b[9] != 0 || b[10] != 1 && b[10] != 2 {
		return 0, false
	}
	return b[11], b[11] != 0
}

// packet is what the judge reads of a frame.
type packet struct {
	data     bool // ARP and neighbour discovery are not
	src, dst netip.AddrPort
	mark     host.FlowMark
	marked   bool
}

func parse(b []byte) (p packet) {
	kind, at := binary.BigEndian.Uint16(b[12:]), 14
	if kind == 0x8100 && len(b) >= 18 {
		kind, at = binary.BigEndian.Uint16(b[16:]), 18
	}
	b = b[at:]
	var proto byte
	var src, dst netip.Addr
	switch {
	case kind == 0x0800 && len(b) >= 20:
		n := int(b[0]&15) * 4
		if n < 20 || len(b) < n {
			return packet{data: true}
		}
		proto, src, dst = b[9], netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return packet{data: true} // a later fragment has no ports
		}
		b = b[n:]
	case kind == 0x86dd && len(b) >= 40:
		proto, src, dst = b[6], netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
		if proto == 58 && len(b) > 0 && b[0] >= 133 && b[0] <= 137 {
			return packet{}
		}
	default:
		return packet{data: kind == 0x0800 || kind == 0x86dd}
	}
	p.data = true
	if proto == 17 && len(b) >= 8 {
		p.src, p.dst = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
		p.mark, p.marked = host.ParseFlow(b[8:])
	}
	return p
}

// user is who has a public port.
type user struct {
	tag    string
	inside netip.AddrPort
	last   time.Time
	node   string
}

// Judge looks at all frames. They need no order.
func Judge(c Case, frames []Frame) *Verdict {
	if c.Settle == 0 {
		c.Settle = 100 * time.Millisecond
	}
	if c.Hold == 0 {
		c.Hold = 2 * time.Minute
	}
	frames = slices.Clone(frames)
	slices.SortStableFunc(frames, func(a, b Frame) int { return a.At.Compare(b.At) })
	v := &Verdict{Terms: map[string][]Term{}}
	lines := map[string]*line{}
	ports := map[netip.AddrPort]*user{}
	var last *Offence // of bindings and ports, so that a flow that stays wrong is one
	for _, f := range frames {
		id, ok := mac(f.Data)
		group, known := c.Groups[id]
		if c.All != "" {
			group, ok, known = c.All, len(f.Data) >= 14, true
		}
		if !ok || !known {
			continue
		}
		p := parse(f.Data)
		if c.All != "" && !p.marked {
			continue
		}
		v.Frames++
		l := lines[group]
		if l == nil {
			l = &line{}
			lines[group] = l
		}
		l.add(f, p.data)
		if !p.data {
			v.Words++
		}
		if !p.marked {
			continue
		}
		v.Marked++
		words, kind := "", Binding
		if p.mark.Reply {
			if side := c.Sides[p.mark.Tag]; f.Side != side || p.dst != p.mark.Inside {
				words = fmt.Sprintf("a packet for %s of %s went to %s of %s", p.mark.Inside, name(side), p.dst, name(f.Side))
			}
		} else if f.Side == "" {
			u := ports[p.src]
			if u != nil && (u.tag != p.mark.Tag || u.inside != p.mark.Inside) && f.At.Sub(u.last) < c.Hold {
				kind = Port
				words = fmt.Sprintf("%s is %s of %s, and was %s of %s by %s %s before", p.src, p.mark.Inside, p.mark.Tag, u.inside, u.tag, u.node, f.At.Sub(u.last))
			}
			ports[p.src] = &user{p.mark.Tag, p.mark.Inside, f.At, f.Node}
		} else {
			words = fmt.Sprintf("a packet of %s of %s, for the outside, went into the switch of %s", p.mark.Inside, p.mark.Tag, name(f.Side))
		}
		if words == "" {
			continue
		}
		if last != nil && last.Kind == kind && last.Node == f.Node && last.Words == words {
			last.Frames++
			continue
		}
		v.Offences = append(v.Offences, Offence{Kind: kind, At: f.At, Group: group, Node: f.Node, Frames: 1, Words: words})
		last = &v.Offences[len(v.Offences)-1]
	}
	for group, l := range lines {
		v.Terms[group] = l.settle(c.Settle, group, &v.Offences)
	}
	slices.SortStableFunc(v.Offences, func(a, b Offence) int { return a.At.Compare(b.At) })
	return v
}

func name(side string) string {
	if side == "" {
		return "the backbone"
	}
	return side
}

// line is all that was sent with a group's address, in order.
type line struct {
	runs  []Term // of data, of one node each
	words []word
	heard int // how many words there were at the last data frame
}

// word is a frame that is no data.
type word struct {
	at   time.Time
	node string
	turn bool // behind it, and before its next data frame, whose group it was says so again: there was a term between two of that one's, in which nothing was sent
}

func (l *line) add(f Frame, data bool) {
	n := len(l.runs)
	if data {
		again := false
		for i := len(l.words) - 1; i >= l.heard; i-- {
			again = again || l.words[i].node == f.Node
			l.words[i].turn = again && l.words[i].node != f.Node
		}
		l.heard = len(l.words)
	}
	switch {
	case !data:
		l.words = append(l.words, word{at: f.At, node: f.Node})
	case n > 0 && l.runs[n-1].Node == f.Node:
		l.runs[n-1].Last = f.At
		l.runs[n-1].Frames++
	default:
		l.runs = append(l.runs, Term{Node: f.Node, First: f.At, Last: f.At, Frames: 1})
	}
}

// beginning is within what time of its first data frame whoever begins a term says where the addresses are.
const beginning = 50 * time.Millisecond

// announced reports whether a node has said where the addresses are when it began to send. Who wakes up from a stop, or goes on, says nothing.
func (l *line) announced(r Term) bool {
	return slices.ContainsFunc(l.words, func(w word) bool { return w.node == r.Node && w.at.Sub(r.First).Abs() <= beginning })
}

// settle makes terms of runs. A run that another node's follows within settle was no term of its own, unless both have begun with announcements: several such are one change
// of the owner, which the last of them has won. Its first data frame among them is when it began, and what others send from then on is an offence. So are their words
// while it sends, but of a term that has no data frame of its own: a group that goes to and fro within milliseconds. It ends with a word of who has it again.
func (l *line) settle(settle time.Duration, group string, found *[]Offence) (terms []Term) {
	for i := 0; i < len(l.runs); {
		end := i // the last run of this change
		for i > 0 && end+1 < len(l.runs) && l.runs[end+1].First.Sub(l.runs[end].First) < settle && !(l.announced(l.runs[end]) && l.announced(l.runs[end+1])) {
			end++
		}
		winner := l.runs[end].Node
		t := Term{Node: winner}
		if n := len(terms); n > 0 && terms[n-1].Node == winner {
			t, terms = terms[n-1], terms[:n-1] // it was interrupted
		}
		var o *Offence
		for _, r := range l.runs[i : end+1] {
			switch {
			case r.Node == winner:
				if t.Frames == 0 {
					t.First = r.First
				}
				t.Last, t.Frames = r.Last, t.Frames+r.Frames
			case t.Frames > 0 && o == nil:
				*found = append(*found, Offence{Kind: Both, At: r.First, Last: r.Last, Group: group, Node: r.Node, Frames: r.Frames, After: r.First.Sub(t.First),
					Words: fmt.Sprintf("group %s: %s sends %s after the first data frame of %s, which goes on", group, r.Node, r.First.Sub(t.First), winner)})
				o = &(*found)[len(*found)-1]
			case t.Frames > 0:
				o.Frames, o.Last = o.Frames+r.Frames, r.Last
			}
		}
		terms = append(terms, t)
		i = end + 1
	}
	for _, w := range l.words {
		for k := 1; k < len(terms); k++ {
			if t := &terms[k]; w.node == t.Node && t.Word.IsZero() && w.at.After(terms[k-1].Last) && w.at.Sub(t.First) <= beginning {
				t.Word = w.at
			}
		}
		for _, t := range terms {
			if w.turn || w.node == t.Node || !w.at.After(t.First) || !w.at.Before(t.Last) {
				continue
			}
			*found = append(*found, Offence{Kind: Both, At: w.at, Last: w.at, Group: group, Node: w.node, Frames: 1, After: w.at.Sub(t.First),
				Words: fmt.Sprintf("group %s: %s says where its addresses are %s after the first data frame of %s, which goes on", group, w.node, w.at.Sub(t.First), t.Node)})
		}
	}
	return terms
}

// Of are the offences of a kind.
func (v *Verdict) Of(k Kind) (list []Offence) {
	for _, o := range v.Offences {
		if o.Kind == k {
			list = append(list, o)
		}
	}
	return list
}
