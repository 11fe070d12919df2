package clustertest

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"demarc/cluster/store"
)

// Network connects members by their addresses. Both ways of a link are its own: an answer goes back by the other one.
type Network struct {
	mu    sync.Mutex
	ends  map[string]*raft.InmemTransport // mu
	cut   map[way]bool                    // mu: nothing gets through
	loss  map[way]float64                 // mu: this part of the messages is lost
	delay time.Duration                   // mu: the longest that a message takes
	dice  *rand.Rand                      // mu
}

type way struct{ from, to string }

var errLost = errors.New("lost on the network")

const patience = 100 * time.Millisecond // of the side that waits for an answer

// Join gives a member its end of the network, connected to all others. Joining again is a restart: what was sent to the old end is lost.
func (n *Network) Join(address string) store.Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ends == nil {
		n.ends = map[string]*raft.InmemTransport{}
	}
	_, t := raft.NewInmemTransportWithTimeout(raft.ServerAddress(address), patience)
	n.ends[address] = t
	for a, o := range n.ends {
		if a != address {
			t.Connect(raft.ServerAddress(a), o)
			o.Connect(raft.ServerAddress(address), t)
		}
	}
	return &end{t, n, address}
}

// Dice makes losses and delays repeatable as far as that goes: the order in which members ask is the scheduler's.
func (n *Network) Dice(seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dice = rand.New(rand.NewPCG(seed, 1))
}

// Split leaves members connected only within a group. A member of no group is alone. No group at all connects everybody, and ends Cut, Lose and Slow.
func (n *Network) Split(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut, n.loss, n.delay = map[way]bool{}, map[way]float64{}, 0
	if len(groups) == 0 {
		return
	}
	for a := range n.ends {
		for b := range n.ends {
			if !slices.ContainsFunc(groups, func(g []string) bool { return slices.Contains(g, a) && slices.Contains(g, b) }) {
				n.cut[way{a, b}] = true
			}
		}
	}
}

// Cut lets nothing through from one member to another; the other way stays as it is.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut == nil {
		n.cut = map[way]bool{}
	}
	n.cut[way{from, to}] = true
}

// Lose loses a part of the messages from one member to another.
func (n *Network) Lose(from, to string, part float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.loss == nil {
		n.loss = map[way]float64{}
	}
	n.loss[way{from, to}] = part
}

// Slow has each message take up to so long.
func (n *Network) Slow(longest time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = longest
}

// Pass carries one message from one member to another, or loses it. Tests use it for what they send beside Raft.
func (n *Network) Pass(from, to string) error {
	n.mu.Lock()
	if n.dice == nil {
		n.dice = rand.New(rand.NewPCG(1, 1))
	}
	w := way{from, to}
	lost := n.cut[w] || n.loss[w] > 0 && n.dice.Float64() < n.loss[w]
	wait := time.Duration(0)
	if n.delay > 0 {
		wait = time.Duration(n.dice.Int64N(int64(n.delay)))
	}
	n.mu.Unlock()
	if lost {
		return errLost
	}
	if wait > 0 {
		time.Sleep(wait)
	}
	return nil
}

// end is a member's end: what it asks goes over the network, and so does the answer.
type end struct {
	*raft.InmemTransport
	n    *Network
	from string
}

func (e *end) ask(to raft.ServerAddress, fn func() error) error {
	if err := e.n.Pass(e.from, string(to)); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	return e.n.Pass(string(to), e.from)
}

// AppendEntriesPipeline is not there: every message goes by itself.
func (e *end) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport, as the following do.
func (e *end) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	return e.ask(to, func() error { return e.InmemTransport.AppendEntries(id, to, q, a) })
}

// RequestVote implements raft.Transport.
func (e *end) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	return e.ask(to, func() error { return e.InmemTransport.RequestVote(id, to, q, a) })
}

// RequestPreVote implements raft.WithPreVote.
func (e *end) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	return e.ask(to, func() error { return e.InmemTransport.RequestPreVote(id, to, q, a) })
}

// InstallSnapshot implements raft.Transport.
func (e *end) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, r io.Reader) error {
	return e.ask(to, func() error { return e.InmemTransport.InstallSnapshot(id, to, q, a, r) })
}

// TimeoutNow implements raft.Transport.
func (e *end) TimeoutNow(id raft.ServerID, to raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	return e.ask(to, func() error { return e.InmemTransport.TimeoutNow(id, to, q, a) })
}
