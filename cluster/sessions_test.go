package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/transport"
)

// copier takes sessions in a test: it answers with what it is told, and remembers from whom.
type copier struct {
	from atomic.Pointer[string]
	ends atomic.Int64
	says error
}

func (c *copier) take(peer string, conn net.Conn) error {
	c.from.Store(&peer)
	defer c.ends.Add(1)
	_, _ = io.Copy(conn, conn)
	return c.says
}

// copiers is a trio of which each gateway copies.
func copiers(t *testing.T) (hs []*host, ms []*member, cs []*copier) {
	t.Helper()
	s := newSite(t)
	hs = []*host{s.host("gw1", command.RoleGateway), s.host("gw2", command.RoleGateway), s.host("wit", command.RoleWitness)}
	for i := range 2 {
		cs = append(cs, &copier{})
		hs[i].copies = cs[i].take
	}
	ms = []*member{hs[0].run()}
	begun(t, ms[0])
	ms = append(ms, hs[1].enter(ms[0], ""), hs[2].enter(ms[0], ""))
	voting(t, ms, 3)
	return hs, ms, cs
}

// said tells whether the other end of a connection has what is written to it answered.
func said(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	defer func() { _ = c.SetDeadline(time.Time{}) }()
	if _, err := c.Write([]byte("what")); err != nil {
		return err
	}
	var b [4]byte
	_, err := io.ReadFull(c, b[:])
	return err
}

