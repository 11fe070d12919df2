package bench

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"demarc/bench/report"
	"demarc/gateway/netlab/roottest"
)

func TestSoakWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--every", "1ms"}, {"--for", "1s", "--every", "1s"}, {"--change", "1ms"}, {"--flows", "3"}, {"--rate", "0"}, {"--rules", "0"}, {"x"}} {
		wrongCall(t, append([]string{"soak"}, args...))
	}
}

// What grows is told as drift and misses its promise; what only breathes keeps it.
func TestSoakFigures(t *testing.T) {
	looks := func(n int, change func(i int, l *soakLook)) *soaked {
		s := &soaked{}
		for i := range n {
			l := soakLook{At: time.Duration(i) * time.Second, Resident: 50 + float64(i%3), Descriptors: 20, Threads: 9, Sessions: 100, Sent: 1000}
			change(i, &l)
			s.Looks = append(s.Looks, l)
		}
		return s
	}
	for _, c := range []struct {
		name   string
		change func(i int, l *soakLook)
		missed string
	}{
		{"breathes", func(int, *soakLook) {}, ""},
		{"descriptors", func(i int, l *soakLook) { l.Descriptors += float64(i / 2) }, "descriptors-drift"},
		{"memory", func(i int, l *soakLook) { l.Resident += 3 * float64(i) }, "resident-drift"},
		{"account", func(i int, l *soakLook) {
			if i == 7 {
				l.Broken = "one is missing"
			}
		}, "account-broken"},
		{"wrong", func(i int, l *soakLook) { l.Wrong = uint64(i / 15) }, "wrong"},
	} {
		q := &soak{Flows: 64}
		got := ""
		for _, f := range q.figures(looks(16, c.change)) {
			if f.Limit != nil && !f.Limit.Held {
				got += f.Metric
			}
		}
		if got != c.missed {
			t.Errorf("%s: missed %q, want %q", c.name, got, c.missed)
		}
	}
	q := &soak{Flows: 64}
	for _, f := range q.figures(looks(8, func(i int, l *soakLook) { l.Lost = int64(i % 2) })) {
		if f.Metric == "lost" && f.Demarc.Median != 500 {
			t.Errorf("lost %v ppm, want 500", f.Demarc.Median)
		}
	}
	if q.figures(&soaked{}) != nil {
		t.Error("figures of nothing")
	}
}

// The whole command, short: nothing drifts.
func TestSoak(t *testing.T) {
	r, said, err := asJSON(t, "soak", "--for", "3s", "--every", "500ms", "--change", "500ms", "--flows", "1024", "--rules", "100", "--rate", "0.02")
	by := byMetric(t, &r, said, err)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"resident", "descriptors", "threads", "sessions", "sent", "changes", "looked-for"} {
		if f := by["64B/1024/nat44/both "+m]; f.Demarc.N == 0 || f.Demarc.Min <= 0 {
			t.Errorf("%s: %+v", m, f)
		}
	}
	if s := by["64B/1024/nat44/both sessions"].Demarc; s.Min < 1024 {
		t.Errorf("sessions: %+v", s)
	}
	for _, m := range []string{"descriptors-drift", "resident-drift", "account-broken", "wrong"} {
		if f := by["64B/1024/nat44/both "+m]; f.Limit == nil || !f.Limit.Held {
			t.Errorf("%s: %+v", m, f)
		}
	}
}

// Connections to the gateway's socket that nobody ends are descriptors that grow.
func TestSoakFindsALeak(t *testing.T) {
	roottest.Require(t)
	var held []net.Conn
	q := soak{For: 2 * time.Second, Every: 300 * time.Millisecond, Change: 500 * time.Millisecond, Flows: 64, Rate: 5000, Rules: 10, Seed: 1, Binary: binary(t), Progress: t.Output()}
	hold := func() error {
		c, err := net.Dial("unix", filepath.Join(dirRun, "data", "demarc.sock"))
		if err != nil {
			return err
		}
		held = append(held, c)
		_, err = fmt.Fprintf(c, "GET /v1/ports HTTP/1.1\r\nHost: x\r\n\r\n")
		if err == nil {
			_, err = c.Read(make([]byte, 1)) // it was accepted
		}
		return err
	}
	q.before = func(int, *demarc) (err error) {
		for range 4 {
			err = errors.Join(err, hold())
		}
		return err
	}
	s, err := q.run(t.Context())
	for _, c := range held {
		c.Close()
	}
	clean(t)
	if err != nil {
		t.Fatal(err)
	}
	var f *report.Result
	list := q.figures(s)
	for i := range list {
		if list[i].Metric == "descriptors-drift" {
			f = &list[i]
		}
	}
	if f == nil || f.Limit.Held || f.Demarc.Max < 6 {
		t.Errorf("%d connections were held: %+v", len(held), f)
	}
}

// mostCalls is how many system calls a frame may cost a worker that has more to do than it can: some four times what was measured, 0.016. A busy neighbour makes bursts larger, and so
// calls fewer: it cannot fail this.
const mostCalls = 0.06

// Under a load without a pace a worker asks the kernel for many frames at once, in and out.
func TestSystemCallsOfAPacket(t *testing.T) {
	roottest.Require(t)
	ctx := t.Context()
	p := plan(1024)
	rules, err := makeRules(1, 10, &p)
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRoom(p)
	if err != nil {
		t.Fatal(err)
	}
	d := &demarc{r: r, binary: binary(t), rules: rules, pool: p.Pool, rate: trafficRate, table: 4096}
	defer func() {
		if err := errors.Join(d.stop(), r.Close()); err != nil {
			t.Error(err)
		}
		clean(t)
	}()
	if err := d.start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.establish(ctx, p.Flows, 100_000); err != nil {
		t.Fatal(err)
	}
	// A worker publishes its counts now and then.
	counts := func() (calls, frames uint64) {
		time.Sleep(300 * time.Millisecond)
		st, err := d.status(ctx, false)
		if err != nil {
			t.Fatal(err)
		}
		return systemCalls(st)
	}
	calls, frames := counts()
	if _, err := r.trial(ctx, 0, time.Second, d.pids()); err != nil {
		t.Fatal(err)
	}
	moreCalls, moreFrames := counts()
	calls, frames = moreCalls-calls, moreFrames-frames
	if frames < 10_000 {
		t.Fatalf("the gateway took %d frames of a load without a pace", frames)
	}
	each := float64(calls) / float64(frames)
	t.Logf("%d system calls for %d frames: %.4f each", calls, frames, each)
	if each > mostCalls || calls == 0 {
		t.Errorf("%.4f system calls a frame, at most %v are held", each, mostCalls)
	}
}
