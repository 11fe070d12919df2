package report

import (
	"fmt"
	"maps"
	"slices"
)

// Take adds what one scenario of a run has measured. What a figure repeats of a peer's configuration moves to Configs, where it stands once; notes say whose they are. The error names a figure
// that the run has already: which of the two is meant nobody could say, so the later one is left out.
func (o *Output) Take(p Part, of *Output) (err error) {
	defer func() { o.Scenarios = append(o.Scenarios, p) }()
	if of == nil {
		p.Skipped = true
		return nil
	}
	m := &of.Machine
	p.Seconds, p.Mode, p.Seed, p.Disturbed, p.Repeated, p.Foreign = m.Seconds, m.Mode, m.Seed, m.Disturbed, m.Repeated+m.Again, m.Foreign
	p.Speed = m.Speed
	if o.Configs == nil {
		o.Configs = map[string]string{}
	}
	for _, n := range of.Notes {
		o.Notes = append(o.Notes, p.Name+": "+n)
	}
	for side, text := range of.Configs {
		o.Configs[p.Name+"/"+side] = text
	}
	for _, r := range of.Results {
		if o.Find(r.Scenario, r.Case, r.Metric) != nil {
			err = fmt.Errorf("%s %s %s is measured by two scenarios", r.Scenario, r.Case, r.Metric)
			continue
		}
		r.Peers = maps.Clone(r.Peers)
		for name, peer := range r.Peers {
			if key := p.Name + "/" + name; peer.Ruleset != "" {
				if o.Configs[key] == "" {
					o.Configs[key] = peer.Ruleset
				}
				peer.Ruleset = ""
				r.Peers[name] = peer
			}
		}
		o.Results = append(o.Results, r)
	}
	t := &o.Machine
	if t.Mode == "" {
		t.Mode, t.Asked = m.Mode, m.Asked
	}
	if t.Nft == "" {
		t.Nft = m.Nft
	}
	for name, v := range m.Versions {
		if t.Versions == nil {
			t.Versions = map[string]string{}
		}
		t.Versions[name] = v
	}
	t.Speed.take(m.Speed)
	t.Disturbed, t.Repeated, t.Again = t.Disturbed+m.Disturbed, t.Repeated+m.Repeated, t.Again+m.Again
	return err
}

// Find is a figure by its name; nil = it was not measured.
func (o *Output) Find(scenario, kase, metric string) *Result {
	i := slices.IndexFunc(o.Results, func(r Result) bool {
		return r.Scenario == scenario && r.Case == kase && r.Metric == metric
	})
	if i < 0 {
		return nil
	}
	return &o.Results[i]
}

// Sides are those that a figure was measured of: demarc first, then peers by name.
func (r *Result) Sides() []string { return append([]string{Us}, slices.Sorted(maps.Keys(r.Peers))...) }

// Side is what one of them got.
func (r *Result) Side(name string) Stat {
	if name == Us {
		return r.Demarc
	}
	return r.Peers[name].Stat
}

// Missed are the promises that were not kept and the aims that were missed, a line each.
func (o *Output) Missed() (list []string) {
	for i := range o.Results {
		r := &o.Results[i]
		if r.Limit == nil || r.Limit.Held || r.Limit.Open {
			continue
		}
		got := "not measured"
		if v, ok := r.Limited(); ok {
			got = Number(v) + " " + r.LimitUnit()
		}
		list = append(list, fmt.Sprintf("%s %s, %s: %s; %s: %s", r.Scenario, r.Case, r.Metric, got, r.Limit.word(), r.Limit.Text()))
	}
	return list
}
