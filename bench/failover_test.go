package bench

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/bench/report"
	"demarc/gateway/copyload"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/judge"
	quietly "demarc/gateway/netlab/quiet" // the package has a quiet of its own
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/trio"
)

// at is a moment of a made-up run, ms after it began. The event is at 1000, and what it may have done ends at 3000.
func at(ms int64) int64 { return time.Unix(1000, 0).UnixNano() + ms*int64(time.Millisecond) }

// woke are bursts that gw1 sends a millisecond after all was done.
func woke(a *account, frames ...int) (list []judge.Offence) {
	for _, n := range frames {
		list = append(list, judge.Offence{Kind: judge.Both, Node: "gw1", At: a.struck.Add(time.Millisecond), Last: a.struck.Add(2 * time.Millisecond), Frames: n})
	}
	return list
}

// madeUp is the account of a run in which the group moved, with a silence of 150 ms on every flow.
func madeUp() *account {
	flows := func(interval time.Duration, silences ...host.Silence) *netlab.FlowsSeen {
		s := &netlab.FlowsSeen{Interval: interval, Sides: []host.FlowSide{{Ended: at(3010)}}}
		n := uint64(3000 * time.Millisecond / interval)
		for i := range 4 {
			s.Flows = append(s.Flows, netlab.FlowEnd{Tag: "alpha", Flow: i / 2, Reply: i%2 == 1, Ended: at(3010),
				FlowSeen: host.FlowSeen{Received: n - uint64(150*time.Millisecond/interval), FirstSeq: 1, HighSeq: n, First: at(5), Last: at(3005), Silences: silences, Sources: []string{"198.51.100.16:20000"}}})
		}
		return s
	}
	silence := host.Silence{From: at(1001), To: at(1151)}
	return &account{calm: time.Unix(0, at(800)), calmed: time.Unix(0, at(1000)), from: time.Unix(0, at(1000)), struck: time.Unix(0, at(1002)), to: time.Unix(0, at(3000)),
		probes: flows(time.Millisecond, silence, host.Silence{From: at(900), To: at(906)}), calls: flows(20*time.Millisecond, silence),
		held:   []host.Held{{Opened: 30, Idle: 20, Tried: 10}, {Opened: 30, Idle: 20, Tried: 10, Lost: 3, LostIdle: 1, Why: map[string]int{"timeout": 2, "reset": 1}}},
		served: host.HoldServed{Accepted: 60, Blocks: 60 + 40 - 3},
		pings:  []host.Ping{{Dst: "203.0.113.11", Sent: 200, Received: 190, LongestMs: 145}, {Dst: "2001:db8:ff::b", Sent: 200, Received: 195, LongestMs: 40}},
		verdict: &judge.Verdict{Frames: 20000, Marked: 15000,
			Terms: map[string][]judge.Term{trio.PairGroup: {{Node: "gw1", Last: time.Unix(0, at(1003))}, {Node: "gw2", First: time.Unix(0, at(1140)), Word: time.Unix(0, at(1133))}}}}}
}

// What differs by no more than the limit says nothing, and one that is the worse one each time is no chance.
func TestByChance(t *testing.T) {
	list := func(n int, v float64) (l []float64) {
		for range n {
			l = append(l, v)
		}
		return l
	}
	for _, c := range []struct {
		worse, better []float64
		want          float64
	}{
		{list(20, 5), list(20, 0), 1},
		{list(7, 6), list(7, 0), 1.0 / 128},
		{append(list(3, 6), 0, 0), append(list(3, 0), 9, 1), 5.0 / 16},
		{list(4, 0), list(4, 9), 1},
	} {
		if got := byChance(c.worse, c.better, 5); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%v, %v: %v, want %v", c.worse, c.better, got, c.want)
		}
	}
}

