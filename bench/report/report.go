package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Schema is the version of the JSON object. Fields are added, never renamed; docs/bench/results.schema.json describes them.
const Schema = 1

// Output is the JSON object: what one scenario measured, or a whole run of the suite.
type Output struct {
	Schema  int      `json:"schema"`
	Machine Machine  `json:"machine"`
	Results []Result `json:"results"`
	// What each side was configured with, by its name, where the same serves all cases; in a run of the suite by "scenario/side".
	Configs map[string]string `json:"configs,omitempty"`
	Notes   []string          `json:"notes,omitempty"`   // what a reader must know: terms, and what was left out and why
	Commit  string            `json:"commit,omitempty"`  // that the program was built of, where the build knows it
	Began   string            `json:"began,omitempty"`   // RFC 3339, UTC
	Plan    string            `json:"plan,omitempty"`    // of the suite: short, table or full
	Partial string            `json:"partial,omitempty"` // why not all of the plan was measured
	// Of the suite: what it ran, in this order.
	Scenarios []Part `json:"scenarios,omitempty"`
}

// LeftOut begins the note of what was not measured for want of time; Take puts the scenario before it.
const LeftOut = "for want of time: "

// LeftOut are those notes.
func (o *Output) LeftOut() (list []string) {
	for _, n := range o.Notes {
		if strings.Contains(n, LeftOut) {
			list = append(list, n)
		}
	}
	return list
}

// Part is one scenario in a run of the suite.
type Part struct {
	Name      string   `json:"name"`
	About     string   `json:"about"`
	Args      []string `json:"args"` // that repeat it alone: `demarc bench ARGS`
	Seconds   float64  `json:"seconds"`
	Mode      string   `json:"mode,omitempty"` // AF_XDP mode and attach of the gateway's ports, as the kernel says
	Seed      uint64   `json:"seed,omitempty"`
	Disturbed int      `json:"disturbed"`    // loads, pairs and rows kept although something else ran or a CPU was slowed
	Repeated  int      `json:"repeated"`     // those thrown away and repeated because something else ran
	Foreign   float64  `json:"foreign_cpus"` // CPUs' worth of time that went to what is not the bench's, where it was looked at
	Speed     Speed    `json:"cpu_speed,omitzero"`
	Error     string   `json:"error,omitempty"`        // why it is not whole, or what was not as promised
	Skipped   bool     `json:"not_measured,omitempty"` // nothing of it was measured
}

// Machine is where and with what the figures were measured.
type Machine struct {
	Kernel    string            `json:"kernel"`
	CPU       string            `json:"cpu"`
	CPUs      int               `json:"cpus"`
	MemoryMiB int               `json:"memory_mib"`
	Virtual   bool              `json:"virtual"` // the CPU says that there is a hypervisor
	Go        string            `json:"go"`
	Demarc    string            `json:"demarc"`               // version
	Asked     string            `json:"mode_asked,omitempty"` // AF_XDP mode that the gateway's ports were told to use
	Mode      string            `json:"mode"`                 // AF_XDP mode and attach of the gateway's ports, as the kernel says
	Nft       string            `json:"nft"`                  // version
	Versions  map[string]string `json:"versions,omitempty"`   // of the peers' programs, and of clients, as they say it
	Seconds   float64           `json:"seconds"`
	Disturbed int               `json:"disturbed_pairs"`        // pairs kept although something else ran or a CPU was slowed
	Repeated  int               `json:"repeated_pairs"`         // pairs thrown away and repeated because something else ran
	Again     int               `json:"repeated_loads"`         // single loads likewise
	Seed      uint64            `json:"seed,omitempty"`         // of what was made at random
	Foreign   float64           `json:"foreign_cpus,omitempty"` // CPUs' worth of time that went to what is not the bench's, over the whole run
	Speed     Speed             `json:"cpu_speed,omitzero"`
}

// Speed is at what speed the CPUs were: looks at how many cycles a known piece of work takes, beside loads. Where a core's other thread is somebody else's machine, nothing else shows it.
type Speed struct {
	Looks int `json:"looks"`
	Slow  int `json:"slow"` // at which a CPU took more than 1.3 times what it had taken at best until then
}

