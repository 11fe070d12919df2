package netlab

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
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
	talk     []*Server
	answer   map[netip.AddrPort]*Server
}

// StartFlows returns when packets go both ways on every flow.
func (l *Lab) StartFlows(specs ...FlowSpec) (f *Flows, err error) {
	f = &Flows{Interval: specs[0].Interval, answer: map[netip.AddrPort]*Server{}}
	if f.Interval == 0 {
		f.Interval = time.Millisecond
	}
	defer func() {
		if err != nil {
			f.End()
			f = nil
		}
	}()
	errs := make([]error, len(specs))
	f.talk = make([]*Server, len(specs))
	var wg sync.WaitGroup
	for i, s := range specs {
		if s.Interval != 0 && s.Interval != f.Interval {
			return f, errors.New("flows that are measured together have one interval")
		}
		if s.Size == 0 {
			s.Size = 64
		}
		if f.answer[s.To] == nil {
			a, err := l.Serve(s.Outside, "flows-answer", "-addr", s.To.String(), "-interval", f.Interval.String(), "-size", fmt.Sprint(s.Size))
			if err != nil {
				return f, err
			}
			f.answer[s.To] = a
		}
		var from []string
		for _, a := range s.From {
			from = append(from, a.String())
		}
		if s.Port == 0 {
			s.Port = 20000
		}
		wg.Go(func() {
			f.talk[i], errs[i] = l.Serve(s.Inside, "flows-talk", "-dst", s.To.String(), "-from", strings.Join(from, ","), "-port", fmt.Sprint(s.Port), "-ports", fmt.Sprint(max(s.Ports, 1)), "-tag", s.Tag,
				"-interval", f.Interval.String(), "-size", fmt.Sprint(s.Size))
		})
	}
	wg.Wait()
	return f, errors.Join(errs...)
}

// End stops the flows and says what was seen of them.
func (f *Flows) End() (*FlowsSeen, error) {
	r := &FlowsSeen{Interval: f.Interval}
	var errs []error
	in := make([]host.FlowSide, len(f.talk))
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, s := range f.talk {
		if s == nil {
			continue
		}
		wg.Go(func() {
			if err := s.Stop(&in[i]); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, s := range f.answer {
		var out host.FlowSide
		if err := s.Stop(&out); err != nil {
			errs = append(errs, err)
		}
		r.Sides = append(r.Sides, out)
		r.Pauses = append(r.Pauses, out.Pauses...)
		if out.Full {
			errs = append(errs, errors.New("there were more silences at the outside than are held"))
		}
		if out.Wrong > 0 {
			errs = append(errs, fmt.Errorf("%d packets were wrong: %s", out.Wrong, out.Example))
		}
	}
	for i := range in {
		side := &in[i]
		r.Pauses = append(r.Pauses, side.Pauses...)
		if side.Full {
			errs = append(errs, errors.New("there were more silences at the inside than are held"))
		}
		if side.Wrong > 0 {
			errs = append(errs, fmt.Errorf("%d packets were wrong: %s", side.Wrong, side.Example))
		}
		for tag, flows := range side.Flows {
			for n, back := range flows {
				for _, reply := range []bool{false, true} {
					seen := back
					if !reply {
						seen = outsideSeen(r.Sides, tag, n)
					}
					if seen == nil {
						seen = &host.FlowSeen{}
					}
					r.Flows = append(r.Flows, FlowEnd{Tag: tag, Flow: n, Reply: reply, FlowSeen: *seen, Ended: side.Ended})
				}
			}
		}
	}
	return r, errors.Join(errs...)
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
}

// Gap is the longest silence of a flow and direction within a time, less the interval; the silence after its last packet counts until the senders ended.
// What lies outside of the time does not count: it belongs to something else. from and to are of the same clock as the packets' times: the machine's.
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
		g.Gap = max(0, g.Long()-r.Interval)
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