func TestFailoverAccount(t *testing.T) {
	f, err := madeUp().judge()
	if err != nil {
		t.Fatal(err)
	}
	if f.gap != 149*time.Millisecond || f.callGap != 130*time.Millisecond || f.at != time.Millisecond || f.callAt != time.Millisecond || f.before != 5*time.Millisecond || f.paused != 0 || f.excess != 144*time.Millisecond || f.away != 0 || f.moved != 0 || !f.handed() {
		t.Errorf("%+v", f)
	}
	if want := uint64(4*150 + 4*7); f.lost != want || len(f.calls) != 4 || f.calls[0] != 7 || f.data != [2]int{2, 20} || f.idle != [2]int{1, 20} || f.pings != [2]int{15, 400} || f.silence != 145*time.Millisecond || f.wrong != 0 || f.between != 137*time.Millisecond || f.word != 130*time.Millisecond || f.how["timeout"] != 2 {
		t.Errorf("%d packets lost, want %d; calls %v, data %v, idle %v", f.lost, want, f.calls, f.data, f.idle)
	}
	for _, c := range []struct {
		name string
		do   func(*account)
		want func(f *failure) bool
	}{
		{"a flow that does not come back", func(a *account) { e := &a.probes.Flows[3]; e.Last, e.Silences = at(1001), nil },
			func(f *failure) bool {
				return f.away == 1 && f.gap > 1990*time.Millisecond && f.flow == "alpha 1 in" && slices.Equal(f.still, []string{"alpha 1 in"})
			}},
		{"a call that is silent for longer than any probe", func(a *account) { a.calls.Flows[1].Silences = []host.Silence{{From: at(1001), To: at(1201)}} },
			func(f *failure) bool {
				return f.gap == 149*time.Millisecond && f.flow == "alpha 0 out" && f.callGap == 180*time.Millisecond && f.call == "alpha 0 in" && f.excess == 175*time.Millisecond
			}},
		{"no probes", func(a *account) { a.probes = nil },
			func(f *failure) bool { return f.gap == 130*time.Millisecond && f.callGap == f.gap }},
		{"packets that came to another host", func(a *account) { a.calls.Wrong, a.calls.Example = 3, "what it was" },
			func(f *failure) bool { return f.wrong == 3 && f.example == "what it was" }},
		{"a call that does not come back", func(a *account) {
			e := &a.calls.Flows[2]
			e.Last, e.HighSeq, e.Received, e.Silences = at(1001), 50, 50, nil
		}, func(f *failure) bool { return f.away == 1 && f.calls[2] == 100 }},
		{"a flow with another public port", func(a *account) { e := &a.probes.Flows[0]; e.Sources = append(e.Sources, "198.51.100.17:1024") },
			func(f *failure) bool { return f.moved == 1 }},
		{"nobody took over", func(a *account) {
			a.verdict.Terms[trio.PairGroup] = a.verdict.Terms[trio.PairGroup][:1]
		}, func(f *failure) bool { return !f.handed() }},
		{"it came back to who had it", func(a *account) {
			a.verdict.Terms[trio.PairGroup] = append(a.verdict.Terms[trio.PairGroup], judge.Term{Node: "gw1"})
		}, func(f *failure) bool { return !f.handed() && len(f.owners) == 3 }},
		{"a sender that paused", func(a *account) { a.probes.Pauses = []host.Silence{{From: at(1000), To: at(1100)}} },
			func(f *failure) bool { return f.paused == 100*time.Millisecond && f.excess == 49*time.Millisecond }},
		{"it is silent for longer before", func(a *account) {
			for i := range a.probes.Flows {
				a.probes.Flows[i].Silences = []host.Silence{{From: at(850), To: at(951)}}
			}
			for i := range a.calls.Flows {
				a.calls.Flows[i].Silences = nil
			}
			a.probes.Pauses = []host.Silence{{From: at(850), To: at(870)}}
		}, func(f *failure) bool {
			return f.excess == 0 && f.before == 100*time.Millisecond && f.spared == 80*time.Millisecond
		}},
		{"connections that are opened meanwhile", func(a *account) {
			a.fresh = []host.Fresh{{Tried: 8, Failed: 1, Open: []host.Opened{{Began: at(499), Open: at(500)}, {Began: at(899), Open: at(900)}, {Began: at(979), Open: at(980), Lost: true},
				{Began: at(999), Open: at(1000), Lost: true}, {Began: at(999), Open: at(1013), Lost: true}, {Began: at(1002), Open: at(1100)}, {Began: at(1003), Open: at(1300), Lost: true},
				{Began: at(969), Open: at(970), Lost: true, Half: true}}}}
			a.served.Accepted, a.served.Blocks = a.served.Accepted+7, a.served.Blocks+10
		}, func(f *failure) bool {
			rate := math.Round(f.fresh.rate * 1000) // six in 501 ms
			f.fresh.rate = 0
			return rate == 11_976 && f.fresh == fresh{tried: 8, failed: 1, before: 5, way: 2, lost: 4, age: 30 * time.Millisecond, after: 1}
		}},
		{"an offence", func(a *account) { a.verdict.Offences = []judge.Offence{{Kind: judge.Both}} }, func(f *failure) bool { return len(f.faults) == 1 }},
		{"a burst in hand", func(a *account) { a.woken, a.verdict.Offences = "gw1", woke(a, 6, 58) }, func(f *failure) bool { return len(f.faults) == 0 && f.inHand == 64 }},
		{"more than a burst in hand", func(a *account) { a.woken, a.verdict.Offences = "gw1", woke(a, 60, 5) }, func(f *failure) bool { return len(f.faults) == 1 && f.inHand == 60 }},
		{"a burst of who was not stopped", func(a *account) { a.woken, a.verdict.Offences = "gw2", woke(a, 6) }, func(f *failure) bool { return len(f.faults) == 1 && f.inHand == 0 }},
		{"frames that go on behind it", func(a *account) {
			a.woken, a.verdict.Offences = "gw1", woke(a, 6)
			a.verdict.Offences[0].Last = a.struck.Add(12 * time.Millisecond)
		}, func(f *failure) bool { return len(f.faults) == 1 && f.inHand == 0 }},
		{"a burst long after it went on", func(a *account) {
			a.woken, a.verdict.Offences = "gw1", woke(a, 6)
			a.verdict.Offences[0].At = a.struck.Add(100 * time.Millisecond)
			a.verdict.Offences[0].Last = a.verdict.Offences[0].At
		}, func(f *failure) bool { return len(f.faults) == 1 && f.inHand == 0 }},
	} {
		a := madeUp()
		c.do(a)
		if f, err := a.judge(); err != nil || !c.want(&f) {
			t.Errorf("%s: %+v, %v", c.name, f, err)
		}
	}
}

