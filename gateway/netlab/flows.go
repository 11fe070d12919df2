package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"demarc/gateway/netlab/host"
)

// FlowSpec is many flows of one tenant: one for each pair of an inside address and a port, both ways at the same pace.
type FlowSpec struct {
	Inside   string // namespace
	From     []netip.Addr
	Port     int // the first own one; 0 = 20000
	Ports    int // 0 = 1
	Tag      string
	Outside  string // namespace
	To       netip.AddrPort
	Interval time.Duration // 0 = 1 ms
	Size     int           // payload; 0 = 64
}

// Flows are paced packets on many flows, on both sides.
type Flows struct {
	Interval time.Duration
	both     *Server
}

// StartFlows returns when packets go both ways on every flow.
func (l *Lab) StartFlows(specs ...FlowSpec) (*Flows, error) {
	all := host.FlowsSpec{Interval: specs[0].Interval, Size: specs[0].Size, Patience: 8 * time.Second}
	if all.Interval == 0 {
		all.Interval = time.Millisecond
	}
	if all.Size == 0 {
		all.Size = 64
	}
	for _, s := range specs {
		if s.Interval != specs[0].Interval || s.Size != specs[0].Size {
			return nil, errors.New("flows that are measured together have one interval and one size")
		}
		if s.Port == 0 {
			s.Port = 20000
		}
		all.Talk = append(all.Talk, host.TalkSpec{Space: l.spaceFile(s.Inside), Dst: s.To, From: s.From, Port: s.Port, Ports: max(s.Ports, 1), Tag: s.Tag})
		if to := (host.AnswerSpec{Space: l.spaceFile(s.Outside), At: s.To}); !slices.Contains(all.Answer, to) {
			all.Answer = append(all.Answer, to)
		}
	}
	text, err := json.Marshal(&all)
	if err != nil {
		return nil, err
	}
	both, err := l.ServeWithin(all.Patience+10*time.Second, specs[0].Inside, "flows", "-spec", string(text))
	return &Flows{Interval: all.Interval, both: both}, err
}

// spaceFile is how a process enters a namespace.
func (l *Lab) spaceFile(ns string) string { return filepath.Join(netnsDir, l.NetNS(ns)) }

// End stops the flows and says what was seen of them.
func (f *Flows) End() (*FlowsSeen, error) {
	var done host.FlowsDone
	if err := f.both.Stop(&done); err != nil {
		return nil, err
	}
	r := &FlowsSeen{Interval: f.Interval, Sides: []host.FlowSide{done.Outside}, Pauses: done.Inside.Pauses, Wrong: done.Inside.Wrong + done.Outside.Wrong, Refused: [2]uint64{done.Inside.Refused, done.Outside.Refused}, Example: done.Inside.Example}
	if r.Example == "" {
		r.Example = done.Outside.Example
	}
	for tag, flows := range done.Inside.Flows {
		for n, back := range flows {
			for _, reply := range []bool{false, true} {
				seen := back
				if !reply {
					seen = outsideSeen(r.Sides, tag, n)
				}
				if seen == nil {
					seen = &host.FlowSeen{}
				}
				r.Flows = append(r.Flows, FlowEnd{Tag: tag, Flow: n, Reply: reply, FlowSeen: *seen, Ended: done.Inside.Ended})
			}
		}
	}
	return r, nil
}

func outsideSeen(sides []host.FlowSide, tag string, n int) *host.FlowSeen {
	for _, s := range sides {
		if list := s.Flows[tag]; n < len(list) {
			return list[n]
		}
	}
	return nil
}

// FlowEnd is what a receiver saw of one flow and direction.
type FlowEnd struct {
	Tag   string
	Flow  int
	Reply bool // to the inside
	host.FlowSeen

	Ended int64 // when its sender stopped
}

// Name says which one it is.
func (f *FlowEnd) Name() string {
	if f.Reply {
		return fmt.Sprintf("%s %d in", f.Tag, f.Flow)
	}
	return fmt.Sprintf("%s %d out", f.Tag, f.Flow)
}

// FlowsSeen is what was seen of many flows.
type FlowsSeen struct {
	Interval time.Duration
	Flows    []FlowEnd // two for each
	Sides    []host.FlowSide
	Pauses   []host.Silence // of senders
	Wrong    uint64         // packets that were another host's, or none of a flow
	Refused  [2]uint64      // sends that the own stack did not take, inside and outside
	Example  string         // the first of them
}

// Gap is the longest silence of a flow and direction within a time, less the interval; the silence after its last packet counts until the senders ended.
// What lies outside of the time does not count: it belongs to something else. Where there were more silences than are held it is the shortest that the host has kept at least, which may be too much. from and to are of the same clock as the packets' times: the machine's.
type Gap struct {
	Flow string
	host.Silence
	Gap time.Duration
}

// Worst is the longest gap of all flows within a time, and how long senders themselves paused meanwhile: what a loaded machine did to the
// measurement. No gap: what is shorter than host.Shortest is not looked at.
func (r *FlowsSeen) Worst(from, to time.Time) (worst Gap, paused time.Duration) {
	for _, g := range r.Gaps(from, to) {
		if g.Gap > worst.Gap {
			worst = g
		}
	}
	a, b := from.UnixNano(), to.UnixNano()
	for _, p := range r.Pauses {
		if p.From < b && p.To > a {
			paused = max(paused, p.Long())
		}
	}
	return worst, paused
}

// Gaps is the longest one of each flow and direction.
func (r *FlowsSeen) Gaps(from, to time.Time) (list []Gap) {
	a, b := from.UnixNano(), to.UnixNano()
	for i := range r.Flows {
		f := &r.Flows[i]
		g := Gap{Flow: f.Name()}
		for _, s := range append(slices.Clone(f.Silences), host.Silence{From: f.Last, To: f.Ended}) {
			within := host.Silence{From: max(s.From, a), To: min(s.To, b)}
			if s.Long() > host.Shortest && within.Long() > g.Long() {
				g.Silence = within
			}
		}
		g.Gap = max(0, max(g.Long(), time.Duration(f.Floor))-r.Interval)
		list = append(list, g)
	}
	return list
}

// Lost is how many packets did not arrive, of how many between the first and the last that did. What a flow lost after its last packet is its gap.
func (r *FlowsSeen) Lost() (lost, sent uint64) {
	for i := range r.Flows {
		f := &r.Flows[i]
		if f.Received == 0 {
			continue
		}
		n := f.HighSeq - f.FirstSeq + 1
		sent += n
		lost += n - min(n, f.Received)
	}
	return lost, sent
}

// Ended is when the first of the senders stopped.
func (r *FlowsSeen) Ended() time.Time {
	first := int64(math.MaxInt64)
	for i := range r.Flows {
		first = min(first, r.Flows[i].Ended)
	}
	for _, s := range r.Sides {
		first = min(first, s.Ended)
	}
	return time.Unix(0, first)
}

// Moved names the flows that came to the outside from more than one address and port: their mapping was not kept.
func (r *FlowsSeen) Moved() (list []string) {
	for i := range r.Flows {
		if f := &r.Flows[i]; len(f.Sources) > 1 {
			list = append(list, f.Name())
		}
	}
	return list
}
