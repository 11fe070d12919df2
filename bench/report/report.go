package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
)

// Schema is the version of the JSON object.
const Schema = 1

// Output is the JSON object.
type Output struct {
	Schema  int      `json:"schema"`
	Machine Machine  `json:"machine"`
	Results []Result `json:"results"`
	// What each side was configured with, by its name, where the same serves all cases.
	Configs map[string]string `json:"configs,omitempty"`
}

// Machine is where and with what the figures were measured.
type Machine struct {
	Kernel    string  `json:"kernel"`
	CPU       string  `json:"cpu"`
	CPUs      int     `json:"cpus"`
	MemoryMiB int     `json:"memory_mib"`
	Virtual   bool    `json:"virtual"` // the CPU says that there is a hypervisor
	Go        string  `json:"go"`
	Demarc    string  `json:"demarc"` // version
	Mode      string  `json:"mode"`   // AF_XDP mode and attach of the gateway's ports, as the kernel says
	Nft       string  `json:"nft"`    // version
	Seconds   float64 `json:"seconds"`
	Disturbed int     `json:"disturbed_pairs"`        // pairs kept although something else ran
	Repeated  int     `json:"repeated_pairs"`         // pairs thrown away and repeated because something else ran
	Again     int     `json:"repeated_loads"`         // single loads likewise
	Seed      uint64  `json:"seed,omitempty"`         // of what was made at random
	Foreign   float64 `json:"foreign_cpus,omitempty"` // CPUs' worth of time that went to what is not the bench's, over the whole run; cluster only
}

// Result is one metric of one case.
type Result struct {
	Scenario string          `json:"scenario"`
	Case     string          `json:"case"`
	Metric   string          `json:"metric"`
	Unit     string          `json:"unit"`
	Demarc   Stat            `json:"demarc"`
	Peers    map[string]Peer `json:"peers"`
	Limit    *Limit          `json:"limit,omitempty"` // what was promised of it, where something was
}

// Limit is what a figure must keep to.
type Limit struct {
	Of   string  `json:"of"` // which number of it: median, p99, max
	Most float64 `json:"most"`
	Held bool    `json:"held"`
}

// Hold puts a limit on a result.
func (r *Result) Hold(of string, most float64) {
	r.Limit = &Limit{Of: of, Most: most, Held: r.Demarc.N > 0 && r.Demarc.Number(of) <= most}
}

// Stat is what a number of runs gave.
type Stat struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
	P99    float64 `json:"p99,omitempty"` // with OfMany only
}

// Number is one of them by its name in a limit.
func (s Stat) Number(of string) float64 {
	return map[string]float64{"median": s.Median, "p99": s.P99, "max": s.Max}[of]
}

// Peer is the same of somebody else.
type Peer struct {
	Stat
	Ratio *float64 `json:"ratio,omitempty"` // median of demarc over median of the peer; left out where it would be unfair or means nothing
	// With the metric "rate" only: what the peer was configured with.
	Form    string `json:"form,omitempty"`
	Ruleset string `json:"ruleset,omitempty"`
}

// Of is the statistic of a list; the median of an even number is the mean of the two in the middle.
func Of(values []float64) Stat {
	if len(values) == 0 {
		return Stat{}
	}
	v := slices.Clone(values)
	slices.Sort(v)
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (m + v[len(v)/2-1]) / 2
	}
	return Stat{Median: m, Min: v[0], Max: v[len(v)-1], N: len(v)}
}

// OfMany is Of with the 99th percentile: the smallest value that 99 in a hundred do not exceed.
func OfMany(values []float64) Stat {
	s := Of(values)
	if s.N > 0 {
		v := slices.Sorted(slices.Values(values))
		s.P99 = v[(99*len(v)+99)/100-1]
	}
	return s
}

// Ratio is a over b, or nil when b is nothing to divide by.
func Ratio(a, b Stat) *float64 {
	if a.N == 0 || b.N == 0 || b.Median <= 0 {
		return nil
	}
	r := a.Median / b.Median
	return &r
}

// Round leaves as many digits as mean something.
func (s Stat) Round(digits int) Stat {
	f := math.Pow(10, float64(digits))
	r := func(v float64) float64 { return math.Round(v*f) / f }
	return Stat{r(s.Median), r(s.Min), r(s.Max), s.N, r(s.P99)}
}

// JSON writes the object and a newline.
func (o *Output) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(o)
}

// Text is the median with its spread: "1.02 (0.98–1.05)".
func (s Stat) Text(digits int) string {
	if s.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, s.Median, digits, s.Min, digits, s.Max)
}
