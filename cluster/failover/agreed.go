package failover

import (
	"fmt"
	"maps"
	"slices"
)

// Alone says what an owner does without a majority.
type Alone string

// The choices.
const (
	Fence Alone = "fence" // it stops when its lease ends, and another takes over
	Keep  Alone = "keep"  // it serves on, and nobody takes over without proof that it has stopped
	Auto  Alone = "auto"  // two nodes: it serves on, and the other takes over when it hears nothing; both may serve then
)

// Term is one time of one node's being the owner. Epochs of a group only go up. The life tells a node from itself before a restart: whoever has
// restarted has lost what it knew, and is owner of nothing.
type Term struct {
	Epoch uint64 `json:"epoch"`
	Node  string `json:"node,omitempty"`
	Life  uint64 `json:"life,omitempty"`
}

// Ownership is what is agreed on about a group.
type Ownership struct {
	Term
	Rev    uint64   `json:"rev"`               // how often it was changed: every entry is held against it
	Alone  Alone    `json:"alone,omitempty"`   // what the owner does without a majority; only the owner itself changes it
	InSync []string `json:"in_sync,omitempty"` // whose copy the owner has found whole; sorted
	Cause  Cause    `json:"cause,omitempty"`   // why this term began
	From   string   `json:"from,omitempty"`    // who had the term before

	Panicked uint64 `json:"panicked,omitempty"` // the epoch that last began because of panics
}

// State is what is agreed on about all groups. It is never changed.
type State struct {
	Groups  map[string]Ownership `json:"groups,omitempty"`
	Drained []string             `json:"drained,omitempty"` // nodes that are to own nothing; sorted
}

// Cause says why a group moved.
type Cause string

// The causes.
const (
	CauseFirst    Cause = "first"    // nobody has owned it before
	CauseLease    Cause = "lease"    // the owner's lease ran out
	CauseReleased Cause = "released" // the owner has stopped, and said so or was said to
	CauseSilence  Cause = "silence"  // auto: nothing was heard of the owner, and there was no majority to ask
	CauseForce    Cause = "force"    // an operator said so
	CauseMove     Cause = "move"     // an operator asked for it
	CauseDrain    Cause = "drain"    // the node is to own nothing
	CausePrefer   Cause = "prefer"   // a preferred node is back, and whole
	CausePort     Cause = "port"     // a port is down
	CauseUplink   Cause = "uplink"   // an uplink does not answer
	CauseWorker   Cause = "worker"   // a worker is stuck
	CausePolicy   Cause = "policy"   // the policy could not be compiled
	CausePanics   Cause = "panics"   // packets met faults of ours again and again
)

// Causes are all of them.
var Causes = []Cause{CauseFirst, CauseLease, CauseReleased, CauseSilence, CauseForce, CauseMove, CauseDrain, CausePrefer, CausePort, CauseUplink, CauseWorker, CausePolicy, CausePanics}

// Conditions are the causes that count against a node while they last.
var Conditions = []Cause{CausePort, CauseUplink, CauseWorker, CausePolicy, CausePanics}

// Kind says what an entry does.
type Kind string

// The kinds.
const (
	KindClaim Kind = "claim" // a new term begins
	KindSync  Kind = "sync"  // a copy is in sync, or is not any more; the owner says so
	KindAlone Kind = "alone" // what the owner does without a majority; the owner says so
	KindDrain Kind = "drain" // a node is to own nothing, or may again
)

// Kinds are all of them.
var Kinds = []Kind{KindClaim, KindSync, KindAlone, KindDrain}

// Entry is one entry of the log about groups.
type Entry struct {
	Kind  Kind   `json:"kind"`
	Group string `json:"group,omitempty"` // not with drain
	After uint64 `json:"after,omitempty"` // the group's Rev that it was written against: another one came first otherwise, and it is refused
	By    Term   `json:"by"`              // who proposes; where an owner speaks, its term
	On    bool   `json:"on,omitempty"`    // sync, drain
	Node  string `json:"node,omitempty"`  // sync, drain: whom it is about
	Seq   uint64 `json:"seq,omitempty"`   // sync: at which place of the stream digests were equal

	Term  Term  `json:"term"`            // claim: the new one
	Alone Alone `json:"alone,omitempty"` // claim, alone
	Cause Cause `json:"cause,omitempty"` // claim
	Why   Right `json:"right,omitempty"` // claim: what gives the right to it
	Stale bool  `json:"stale,omitempty"` // claim: knowing that the copy is not whole
}

// Words say what the entry does, for who reads the audit log.
func (e Entry) Words() string {
	switch e.Kind {
	case KindClaim:
		w := fmt.Sprintf("group %s: %s owns it, epoch %d: %s", e.Group, e.Term.Node, e.Term.Epoch, e.Cause)
		if e.Stale {
			w += "; its copy was not in sync by agreement"
		}
		return w
	case KindSync:
		if e.On {
			return fmt.Sprintf("group %s: the copy of %s is in sync", e.Group, e.Node)
		}
		return fmt.Sprintf("group %s: the copy of %s is not in sync any more", e.Group, e.Node)
	case KindAlone:
		return fmt.Sprintf("group %s: without a majority its owner does %q", e.Group, e.Alone)
	}
	if e.On {
		return e.Node + " is drained: it is to own no group"
	}
	return e.Node + " may own groups again"
}

