package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Differ says why two results are not of the same machine and mode; nil = they are.
func Differ(a, b *Output) (why []string) {
	differ := func(what, x, y string) {
		if x != y {
			why = append(why, fmt.Sprintf("%s: %s and %s", what, cmp.Or(x, "none"), cmp.Or(y, "none")))
		}
	}
	m, n := &a.Machine, &b.Machine
	differ("CPU", m.CPU, n.CPU)
	differ("CPUs", fmt.Sprint(m.CPUs), fmt.Sprint(n.CPUs))
	differ("memory", fmt.Sprint(m.MemoryMiB, " MiB"), fmt.Sprint(n.MemoryMiB, " MiB"))
	differ("kernel", m.Kernel, n.Kernel)
	differ("mode asked", m.Asked, n.Asked)
	modes := func(o *Output) map[string]string {
		of := map[string]string{}
		for _, p := range o.Scenarios {
			of[p.Name] = p.Mode
		}
		return of
	}
	x, y := modes(a), modes(b)
	if len(x) == 0 || len(y) == 0 {
		differ("mode", m.Mode, n.Mode)
	}
	for _, p := range a.Scenarios {
		if mode, both := y[p.Name]; both && mode != "" && p.Mode != "" {
			differ("mode in "+p.Name, p.Mode, mode)
		}
	}
	return why
}

// Across compares the results of two runs.
type Across struct {
	Peers bool // the peers' rows too
	All   bool // rows without a better direction too
}

// Change is one side's figure in two runs.
type Change struct {
	Scenario string    `json:"scenario"`
	Case     string    `json:"case"`
	Metric   string    `json:"metric"`
	Unit     string    `json:"unit"`
	Side     string    `json:"side"`
	A        *Stat     `json:"a,omitempty"`
	B        *Stat     `json:"b,omitempty"`
	Ratio    *float64  `json:"ratio,omitempty"`    // of the medians, B over A
	Interval []float64 `json:"interval,omitempty"` // of it, 95 %
	Verdict  string    `json:"verdict"`            // a Verdict for B, "only in A", "only in B", or "" without a direction
}

// The verdicts where one of the two lacks a figure.
const (
	onlyA = "only in A"
	onlyB = "only in B"
)

// Compare holds B against A, in the order of A, with what only B has at the end.
func (c Across) Compare(a, b *Output) (list []Change) {
	list = []Change{}
	one := func(r *Result, other *Output, absent string) {
		twin := other.Find(r.Scenario, r.Case, r.Metric)
		if r.Better == "" && !c.All {
			return
		}
		for _, side := range r.Sides() {
			s := r.Side(side)
			if side != Us && !c.Peers || s.N == 0 {
				continue
			}
			ch := Change{Scenario: r.Scenario, Case: r.Case, Metric: r.Metric, Unit: r.Unit, Side: side, A: &s, Verdict: absent}
			if twin == nil || twin.Side(side).N == 0 {
				if absent == onlyB {
					ch.A, ch.B = nil, &s
				}
				list = append(list, ch)
				continue
			}
			if absent == onlyB {
				continue // it has been compared
			}
			t := twin.Side(side)
			x := Compare(t, s, r.Better)
			if ch.B, ch.Verdict = &t, string(x.Verdict); x.Ratio != nil {
				v := round3(*x.Ratio)
				ch.Ratio = &v
			}
			for _, v := range x.Interval {
				ch.Interval = append(ch.Interval, round3(v))
			}
			list = append(list, ch)
		}
	}
	for i := range a.Results {
		one(&a.Results[i], b, onlyA)
	}
	for i := range b.Results {
		one(&b.Results[i], a, onlyB)
	}
	return list
}

// Worse counts the figures of demarc that are worse in B.
func Worse(list []Change) (n int) {
	for _, c := range list {
		if c.Side == Us && c.Verdict == string(Loses) {
			n++
		}
	}
	return n
}

