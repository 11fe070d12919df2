package report

import (
	"fmt"
	"slices"
	"strings"
)

// Row is one side's values of one figure, as a scenario hands them over.
type Row struct {
	Scenario, Case, Metric, Unit string
	Side                         string // Us, or a peer
	Better                       Better
	Values                       []float64 // all that were measured, in order
	Disturbed                    int       // how many of them were measured although something else ran or a CPU was slowed
	Digits                       int       // after the point that mean something
	Curve                        []Point   // of a distribution, all runs together
	Percentile                   bool      // the 99th of the values means something
}

// Us is the side that is demarc; Direct is that of the two ends with nothing between them: a floor, and no rival.
const (
	Us     = "demarc"
	Direct = "direct"
)

// Add puts a row beside those of the other sides of the same figure. The pointer is for Hold, and good until the next Add.
func (o *Output) Add(row Row) *Result {
	i := slices.IndexFunc(o.Results, func(r Result) bool {
		return r.Scenario == row.Scenario && r.Case == row.Case && r.Metric == row.Metric
	})
	if i < 0 {
		i = len(o.Results)
		o.Results = append(o.Results, Result{Scenario: row.Scenario, Case: row.Case, Metric: row.Metric, Unit: row.Unit, Better: row.Better, Peers: map[string]Peer{}})
	}
	r := &o.Results[i]
	s := Of(row.Values)
	if row.Percentile {
		s = OfMany(row.Values)
	}
	s.Disturbed, s.Curve = row.Disturbed, row.Curve
	if s = s.Round(row.Digits); row.Side == Us {
		r.Demarc = s
	} else {
		r.Peers[row.Side] = Peer{Stat: s}
	}
	return r
}

// Judge notes ratios, their intervals and verdicts of all figures that have a better direction and of which both sides are there. It is called once, when all rows have
// been added; where the sides did not do the same work it is not called.
func (o *Output) Judge() {
	for i := range o.Results {
		o.Results[i].Judge()
	}
}

// Judge is that of one figure.
func (r *Result) Judge() {
	if r.Better == "" || r.Demarc.N == 0 {
		return
	}
	for name, p := range r.Peers {
		if p.N == 0 {
			continue
		}
		c := Compare(r.Demarc, p.Stat, r.Better)
		if p.Verdict = c.Verdict; name == Direct {
			p.Verdict = "" // nobody is better than nothing
		}
		if c.Ratio != nil {
			v := round3(*c.Ratio)
			p.Ratio, p.Interval = &v, nil
			for _, v := range c.Interval {
				p.Interval = append(p.Interval, round3(v))
			}
		}
		r.Peers[name] = p
	}
}

// own says that a peer is the gateway itself in another mode, not a rival.
func own(peer string) bool { return strings.HasPrefix(peer, Us+"-") }

// Wins are the verdicts of all comparisons with peers, counted.
func (o *Output) Wins() map[Verdict]int {
	n := map[Verdict]int{}
	for _, r := range o.Results {
		for name, p := range r.Peers {
			if p.Verdict != "" && !own(name) {
				n[p.Verdict]++
			}
		}
	}
	return n
}

// Text is the ratio with its interval and verdict: "1.52 (1.31–1.70) better".
func (p Peer) Text() string {
	if p.Ratio == nil {
		return string(p.Verdict)
	}
	s := fmt.Sprintf("%.2f", *p.Ratio)
	if p.Interval != nil {
		s += fmt.Sprintf(" (%.2f–%.2f)", p.Interval[0], p.Interval[1])
	}
	return strings.TrimSpace(s + " " + string(p.Verdict))
}
