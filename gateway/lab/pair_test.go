package lab

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
	"demarc/gateway/netlab/host"
	wire "demarc/gateway/netlab/judge"
	"demarc/gateway/trio"
)

// goodPair is what the demo measures when everything is as promised.
func goodPair() *pairSeen {
	gap := 0.15
	at := func(from, to string, ms int) pairEvent {
		return pairEvent{From: from, To: to, Gap: time.Duration(ms) * time.Millisecond, Flow: "alpha 0 in", Done: true, Says: &api.GroupMove{From: from, To: to, Gap: &gap}}
	}
	return &pairSeen{
		Kill: at("gw1", "gw2", 160), Move: at("gw2", "gw1", 10), Back: time.Second,
		Download: host.Download{OK: true, Bytes: 12e6, Seconds: 12, Mbits: 8}, DownloadStill: 200 * time.Millisecond, Fetched: 1,
		Call: host.Probe{Sent: 600, Received: 591}, CallPeers: 1, CallHeard: 595,
		Verdict:    &wire.Verdict{Frames: 9000, Marked: 8000, Terms: map[string][]wire.Term{trio.PairGroup: {{Node: "gw1"}, {Node: "gw2"}, {Node: "gw1"}}}},
		TotalFlows: 6,
	}
}

// Each thing that can go wrong with a pair must break the promise of its name, and only those listed.
func TestJudgePair(t *testing.T) {
	for _, p := range judgePair(goodPair()) {
		if !p.OK {
			t.Fatalf("%s: %v", p.Name, p.Why)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*pairSeen)
		want   []string
	}{
		{"nobody takes over", func(s *pairSeen) {
			s.Kill.Done, s.Kill.Gap, s.Kill.Says, s.Move, s.Back = false, 3*time.Second, nil, pairEvent{}, 0
			s.Verdict.Terms[trio.PairGroup] = s.Verdict.Terms[trio.PairGroup][:1]
		}, []string{"takeover", "protect", "move"}},
		{"it takes long", func(s *pairSeen) { s.Kill.Gap = time.Second }, []string{"takeover"}},
		{"nothing was killed", func(s *pairSeen) { s.Kill.Gap = 0 }, []string{"takeover", "call"}},
		{"the download breaks", func(s *pairSeen) { s.Download.OK, s.Download.Error = false, "reset" }, []string{"download"}},
		{"it begins again", func(s *pairSeen) { s.Fetched = 2 }, []string{"download"}},
		{"it stands still", func(s *pairSeen) { s.DownloadStill = 5 * time.Second }, []string{"download"}},
		{"it never began", func(s *pairSeen) { s.Download = host.Download{} }, []string{"download"}},
		{"the call loses more", func(s *pairSeen) { s.Call.Received = 500 }, []string{"call"}},
		{"the call has another port", func(s *pairSeen) { s.CallPeers = 2 }, []string{"call"}},
		{"a flow has another port", func(s *pairSeen) { s.MovedFlows = 1 }, []string{"call"}},
		{"it is not protected again", func(s *pairSeen) {
			s.Back, s.Move = 0, pairEvent{}
			s.Verdict.Terms[trio.PairGroup] = s.Verdict.Terms[trio.PairGroup][:2]
		}, []string{"protect", "move"}},
		{"the move is slow", func(s *pairSeen) { s.Move.Gap = 400 * time.Millisecond }, []string{"move"}},
		{"both serve", func(s *pairSeen) { s.Verdict.Offences = []wire.Offence{{Group: trio.PairGroup}} }, []string{"owner"}},
		{"they take turns", func(s *pairSeen) {
			s.Verdict.Terms[trio.PairGroup] = append(s.Verdict.Terms[trio.PairGroup], wire.Term{Node: "gw2"})
		}, []string{"owner"}},
		{"a tool failed", func(s *pairSeen) { s.Errors = []string{"udp-probe"} }, []string{"lab"}},
	} {
		s := goodPair()
		c.change(s)
		r := Result{Promises: judgePair(s)}
		if d := cmp.Diff(c.want, r.Broken()); d != "" {
			t.Errorf("%s: broken promises (-want +got):\n%s", c.name, d)
		}
	}
	r := Result{Promises: judgePair(&pairSeen{})}
	for _, name := range []string{"takeover", "download", "call", "protect", "move", "owner"} {
		if !slices.Contains(r.Broken(), name) {
			t.Errorf("%s held without anything measured", name)
		}
	}
}

func TestPairDemo(t *testing.T) {
	demoHolds(t, RunPair, Options{}, "$ kill -9 ", "gw2 serves", "gw2 says: gw1 to gw2, ", "$ demarc group move east gw1")
}

func TestRunPairRefusesWrongOptions(t *testing.T) {
	if _, err := RunPair(t.Context(), Options{Break: "nat"}); err == nil || !strings.Contains(err.Error(), "takeover, download, protect") {
		t.Errorf("%v", err)
	}
}
