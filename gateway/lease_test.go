package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"demarc/gateway/xsk"
)

// open is one membership of a device that a test has made up.
type open struct {
	name string
	list *[]string
}

func (o open) Close() error {
	*o.list = slices.DeleteFunc(*o.list, func(s string) bool { return s == o.name })
	return nil
}

// A port receives the virtual MACs of the groups that are on it, of both families, and of no others any more; a device that refuses is said, and asked again.
func TestAPortHearsTheVirtualMACsOfItsGroups(t *testing.T) {
	var now []string
	refuse := false
	was := receiveMAC
	t.Cleanup(func() { receiveMAC = was })
	receiveMAC = func(ifindex int, mac [6]byte) (io.Closer, error) {
		if refuse {
			return nil, errors.New("no room in the filter")
		}
		o := open{fmt.Sprintf("%d:%x", ifindex, mac), &now}
		now = append(now, o.name)
		return o, nil
	}
	var log strings.Builder
	g := &Gateway{log: slog.New(slog.NewTextHandler(&log, nil))}
	p := &port{portFacts: portFacts{}}
	p.link.Index = 3
	for i, c := range []struct {
		groups []uint8
		want   string
	}{
		{[]uint8{1}, "3:00005e000101 3:00005e000201"},
		{[]uint8{1, 255}, "3:00005e000101 3:00005e0001ff 3:00005e000201 3:00005e0002ff"},
		{[]uint8{255}, "3:00005e0001ff 3:00005e0002ff"},
		{[]uint8{255}, "3:00005e0001ff 3:00005e0002ff"},
		{nil, ""},
	} {
		p.loaded = xsk.ProgramConfig{Groups: c.groups}
		g.hear(p)
		slices.Sort(now)
		if got := strings.Join(now, " "); got != c.want {
			t.Errorf("step %d: %q, want %q", i, got, c.want)
		}
	}
	refuse = true
	p.loaded.Groups = []uint8{9}
	g.hear(p)
	if n := strings.Count(log.String(), "no room in the filter"); n != 2 || len(p.heard) != 0 {
		t.Errorf("a device that refuses was told %d times: %s", n, log.String())
	}
	refuse = false
	g.hear(p)
	if len(now) != 2 {
		t.Errorf("not asked again: %v", now)
	}
	if err := p.unlock(); err != nil || len(now) != 0 {
		t.Errorf("a port that is let go of still hears %v (%v)", now, err)
	}
}
