package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
)

// What the owner of a group says of the copy at the other node: it is whole while sessions come and go, it falls behind while the other node is stopped and says so, and goes on
// where it was; a killed one gets all anew. While it is whole nothing keeps the other node from taking over.
func TestPairCopies(t *testing.T) {
	p := newPair(t, "pair", "")
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
	if g, err = p.says(p.GW1); err != nil || g.Copies[0].Dials != dials {
		t.Errorf("a stop of 1.5 s has ended the connection: %+v, %v", g.Copies, err)
	}
	p.GW2.Kill()
	p.copied("gw2 is dead", func(g *api.Group, c *api.GroupCopy) string {
		if why := strings.Join(g.Why, "; "); c.Whole || c.Connected || c.Why == "" || !strings.Contains(why, "gw2") || len(g.InSync) > 0 {
			return fmt.Sprintf("%+v, in sync %q, %q", c, g.InSync, g.Why)
		}
		return ""
	})
	check(t, p.GW2.Start(t.Context()))
	p.copied("gw2 has a whole copy again", func(g *api.Group, c *api.GroupCopy) string {
		if !c.Whole || len(g.Why) > 0 {
			return fmt.Sprintf("%+v, %q", c, g.Why)
		}
		return ""
	})
	p.end()
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
			p.t.Fatalf("%s: %s\n%s", what, w, p.GW1.Log(40))
		}
	}
}