// part is that of the looks at which a CPU was slowed, in percent.
func (s Speed) part() int { return int(math.Round(100 * float64(s.Slow) / float64(max(1, s.Looks)))) }

// String says it to a person.
func (s Speed) String() string {
	return fmt.Sprintf("a CPU below 3/4 of its best speed at %d %% of %d looks", s.part(), s.Looks)
}

// muchSlowed is from what part of looks on, in percent, a page warns of it, and how far two runs may be apart.
const muchSlowed = 20

// someLooks is of how many looks a part says something.
const someLooks = 10

// SpeedsApart says that the CPUs were slowed in one run far more often than in the other; "" = they were not, or nobody looked.
func SpeedsApart(a, b *Output) string {
	x, y := a.Machine.Speed, b.Machine.Speed
	if x.Looks < someLooks || y.Looks < someLooks || max(x.part()-y.part(), y.part()-x.part()) <= muchSlowed {
		return ""
	}
	return fmt.Sprintf("the machines were not equally fast (A: %s; B: %s): look at ratios and at the peers' rows (--peers)", x, y)
}

// take adds what another part of a run has seen.
func (s *Speed) take(of Speed) {
	s.Looks, s.Slow = s.Looks+of.Looks, s.Slow+of.Slow
}

// Result is one metric of one case, of every side that it was measured of.
type Result struct {
	Scenario string          `json:"scenario"`
	Case     string          `json:"case"`
	Metric   string          `json:"metric"`
	Unit     string          `json:"unit"`
	Better   Better          `json:"better,omitempty"` // the direction in which it improves; left out where it has none
	Demarc   Stat            `json:"demarc"`
	Peers    map[string]Peer `json:"peers"`
	Limit    *Limit          `json:"limit,omitempty"` // what was promised of it, where something was
}

// Better is the direction in which a figure improves.
type Better string

// The directions.
const (
	Higher Better = "higher"
	Lower  Better = "lower"
)

// Limit is what a figure must keep to.
type Limit struct {
	Of    string   `json:"of"`             // which number of it: median, p99, max, ratio (to the peer)
	Peer  string   `json:"peer,omitempty"` // of a ratio
	Most  *float64 `json:"most,omitempty"`
	Least *float64 `json:"least,omitempty"`
	Held  bool     `json:"held"`
	Aim   bool     `json:"aim,omitempty"`  // what is aimed at: a run that misses it does not fail
	Open  bool     `json:"open,omitempty"` // of an aim beside a peer: the limit lies inside the spread, or there are too few runs to tell. Neither held nor missed
}

// Hold puts an upper limit on a result.
func (r *Result) Hold(of string, most float64) { r.hold(Limit{Of: of, Most: &most}) }

// HoldLeast puts a lower limit on a result.
func (r *Result) HoldLeast(of string, least float64) { r.hold(Limit{Of: of, Least: &least}) }

// AimRatio aims at demarc having at least, or where lower is better at most, so many times what the peer has. It is held, or missed, where the
// whole interval of the ratio lies on that side.
func (r *Result) AimRatio(peer string, times float64) {
	l := Limit{Of: "ratio", Peer: peer, Aim: true}
	if r.Better == Lower {
		l.Most = &times
	} else {
		l.Least = &times
	}
	r.hold(l)
}

func (r *Result) hold(l Limit) {
	r.Limit = &l
	v, ok := r.Limited()
	l.Held = ok && l.keeps(v)
	if ok && l.Aim && l.Of == "ratio" {
		l.Resolve(Compare(r.Demarc, r.Peers[l.Peer].Stat, r.Better).Interval)
	}
}

func (l *Limit) keeps(v float64) bool {
	return (l.Most == nil || v <= *l.Most) && (l.Least == nil || v >= *l.Least)
}

