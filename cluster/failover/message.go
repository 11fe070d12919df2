package failover

import "time"

// Message is what nodes say to each other beside the log: datagrams that may be lost, doubled and late, sealed by whoever carries them. It holds
// no time of day and no time of a clock.
type Message struct {
	Kind   Say           `json:"kind"`
	Life   uint64        `json:"life"`            // the sender's
	Group  string        `json:"group,omitempty"` // of all but Beat
	Term   Term          `json:"term,omitzero"`   // what it is about
	Seq    uint64        `json:"seq,omitempty"`   // of a question, and in its answer
	Voters uint64        `json:"voters,omitempty"`
	Lease  time.Duration `json:"lease,omitempty"`    // Renew: for how long. Earlier releases do not say it; theirs is Earlier
	Yes    bool          `json:"yes,omitempty"`      // Promise, Free
	Gone   bool          `json:"released,omitempty"` // Promise, Free: the term was released
	Bare   bool          `json:"bare,omitempty"`     // Free: it has no copy of what the term's owner had, not even an old one. Earlier releases do not say so
	Views  []View        `json:"views,omitempty"`    // Beat
	Stands bool          `json:"stands,omitempty"`   // Beat: its log takes no entries. Earlier releases do not say so
	Last   bool          `json:"-"`                  // Release: the sender's parent says it, and the sender has ended. Who carries it knows by the keys that it is sealed with
}

// Say is a kind of message.
type Say uint8

// The kinds.
const (
	Beat    Say = iota + 1 // I live, and this is how I stand with each group
	Renew                  // help nobody but me to this group for one lease
	Promise                // the answer to Renew
	Ask                    // do you still help the owner
	Free                   // the answer to Ask
	Release                // this term has ended, and nothing more is emitted under it
)

// View is how a node stands with one group.
type View struct {
	Group   string `json:"group"`
	Epoch   uint64 `json:"epoch"`             // that it serves under, else the agreed one
	Serving bool   `json:"serving,omitempty"` // it may emit
	Whole   bool   `json:"whole,omitempty"`   // in sync, as far as it can tell
	Faults  int    `json:"faults,omitempty"`  // how many conditions count against it, panics apart
	Panics  bool   `json:"panics,omitempty"`
	Leaving bool   `json:"leaving,omitempty"` // it takes nothing over any more
}
