package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/transport"
)

// sessions are the connections over which owners have standbys copy their sessions, of both kinds. They are judged again while they stand: whoever is a member no more loses
// them. They end with the node; a copy goes on over the next one from where it was.
type sessions struct {
	mu   sync.Mutex
	all  map[*sessionConn]bool
	from map[string]*sessionConn // mu: by member, what it dialled; one each
	shut bool                    // mu: the node ends
}

// sessionConn is one of them. Closing it has the node forget it.
type sessionConn struct {
	net.Conn
	node *Node
	peer transport.Peer
	id   string
	once sync.Once
	err  error
}

func (c *sessionConn) Close() error {
	c.once.Do(func() {
		s := &c.node.sessions
		s.mu.Lock()
		delete(s.all, c)
		if s.from[c.peer.Name] == c {
			delete(s.from, c.peer.Name)
		}
		s.mu.Unlock()
		c.err = c.Conn.Close()
	})
	return c.err
}

// add remembers c. One that the same member has dialled before ends: it knows best which of its connections it still has.
func (s *sessions) add(c *sessionConn, incoming bool) bool {
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		return false
	}
	if s.all == nil {
		s.all, s.from = map[*sessionConn]bool{}, map[string]*sessionConn{}
	}
	s.all[c] = true
	var old *sessionConn
	if incoming {
		old, s.from[c.peer.Name] = s.from[c.peer.Name], c
	}
	s.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return true
}

func (s *sessions) list() (out []*sessionConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		out = append(out, c)
	}
	return out
}

// ErrNoSessions says that a member runs a release that takes no copies of sessions.
var ErrNoSessions = transport.ErrNoSessions

// DialSessions connects to another gateway, which shall copy this one's sessions: what its Config.Sessions is called with there. It waits a few seconds at most.
func (n *Node) DialSessions(ctx context.Context, member string) (net.Conn, error) {
	if n.tr == nil {
		return nil, errors.New("this node has no [cluster] section: nobody copies its sessions")
	}
	s := n.st.State()
	m, ok := s.Named(member)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s is not a member of this cluster: the members are %s", member, list(names(s.Members)))
	case m.ID == n.id:
		return nil, fmt.Errorf("%s is this node itself", member)
	case m.Role != command.RoleGateway:
		return nil, fmt.Errorf("%s is a %s: only a gateway copies sessions", member, m.Role)
	case m.Address == "":
		return nil, fmt.Errorf("it is not known where %s is reached: [cluster] advertise in its node file", member)
	}
	raw, err := n.tr.DialSessions(ctx, m.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s for copies of sessions: %w", member, err)
	}
	c := &sessionConn{Conn: raw, node: n, peer: transport.PeerOf(raw), id: m.ID}
	c.peer.Dialed = true
	if c.peer.Name != member {
		err = transport.Refuse(transport.RefusedNotMember, "at %s is another node than %s: %s", m.Address, member, c.peer.Name)
	} else {
		err = n.mayEnter(c.peer, m.ID)
	}
	if err != nil {
		n.tr.Refuse(raw, err)
		return nil, err
	}
	if !n.sessions.add(c, false) {
		raw.Close()
		return nil, errors.New("this node is ending")
	}
	return c, nil
}

// takeSessions hands over what others have dialled, and looks who is a member still, until ctx ends.
func (n *Node) takeSessions(ctx context.Context) {
	var wg sync.WaitGroup
	l := n.tr.SessionConns()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		stop()
		l.Close()
		n.sessions.mu.Lock()
		n.sessions.shut = true
		n.sessions.mu.Unlock()
		for _, c := range n.sessions.list() {
			c.Close()
		}
		wg.Wait()
	}()
	wg.Go(func() { n.judgeSessions(ctx) })
	for {
		raw, err := l.Accept()
		if err != nil {
			return
		}
		c := &sessionConn{Conn: raw, node: n, peer: transport.PeerOf(raw), id: transport.IDOf(raw)}
		if err := n.mayCopy(c.peer); err != nil {
			n.tr.Refuse(raw, err)
			continue
		}
		if !n.sessions.add(c, true) {
			raw.Close()
			continue
		}
		wg.Go(func() {
			defer c.Close()
			if err := n.cfg.Sessions(c.peer.Name, c); err != nil && ctx.Err() == nil {
				n.tr.Refuse(c, transport.Refuse(transport.RefusedRequest, "copies of sessions of %s: %w", c.peer.Name, err))
			}
		})
	}
}

// mayCopy says why who has dialled may not tell this node of sessions. That it is of this cluster has been looked at.
func (n *Node) mayCopy(p transport.Peer) error {
	m, known := n.st.State().Named(p.Name)
	switch {
	case n.cfg.Sessions == nil:
		return transport.Refuse(transport.RefusedRequest, "%s wants its sessions copied: this node is no gateway", p.Name)
	case p.Name == n.cfg.Name:
		return transport.Refuse(transport.RefusedRequest, "this node wants its sessions copied by itself")
	case known && m.Role != command.RoleGateway:
		return transport.Refuse(transport.RefusedRequest, "%s wants its sessions copied and is a %s, which has none", p.Name, m.Role)
	}
	return nil
}

// judgeSessions ends the connections of those who are members no more.
func (n *Node) judgeSessions(ctx context.Context) {
	t := time.NewTicker(n.pace(time.Second))
	defer t.Stop()
	for {
		n.mu.Lock()
		applied := n.applied
		n.mu.Unlock()
		for _, c := range n.sessions.list() {
			if err := n.mayEnter(c.peer, c.id); err != nil {
				n.tr.Refuse(c, err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-applied:
		case <-t.C:
		}
	}
}
