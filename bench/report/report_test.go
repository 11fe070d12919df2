package report

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []float64
		want Stat
	}{
		{"none", nil, Stat{}},
		{"one", []float64{3}, Stat{Median: 3, Min: 3, Max: 3, N: 1}},
		{"odd, unsorted", []float64{5, 1, 3}, Stat{Median: 3, Min: 1, Max: 5, N: 3}},
		{"even", []float64{4, 1, 2, 9}, Stat{Median: 3, Min: 1, Max: 9, N: 4}},
	} {
		in := append([]float64(nil), c.in...)
		c.want.Values = c.in
		if d := cmp.Diff(c.want, Of(c.in)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		if d := cmp.Diff(in, append([]float64(nil), c.in...)); d != "" {
			t.Errorf("%s: the list was changed: %s", c.name, d)
		}
	}
}

// The percentile is one of the values: of 200 the 198th, of 100 the 99th, of few the largest.
func TestOfMany(t *testing.T) {
	var v []float64
	for i := range 200 {
		v = append(v, float64(200-i))
	}
	for _, c := range []struct {
		in   []float64
		want float64
	}{{v, 198}, {v[100:], 99}, {v[199:], 1}, {v[150:], 50}, {nil, 0}} {
		if got := OfMany(c.in); got.P99 != c.want || got.N != len(c.in) {
			t.Errorf("%d values: %+v, want %v", len(c.in), got, c.want)
		}
	}
}

func TestHold(t *testing.T) {
	for _, c := range []struct {
		of   string
		most float64
		want bool
	}{{"p99", 198, true}, {"p99", 197.9, false}, {"max", 200, true}, {"max", 199, false}} {
		r := Result{Demarc: Stat{Median: 100, Min: 1, Max: 200, N: 200, P99: 198}}
		if r.Hold(c.of, c.most); r.Limit.Held != c.want {
			t.Errorf("%+v", r.Limit)
		}
	}
	var none Result
	if none.Hold("max", 1); none.Limit.Held {
		t.Error("a limit holds of what was not measured")
	}
}

func TestRatio(t *testing.T) {
	if r := Ratio(Stat{Median: 3, Min: 1, Max: 9, N: 5}, Stat{Median: 2, Min: 1, Max: 4, N: 5}); r == nil || *r != 1.5 {
		t.Errorf("3 over 2 is %v", r)
	}
	if Ratio(Stat{Median: 3, Min: 1, Max: 9, N: 5}, Stat{Median: 0, Min: 0, Max: 0, N: 5}) != nil || Ratio(Stat{}, Stat{Median: 1, Min: 1, Max: 1, N: 1}) != nil {
		t.Error("a ratio of nothing")
	}
}

// The object has exactly the keys that its readers rely on.
func TestJSONIsOneObject(t *testing.T) {
	r := 1.5
	o := Output{Schema: Schema, Results: []Result{{
		Scenario: "throughput", Case: "64B/64k/nat44", Metric: "rate", Unit: "Mpps", Demarc: Stat{Median: 3, Min: 1, Max: 9, N: 5},
		Peers: map[string]Peer{"nft-expert": {Stat: Stat{Median: 2, Min: 1, Max: 4, N: 5}, Ratio: &r}},
	}}}
	var b bytes.Buffer
	if err := o.JSON(&b); err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(&b)
	var got map[string]any
	if err := d.Decode(&got); err != nil || d.More() {
		t.Fatalf("%v, more: %v", err, d.More())
	}
	stat := func(m, lo, hi float64) map[string]any {
		return map[string]any{"median": m, "min": lo, "max": hi, "n": 5.0}
	}
	peer := stat(2, 1, 4)
	peer["ratio"] = 1.5
	want := []any{map[string]any{"scenario": "throughput", "case": "64B/64k/nat44", "metric": "rate", "unit": "Mpps", "demarc": stat(3, 1, 9),
		"peers": map[string]any{"nft-expert": peer}}}
	if d := cmp.Diff(want, got["results"]); d != "" {
		t.Error(d)
	}
	if len(got) != 3 || got["schema"] != 1.0 || got["machine"] == nil {
		t.Errorf("top level: %v", got)
	}
}

// What a scenario says that its readers must know stands in the whole run with its name.
func TestTakeKeepsNotes(t *testing.T) {
	var o Output
	for _, name := range []string{"throughput", "latency"} {
		if err := o.Take(Part{Name: name}, &Output{Notes: []string{"testpmd is left out"}}); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"throughput: testpmd is left out", "latency: testpmd is left out"}, o.Notes); d != "" {
		t.Error(d)
	}
}
