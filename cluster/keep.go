package cluster

import (
	"context"
	"errors"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// ErrUnknownOutcome means that a change may or may not take effect later.
var ErrUnknownOutcome = store.ErrUnknownOutcome

// ErrLate means that a change is agreed on, and that this node had not heard so when its time was over.
var ErrLate = errors.New("it is agreed on, and that has not come here yet")

// ErrDamaged wraps what is wrong with the files that the replicated state is kept in.
var ErrDamaged = store.ErrDamaged

// kept is the revision that the gateway was last asked to keep.
type kept struct {
	number uint64
	err    error
	at     uint64 // Mono
}

// keep has the gateway keep what it serves, once that is confirmed. It reports whether there is nothing left to do.
func (n *Node) keep(ctx context.Context) (done bool) {
	s := n.st.State()
	n.mu.Lock()
	now, k := n.served, n.kept
	n.mu.Unlock()
	switch {
	case now.err != nil:
		return false // served again first
	case n.cfg.Keep == nil || now.alone || s.Serving != s.Confirmed || now.number != s.Confirmed || k.number == now.number && k.err == nil:
		return true
	case k.number == now.number && n.cfg.Mono()-k.at < uint64(againAfter):
		return false
	}
	r, ok := s.Revision(now.number)
	if !ok {
		return true
	}
	text, err := n.st.Text(r.Digest)
	if err == nil {
		err = n.cfg.Keep(ctx, *r, text)
	}
	if err != nil && (k.number != r.Number || k.err == nil || k.err.Error() != err.Error()) {
		n.log.Error("keep revision", "revision", r.Number, "err", err)
	}
	n.mu.Lock()
	n.kept = kept{number: r.Number, err: err, at: n.cfg.Mono()}
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	return err == nil
}

// AwaitKept waits until the gateway was asked to keep revision number, and says why it could not. There is nothing to wait for when that is not
// confirmed, not served here, or replaced meanwhile.
func (n *Node) AwaitKept(ctx context.Context, number uint64) error {
	for {
		n.mu.Lock()
		now, k, changed := n.served, n.kept, n.changed
		n.mu.Unlock()
		if k.number == number {
			return k.err
		}
		if s := n.st.State(); n.cfg.Keep == nil || now.number != number || now.err != nil || now.alone || s.Confirmed != number || s.Serving != number {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Current is closed when this node knows what the cluster had agreed on at its start. Before that State is of long ago.
func (n *Node) Current() <-chan struct{} { return n.ready }

// Halfway reports whether this node has begun a cluster and was cut short before that had its first policy: see Begin.
func (n *Node) Halfway() bool {
	if !n.Begun() || n.st.State().Serving != 0 {
		return false
	}
	v, err := n.st.Voters()
	return err == nil && len(v) == 1 && v[0].ID == n.id && n.st.CaughtUp()
}

// Lead is who leads, by name; "" = nobody, as far as this node knows. here says that it is this node.
func (n *Node) Lead() (name string, here bool) {
	id, _ := n.st.Leader()
	if id == "" {
		return "", false
	}
	for _, m := range n.st.State().Members {
		if m.ID == id {
			return m.Name, id == n.id
		}
	}
	return id, id == n.id // it has not told its name yet
}

// ID names this member for as long as its data directory lives.
func (n *Node) ID() string { return n.id }

// Pending is the provisional revision; ok is false when there is none.
func (n *Node) Pending() (r command.Revision, ok bool) {
	p, ok := n.st.State().Pending()
	if ok {
		r = *p
	}
	return r, ok
}