// PrintChanges is what a person reads.
func PrintChanges(w io.Writer, list []Change) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "scenario\tcase\tfigure\tside\tA, median (least–most)\tB\tB over A (95 %)\tverdict for B")
	n := map[string]int{}
	for _, c := range list {
		n[c.Verdict]++
		text := func(s *Stat) string {
			if s == nil {
				return "–"
			}
			return s.Spread()
		}
		ratio := ""
		if c.Ratio != nil {
			ratio = Number(*c.Ratio)
		}
		if c.Interval != nil {
			ratio += fmt.Sprintf(" (%s–%s)", Number(c.Interval[0]), Number(c.Interval[1]))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Scenario, c.Case, strings.TrimSuffix(c.Metric+", "+c.Unit, ", "), c.Side, text(c.A), text(c.B), ratio, c.Verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	resolved := n[string(Wins)] + n[string(Loses)]
	_, err := fmt.Fprintf(w, "\n%d better, %d worse, %d the same, %d unresolved, %d only in A, %d only in B; by chance alone up to some %d of the %d that were compared would be called different\n",
		n[string(Wins)], n[string(Loses)], n[string(Same)], n[string(Unresolved)], n[onlyA], n[onlyB], (resolved+n[string(Unresolved)]+19)/20, resolved+n[string(Unresolved)])
	return err
}

// Named are results with the file that they are of.
type Named struct {
	Name   string
	Output *Output
}

// Series is one figure of demarc over time.
type Series struct {
	Scenario string    `json:"scenario"`
	Case     string    `json:"case"`
	Metric   string    `json:"metric"`
	Unit     string    `json:"unit"`
	Better   Better    `json:"better"`
	Moments  []Moment  `json:"moments"`
	Last     Verdict   `json:"last"` // of the last one beside the one before it of the same machine and mode
	Ratio    *float64  `json:"ratio,omitempty"`
	Interval []float64 `json:"interval,omitempty"`
}

// Moment is one run's.
type Moment struct {
	File    string             `json:"file"`
	Began   string             `json:"began,omitempty"`
	Commit  string             `json:"commit,omitempty"`
	Machine string             `json:"machine"`
	Stat    Stat               `json:"stat"`
	Ratios  map[string]float64 `json:"ratios,omitempty"` // to the peers of the same run: what a change of the machine leaves alone
}

// History is each figure that has a direction over runs, by the time when they began; only = those whose name has it.
func History(list []Named, only string) (out []Series) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Named) int {
		return cmp.Or(cmp.Compare(a.Output.Began, b.Output.Began), cmp.Compare(a.Name, b.Name))
	})
	at := map[string]int{}
	last := map[string]Named{}
	for _, n := range list {
		for i := range n.Output.Results {
			r := &n.Output.Results[i]
			key := r.Scenario + " " + r.Case + " " + r.Metric
			if r.Better == "" || r.Demarc.N == 0 || !strings.Contains(key, only) {
				continue
			}
			j, ok := at[key]
			if !ok {
				j = len(out)
				at[key] = j
				out = append(out, Series{Scenario: r.Scenario, Case: r.Case, Metric: r.Metric, Unit: r.Unit, Better: r.Better})
			}
			s := &out[j]
			s.Last, s.Ratio, s.Interval = "", nil, nil
			if before, ok := last[key]; ok && Differ(before.Output, n.Output) == nil {
				c := Compare(r.Demarc, before.Output.Find(r.Scenario, r.Case, r.Metric).Demarc, r.Better)
				if s.Last = c.Verdict; c.Ratio != nil {
					v := round3(*c.Ratio)
					s.Ratio = &v
				}
				for _, v := range c.Interval {
					s.Interval = append(s.Interval, round3(v))
				}
			}
			last[key] = n
			m := Moment{File: n.Name, Began: n.Output.Began, Commit: cmp.Or(n.Output.Commit, n.Output.Machine.Demarc), Machine: fmt.Sprintf("%s, %d CPUs, %s", n.Output.Machine.CPU, n.Output.Machine.CPUs, n.Output.Machine.Kernel), Stat: r.Demarc}
			for name, p := range r.Peers {
				if p.Ratio != nil {
					if m.Ratios == nil {
						m.Ratios = map[string]float64{}
					}
					m.Ratios[name] = *p.Ratio
				}
			}
			s.Moments = append(s.Moments, m)
		}
	}
	return out
}

// PrintHistory is what a person reads.
func PrintHistory(w io.Writer, list []Series) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range list {
		fmt.Fprintf(t, "\n%s %s, %s\t%s is better\n", s.Scenario, s.Case, strings.TrimSuffix(s.Metric+", "+s.Unit, ", "), s.Better)
		for _, m := range s.Moments {
			var ratios []string
			for _, name := range slices.Sorted(maps.Keys(m.Ratios)) {
				ratios = append(ratios, "×"+Number(m.Ratios[name])+" of "+name)
			}
			commit := m.Commit
			if len(commit) > 12 {
				commit = commit[:12]
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\tn %d\t%s\t%s\n", cmp.Or(m.Began, m.File), commit, m.Stat.Spread(), m.Stat.N, strings.Join(ratios, ", "), m.Machine)
		}
		if s.Last != "" {
			text := Peer{Ratio: s.Ratio, Interval: s.Interval, Verdict: s.Last}.Text()
			fmt.Fprintf(t, "  the last beside the one before it:\t\t%s\n", text)
		}
	}
	return t.Flush()
}
