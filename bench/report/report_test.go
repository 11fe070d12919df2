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
		{"one", []float64{3}, Stat{3, 3, 3, 1}},
		{"odd, unsorted", []float64{5, 1, 3}, Stat{3, 1, 5, 3}},
		{"even", []float64{4, 1, 2, 9}, Stat{3, 1, 9, 4}},
	} {
		in := append([]float64(nil), c.in...)
		if d := cmp.Diff(c.want, Of(c.in)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		if d := cmp.Diff(in, append([]float64(nil), c.in...)); d != "" {
			t.Errorf("%s: the list was changed: %s", c.name, d)
		}
	}
}

func TestRatio(t *testing.T) {
	if r := Ratio(Stat{3, 1, 9, 5}, Stat{2, 1, 4, 5}); r == nil || *r != 1.5 {
		t.Errorf("3 over 2 is %v", r)
	}
	if Ratio(Stat{3, 1, 9, 5}, Stat{0, 0, 0, 5}) != nil || Ratio(Stat{}, Stat{1, 1, 1, 1}) != nil {
		t.Error("a ratio of nothing")
	}
}

// The object has exactly the keys that its readers rely on.
func TestJSONIsOneObject(t *testing.T) {
	r := 1.5
	o := Output{Schema: Schema, Results: []Result{{
		Scenario: "throughput", Case: "64B/64k/nat44", Metric: "rate", Unit: "Mpps", Demarc: Stat{3, 1, 9, 5},
		Peers: map[string]Peer{"nft-expert": {Stat: Stat{2, 1, 4, 5}, Ratio: &r}},
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
