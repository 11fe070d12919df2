package beat

import (
	"context"
	"errors"

	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"demarc/cluster/failover"
	"demarc/cluster/transport"
)

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func authority(t testing.TB) *transport.Authority {
	t.Helper()
	a, err := transport.NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", noon)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// heard is one message that came.
type heard struct {
	from string
	m    failover.Message
}

// member is one node of a test.
type member struct {
	t    testing.TB
	name string
	keys *transport.Keyring
	tr   *transport.Transport
	c    *Carrier
	in   chan heard
	stop func()

	mu       sync.Mutex
	contacts []Contact
	refused  map[string]bool
}

// start runs a member. address is that of its port; "" = any.
func start(t testing.TB, a *transport.Authority, name, address string, now func() time.Time, with func(*Config)) *member {
	t.Helper()
	dir := t.TempDir()
	if err := a.Issue(dir, name, noon); err != nil {
		t.Fatal(err)
	}
	k, err := transport.OpenKeyring(dir, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return begin(t, k, name, address, with)
}

func begin(t testing.TB, k *transport.Keyring, name, address string, with func(*Config)) *member {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	tr, err := transport.Listen(transport.Config{Address: address, Keys: k, Self: func() transport.Hello { return transport.Hello{Cluster: "c", ID: name} }})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, name: name, keys: k, tr: tr, in: make(chan heard, 4096), refused: map[string]bool{}}
	c := Config{Name: name, Paths: []Path{{Listen: netip.MustParseAddrPort("127.0.0.1:0")}},
		Receive: func(from string, msg failover.Message) {
			select {
			case m.in <- heard{from, msg}:
			default:
			}
		},
	}
	if with != nil {
		with(&c)
	}
	if m.c, err = Open(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.c.Run(ctx) })
	wg.Go(func() { m.c.Serve(ctx, m.link()) })
	m.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		m.c.Close()
		tr.Close()
	})
	t.Cleanup(m.stop)
	return m
}

func (m *member) link() Link {
	return Link{ID: m.name, Conns: m.tr,
		Contacts: func() []Contact {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.contacts
		},
		Allowed: func(p transport.Peer, id string) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.refused[p.Name] {
				return errors.New("was removed")
			}
			return nil
		}}
}

// knows has a member know others.
func (m *member) knows(others ...*member) {
	m.mu.Lock()
	m.contacts = nil
	for _, o := range others {
		m.contacts = append(m.contacts, Contact{o.name, o.tr.Address()})
	}
	m.mu.Unlock()
	m.c.Look()
}

func (m *member) refuse(name string, yes bool) {
	m.mu.Lock()
	m.refused[name] = yes
	m.mu.Unlock()
	m.c.Look()
}

// peer is how it fares with another one.
func (m *member) peer(name string) PeerStatus {
	for _, p := range m.c.Status().Peers {
		if p.Name == name {
			return p
		}
	}
	return PeerStatus{Heard: -1}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}

// pair is two members that have keys with each other.
func pair(t testing.TB, with func(*Config)) (a, b *member) {
	t.Helper()
	ca := authority(t)
	now := func() time.Time { return noon }
	a, b = start(t, ca, "gw-a", "", now, with), start(t, ca, "gw-b", "", now, with)
	a.knows(b)
	b.knows(a)
	meet(t, a, b)
	return a, b
}

func meet(t testing.TB, a, b *member) {
	t.Helper()
	eventually(t, "keys both ways", func() bool {
		x, y := a.peer(b.name), b.peer(a.name)
		return x.Keyed && y.Keyed && x.Heard >= 0 && y.Heard >= 0
	})
}

// next is the next message that came.
func (m *member) next() heard {
	m.t.Helper()
	select {
	case h := <-m.in:
		return h
	case <-time.After(10 * time.Second):
		m.t.Fatalf("nothing has come to %s: %+v", m.name, m.c.Status())
	}
	return heard{}
}

var message = failover.Message{Kind: failover.Renew, Life: 7, Group: "east", Term: failover.Term{Epoch: 3, Node: "gw-a", Life: 7}, Seq: 11, Voters: 2}

func TestCarries(t *testing.T) {
	a, b := pair(t, nil)
	a.c.Send("gw-b", message)
	if h := b.next(); h.from != "gw-a" || h.m.Seq != 11 || h.m.Term != message.Term {
		t.Fatalf("came as %+v", h)
	}
	b.c.Send("gw-a", message)
	if h := a.next(); h.from != "gw-b" {
		t.Fatalf("came as %+v", h)
	}
}
