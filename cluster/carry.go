package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"demarc/cluster/beat"
	"demarc/cluster/failover"
	"demarc/cluster/transport"
)

// OpenCarrier binds the addresses for datagrams: the cluster's own, with its port, and the further paths. It belongs to the process and not to a Node, as a Driver does: a
// Node that is closed and opened again takes no key from anybody.
func OpenCarrier(c *Net, name string, receive func(from string, m failover.Message), log *slog.Logger) (*beat.Carrier, error) {
	var paths []beat.Path
	add := func(listen, tell string) error {
		l, err := netip.ParseAddrPort(listen)
		if err != nil {
			return fmt.Errorf("%q is not an address and port: such as 192.0.2.1:7400", listen)
		}
		p := beat.Path{Listen: l}
		if tell != "" {
			if p.Tell, err = netip.ParseAddrPort(tell); err != nil {
				return fmt.Errorf("%q is not an address and port: such as 192.0.2.1:7400", tell)
			}
		}
		paths = append(paths, p)
		return nil
	}
	if err := add(c.Listen, c.Advertise); err != nil {
		return nil, fmt.Errorf("cluster address: %w", err)
	}
	for _, p := range c.Paths {
		if err := add(p, ""); err != nil {
			return nil, fmt.Errorf("paths of the cluster: %w", err)
		}
	}
	return beat.Open(beat.Config{Name: name, Paths: paths, Receive: receive, RoundTrip: c.RoundTrip, Log: log})
}

// carrier is nil while there is none.
func (n *Node) carrier() *beat.Carrier {
	if n.cfg.Carrier == nil {
		return nil
	}
	return n.cfg.Carrier()
}

const carrierPoll = 200 * time.Millisecond

// serveCarrier gives the carrier its keys until ctx ends, from when there is one.
func (n *Node) serveCarrier(ctx context.Context) {
	t := time.NewTicker(carrierPoll)
	defer t.Stop()
	for {
		if c := n.carrier(); c != nil {
			c.Serve(ctx, n.link())
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// link is what keys for datagrams come from.
func (n *Node) link() beat.Link {
	return beat.Link{ID: n.id, Conns: n.tr, Contacts: n.contacts, Allowed: func(p transport.Peer, id string) error { return n.mayEnter(p, id) }}
}

// contacts are the other members: by name, and before this node knows the log, where Raft found them when it last ran. A node that has just started must not wait for the
// others to find it.
func (n *Node) contacts() (list []beat.Contact) {
	s := n.st.State()
	for _, m := range s.Members {
		if m.ID != n.id {
			list = append(list, beat.Contact{Name: m.Name, Address: m.Address})
		}
	}
	voters, _ := n.st.Voters() // none on a node that is in no cluster
	for _, v := range voters {
		if v.ID != n.id && v.Address != "" && !slices.ContainsFunc(list, func(c beat.Contact) bool { return c.Address == v.Address }) {
			list = append(list, beat.Contact{Address: v.Address})
		}
	}
	return list
}
