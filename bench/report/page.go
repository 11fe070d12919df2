package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// mostPage is what the page may weigh: it is attached to mails and committed.
const mostPage = 1 << 20

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// HTML writes the object as one page that needs nothing else: style and drawings are in it, it loads nothing and runs nothing. Where a configuration is long, or there are more
// runs than the eye tells apart, it shows a part and says so; the object has all.
func (o *Output) HTML(w io.Writer) error {
	return pageTemplate.Execute(w, o.view())
}

// view is what the template shows.
type view struct {
	Out                           *Output
	Title                         string
	Better, Worse, Same, Unknown  int
	Missed                        []string
	Summary                       []comparisonRow
	SummaryTicks                  []tick
	Promises                      []promiseRow
	Sections                      []section
	Configs                       []configText
	Command                       string
	Versions                      []pairOf
	Sides                         []side
	HasPeers, HasLimits, HasCurve bool
	Slowed                        string // how often CPUs were; "" = hardly
}

type (
	// side is whose figure it is, and its colour.
	side struct {
		Name  string
		Class string
	}
	pairOf struct{ Key, Value string }
	// tick is a labelled place of an axis, in per cent of its width.
	tick struct {
		At    string
		Label string
	}
	comparisonRow struct {
		Scenario, Case, Metric, Peer string
		Ours, Theirs, Ratio          string
		Verdict                      Verdict
		At, From, Wide               string // per cent; At "" = it has no ratio
	}
	promiseRow struct {
		Figure, Promise, Got string
		Held, Open           bool
	}
	section struct {
		Name, About string
		Repeat      []string // a line for each part of it
		Errors      []string // of those
		Part        *Part
		Charts      []chart
		Curves      []curveChart
		Rest        []restRow
	}
	chart struct {
		Metric, Unit, Direction string
		Log                     bool
		Ticks                   []tick
		Lanes                   []lane
	}
	// lane is the runs of one side in one case.
	lane struct {
		Case, Side, Class  string
		Dots               []string
		Median, From, Wide string
		Limit              string // place of the promise; "" = none
		Missed             bool
		Text, Note         string
	}
	curveChart struct {
		Title, Unit string
		X, Y        []tick
		Lines       []curveLine
	}
	curveLine struct {
		Side, Class string
		Points      string
	}
	restRow    struct{ Case, Metric, Unit, Text string }
	configText struct {
		Name, Text string
		Cut        int // lines left out
	}
)

func (o *Output) view() *view {
	v := &view{Out: o, Title: "demarc bench", Missed: o.Missed(), Command: o.command()}
	n := o.Wins()
	v.Better, v.Worse, v.Same, v.Unknown = n[Wins], n[Loses], n[Same], n[Unresolved]
	classes := o.classes()
	for _, name := range slices.SortedFunc(maps.Keys(classes), func(a, b string) int { return strings.Compare(classes[a], classes[b]) }) {
		v.Sides = append(v.Sides, side{name, classes[name]})
	}
	v.HasPeers = len(v.Sides) > 1
	if s := o.Machine.Speed; s.Looks >= someLooks && s.part() >= muchSlowed {
		v.Slowed = o.Machine.Speed.String()
	}
	v.summary(o)
	for i := range o.Results {
		if r := &o.Results[i]; r.Limit != nil {
			got := "not measured"
			if x, ok := r.Limited(); ok {
				got = strings.TrimSpace(Number(x) + " " + r.LimitUnit())
			}
			v.Promises = append(v.Promises, promiseRow{r.Scenario + " " + r.Case + ", " + r.Metric, r.Limit.word() + " " + r.Limit.Text() + " " + r.LimitUnit(), got, r.Limit.Held, r.Limit.Open})
		}
	}
	v.HasLimits = v.Promises != nil
	for _, name := range o.scenarioNames() {
		s := o.section(name, classes)
		v.HasCurve = v.HasCurve || s.Curves != nil
		v.Sections = append(v.Sections, s)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Configs)) {
		v.Configs = append(v.Configs, shorten(name, o.Configs[name]))
	}
	for i := range o.Results {
		for _, peer := range slices.Sorted(maps.Keys(o.Results[i].Peers)) {
			if p := o.Results[i].Peers[peer]; p.Ruleset != "" {
				v.Configs = append(v.Configs, shorten(peer, p.Ruleset))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Machine.Versions)) {
		v.Versions = append(v.Versions, pairOf{name, o.Machine.Versions[name]})
	}
	return v
}

