package gateway

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"demarc/cluster/failover"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/handed"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// TestMayTakeUp: what is another node's, another boot's, too old or of a time to come is not used, in words that say why.
func TestMayTakeUp(t *testing.T) {
	boot, err := bootID()
	if err != nil || len(boot) != 36 {
		t.Fatalf("boot %q, %v", boot, err)
	}
	g := &Gateway{o: Options{Node: &configs.Node{Name: "gw1"}}, log: slog.New(slog.DiscardHandler)}
	now := uint64(bootTime())
	for _, c := range []struct {
		what   string
		h      handed.Header
		refuse string
	}{
		{"its own", handed.Header{Node: "gw1", Boot: boot, At: now - uint64(2*time.Second)}, ""},
		{"almost too old", handed.Header{Node: "gw1", Boot: boot, At: now - uint64(maxHanded-time.Minute)}, ""},
		{"too old", handed.Header{Node: "gw1", Boot: boot, At: now - uint64(maxHanded+time.Minute)}, "they are 6m0s old, and are good for 5m0s"},
		{"another node's", handed.Header{Node: "gw2", Boot: boot, At: now}, `those of node "gw2", and this is "gw1"`},
		{"another boot's", handed.Header{Node: "gw1", Boot: "x", At: now}, "before the machine was started"},
		{"of later", handed.Header{Node: "gw1", Boot: boot, At: now + uint64(time.Hour)}, "has not come yet"},
	} {
		g.handover.result = api.Resumed{}
		err := g.mayTakeUp(&c.h)
		if c.refuse == "" && (err != nil || g.handover.result.Away < 1 || g.handover.result.Away > 300) || c.refuse != "" && (err == nil || !strings.Contains(err.Error(), c.refuse)) {
			t.Errorf("%s: %v, away %.1f s", c.what, err, g.handover.result.Away)
		}
	}
	for _, c := range []struct {
		nodes []string
		want  bool
	}{{[]string{"gw1"}, true}, {[]string{"gw1", "gw2"}, false}, {[]string{"gw2"}, false}, {nil, false}} {
		if got := g.lone(&snapshot.Group{Nodes: c.nodes}); got != c.want {
			t.Errorf("group of %v: %v", c.nodes, got)
		}
	}
}

// TestWhatIsLeftGrowsOld: what the process before has left counts as all that is in use for as long as it would have been taken up, and as long as no policy has taken anything of it away.
func TestWhatIsLeftGrowsOld(t *testing.T) {
	g := driven(t, pairGateway(t))
	ago := func(d time.Duration) failover.Known {
		return failover.Known{All: true, Here: true, Last: failover.Time(uint64(bootTime()) - uint64(d))}
	}
	if k := g.knowsOf(1, ago(time.Second)); !k.All || !k.Here || k.Age < int64(time.Second) {
		t.Errorf("a second ago: %+v", k)
	}
	if k := g.knowsOf(1, ago(maxHanded+time.Minute)); k.All || k.Here || k.Age < int64(maxHanded) {
		t.Errorf("six minutes ago: %+v", k)
	}
	old := ago(maxHanded + time.Minute)
	if old.Here = false; !g.knowsOf(1, old).All {
		t.Error("what another owner has told grows old")
	}
	g.handover.lost++
	if k := g.knowsOf(1, ago(time.Second)); k.All || k.Here {
		t.Errorf("something was taken away since: %+v", k)
	}
}

// TestRefusalsHaveSeries: what may become of a session's record is what the interface and its metrics know of.
func TestRefusalsHaveSeries(t *testing.T) {
	var keys []string
	for _, o := range replica.Outcomes() {
		if o != replica.Taken {
			keys = append(keys, o.Key())
		}
	}
	if got, want := strings.Join(api.ResumedRefusals, " "), strings.Join(keys, " "); got != want {
		t.Errorf("the interface knows %s, there are %s", got, want)
	}
}

// TestBeside: all are called, and a panic of one is the caller's, after the others have ended.
func TestBeside(t *testing.T) {
	var called [3]bool
	beside(3, func(i int) { called[i] = true })
	if called != [3]bool{true, true, true} {
		t.Errorf("called %v", called)
	}
	called = [3]bool{}
	err := contained(slog.New(slog.DiscardHandler), "enter", func() error {
		beside(3, func(i int) {
			if called[i] = true; i == 0 {
				panic("zero")
			}
		})
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "zero") || called != [3]bool{true, true, true} {
		t.Errorf("%v, called %v", err, called)
	}
}