// An account that cannot be true is no figure: whoever measures nothing is found out.
func TestFailoverAccountThatIsFooled(t *testing.T) {
	for _, c := range []struct {
		name, want string
		do         func(*account)
	}{
		{"a judge that saw nothing", "the judge saw nodes send 0", func(a *account) { a.verdict = &judge.Verdict{} }},
		{"a judge that saw too little", "hosts got 11972 packets of flows, and the judge saw nodes send 11971", func(a *account) { a.verdict.Marked = 11971 }},
		{"a judge that saw no owner", "no node serve", func(a *account) { a.verdict.Terms = nil }},
		{"no judge", "not whole", func(a *account) { a.verdict = nil }},
		{"no flows", "there was no flow", func(a *account) { a.probes.Flows = nil }},
		{"a receiver that counts nothing", "nothing came on alpha 1 out", func(a *account) { a.calls.Flows[2].FlowSeen = host.FlowSeen{} }},
		{"a flow that only came up afterwards", "nothing came on alpha 0 in before", func(a *account) { a.probes.Flows[1].First = at(1200) }},
		{"senders that stopped", "flows ended", func(a *account) { a.probes.Flows[0].Ended = at(2000) }},
		{"a ping that nobody answers", "no ping of 2001:db8:ff::b was answered", func(a *account) { a.pings[1].Received = 0 }},
		{"no time", "not whole", func(a *account) { a.to = a.from }},
		{"done before it began", "not whole", func(a *account) { a.struck = a.from.Add(-1) }},
		{"no time in which nothing was done", "not whole", func(a *account) { a.calmed = a.calm }},
		{"what is done is part of the time in which nothing was", "not whole", func(a *account) { a.calmed = a.from.Add(1) }},
		{"connections that nobody accepted", "accepted 59", func(a *account) { a.served.Accepted = 59 }},
		{"connections that were opened, and nobody accepted them", "65 connections say that they are open, and that 107 blocks", func(a *account) { a.fresh = []host.Fresh{{Tried: 5, Open: make([]host.Opened, 5)}} }},
		{"connections that were never opened", "no connection was opened", func(a *account) { a.fresh = []host.Fresh{{Tried: 5}} }},
		{"connections that carried nothing", "had 96", func(a *account) { a.served.Blocks = 96 }},
	} {
		a := madeUp()
		c.do(a)
		if f, err := a.judge(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want an error with %q", c.name, f, err, c.want)
		}
	}
}

