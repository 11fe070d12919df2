package cluster

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// TestMixedReleases: a policy is refused by name while a member's release does not know what it uses, whether that runs or not and whoever proposes it; a gateway may be left
// behind; once the last one is upgraded it is taken.
func TestMixedReleases(t *testing.T) {
	s := newSite(t)
	x := []string{"tenant.x"}
	gw1, gw2, wit := s.host("gw1", command.RoleGateway), s.host("gw2", command.RoleGateway), s.host("wit", command.RoleWitness)
	for _, h := range []*host{gw1, gw2, wit} {
		h.version = "v0.1"
	}
	m1 := gw1.run()
	begun(t, m1)
	m2, mw := gw2.enter(m1, ""), wit.enter(m1, "")
	voting(t, []*member{m1, m2, mw}, 3)
	again := func(h *host, m *member, version string, knows []string) *member {
		m.stop()
		h.version, h.knows = version, knows
		m = h.run()
		m.Serving(1, command.Digest([]byte("first")))
		voting(t, []*member{m}, 3)
		eventually(t, h.name+" has told its release", func() bool { me, _ := m.State().Member(m.id); return me.Version == version })
		return m
	}
	gw2.comp.say(Report{Features: x})
	gw1.comp.say(Report{Problems: []Problem{{Text: "is not a key of this schema"}}})
	m2 = again(gw2, m2, "v0.2", x)
	eventually(t, "gw1 hears of it", func() bool { return m1.KnownTo("tenant.x") == "gw2 (version v0.2)" })
	refused := func(m *member, says string, except ...string) {
		t.Helper()
		_, err := m.Apply(t.Context(), Change{Text: []byte("uses x")}, except...)
		if ref := (*command.Refusal)(nil); !errors.As(err, &ref) || ref.Why != command.WhyRelease || ref.Text != says {
			t.Errorf("%s: %v, want %s", m.cfg.Name, err, says)
		}
	}
	refused(m2, "gw1 (version v0.1) and wit (version v0.1) do not know tenant.x: upgrade them first")
	refused(m2, "wit (version v0.1) does not know tenant.x: upgrade it first", "gw1")
	refused(mw, "gw1 (version v0.1) and wit (version v0.1) do not know tenant.x: upgrade them first")
	m1.stop() // it counts as what it last was
	refused(m2, "gw1 (version v0.1) and wit (version v0.1) do not know tenant.x: upgrade them first")
	for _, l := range m2.Members() {
		want := x
		if l.Self {
			want = nil
		}
		if !reflect.DeepEqual(l.Lacks, want) {
			t.Errorf("%s lacks %v", l.Member.Name, l.Lacks)
		}
	}
	mw = again(wit, mw, "v0.2", x)
	eventually(t, "gw2 hears of it", func() bool { return len(m2.State().Lacking(x, nil)) == 1 })
	refused(mw, "gw1 (version v0.1) does not know tenant.x: upgrade it first")
	if o := apply(t, m2, "uses x without gw1", "gw1"); !reflect.DeepEqual(o.Revision.Features, x) {
		t.Errorf("%+v", o.Revision)
	}
	old := s.host("gw3", command.RoleGateway)
	old.version = "v0.1"
	token, _, err := m2.Token(t.Context(), old.role, time.Minute, command.Who{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.join(m2.Address(), token, ""); err == nil || !strings.Contains(err.Error(), "gw3 (version v0.1) does not know tenant.x, which revision 2 uses: upgrade it first") {
		t.Errorf("an old one joins: %v", err)
	}
	gw1.comp.say(Report{Features: x})
	gw1.version, gw1.knows = "v0.2", x
	m1 = gw1.run()
	eventually(t, "gw1 is upgraded and both hear of it", func() bool { return len(m1.State().Lacking(x, nil))+len(m2.State().Lacking(x, nil)) == 0 })
	if o := apply(t, m1, "uses x"); len(o.Late()) != 0 {
		t.Errorf("%+v", o.Late())
	}
}

// TestStoppedMember: who meets an entry that it cannot read stops there and says so, to others too; it does not keep the lead, is given none, and holds up no apply. A build
// that can read it goes on from there.
func TestStoppedMember(t *testing.T) {
	hs, ms := trio(t)
	wit := hs[2]
	ms[2].stop()
	wit.version, wit.tune = "v0.0", func(s *store.Config) {
		s.Hooks = &store.Hooks{Decoding: func(e *command.Entry) error {
			if e.Kind == command.KindBounds {
				return fmt.Errorf("%w: %q: upgrade this node", command.ErrLater, e.Kind)
			}
			return nil
		}}
	}
	ms[2] = wit.run()
	voting(t, ms, 3)
	eventually(t, "the witness leads", func() bool { return ms[2].st.Leads() })
	// Whoever leads cannot read it, so cannot say what became of it: the next one can.
	eventually(t, "it is agreed on", func() bool {
		err := ms[0].Keep(t.Context(), command.Bounds{Revisions: 100}, command.Who{})
		if err != nil && (!undecided(err) || strings.Contains(err.Error(), "upgrade this node")) {
			t.Fatal(err)
		}
		return err == nil
	})
	eventually(t, "it is known here", func() bool { return ms[0].State().Bounds.Revisions == 100 })
	eventually(t, "it says why it has stopped", func() bool { return strings.Contains(ms[2].Problem(), "upgrade this node") })
	eventually(t, "a gateway leads", func() bool { return ms[0].st.Leads() || ms[1].st.Leads() })
	// Whoever waited for it would do so each time; what a busy machine takes it does not take three times.
	quickest := time.Hour
	for i := range 3 {
		began := time.Now()
		if o := apply(t, ms[0], fmt.Sprint("second ", i)); len(o.Late()) != 0 {
			t.Errorf("%+v", o.Late())
		}
		if quickest = min(quickest, time.Since(began)); quickest < time.Second {
			break
		}
	}
	if quickest > 3*time.Second {
		t.Errorf("an apply takes %s while the witness stands still", quickest)
	}
	eventually(t, "the others know", func() bool {
		for _, l := range ms[0].Members() {
			if l.Member.Name == "wit" && l.Status != nil && strings.Contains(l.Status.Stopped, "upgrade this node") && strings.Contains(l.Problem, "upgrade this node") &&
				l.Member.Version == "v0.0" {
				return l.Status.Applied == ms[2].State().Index && l.Status.Committed > l.Status.Applied // what it has carried out, not what it has kept
			}
		}
		return false
	})
	if ms[2].informed() {
		t.Error("it takes its list of members for whole")
	}
	if err := ms[2].Await(t.Context(), 9); err == nil || !strings.Contains(err.Error(), "no entry is applied there any more") {
		t.Errorf("it lets others wait: %v", err)
	}
	if err := ms[2].Confirm(t.Context(), 1, command.Who{}); err == nil || !strings.Contains(err.Error(), "upgrade this node") {
		t.Errorf("it takes a change: %v", err)
	}
	ms[2].stop()
	wit.version, wit.tune = "v0.2", nil
	ms[2] = wit.run()
	eventually(t, "it goes on from there", func() bool { return ms[2].State().Serving == ms[0].State().Serving && ms[2].Problem() == "" })
	eventually(t, "it leads again", func() bool { return ms[2].st.Leads() })
}
