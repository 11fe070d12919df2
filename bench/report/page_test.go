package report

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// sample is an object with everything that a page shows.
func sample() *Output {
	o := &Output{Schema: Schema, Plan: "short", Notes: []string{"throughput: testpmd is left out: not installed", "latency: " + LeftOut + "3 of 5 turns"}, Began: "2026-11-27T03:00:00Z", Commit: "0123abc", Partial: "voip was not measured (no <time> left)",
		Machine:   Machine{Kernel: "6.18", CPU: "EPYC", CPUs: 2, Mode: "in/0 copy (native attach)", Disturbed: 1, Speed: Speed{Looks: 200, Slow: 90}, Versions: map[string]string{"keepalived": "2.2.7"}},
		Scenarios: []Part{{Name: "throughput", About: "frames", Args: []string{"throughput", "--pairs", "5"}, Seconds: 90}, {Name: "voip", Skipped: true, Error: "no time left"}},
		Configs:   map[string]string{"throughput/nft-expert": strings.Repeat("rule <script>alert(1)</script>\n", 1000), "throughput/demarc": "schema = 1"}}
	runs := func(f float64, n int) (v []float64) {
		for i := range n {
			v = append(v, f*(1+0.05*math.Sin(float64(i*i))))
		}
		return v
	}
	curve := func(f float64) (c []Point) {
		for _, p := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
			c = append(c, Point{p, f / (1.02 - p)})
		}
		return c
	}
	add := func(scenario, kase, metric, unit string, better Better, side string, v []float64, c []Point) *Result {
		return o.Add(Row{Scenario: scenario, Case: kase, Metric: metric, Unit: unit, Better: better, Side: side, Values: v, Curve: c, Digits: 4})
	}
	for i, kase := range []string{"64B/64k/nat44", "IMIX/64k/nat44"} {
		for j, s := range []string{Us, "kernel", "nft-expert"} {
			r := add("throughput", kase, "rate", "Mpps", Higher, s, runs(1.5-0.5*float64((i+j)%3), 6), nil)
			if s == "nft-expert" {
				r.AimRatio(s, 1.5)
			}
		}
	}
	add("latency", "64B/load-50", "p99", "us", Lower, Us, runs(90, 6), curve(30))
	add("latency", "64B/load-50", "p99", "us", Lower, "kernel", runs(20, 6), curve(8))
	add("failover", "kill", "gap", "ms", Lower, Us, runs(51, 6), nil).Hold("max", 60)
	add("failover", "gone", "gap", "ms", Lower, Us, append(runs(151, 200), 900), nil).Hold("max", 500)
	add("failover", "gone", "gap", "ms", Lower, "keepalived", runs(183, 6), nil)
	add("failover", "gone", "lost", "connections", Lower, Us, []float64{0, 0, 0, 0}, nil)
	add("failover", "gone", "lost", "connections", Lower, "keepalived", []float64{0, 0, 0, 0}, nil)
	add("failover", "gone", "sent", "packets", "", Us, []float64{4000}, nil)
	o.Judge()
	return o
}

func render(t *testing.T, o *Output) string {
	t.Helper()
	var b bytes.Buffer
	if err := o.HTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// walk calls fn with each element of a page, and fails where the parser had to mend what was written: parsed and written again it is the same number of elements.
func walk(t *testing.T, text string, fn func(*html.Node)) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for node := range root.Descendants() {
		if node.Type == html.ElementNode {
			n++
			fn(node)
		}
	}
	opened := 0
	var stack []string
	for z := html.NewTokenizer(strings.NewReader(text)); ; {
		switch z.Next() {
		case html.ErrorToken:
			if opened != n || len(stack) > 0 {
				t.Errorf("%d elements are written and %d parsed; not closed: %v", opened, n, stack)
			}
			return
		case html.StartTagToken:
			opened++
			if name, _ := z.TagName(); !map[string]bool{"meta": true, "br": true}[string(name)] {
				stack = append(stack, string(name))
			}
		case html.SelfClosingTagToken:
			opened++
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(stack) == 0 || stack[len(stack)-1] != string(name) {
				t.Fatalf("</%s> closes %v", name, stack)
			}
			stack = stack[:len(stack)-1]
		}
	}
}

