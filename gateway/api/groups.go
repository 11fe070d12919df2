package api

import (
	"context"
	"time"
)

// Paths of groups and of who serves them.
const (
	PathGroups      = "/v1/groups"        // Groups
	PathGroupEvents = "/v1/groups/events" // GroupEvents
	PathGroupMove   = "/v1/groups/move"   // POST MoveRequest -> Groups
	PathGroupTake   = "/v1/groups/take"   // POST TakeRequest -> Groups
	PathDrain       = "/v1/cluster/drain" // POST DrainRequest -> Drained
)

// Grouper is the part of Backend that knows who serves a group.
type Grouper interface {
	Groups(ctx context.Context) (*Groups, error)
	GroupEvents(ctx context.Context) (*GroupEvents, error)
	MoveGroup(ctx context.Context, r MoveRequest) (*Groups, error)
	TakeGroup(ctx context.Context, r TakeRequest) (*Groups, error)
	Drain(ctx context.Context, r DrainRequest) (*Drained, error)
}

// Groups answers PathGroups: the groups as this node knows them.
type Groups struct {
	Node    string     `json:"node"`              // that answers
	Groups  []Group    `json:"groups"`            // by name
	Drained []string   `json:"drained,omitempty"` // nodes that are to own nothing
	Clock   GroupClock `json:"clock"`

	Paths   []GroupPath       `json:"paths,omitempty"`             // to the other members, by member
	Dropped map[string]uint64 `json:"dropped_datagrams,omitempty"` // by reason: what came and was not believed, and what could not be sent
	Problem string            `json:"problem,omitempty"`           // why this node takes no part: it serves no group then

	Standby *Standby `json:"standby,omitempty"` // what this node copies of others; missing = it has no data plane
}

// GroupPath is one way by which messages about groups go to a member.
type GroupPath struct {
	Member    string  `json:"member"`
	Local     string  `json:"local"`
	Remote    string  `json:"remote"`
	Heard     float64 `json:"heard_seconds"`      // ago, by this path; -1 = never
	RoundTrip float64 `json:"round_trip_seconds"` // 0 = not known
	Loss      float64 `json:"loss"`               // of the last probes, there and back, 0..1
	Problem   string  `json:"problem,omitempty"`  // why there are no keys with that member
}

// GroupClock is how well this node keeps its leases.
type GroupClock struct {
	Gaps     uint64  `json:"gaps"`                // times that it did not run for longer than the guard of a lease; what had run out by then was asked for anew
	Longest  float64 `json:"longest_gap_seconds"` // of them
	Lost     uint64  `json:"lost_messages"`       // of other members, that came faster than they were read
	Realtime bool    `json:"realtime"`            // its thread has real-time priority
}

// Group is one group: tenants and addresses that one node serves at a time.
type Group struct {
	Name     string   `json:"name"`
	ID       int      `json:"id"`              // its virtual MACs end with it; 0 = the policy that is served here does not have it
	Nodes    []string `json:"nodes"`           // who may serve it, the preferred one first
	Owner    string   `json:"owner,omitempty"` // by agreement; empty = nobody yet
	Epoch    uint64   `json:"epoch"`
	Serving  bool     `json:"serving"`            // by this node, now
	Lease    float64  `json:"lease_left_seconds"` // of this node
	Alone    string   `json:"alone"`              // what its owner does without a majority: fence, keep, auto
	Solo     bool     `json:"without_majority"`   // it is served by this node, and no majority answers
	InSync   []string `json:"in_sync,omitempty"`  // whose copy of the sessions is whole
	Cause    string   `json:"cause,omitempty"`    // why the owner has it
	From     string   `json:"from,omitempty"`     // who had it before
	Expected float64  `json:"expected_gap_seconds"`
	Against  []string `json:"against_this_node,omitempty"` // conditions: what makes another node the better one
	// What counts against this node, by cause: port, uplink, worker, policy, panics. All are there.
	Conditions map[string]int `json:"conditions"`
	// Why it is not protected now, in words: what keeps another node from taking over without loss. Empty = nothing does.
	Why    []string    `json:"why_not_protected"`
	Last   *GroupMove  `json:"last_failover,omitempty"`
	Copies []GroupCopy `json:"copies,omitempty"`    // of its sessions, at the other nodes: where this node serves it
	Here   *CopyHere   `json:"copy_here,omitempty"` // of its sessions, at this node: where another one serves it
	Ports  *GroupPorts `json:"ports,omitempty"`     // where this node serves it: what keeps new conversations from public ports
}

// Causes are what a group's owner may have it for. A later release may have more.
var Causes = []string{"first", "lease", "released", "silence", "force", "move", "drain", "prefer", "port", "uplink", "worker", "policy", "panics"}

