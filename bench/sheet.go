package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"demarc/bench/report"
)

// sheet is the figures of a bench that runs nodes as processes, and what they were measured on.
type sheet struct {
	Progress io.Writer

	scenario string
	results  []report.Result
	machine  report.Machine
	notes    []string // what a reader must know
}

// fewer notes what there was no time for.
func (q *sheet) fewer(what string, done, planned int, of string) {
	q.notes = append(q.notes, fewer(what, done, planned, of))
	q.say("%s", q.notes[len(q.notes)-1])
}

func (q *sheet) say(format string, args ...any) { fmt.Fprintf(q.Progress, format+"\n", args...) }

// add notes a figure; where of is not empty it must keep to most.
func (q *sheet) add(row, metric, unit string, values []float64, of string, most float64) {
	r := report.Result{Scenario: q.scenario, Case: row, Metric: metric, Unit: unit, Demarc: report.OfMany(values).Round(3), Peers: map[string]report.Peer{}}
	if of != "" {
		r.Better = report.Lower
		r.Hold(of, most)
	}
	q.note(r)
}

// addLeast notes a figure of which more is better, and which must not be below least.
func (q *sheet) addLeast(row, metric, unit string, values []float64, of string, least float64) {
	r := report.Result{Scenario: q.scenario, Case: row, Metric: metric, Unit: unit, Better: report.Higher, Demarc: report.OfMany(values).Round(3), Peers: map[string]report.Peer{}}
	r.HoldLeast(of, least)
	q.note(r)
}

func (q *sheet) note(r report.Result) {
	q.results = append(q.results, r)
	limit := ""
	if r.Limit != nil {
		limit = fmt.Sprintf("  %s: %s", r.Limit.Text(), whether(r.Limit))
	}
	q.say("%-28s %-20s %s %s%s", r.Case, r.Metric, stat(r.Demarc), r.Unit, limit)
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func whether(l *report.Limit) string {
	if l.Held {
		return "held"
	}
	return "MISSED"
}

func stat(s report.Stat) string {
	if s.N < 2 {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s, p99 %s, n %d)", number(s.Median), number(s.Min), number(s.Max), number(s.P99), s.N)
}

// beside notes what else ran during a row that is not repeated.
func (q *sheet) beside(row string, u usage) {
	q.add(row, "cpus-for-others", "CPUs", []float64{u.foreign}, "", 0)
	if u.disturbed() {
		q.machine.Disturbed++
	}
}

// missed are the figures that do not keep to their limits.
func (q *sheet) missed() (list []string) {
	for _, r := range q.results {
		if r.Limit != nil && !r.Limit.Held {
			v, _ := r.Limited() // 0 of what was not measured
			list = append(list, fmt.Sprintf("%s, %s: %s %s, promised: %s", r.Case, r.Metric, number(v), r.LimitUnit(), r.Limit.Text()))
		}
	}
	return list
}

func (q *sheet) report(version string, seed uint64) *report.Output {
	m := machine()
	m.Demarc, m.Mode, m.Seconds, m.Seed, m.Foreign, m.Disturbed, m.Repeated = version, q.machine.Mode, q.machine.Seconds, seed, q.machine.Foreign, q.machine.Disturbed, q.machine.Repeated
	return &report.Output{Schema: report.Schema, Machine: m, Results: q.results, Notes: q.notes}
}

// print is what a person reads.
func (q *sheet) print(w io.Writer, r *report.Output, headline, end string) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := &r.Machine
	p("")
	p("%s", headline)
	p("machine     %s", machineWords(m))
	p("demarc      %s, %s, AF_XDP: %s; seed %d", m.Demarc, m.Go, m.Mode, m.Seed)
	p("")
	p("%-30s %-26s %12s %12s %12s %12s %5s  %s", "case", "figure", "least", "median", "p99", "most", "n", "promised")
	for _, f := range r.Results {
		s, promised := f.Demarc, ""
		if f.Limit != nil {
			promised = fmt.Sprintf("%s %s: %s", f.Limit.Text(), f.LimitUnit(), whether(f.Limit))
		}
		digits := 1
		if s.Max < 10 {
			digits = 3
		}
		v := func(x float64) string { return strconv.FormatFloat(x, 'f', digits, 64) }
		if f.Unit == "packets" || f.Unit == "frames" || f.Unit == "batches" || f.Unit == "bytes" {
			v = func(x float64) string { return strconv.FormatFloat(x, 'f', 0, 64) }
		}
		p("%-30s %-26s %12s %12s %12s %12s %5d  %s", f.Case, f.Metric+", "+f.Unit, v(s.Min), v(s.Median), v(s.P99), v(s.Max), s.N, promised)
		for _, name := range slices.Sorted(maps.Keys(f.Peers)) {
			s := f.Peers[name]
			p("%-30s %-26s %12s %12s %12s %12s %5d", "  "+name, f.Metric+", "+f.Unit, v(s.Min), v(s.Median), v(s.P99), v(s.Max), s.N)
		}
	}
	for _, n := range r.Notes {
		p("- %s", n)
	}
	p("")
	p("took %.0f s; other work on the machine took %.2f CPUs over all; %s", m.Seconds, m.Foreign, end)
	_, err := io.WriteString(w, b.String())
	return err
}