func dialled(t *testing.T, m *member, to string) net.Conn {
	t.Helper()
	var c net.Conn
	eventually(t, m.cfg.Name+" connects to "+to, func() (ok bool) {
		var err error
		if c, err = m.DialSessions(t.Context(), to); err != nil {
			t.Log(err)
		}
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// TestSessionsGoToTheNamedGateway: both ways at the same time, each to the gateway that was named, which hears from whom; the newest connection of a member is the one that counts. Who has
// none to copy or copies none is told so.
func TestSessionsGoToTheNamedGateway(t *testing.T) {
	_, ms, cs := copiers(t)
	there, back := dialled(t, ms[0], "gw2"), dialled(t, ms[1], "gw1")
	for _, c := range []net.Conn{there, back} {
		if err := said(c); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"gw2", "gw1"} {
		if from := cs[i].from.Load(); from == nil || *from != want {
			t.Errorf("%s hears from %v, want %s", ms[i].cfg.Name, from, want)
		}
	}
	again := dialled(t, ms[0], "gw2")
	if err := said(again); err != nil {
		t.Fatal(err)
	}
	if err := said(there); err == nil {
		t.Error("the connection before is still answered")
	}
	eventually(t, "the former one has ended", func() bool { return cs[1].ends.Load() == 1 })
	if err := said(again); err != nil {
		t.Errorf("and the newest: %v", err)
	}
	for to, want := range map[string]string{"gw9": "gw9 is not a member of this cluster: the members are gw1, gw2", "gw1": "gw1 is this node itself", "wit": "wit is a witness: only a gateway copies sessions"} {
		if c, err := ms[0].DialSessions(t.Context(), to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %s: %v, %v, want %q", to, c, err, want)
		}
	}
	before := ms[0].Refused()[transport.RefusedRequest]
	c, err := ms[2].tr.DialSessions(t.Context(), ms[0].Address()) // a witness that says it has sessions
	if err == nil {
		err = said(c)
		c.Close()
	}
	if err == nil {
		t.Error("a witness has its sessions copied")
	}
	eventually(t, "it is counted", func() bool { return ms[0].Refused()[transport.RefusedRequest] == before+1 })
	ms[0].stop()
	if err := said(again); err == nil {
		t.Error("a node that has ended still sends")
	}
	if _, err := ms[0].DialSessions(t.Context(), "gw2"); err == nil {
		t.Error("a node that has ended dials")
	}
}

// TestSessionsOfStrangersAreRefused: another node at the address, one of another cluster, and one that is removed while the connection stands: each is told, or logged, why, and counted.
func TestSessionsOfStrangersAreRefused(t *testing.T) {
	hs, ms, cs := copiers(t)
	s := hs[0].site
	stranger := s.host("gw9", command.RoleGateway)
	stranger.copies = (&copier{}).take
	other := stranger.run() // a cluster of its own, of the same authority
	begun(t, other)
	eventually(t, "it is current", func() bool { return other.current.Load() })
	if _, err := other.tr.DialSessions(t.Context(), ms[0].Address()); err == nil || !strings.Contains(err.Error(), "gw9 belongs to cluster "+other.State().Cluster) {
		t.Errorf("one of another cluster: %v", err)
	}
	eventually(t, "it is counted as of another cluster", func() bool { return ms[0].Refused()[transport.RefusedCluster] == 1 })

	standing := dialled(t, ms[0], "gw2")
	if err := said(standing); err != nil {
		t.Fatal(err)
	}
	back := dialled(t, ms[1], "gw1")
	if err := said(back); err != nil {
		t.Fatal(err)
	}
	if err := ms[0].Remove(t.Context(), "gw2", command.Who{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection to one that is removed ends", func() bool { return said(standing) != nil })
	eventually(t, "and one from it", func() bool { return said(back) != nil && cs[0].ends.Load() > 0 })
	eventually(t, "both are counted as removed", func() bool { return ms[0].Refused()[transport.RefusedRemoved] >= 2 })
	if _, err := ms[0].DialSessions(t.Context(), "gw2"); err == nil || !strings.Contains(err.Error(), "gw2 is not a member") {
		t.Errorf("dialled once more: %v", err)
	}
	if _, err := ms[1].tr.DialSessions(t.Context(), ms[0].Address()); err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("it dials once more: %v", err)
	}
}

// TestSessionsGoToNobodyElse: where the member that is named should be, another node of the cluster's authority answers. Nothing is sent to it.
func TestSessionsGoToNobodyElse(t *testing.T) {
	hs, ms, _ := copiers(t)
	ms[1].stop()
	for _, name := range []string{"gw9", "wit"} { // a stranger, and another member
		nobodyElse(t, hs, ms, name)
	}
}

func nobodyElse(t *testing.T, hs []*host, ms []*member, name string) {
	impostor := hs[0].site.host(name, command.RoleGateway)
	var tr *transport.Transport
	eventually(t, "the address is free", func() (ok bool) {
		var err error
		tr, err = transport.Listen(transport.Config{Address: hs[1].address, Keys: keyring(t, impostor)})
		return err == nil
	})
	defer tr.Close()
	before := ms[0].Refused()[transport.RefusedNotMember]
	_, err := ms[0].DialSessions(t.Context(), "gw2")
	if err == nil || !strings.Contains(err.Error(), "is another node than gw2: "+name) {
		t.Errorf("dialled: %v", err)
	}
	eventually(t, "it is counted", func() bool { return ms[0].Refused()[transport.RefusedNotMember] > before })
	if n := ms[0].Refused()[transport.RefusedNotMember]; n != before+1 {
		t.Errorf("%d counted as no members, want %d", n, before+1)
	}
}

// TestOddSessionsAreCounted: what a member sends on such a connection that makes no sense ends it, is logged with the member's name, and counted.
func TestOddSessionsAreCounted(t *testing.T) {
	hs, ms, cs := copiers(t)
	_ = hs
	cs[1].says = errors.New("frame: begins with garbage")
	c := dialled(t, ms[0], "gw2")
	if err := said(c); err != nil {
		t.Fatal(err)
	}
	before := ms[1].Refused()[transport.RefusedRequest]
	c.Close()
	eventually(t, "it is counted", func() bool { return ms[1].Refused()[transport.RefusedRequest] == before+1 })
}

// TestSessionsDoNotDelayMessages: while a connection for sessions is full, because the other side reads nothing, requests to that side are answered as before: it has a connection of its own,
// and what it sends is marked as what may wait.
func TestSessionsDoNotDelayMessages(t *testing.T) {
	s := newSite(t)
	a, b := s.host("gw1", command.RoleGateway), s.host("gw2", command.RoleGateway)
	stuck := make(chan struct{})
	b.copies = func(_ string, c net.Conn) error { <-stuck; return nil }
	ma := a.run()
	begun(t, ma)
	mb := b.enter(ma, "")
	t.Cleanup(func() { close(stuck); mb.stop() })
	eventually(t, "both are members", func() bool { return len(ma.State().Members) == 2 && mb.current.Load() })
	c := dialled(t, ma, "gw2")
	full := make(chan error, 1)
	var wrote atomic.Int64
	go func() {
		for b := make([]byte, 64<<10); ; {
			n, err := c.Write(b)
			if wrote.Add(int64(n)); err != nil {
				full <- err
				return
			}
		}
	}()
	last := int64(-1)
	eventually(t, "the connection is full", func() bool {
		now := wrote.Load()
		same := now == last && now > 0
		last = now
		time.Sleep(20 * time.Millisecond)
		return same
	})
	m, _ := ma.State().Named("gw2")
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := ma.ping(ctx, m); err != nil {
			t.Errorf("beside it: %v", err)
		}
		cancel()
	}
	c.Close()
	if err := <-full; err == nil {
		t.Error(fmt.Errorf("%d bytes were written to a connection that was closed", wrote.Load()))
	}
}