// Stops lie on both sides of the lease and of half of it, and most around these two.
func TestStopFor(t *testing.T) {
	for _, runs := range []int{1, 2, 12, 50, 200} {
		var last time.Duration
		var below, above, around int // half a lease, no further from it than 15 ms; a lease, no further than 45
		for i := range runs {
			d := stopFor(i, runs)
			if d < 50*time.Millisecond || d > 3*time.Second || d < last {
				t.Errorf("stop %d of %d takes %s", i, runs, d)
			}
			switch last = d; {
			case d < half:
				below++
			case d <= half+15*time.Millisecond:
				above++
			case d >= lease-45*time.Millisecond && d <= lease+45*time.Millisecond:
				around++
			}
		}
		if runs >= 12 && (around*100 < runs*40 || below*100 < runs*10 || above*100 < runs*8 || last != 3*time.Second) {
			t.Errorf("of %d stops %d are shorter than half a lease, %d a little longer, %d around a lease, the last one takes %s", runs, below, above, around, last)
		}
	}
}

// failoverRun is the command itself. Figures that miss their limits are an error of it.
func failoverRun(t *testing.T, args ...string) (by map[string]report.Result, r report.Output, err error) {
	t.Helper()
	r, said, err := asJSON(t, append([]string{"failover", "--runs", "1", "--probes", "1", "--interval", "2ms", "--calls", "20", "--within", "2s", "--patience", "500ms"}, args...)...)
	by = byMetric(t, &r, said, err)
	for _, f := range r.Results {
		if f.Scenario != "failover" {
			t.Errorf("%s %s is of scenario %s", f.Case, f.Metric, f.Scenario)
		}
	}
	if err != nil && !strings.HasPrefix(err.Error(), "not as promised:\n") {
		t.Fatal(err)
	}
	return by, r, err
}

// is holds a figure against what it can be.
func is(t *testing.T, by map[string]report.Result, name string, n int, least, most float64, limit bool) {
	t.Helper()
	f, ok := by[name]
	if s := f.Demarc; !ok || s.N != n || s.Min < least || s.Max > most || (f.Limit != nil) != limit {
		t.Errorf("%s: %+v %+v, want %d figures from %v to %v, a limit: %v", name, s, f.Limit, n, least, most, limit)
	}
}

// A short form of what moves a group and of what does not, with real processes: the figures can be true, and both kinds of them are told apart. Who stands beside us is at
// its best: it takes over, and its flows keep their sessions. Else it would be no measure.
func TestFailoverFigures(t *testing.T) {
	roottest.Require(t)
	quietly.Judge(t, func(l *quietly.Limits) { failoverFigures(t, l) })
}