// Resolve has a limit be held or missed by where a figure lies with 95 % confidence, and open where that is on both sides; nil = that cannot be told.
func (l *Limit) Resolve(interval []float64) {
	l.Held, l.Open = false, len(interval) != 2
	if !l.Open {
		from, to := l.keeps(interval[0]), l.keeps(interval[1])
		l.Held, l.Open = from && to, from != to
	}
}

// Limited is the number that the limit is of; ok = it was measured.
func (r *Result) Limited() (v float64, ok bool) {
	if r.Limit.Of != "ratio" {
		return r.Demarc.Number(r.Limit.Of), r.Demarc.N > 0
	}
	if ratio := Ratio(r.Demarc, r.Peers[r.Limit.Peer].Stat); ratio != nil {
		return *ratio, true
	}
	return 0, false
}

// Fared says what was promised, or aimed at, and whether that was held.
func (l *Limit) Fared() string {
	how := Held(l.Held)
	if l.Open {
		how = string(Unresolved)
	}
	return l.word() + " " + l.Text() + ": " + how
}

func (l *Limit) word() string {
	if l.Aim {
		return "aimed at"
	}
	return "promised"
}

// Text is the promise in words, without its unit: "p99 at most 60".
func (l *Limit) Text() string {
	s := l.Of
	if l.Peer != "" {
		s += " to " + l.Peer
	}
	if l.Most != nil {
		s += " at most " + number(*l.Most)
	}
	if l.Least != nil {
		s += " at least " + number(*l.Least)
	}
	return s
}

// LimitUnit is the unit of the number that the limit is of.
func (r *Result) LimitUnit() string {
	if r.Limit.Of == "ratio" {
		return "times"
	}
	return r.Unit
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// Stat is what a number of runs gave.
type Stat struct {
	Median    float64   `json:"median"`
	Min       float64   `json:"min"`
	Max       float64   `json:"max"`
	N         int       `json:"n"`
	P99       float64   `json:"p99,omitempty"`       // with OfMany only
	Values    []float64 `json:"values,omitempty"`    // all of them, in the order in which they were measured
	Disturbed int       `json:"disturbed,omitempty"` // how many of them were measured although something else ran or a CPU was slowed
	Curve     []Point   `json:"curve,omitempty"`     // of a distribution, such as latency, by rising part
}

// Point of a distribution: the part (0..1) of all samples that are not larger than the value, in the metric's unit.
type Point struct {
	Part  float64 `json:"part"`
	Value float64 `json:"value"`
}

// Number is one of them by its name in a limit.
func (s Stat) Number(of string) float64 {
	return map[string]float64{"median": s.Median, "p99": s.P99, "max": s.Max, "min": s.Min}[of]
}

// Peer is the same of somebody else.
type Peer struct {
	Stat
	Ratio    *float64  `json:"ratio,omitempty"`    // median of demarc over median of the peer; left out where it would be unfair or means nothing
	Interval []float64 `json:"interval,omitempty"` // least and most of the ratio, with 95 % confidence; left out with too few runs
	Verdict  Verdict   `json:"verdict,omitempty"`  // of demarc beside the peer; left out where no direction is better
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
	return Stat{Median: m, Min: v[0], Max: v[len(v)-1], N: len(v), Values: slices.Clone(values)}
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

// Ratio is a over b, or nil when b is nothing to divide by, or a is below nothing: a cost above a floor that is smaller than what the floor is known by.
func Ratio(a, b Stat) *float64 {
	if a.N == 0 || b.N == 0 || b.Median <= 0 || a.Median < 0 {
		return nil
	}
	r := a.Median / b.Median
	return &r
}

// Round leaves as many digits as mean something.
func (s Stat) Round(digits int) Stat {
	f := math.Pow(10, float64(digits))
	r := func(v float64) float64 { return math.Round(v*f) / f }
	s.Median, s.Min, s.Max, s.P99 = r(s.Median), r(s.Min), r(s.Max), r(s.P99)
	s.Values, s.Curve = slices.Clone(s.Values), slices.Clone(s.Curve)
	for i, v := range s.Values {
		s.Values[i] = r(v)
	}
	for i := range s.Curve {
		s.Curve[i].Value = r(s.Curve[i].Value)
	}
	return s
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