// GroupPorts is how a group's public ports stand where it is served.
type GroupPorts struct {
	Rest    float64 `json:"rest_seconds"`  // so long no port is given to a new conversation but those of this node's reserve: it took over without knowing which others are in use
	Reserve bool    `json:"reserve_open"`  // while they rest: this node's reserve is in use, one block of 64 ports in 64; otherwise there is none to be had
	Waiting int     `json:"waiting_pools"` // public addresses, by protocol, with no port to give before another node has acknowledged that it is used
}

// CopyHere is how the copy of a group's sessions at the node that answers stands, as that sees it.
type CopyHere struct {
	Epoch uint64  `json:"epoch"` // of the owner's, that it is of; 0 = nothing has come
	Whole bool    `json:"whole"`
	Age   float64 `json:"age_seconds"`   // whole: since it was last found to be equal to the owner's
	Why   string  `json:"why,omitempty"` // why it is not whole, in words
}

// Standby is what the node that answers has done about copies of other nodes' sessions since it started.
type Standby struct {
	Peers      []StandbyPeer `json:"peers"`
	Records    uint64        `json:"records"`              // that have come
	Copies     uint64        `json:"full_copies"`          // of one worker's sessions of one group each, that have begun
	Mismatches uint64        `json:"mismatches"`           // times that digests were not equal: it was copied again
	Odd        uint64        `json:"odd_records"`          // that were not understood
	Refused    uint64        `json:"refused_groups"`       // that a node said were its own, and may not have: one for each of its streams
	Failed     uint64        `json:"failed_batches"`       // that a worker did not write to their end
	Steps      uint64        `json:"steps"`                // of workers that wrote what had come, and
	Held       float64       `json:"held_seconds"`         // for how long they held packets up in all
	Longest    float64       `json:"longest_step_seconds"` // and at most
}

// StandbyPeer is a node whose sessions are copied here, or were.
type StandbyPeer struct {
	Node      string   `json:"node"`
	Connected bool     `json:"connected"`
	Since     float64  `json:"since_seconds"`     // that it is, or is not any more
	Why       string   `json:"why,omitempty"`     // its last connection ended
	Refused   []string `json:"refused,omitempty"` // what it says of groups and may not, in words: nothing of them is taken from it
}

// GroupCopy is how the copy of a group's sessions at another node stands.
type GroupCopy struct {
	Node      string  `json:"node"`
	Connected bool    `json:"connected"`
	Whole     bool    `json:"whole"`         // all that the owner has is there, up to the lag
	Lag       float64 `json:"lag_seconds"`   // the oldest change that the node may not have is no older
	Done      float64 `json:"done"`          // of a full copy that is under way, 0..1; 1 = none is
	Records   uint64  `json:"records"`       // sessions and blocks of ports that it was told of
	Missing   uint64  `json:"missing"`       // of them, that it could not take
	Waiting   int     `json:"waiting_bytes"` // written and not acknowledged, of all groups
	Sent      uint64  `json:"sent_bytes"`    // of all groups
	Dials     uint64  `json:"dials"`         // how often a connection was tried
	Why       string  `json:"why,omitempty"` // why it is not whole, in words
}

// GroupMove is how a group came to the node that serves it, as seen by the node that answers.
type GroupMove struct {
	Epoch uint64    `json:"epoch"`
	From  string    `json:"from,omitempty"`
	To    string    `json:"to"`
	Cause string    `json:"cause,omitempty"`
	Gap   *float64  `json:"gap_seconds,omitempty"` // from when the one before was last seen to serve until this one first was; missing = not seen
	Time  time.Time `json:"time"`
}

// GroupEvents answers PathGroupEvents.
type GroupEvents struct {
	Events []GroupEvent `json:"events"` // oldest first
}

// GroupEvent is what was agreed on, or what this node did and saw.
type GroupEvent struct {
	Time  time.Time `json:"time"`
	Node  string    `json:"node,omitempty"`  // that says so; empty = it was agreed on
	Group string    `json:"group,omitempty"` // empty = in what
	What  string    `json:"what"`
	By    string    `json:"by,omitempty"` // of what was agreed on: who proposed it
}

// MoveRequest hands a group over to a node whose copy is whole.
type MoveRequest struct {
	Group string `json:"group"`
	To    string `json:"to"`
}

// TakeRequest has the node that is asked own a group, whatever its copy is and whether or not a majority agrees. Whoever asks answers for it that no other node serves the
// group: Force says so.
type TakeRequest struct {
	Group string `json:"group"`
	Force bool   `json:"force"`
}

// DrainRequest has a node own no group, or lets it own some again. No node = the one that is asked.
type DrainRequest struct {
	Node string `json:"node,omitempty"`
	Undo bool   `json:"undo,omitempty"`
}

// Drained answers PathDrain.
type Drained struct {
	Node  string   `json:"node"`
	Undo  bool     `json:"undo"`
	Still []string `json:"still_owned,omitempty"` // groups that it still owns: no other node has a whole copy of them and as few conditions against it
}