func failoverFigures(t *testing.T, l *quietly.Limits) {
	by, r, _ := failoverRun(t, "--rows", "kill,cut/log,death/witness,keepalived/gated", "--data", "40", "--idle", "40", "--sample", "20")
	is(t, by, "kill gap", 1, 4, 3000, true)
	is(t, by, "kill gap-median", 1, 4, 3000, true)
	is(t, by, "kill gap-calls", 1, 4, 3000, true)
	is(t, by, "kill not-handed-over", 1, 0, 0, true)
	is(t, by, "kill flows-not-back", 1, 0, 0, true)
	is(t, by, "kill flows-on-another-session", 1, 0, 14, true)
	is(t, by, "kill lost", 1, 0, 40, true)
	is(t, by, "kill lost-of", 1, 40, 40, false)
	is(t, by, "kill lost-idle-of", 1, 20, 20, false)
	is(t, by, "kill offences", 1, 0, 0, true)
	is(t, by, "kill call-loss", 40, 0, 300, false)
	is(t, by, "kill wrong-packets", 1, 0, 0, true)
	is(t, by, "kill ping-silence", 1, 1, 3000, false)
	is(t, by, "kill sessions-missing", 1, 0, 0, true)
	is(t, by, "kill tables-apart", 1, 0, 0, true)
	is(t, by, "kill terms-ended-while-opening", 1, 0, 3, false)
	// stayed: an owner whose CPU is elsewhere for longer than a lease loses it, as promised. What that costs is no figure of the row.
	stayed := func(row string) bool {
		n := by[row+" failovers"].Demarc.Max
		if n > 0 {
			l.Missed("%s: the group moved %v times", row, n)
		} else {
			is(t, by, row+" failovers", 1, 0, 0, true)
		}
		return n == 0
	}
	if stayed("cut/log") {
		is(t, by, "cut/log lost", 1, 0, 0, true)
		is(t, by, "cut/log offences", 1, 0, 0, true)
	}
	if stayed("death/witness") {
		is(t, by, "death/witness gap", 1, 0, 1000, false)
		is(t, by, "death/witness lost", 1, 0, 0, true)
		is(t, by, "death/witness flows-on-another-session", 1, 0, 0, true)
	}
	is(t, by, "death/witness lost-of", 1, 4, 4, false)
	if c := r.Configs["demarc"]; !strings.Contains(c, "[[group]]") || !strings.Contains(c, `device = "wan0"`) || strings.Contains(c, "[tables]") || !strings.Contains(r.Machine.Mode, "gw2 copy") {
		t.Errorf("configuration: %s; mode %s", c, r.Machine.Mode)
	}
	for _, c := range []struct {
		metric      string
		n           int
		least, most float64
	}{{"gap", 1, 50, 3000}, {"not-handed-over", 1, 0, 0}, {"flows-not-back", 1, 0, 0}, {"flows-on-another-session", 1, 0, 0}, {"lost-of", 1, 4, 4}, {"lost-idle-of", 1, 4, 4}, {"call-loss", 40, 1, 150}} {
		f := by["gone "+c.metric]
		p, ok := f.Peers["keepalived/gated"]
		if !ok || p.N != c.n || p.Min < c.least || p.Max > c.most || f.Demarc.N != 0 || f.Limit != nil {
			t.Errorf("%s: %+v, want %d figures from %v to %v", c.metric, f, c.n, c.least, c.most)
		}
	}
	if c := r.Configs["keepalived/gated"]; !strings.Contains(c, "advert_int 0.05") || !strings.Contains(c, "Mode FTFW") || !strings.Contains(c, "snat to") || !strings.Contains(c, "table inet gate") {
		t.Errorf("configuration: %s", c)
	}
}

// Rows whose nodes run otherwise than shipped are printed apart, and say in what; all others are the default.
func TestFailoverConfigs(t *testing.T) {
	apart := map[string]string{}
	for _, r := range failoverRows {
		if name, more, said := r.config(); name != "demarc" || more != "\n" || said != "" {
			apart[name] = more + said
		}
	}
	if len(apart) != 2 || !strings.Contains(apart["demarc, row bulk"], "sessions = 1179648") || !strings.Contains(apart["demarc, row bulk"], "not the shipped default") ||
		!strings.Contains(apart["demarc, row poison"], "not as shipped: started with --break poison") {
		t.Errorf("rows with another configuration: %q", apart)
	}
}

