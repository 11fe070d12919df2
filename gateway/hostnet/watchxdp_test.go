package hostnet

import (
	"context"
	"encoding/binary"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
)

// The kernel says at once that a veth takes redirected frames no longer, or again, and that a link is gone.
func TestWatchXDPFeatures(t *testing.T) {
	here, there := namespace(t, 1)
	l, err := netlink.LinkByName("dmh0")
	if err != nil {
		t.Fatal(err)
	}
	index := l.Attrs().Index
	var mu sync.Mutex
	var told []XDPFeatures
	all := 0
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { // its thread ends with it
		runtime.LockOSThread()
		if err := netns.Set(here); err != nil {
			ended <- err
			return
		}
		ended <- WatchXDPFeatures(ctx, func(i int, f XDPFeatures) {
			mu.Lock()
			defer mu.Unlock()
			if i == 0 {
				all++
			} else if i == index {
				told = append(told, f)
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	last := func() (n int, f XDPFeatures) {
		mu.Lock()
		defer mu.Unlock()
		if len(told) > 0 {
			f = told[len(told)-1]
		}
		return len(told), f
	}
	eventually(t, "it watches", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return all > 0
	})
	far := func(on bool) {
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			if err := netns.Set(there); err != nil {
				done <- err
				return
			}
			done <- SetOffloads("dmh1", on, GRO)
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for _, on := range []bool{true, false, true, false} {
		was, _ := last()
		began := time.Now()
		far(on)
		eventually(t, "told", func() bool { n, f := last(); return n > was && f&XDPTarget != 0 == on })
		t.Logf("gro %v at the far end: known after %v", on, time.Since(began))
		if f, err := ReadXDPFeatures(index); err != nil || f&XDPTarget != 0 != on {
			t.Errorf("gro %v at the far end: %b, %v", on, f, err)
		}
	}
	far(true)
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone", func() bool { _, f := last(); return f == 0 })
}

func TestFeaturesTold(t *testing.T) {
	index := nl.NewRtAttr(netdevDevIfindex, nl.Uint32Attr(7)).Serialize()
	b := make([]byte, 8)
	binary.NativeEndian.PutUint64(b, uint64(XDPBasic|XDPTarget))
	features := nl.NewRtAttr(netdevDevFeatures, b).Serialize()
	msg := func(cmd byte, attrs ...[]byte) []byte {
		m := []byte{cmd, 1, 0, 0}
		for _, a := range attrs {
			m = append(m, a...)
		}
		return m
	}
	for _, c := range []struct {
		name  string
		b     []byte
		index int
		f     XDPFeatures
		ok    bool
	}{
		{"change", msg(netdevCmdDevChange, index, features), 7, XDPBasic | XDPTarget, true},
		{"another order", msg(netdevCmdDevChange, features, index), 7, XDPBasic | XDPTarget, true},
		{"gone", msg(netdevCmdDevDel, index, features), 7, 0, true},
		{"gone, index alone", msg(netdevCmdDevDel, index), 7, 0, true},
		{"another command", msg(2, index, features), 0, 0, false},
		{"no features", msg(netdevCmdDevChange, index), 7, 0, false},
		{"no index", msg(netdevCmdDevChange, features), 0, XDPBasic | XDPTarget, false},
		{"nothing", nil, 0, 0, false},
		{"a header", msg(netdevCmdDevChange), 0, 0, false},
		{"cut", msg(netdevCmdDevChange, index, features)[:22], 0, 0, false},
	} {
		if i, f, ok := featuresTold(c.b); ok != c.ok || ok && (i != c.index || f != c.f) {
			t.Errorf("%s: %d, %b, %v", c.name, i, f, ok)
		}
	}
}