// Right is what gives a node the right to a term.
type Right string

// The rights.
const (
	RightOwner    Right = "owner"    // the owner hands over
	RightExpired  Right = "expired"  // a majority says that no promise to the owner lasts
	RightReleased Right = "released" // the owner's term was released
	RightSolo     Right = "solo"     // it serves already, without a majority
	RightForce    Right = "force"    // an operator's word
)

// Apply is the state after one more entry. An error is a refusal, in words for an operator; the state is unchanged then.
func (s State) Apply(e Entry) (State, error) {
	if e.Kind == KindDrain {
		i, there := slices.BinarySearch(s.Drained, e.Node)
		switch {
		case e.Node == "":
			return s, fmt.Errorf("a node to drain has a name")
		case e.On && !there:
			s.Drained = slices.Insert(slices.Clone(s.Drained), i, e.Node)
		case !e.On && there:
			s.Drained = slices.Delete(slices.Clone(s.Drained), i, i+1)
		}
		return s, nil
	}
	g := s.Groups[e.Group]
	if e.Group == "" {
		return s, fmt.Errorf("a group has a name")
	}
	if e.After != g.Rev {
		return s, fmt.Errorf("group %s has changed %d times, this was written after %d: look again", e.Group, g.Rev, e.After)
	}
	var err error
	switch e.Kind {
	case KindClaim:
		err = s.claim(&g, e)
	case KindSync:
		i, there := slices.BinarySearch(g.InSync, e.Node)
		switch {
		case e.By != g.Term || g.Epoch == 0:
			err = fmt.Errorf("only the owner says who is in sync with it: that is %s", g.words())
		case e.Node == "" || e.Node == g.Node:
			err = fmt.Errorf("whose copy is in sync must be said, and it is not the owner's")
		case e.On && !there:
			g.InSync = slices.Insert(slices.Clone(g.InSync), i, e.Node)
		case !e.On && there:
			g.InSync = slices.Delete(slices.Clone(g.InSync), i, i+1)
		}
	case KindAlone:
		switch {
		case e.By != g.Term || g.Epoch == 0:
			err = fmt.Errorf("only the owner says what it does alone: that is %s", g.words())
		case !e.Alone.known():
			err = fmt.Errorf("%q is nothing that an owner does alone: fence, keep or auto", e.Alone)
		default:
			g.Alone = e.Alone
		}
	default:
		err = fmt.Errorf("%q is no kind of entry about a group", e.Kind)
	}
	if err != nil {
		return s, err
	}
	g.Rev++
	s.Groups = maps.Clone(s.Groups)
	if s.Groups == nil {
		s.Groups = map[string]Ownership{}
	}
	s.Groups[e.Group] = g
	return s, nil
}

func (a Alone) known() bool { return a == Fence || a == Keep || a == Auto }

// claim begins a term, or says why not. What a standby has looked at itself is looked at again here, where everybody sees the same.
func (s State) claim(g *Ownership, e Entry) error {
	handed := e.Why == RightOwner && e.By == g.Term && g.Epoch > 0
	_, whole := slices.BinarySearch(g.InSync, e.Term.Node)
	whole = whole || e.Term.Node == g.Node && e.Term.Life == g.Life
	switch {
	case e.Term.Node == "" || !e.Alone.known():
		return fmt.Errorf("a term has a node, and says what that does alone")
	case e.Term.Epoch <= g.Epoch:
		return fmt.Errorf("epoch %d is not above %d, which %s has", e.Term.Epoch, g.Epoch, g.Node)
	case e.Why == RightForce: // an operator answers for it
	case slices.Contains(s.Drained, e.Term.Node):
		return fmt.Errorf("%s is drained: it is to own nothing", e.Term.Node)
	case g.Epoch == 0:
	case e.Why == RightOwner && !handed:
		return fmt.Errorf("only the owner hands over: that is %s", g.words())
	case !whole && !e.Stale:
		return fmt.Errorf("the copy of %s is not in sync with %s", e.Term.Node, g.Node)
	case handed || e.Why == RightReleased || e.Why == RightSolo || e.Term.Node == g.Node:
	case g.Alone != Fence:
		return fmt.Errorf("%s serves on without a majority (%s): nobody takes over from it unless it has stopped, or by force", g.Node, g.Alone)
	case e.Why != RightExpired:
		return fmt.Errorf("%q gives no right to a group", e.Why)
	}
	before := g.Node
	if e.Cause == CausePanics {
		g.Panicked = e.Term.Epoch
	}
	g.Term, g.Alone, g.Cause, g.From, g.InSync = e.Term, e.Alone, e.Cause, before, nil
	if handed && before != e.Term.Node {
		g.InSync = []string{before} // until the new owner has changed something, who handed over has the same
	}
	return nil
}

func (g Ownership) words() string {
	if g.Epoch == 0 {
		return "nobody yet"
	}
	return fmt.Sprintf("%s, since epoch %d", g.Node, g.Epoch)
}