// Session events come over from one end to the other, as many as begin and end.
func TestFailoverFiguresOfEvents(t *testing.T) {
	by, _, err := failoverRun(t, "--rows", "events")
	is(t, by, "events events", 1, 1000, 1e7, true)
	is(t, by, "events events-at-half", 1, 1000, 51_000, true)
	is(t, by, "events lag", copyload.Flows/50, 0, 30_000, true)
	t.Log(err)
}

// A gateway that has just started gets the sessions of one that has many, which then both have; one that nobody stands beside is restarted, and all goes on; the packets that make a worker panic are sent to a group, and it moves once at
// most.
func TestFailoverFiguresOfBulkAndPoison(t *testing.T) {
	by, _, err := failoverRun(t, "--rows", "bulk,alone,poison", "--brief", "--many", "20000", "--many-rate", "20000", "--data", "8", "--idle", "8")
	is(t, by, "bulk sessions", 1, 20_000, 20_000, false)
	is(t, by, "bulk events", 1, 1000, 200_000, false)
	is(t, by, "bulk copy", 1, 0.05, 60, true)
	is(t, by, "bulk rate-before", 1, 500, 8500, false)
	is(t, by, "bulk tables-apart", 1, 0, 0, true)
	is(t, by, "bulk copy-at-full-rate", 1, 0.05, 60, false)
	is(t, by, "bulk full-rate-meanwhile", 1, 500, 12_000, false)
	is(t, by, "alone/restart gap", 1, 10, 5000, false)
	is(t, by, "alone/restart start", 1, 10, 5000, false)
	is(t, by, "alone/restart taken-up", 1, 12, 100, false)
	is(t, by, "alone/restart not-taken-up", 1, 0, 0, true)
	is(t, by, "alone/restart flows-on-another-session", 1, 0, 0, true)
	is(t, by, "alone/restart flows-not-back", 1, 0, 0, true)
	is(t, by, "alone/restart lost", 1, 0, 0, true)
	is(t, by, "alone/restart lost-of", 1, 4, 4, false)
	is(t, by, "alone/restart lost-idle", 1, 0, 0, true)
	is(t, by, "alone/restart lost-idle-of", 1, 4, 4, false)
	is(t, by, "poison failovers", 1, 0, 1, true)
	is(t, by, "poison flows-on-another-session", 1, 0, 0, true)
	t.Log(err)
}

// Where nobody takes over, every figure that could hide it shows it.
func TestFailoverFiguresSeeThatNobodyTakesOver(t *testing.T) {
	by, _, err := failoverRun(t, "--rows", "kill", "--stay", "--data", "8", "--idle", "8")
	is(t, by, "kill gap", 1, 2000, 5000, true)
	is(t, by, "kill not-handed-over", 1, 1, 1, true)
	is(t, by, "kill flows-not-back", 1, 12, 60, true)
	is(t, by, "kill lost", 1, 8, 8, true)
	is(t, by, "kill lost-idle", 1, 8, 8, true)
	is(t, by, "kill call-loss", 40, 100, 400, false)
	for _, want := range []string{"kill, gap: ", "kill, not-handed-over: 1", "kill, flows-not-back: ", "kill, lost: 8", "kill, lost-idle: 8"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the command says: %v; want %q", err, want)
		}
	}
}

func TestFailoverRefusesWrongOptions(t *testing.T) {
	for _, args := range [][]string{{"--rows", "else"}, {"--rows", "port/else"}, {"--runs", "-1"}, {"--probes", "11"}, {"--probes", "60"}, {"--calls", "6"}, {"--interval", "2s"}, {"--data", "200001"}, {"--many", "150"}, {"--many-rate", "1"}, {"--every", "1ms"}} {
		c := Command("")
		c.SetArgs(append([]string{"failover"}, args...))
		c.SilenceUsage, c.SilenceErrors = true, true
		var u interface{ Usage() }
		if err := c.ExecuteContext(context.Background()); err == nil {
			t.Errorf("%v: no error", args)
		} else if u, _ = err.(interface{ Usage() }); u == nil {
			t.Errorf("%v: %v is no wrong usage", args, err)
		}
	}
}
