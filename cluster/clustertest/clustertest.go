package clustertest

import (
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"demarc/cluster/store"
)

// Network connects members by their addresses.
type Network struct {
	mu   sync.Mutex
	ends map[string]*raft.InmemTransport
}

// Join gives a member its end of the network, connected to all others.
func (n *Network) Join(address string) store.Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ends == nil {
		n.ends = map[string]*raft.InmemTransport{}
	}
	_, t := raft.NewInmemTransport(raft.ServerAddress(address))
	n.ends[address] = t
	n.connect(func(string, string) bool { return true })
	return t
}

// Split leaves members connected only within a group. A member of no group is alone. No group at all connects everybody.
func (n *Network) Split(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.connect(func(a, b string) bool {
		return len(groups) == 0 || slices.ContainsFunc(groups, func(g []string) bool { return slices.Contains(g, a) && slices.Contains(g, b) })
	})
}

func (n *Network) connect(together func(a, b string) bool) {
	for a, t := range n.ends {
		for b, o := range n.ends {
			if a == b {
				continue
			}
			if together(a, b) {
				t.Connect(raft.ServerAddress(b), o)
			} else {
				t.Disconnect(raft.ServerAddress(b))
			}
		}
	}
}
