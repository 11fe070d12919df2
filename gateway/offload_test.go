package gateway

import (
	"strings"
	"testing"

	"demarc/configs"
	"demarc/gateway/xsk"
)

// Where workers carry everything the port says why, and a start is refused where it was to be otherwise.
func TestOffloadIsJudged(t *testing.T) {
	for _, c := range []struct {
		asked  string
		change func(*Gateway, *port)
		why    string
		fails  bool
	}{
		{"never", func(*Gateway, *port) {}, "the node file says never", false},
		{"", func(*Gateway, *port) {}, "a veth loses", false},
		{"auto", func(_ *Gateway, p *port) { p.mode = xsk.ZeroCopy }, "the port is zero-copy", false},
		{"always", func(_ *Gateway, p *port) { p.mode = xsk.ZeroCopy }, "the port is zero-copy", true},
		{"auto", func(_ *Gateway, p *port) { p.mode, p.native = xsk.Generic, false }, "no native XDP", false},
		{"always", func(_ *Gateway, p *port) { p.mode, p.native = xsk.Generic, false }, "no native XDP", true},
		{"always", func(g *Gateway, _ *port) { g.o.Break = "nat" }, "switched off for a test", true},
		{"always", func(g *Gateway, _ *port) { g.o.Node.Workers.Count = 17 }, "more than 16 workers", true},
		// No device has this number: what cannot be told is no.
		{"auto", func(_ *Gateway, p *port) { p.link.Driver, p.link.Index = "virtio_net", 1<<30 }, "takes redirected frames cannot be told", false},
		{"always", func(_ *Gateway, p *port) { p.link.Driver, p.link.Index = "virtio_net", 1<<30 }, "takes redirected frames cannot be told", true},
	} {
		g := &Gateway{o: Options{Node: &configs.Node{}}}
		p := &port{cfg: configs.Port{Name: "wan", Offload: c.asked}}
		p.mode, p.native, p.link.Driver = xsk.Copy, true, "veth"
		c.change(g, p)
		on, why, err := g.judgeOffload(p)
		if on || !strings.Contains(why, c.why) || (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "port wan") {
			t.Errorf("%q: on %v, %q, %v; want %q", c.asked, on, why, err, c.why)
		}
	}
}