// command repeats the run.
func (o *Output) command() string {
	switch o.Plan {
	case "table":
		return "make bench-table"
	case "full":
		return "make bench-full"
	case "short":
		return "make bench"
	}
	return "demarc bench --help"
}

// classes gives each side a colour: demarc the first, peers by name.
func (o *Output) classes() map[string]string {
	peers := map[string]bool{}
	for _, r := range o.Results {
		for name := range r.Peers {
			peers[name] = true
		}
	}
	out := map[string]string{Us: "s0"}
	for i, name := range slices.Sorted(maps.Keys(peers)) {
		out[name] = "s" + strconv.Itoa(1+i%6)
	}
	return out
}

// scenarioNames are those of the results, in order, and those that were run and have none.
func (o *Output) scenarioNames() (list []string) {
	for _, r := range o.Results {
		if !slices.Contains(list, r.Scenario) {
			list = append(list, r.Scenario)
		}
	}
	return list
}

// summary is each comparison with a peer, wins and losses alike, on one axis on which the right is demarc's.
func (v *view) summary(o *Output) {
	const most = 20.0 // times; beyond it is drawn at the edge
	s := scale{lo: 1 / most, hi: most, log: true}
	for i := range o.Results {
		r := &o.Results[i]
		for _, peer := range slices.Sorted(maps.Keys(r.Peers)) {
			p := r.Peers[peer]
			if p.Verdict == "" {
				continue
			}
			row := comparisonRow{Scenario: r.Scenario, Case: r.Case, Metric: r.Metric, Peer: peer, Ours: unit(r.Demarc.Spread(), r.Unit), Theirs: unit(p.Spread(), r.Unit), Verdict: p.Verdict}
			if p.Ratio != nil && *p.Ratio > 0 {
				row.Ratio = "×" + Number(*p.Ratio)
				gain := func(x float64) float64 {
					if r.Better == Lower {
						x = 1 / x
					}
					return min(most, max(1/most, x))
				}
				row.At = percent(s.at(gain(*p.Ratio)))
				if len(p.Interval) == 2 && p.Interval[0] > 0 {
					row.Ratio += " (" + Number(p.Interval[0]) + "–" + Number(p.Interval[1]) + ")"
					a, b := s.at(gain(p.Interval[0])), s.at(gain(p.Interval[1]))
					row.From, row.Wide = percent(min(a, b)), percent(math.Abs(b-a))
				}
			}
			v.Summary = append(v.Summary, row)
		}
	}
	for _, x := range []float64{0.1, 0.5, 1, 2, 10} {
		label := "×" + Number(x)
		if x < 1 {
			label = "÷" + Number(1/x)
		}
		v.SummaryTicks = append(v.SummaryTicks, tick{percent(s.at(x)), label})
	}
}

func unit(text, u string) string { return strings.TrimSpace(text + " " + u) }

// section is a scenario's charts: figures of one metric share an axis.
func (o *Output) section(name string, classes map[string]string) section {
	s := section{Name: name}
	for i := range o.Scenarios {
		if p := &o.Scenarios[i]; p.Name == name || s.Part == nil && p.Name == "quick" && name == "throughput" {
			s.Part, s.About, s.Repeat = p, p.About, append(s.Repeat, "demarc bench "+strings.Join(p.Args, " "))
			if p.Error != "" {
				s.Errors = append(s.Errors, p.Error)
			}
		}
	}
	var metrics []string
	of := map[string][]*Result{}
	for i := range o.Results {
		r := &o.Results[i]
		if r.Scenario != name {
			continue
		}
		if c := curves(r, classes); c != nil {
			s.Curves = append(s.Curves, *c)
		}
		if r.Better == "" && r.Limit == nil && len(r.Peers) == 0 || r.Demarc.N == 0 && len(r.Peers) == 0 {
			s.Rest = append(s.Rest, restRow{r.Case, r.Metric, r.Unit, r.Demarc.Spread()})
			continue
		}
		key := r.Metric + "\x00" + r.Unit
		if of[key] == nil {
			metrics = append(metrics, key)
		}
		of[key] = append(of[key], r)
	}
	for _, key := range metrics {
		s.Charts = append(s.Charts, draw(of[key], classes))
	}
	return s
}

// mostDots of a lane are drawn: more are a blot.
const mostDots = 60

