package bench

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"demarc/bench/report"
)

// aim is what the gateway is out to have beside a peer, in all cases whose name the pattern matches (path.Match). A figure beside a peer is this machine's as much as the gateway's,
// so a bench says what it misses and does not fail by it.
type aim struct {
	scenario, cases string
	metrics         []string
	peer            string
	times           float64 // at least, or at most where lower is better
}

var aims = []aim{
	{"throughput", "64B/64k/nat44", []string{"rate"}, sideExpert, 1.5},
	{"throughput", "64B/64k/nat44", []string{"rate-per-cpu"}, sideExpert, 1.2},
	{"throughput", "64B/1/nat44/offload", []string{"rate", "rate-per-cpu"}, sideExpert, 4},
	{"throughput", "64B/64k/nat44/offload", []string{"rate", "rate-per-cpu"}, sideExpert, 3},
	{"throughput", "64B/1M/nat44/offload", []string{"rate", "rate-per-cpu"}, sideExpert, 2.5},
	{"throughput", "IMIX/*/nat44/offload", []string{"rate", "rate-per-cpu"}, sideExpert, 3},
	{"throughput", "1518B/*/nat44/offload", []string{"rate", "rate-per-cpu"}, sideExpert, 3},
	{"throughput", "64B/1/nat44/offload", []string{"rate"}, sideKernel, 1.5},
	{"throughput", "64B/64k/nat44/offload", []string{"rate"}, sideKernel, 1},
	{"sessions", "*/*/nat44", []string{"establish-rate-0-loss"}, sideExpert, 2},
	{"sessions", "*/*/nat44", []string{"establish-rate-0-loss"}, sideLinear, 10},
	{"sessions", "*/*/nat44/offload", []string{"establish-rate-0-loss"}, sideNever, 0.9},
	{"sessions", "*/*/nat44/offload", []string{"establish-rate-0-loss"}, sideExpert, 2},
	{"sessions", "*/*/nat44/offload", []string{"establish-rate-0-loss"}, sideLinear, 10},
	{"acl", "*/*/nat44/1000-rules", []string{"new-flows"}, sideExpert, 2},
	{"acl", "*/*/nat44/1000-rules", []string{"new-flows"}, sideLinear, 10},
	{"acl", "*/*/nat44/1000-rules/offload", []string{"new-flows"}, sideExpert, 2},
	{"acl", "*/*/nat44/1000-rules/offload", []string{"new-flows"}, sideLinear, 10},
	{"latency", "*/*/nat44/load-50", []string{"p99"}, sideKernel, 3},
	{"connections", "*/nat44/offload", []string{"rate"}, sideExpert, 1.5},
	{"tcp", "round-trip/*/nat44/offload", []string{"p50", "p99"}, sideExpert, 1},
	{"tcp", "exchange/*/nat44/offload", []string{"connections"}, sideExpert, 1.5},
	{"tcp", "bulk/*/nat44/no-gro/offload", []string{"rate"}, sideExpert, 1.5},
}

// setAims puts aims on the figures that have the peer, and notes those whose peer did not take part. A figure has one limit: where there is another of the same one, its ratio is a figure of its own.
func setAims(out *report.Output) {
	for i := 0; i < len(out.Results); i++ { // what is put behind the figure that it is of is none that an aim names
		for _, a := range aims {
			r := &out.Results[i]
			if ok, _ := path.Match(a.cases, r.Case); !ok || r.Scenario != a.scenario || !slices.Contains(a.metrics, r.Metric) || r.Demarc.N == 0 {
				continue
			}
			if a.peer == sideExpert && r.Peers[sideExpert].N == 0 && r.Peers[sideFewer].N > 0 {
				a.peer = sideFewer // which makes more than that one could
			}
			if r.Peers[a.peer].N == 0 {
				a.unjudged(out, r)
				continue
			}
			if r.Limit == nil {
				r.AimRatio(a.peer, a.times)
				continue
			}
			to := r.Metric + "-to-" + a.peer
			ratio := report.Ratio(r.Demarc, r.Peers[a.peer].Stat)
			if r.Limit.Peer == a.peer || ratio == nil || out.Find(r.Scenario, r.Case, to) != nil {
				continue
			}
			of := report.Result{Scenario: r.Scenario, Case: r.Case, Metric: to, Unit: "ratio", Better: r.Better, Demarc: report.Of([]float64{*ratio}).Round(3), Peers: map[string]report.Peer{}}
			if r.Better == report.Lower {
				of.Hold("median", a.times)
			} else {
				of.HoldLeast("median", a.times)
			}
			of.Limit.Aim = true
			of.Limit.Resolve(report.Compare(r.Demarc, r.Peers[a.peer].Stat, r.Better).Interval)
			out.Results = slices.Insert(out.Results, i+1, of)
		}
	}
}

// unjudged notes that a figure was measured and the peer of its aim was not: that it does not say MISSED says nothing.
func (a *aim) unjudged(out *report.Output, r *report.Result) {
	at := "at least"
	if r.Better == report.Lower {
		at = "at most"
	}
	note := fmt.Sprintf("%s, %s: aimed at is %s %g times %s's, which was not measured beside it", r.Case, r.Metric, at, a.times, a.peer)
	if !slices.ContainsFunc(out.Notes, func(n string) bool { return strings.HasSuffix(n, note) }) {
		out.Notes = append(out.Notes, note)
	}
}
