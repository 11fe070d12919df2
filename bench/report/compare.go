package report

import (
	"math"
	"slices"

	"github.com/aclements/go-moremath/stats"
)

// Verdict is how one side did beside another.
type Verdict string

// The verdicts. A difference that chance alone makes once in twenty times is none.
const (
	Wins       Verdict = "better"
	Loses      Verdict = "worse"
	Same       Verdict = "same"       // all values of both are one number
	Unresolved Verdict = "unresolved" // inside the spread, or too few runs to tell
)

// Comparison is one side held against another.
type Comparison struct {
	Ratio    *float64  // of the medians; nil when there is nothing to divide by
	Interval []float64 // least and most of the ratio with 95 % confidence; nil with too few runs, or with values that are not above 0
	Verdict  Verdict   // "" without a direction
}

// Compare holds a against b.
//
// The interval is that of Hodges and Lehmann: of all ratios of a value of one to a value of the other, those are cut off at both ends that the Mann-Whitney test
// would call too extreme. It asks for no shape of the distribution and no single hiccup widens it much; with four runs and four it is the first that can exclude 1, with fewer nothing
// can be told. Where a value is not above 0 differences take the ratios' place.
func Compare(a, b Stat, better Better) (c Comparison) {
	c.Ratio = Ratio(a, b)
	if better != "" {
		c.Verdict = Unresolved
	}
	if a.N == 0 || b.N == 0 || len(a.Values) != a.N || len(b.Values) != b.N {
		return c
	}
	if better != "" && a.Min == a.Max && b.Min == b.Max && a.Min == b.Min {
		c.Verdict = Same
	}
	ratios := a.Min > 0 && b.Min > 0
	lo, hi, ok := interval(a.Values, b.Values, ratios)
	if !ok {
		return c
	}
	even := 0.0
	if ratios {
		c.Interval, even = []float64{lo, hi}, 1
	}
	if better == "" || lo <= even && even <= hi {
		return c
	}
	c.Verdict = Loses
	if (lo > even) == (better == Higher) {
		c.Verdict = Wins
	}
	return c
}

// most values of a side that are looked at; of more, evenly spaced ones by rank stand for all. The square of it is sorted.
const most = 500

// interval is where the ratio, or the difference, of a typical value of a to one of b lies with 95 % confidence.
func interval(a, b []float64, ratios bool) (lo, hi float64, ok bool) {
	a, b = thin(a), thin(b)
	all := make([]float64, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			if ratios {
				all = append(all, x/y)
			} else {
				all = append(all, x-y)
			}
		}
	}
	slices.Sort(all)
	k := cutOff(len(a), len(b))
	if k < 1 {
		return 0, 0, false
	}
	return all[k-1], all[len(all)-k], true
}

// thin leaves as many values as are looked at.
func thin(v []float64) []float64 {
	if len(v) <= most {
		return v
	}
	s := slices.Sorted(slices.Values(v))
	out := make([]float64, most)
	for i := range out {
		out[i] = s[i*(len(s)-1)/(most-1)]
	}
	return out
}

// cutOff is the rank, from 1, of the pairwise value that an interval of 95 % begins with; 0 = so few runs have none.
func cutOff(n, m int) int {
	const tail = 0.025
	if n > 20 || m > 20 { // there the normal distribution is as good
		nm := float64(n) * float64(m)
		return max(0, int(nm/2-1.96*math.Sqrt(nm*float64(n+m+1)/12)))
	}
	d := stats.UDist{N1: n, N2: m}
	k := 0
	for k < n*m/2 && d.CDF(float64(k)) <= tail {
		k++
	}
	return k
}

// round3 leaves three digits after the point, or of what is small three that mean something.
func round3(v float64) float64 {
	f := 1000.0
	for a := math.Abs(v); a > 0 && a*f < 100 && f < 1e12; {
		f *= 10
	}
	return math.Round(v*f) / f
}