func draw(results []*Result, classes map[string]string) chart {
	c := chart{Metric: results[0].Metric, Unit: results[0].Unit}
	var s scale
	see := func(x float64) { s.see(x) }
	for _, r := range results {
		if r.Better != "" {
			c.Direction = string(r.Better) + " is better"
		}
		for _, name := range r.Sides() {
			if st := r.Side(name); st.N > 0 {
				see(st.Min)
				see(st.Max)
			}
		}
		if l := placed(r); l != nil {
			see(*l)
		}
	}
	s.settle()
	c.Log, c.Ticks = s.log, s.ticks()
	for _, r := range results {
		for i, name := range r.Sides() {
			st := r.Side(name)
			l := lane{Case: r.Case, Side: name, Class: classes[name], Text: st.Spread()}
			if i > 0 {
				l.Case = ""
			}
			if st.N > 0 {
				l.Median = percent(s.at(st.Median))
				l.From, l.Wide = percent(s.at(st.Min)), percent(s.at(st.Max)-s.at(st.Min))
				l.Note = fmt.Sprintf("n %d", st.N)
			}
			values := slices.Sorted(slices.Values(st.Values))
			if len(values) > mostDots {
				few := make([]float64, mostDots)
				for i := range few {
					few[i] = values[i*(len(values)-1)/(mostDots-1)]
				}
				values = few
				l.Note += fmt.Sprintf(", %d of them drawn", mostDots)
			}
			last := ""
			for _, x := range values {
				if at := percent(s.at(x)); at != last { // equal ones are one dot
					l.Dots, last = append(l.Dots, at), at
				}
			}
			if st.Disturbed > 0 {
				l.Note += fmt.Sprintf(", %d disturbed", st.Disturbed)
			}
			if p, ok := r.Peers[name]; ok && p.Verdict != "" {
				l.Note += ", demarc " + p.Text()
			}
			if r.Limit != nil && i == 0 {
				l.Note += "; " + r.Limit.Fared()
				l.Missed = !r.Limit.Held && !r.Limit.Open
				if x := placed(r); x != nil {
					l.Limit = percent(s.at(*x))
				}
			}
			c.Lanes = append(c.Lanes, l)
		}
	}
	return c
}

// placed is the promise as a place on the figure's own axis; nil where it has none.
func placed(r *Result) *float64 {
	if r.Limit == nil || r.Limit.Of == "ratio" {
		return nil
	}
	if r.Limit.Most != nil {
		return r.Limit.Most
	}
	return r.Limit.Least
}

// curves draws a distribution by its tail: as far from 50 to 90 per cent as from 90 to 98.
func curves(r *Result, classes map[string]string) *curveChart {
	const nines = 4.0
	c := &curveChart{Title: r.Case + ", " + r.Metric, Unit: r.Unit}
	along := func(part float64) float64 { return 100 * min(1, -math.Log10(max(1-part, 1e-9))/nines) }
	var y scale
	for _, name := range r.Sides() {
		for _, p := range r.Side(name).Curve {
			y.see(p.Value)
		}
	}
	if !y.seen {
		return nil
	}
	y.settle()
	for _, name := range r.Sides() {
		var b strings.Builder
		for _, p := range r.Side(name).Curve {
			fmt.Fprintf(&b, "%.2f,%.2f ", along(p.Part), 100-y.at(p.Value))
		}
		if b.Len() > 0 {
			c.Lines = append(c.Lines, curveLine{name, classes[name], strings.TrimSpace(b.String())})
		}
	}
	for _, p := range []float64{0.5, 0.9, 0.99, 0.999, 0.9999} {
		c.X = append(c.X, tick{percent(along(p)), Number(100*p) + " %"})
	}
	for _, t := range y.ticksAt() {
		c.Y = append(c.Y, tick{percent(100 - y.at(t)), Number(t)})
	}
	return c
}

// shorten leaves the beginning and the end of a long text.
func shorten(name, text string) configText {
	const head, tail, width = 120, 40, 400
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	cut := 0
	if len(lines) > head+tail+20 {
		cut = len(lines) - head - tail
		lines = slices.Concat(lines[:head], []string{fmt.Sprintf("… %d lines that are in results.json …", cut)}, lines[len(lines)-tail:])
	}
	for i, l := range lines {
		if r := []rune(l); len(r) > width {
			lines[i] = string(r[:width]) + "…"
		}
	}
	return configText{name, strings.Join(lines, "\n"), cut}
}
