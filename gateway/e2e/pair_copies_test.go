package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/quiet"
)

// What the owner of a group says of the copy at the other node: it is whole while sessions come and go, it falls behind while the other node is stopped and says so, and goes on
// where it was; a killed one gets all anew; one whose tables are smaller is said to have no room. While it is whole nothing keeps the other node from taking over.
func TestPairCopies(t *testing.T) { pairJudged(t, pairCopies) }

func pairCopies(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	p.copied("gw2 has a whole copy", func(g *api.Group, c *api.GroupCopy) string {
		switch {
		case c == nil || c.Node != "gw2" || !c.Whole || !c.Connected || c.Records < 10 || c.Lag > 0.5:
			return fmt.Sprintf("%+v", c)
		case len(g.Why) > 0 || len(g.InSync) != 1 || g.InSync[0] != "gw2":
			return fmt.Sprintf("in sync %q, %q", g.InSync, g.Why)
		}
		return ""
	})
	g, err := p.says(p.GW1)
	check(t, err)
	dials := g.Copies[0].Dials
	_, _ = p.stop(p.GW2, 1500*time.Millisecond)
	p.copied("behind, after gw2 was stopped", func(_ *api.Group, c *api.GroupCopy) string {
		if !c.Whole || c.Lag > 0.5 {
			return fmt.Sprintf("%+v", c)
		}
		return ""
	})
	if g, err = p.says(p.GW1); err != nil || len(g.Copies) == 0 || g.Copies[0].Dials != dials {
		p.wrong("a stop of 1.5 s has ended the connection: %+v, %v", g.Copies, err)
	}
	p.GW2.Kill()
	p.copied("gw2 is dead", func(g *api.Group, c *api.GroupCopy) string {
		if why := strings.Join(g.Why, "; "); c.Whole || c.Connected || c.Why == "" || !strings.Contains(why, "gw2") || len(g.InSync) > 0 {
			return fmt.Sprintf("%+v, in sync %q, %q", c, g.InSync, g.Why)
		}
		return ""
	})
	p.smaller()
	check(t, p.GW2.Start(t.Context()))
	p.copied("gw2 has a whole copy again", func(g *api.Group, c *api.GroupCopy) string {
		if !c.Whole || len(g.Why) > 0 {
			return fmt.Sprintf("%+v, %q", c, g.Why)
		}
		return ""
	})
	p.end()
}

// smaller starts gw2 with tables that have no room for what gw1 has, says that the group is not protected because of that, and ends gw2 again; its file is as it was then.
func (p *pairLab) smaller() {
	p.t.Helper()
	fresh, err := p.StartFresh(2000)
	check(p.t, err)
	text := read(p.t, p.GW2.File)
	check(p.t, os.WriteFile(p.GW2.File, []byte(replace(p.t, text, "sessions = 4096", "sessions = 1024")), 0o644))
	check(p.t, p.GW2.Start(p.t.Context()))
	const words = "its tables have no room for them: give it tables.sessions and tables.mappings as large as here"
	p.copied("gw2 has smaller tables", func(g *api.Group, c *api.GroupCopy) string {
		if why := strings.Join(g.Why, "; "); c == nil || c.Whole || c.Missing == 0 || !strings.Contains(why, "gw2") || !strings.Contains(why, words) || len(g.InSync) > 0 {
			return fmt.Sprintf("%+v, in sync %q, %q", c, g.InSync, why)
		}
		return ""
	})
	out, err := p.GW1.Run(p.t.Context(), "group")
	if check(p.t, err); !strings.Contains(out, "NOT PROTECTED") || !strings.Contains(out, words) {
		p.t.Errorf("it is not said:\n%s", out)
	}
	_, _, err = fresh.End()
	check(p.t, err)
	check(p.t, p.GW2.Stop())
	check(p.t, os.WriteFile(p.GW2.File, []byte(text), 0o644))
}

// copied polls what gw1 says of its group until nothing is wrong.
func (p *pairLab) copied(what string, wrong func(*api.Group, *api.GroupCopy) string) {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		g, err := p.says(p.GW1)
		if err != nil {
			p.t.Fatal(err)
		}
		var c *api.GroupCopy
		if len(g.Copies) > 0 {
			c = &g.Copies[0]
		}
		w := wrong(&g, c)
		if w == "" {
			return
		}
		if time.Now().After(end) {
			p.wrong("%s: %s\n%s", what, w, p.GW1.Log(40))
			p.t.FailNow()
		}
	}
}
