package report

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Number is a figure with as many digits as a reader wants: four, all of those before the point.
func Number(v float64) string {
	a := math.Abs(v)
	switch {
	case v == math.Trunc(v) && a < 1e15:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 100:
		return trim(strconv.FormatFloat(v, 'f', 1, 64))
	case a >= 10:
		return trim(strconv.FormatFloat(v, 'f', 2, 64))
	case a >= 0.001:
		return trim(strconv.FormatFloat(v, 'f', 3, 64))
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

func trim(s string) string { return strings.TrimRight(strings.TrimRight(s, "0"), ".") }

// Spread is the median, with least and most where they differ: "1.02 (0.98–1.05)".
func (s Stat) Spread() string {
	switch {
	case s.N == 0:
		return "–"
	case s.Min == s.Max:
		return Number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", Number(s.Median), Number(s.Min), Number(s.Max))
}

// Table writes figures that say something by themselves: those with a direction, a promise or a peer. The others are in the object.
func (o *Output) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	scenario := ""
	for i := range o.Results {
		r := &o.Results[i]
		if r.Better == "" && r.Limit == nil && len(r.Peers) == 0 {
			continue
		}
		if r.Scenario != scenario {
			scenario = r.Scenario
			fmt.Fprintf(t, "\n%s\tfigure\tmedian (least–most)\tn\tratio (95 %%), verdict for demarc; promise\n", strings.ToUpper(scenario))
		}
		promise := ""
		if r.Limit != nil {
			promise = r.Limit.Fared()
		}
		name, figure := r.Case, r.Metric+", "+r.Unit
		if r.Unit == "" {
			figure = r.Metric
		}
		for _, side := range r.Sides() {
			s, last := r.Side(side), promise
			if side != Us {
				name, figure, last = "  "+side, "", r.Peers[side].Text()
			}
			if s.Disturbed > 0 {
				last = strings.TrimSpace(last + fmt.Sprintf("  (%d disturbed)", s.Disturbed))
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", name, figure, s.Spread(), s.N, last)
		}
	}
	return t.Flush()
}

// Held is how a promise fared.
func Held(held bool) string {
	if held {
		return "held"
	}
	return "MISSED"
}