// The page is whole by itself: it parses as written, refers to nothing outside, runs nothing, and is small.
func TestPageNeedsNothingElse(t *testing.T) {
	for _, o := range []*Output{sample(), {}, {Results: []Result{{Scenario: "x", Case: "c", Metric: "m"}}}} {
		text := render(t, o)
		walk(t, text, func(n *html.Node) {
			switch n.Data {
			case "script", "link", "iframe", "object", "embed", "img", "image", "base", "form", "a":
				t.Errorf("the page has a <%s>", n.Data)
			}
			for _, a := range n.Attr {
				if n.Data == "use" && a.Key == "href" && strings.HasPrefix(a.Val, "#") {
					continue // of the page itself
				}
				if strings.HasPrefix(a.Key, "on") || strings.Contains(a.Val, "//") || a.Key == "src" || a.Key == "href" || a.Key == "srcset" {
					t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
				}
				if strings.Contains(a.Val, "NaN") || strings.Contains(a.Val, "Inf") {
					t.Errorf("<%s %s=%q> cannot be drawn", n.Data, a.Key, a.Val)
				}
			}
			if n.Data == "style" && (strings.Contains(n.FirstChild.Data, "url(") || strings.Contains(n.FirstChild.Data, "@import") || strings.Contains(n.FirstChild.Data, "http")) {
				t.Error("the style refers to something outside")
			}
		})
		if len(text) > mostPage {
			t.Errorf("%d bytes", len(text))
		}
	}
}

// What demarc loses at is shown as what it wins: a line each with its verdict, marks on both sides of the middle.
func TestPageShowsLossesAsPlainlyAsWins(t *testing.T) {
	o := sample()
	n := o.Wins()
	if n[Wins] == 0 || n[Loses] == 0 || n[Same] != 1 {
		t.Fatalf("the sample has %v", n)
	}
	lines, left, right := map[string]int{}, 0, 0
	for _, row := range o.view().Summary {
		lines[string(row.Verdict)]++
		var at float64
		if _, err := fmt.Sscan(row.At, &at); err == nil && row.Verdict != Unresolved && (at > 50) != (row.Verdict == Wins) {
			t.Errorf("%s %s beside %s is %s and stands at %v", row.Case, row.Metric, row.Peer, row.Verdict, at)
		} else if at > 50 {
			right++
		} else if at > 0 {
			left++
		}
	}
	for v, want := range n {
		if lines[string(v)] != want {
			t.Errorf("%d lines are %s, want %d", lines[string(v)], v, want)
		}
	}
	if left == 0 || right == 0 {
		t.Errorf("%d left, %d right", left, right)
	}
	text := render(t, o)
	for _, want := range []string{"2 figures are not what was promised or aimed at", "Not whole.", "voip was not measured (no &lt;time&gt; left)", ">MISSED<", "git checkout 0123abc", "make bench", "./demarc bench throughput --pairs 5",
		"lines that are in results.json", "60 of them drawn", "keepalived", "6.18", "copy (native attach)", "&lt;script&gt;alert", "99.99 %", ">0</text>", "prefers-color-scheme:dark", "@media print",
		"these have fewer runs:<ul><li>latency: for want of time: 3 of 5", "Terms, and what was left out", "below 3/4 of its best speed at 45 % of 200 looks: their cores have other work", "<li>throughput: testpmd is left out"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
}

func TestScale(t *testing.T) {
	for _, c := range []struct {
		lo, hi float64
		log    bool
		first  float64
		ticks  int
	}{{1, 2, false, 0, 5}, {0, 0, false, 0, 6}, {1, 1000, true, 1, 10}, {0.01, 90000, true, 0.01, 7}, {0, 37, false, 0, 8}, {0.93, 0.95, false, 0, 5}} {
		var s scale
		s.see(c.lo)
		s.see(c.hi)
		s.settle()
		got := s.ticksAt()
		if s.log != c.log || len(got) == 0 || math.Abs(got[0]-c.first) > 1e-9 || len(got) < 4 || len(got) > 10 {
			t.Errorf("%v to %v: log %v, ticks %v", c.lo, c.hi, s.log, got)
		}
		for _, v := range append(got, c.lo, c.hi) {
			if at := s.at(v); !(at >= 0 && at <= 100.01) {
				t.Errorf("%v to %v: %v stands at %v", c.lo, c.hi, v, at)
			}
		}
	}
}
