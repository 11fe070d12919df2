package api

import (
	"context"
	"time"
)

// Paths of what was agreed on, and of going on and back.
const (
	PathConfirm  = "/v1/confirm"  // POST ConfirmRequest -> Confirmed
	PathRollback = "/v1/rollback" // POST RollbackRequest -> Applied
	PathHistory  = "/v1/history"  // History
	PathRevision = "/v1/revision" // Shown; ?number=N, without it the one that is served
	PathAudit    = "/v1/audit"    // Audit; ?after=N, only what came after that index
)

// RevisionQuery is the query of PathRevision.
type RevisionQuery struct {
	Number uint64 `json:"number,omitempty"` // 0 = the one that is served
}

// AuditQuery is the query of PathAudit.
type AuditQuery struct {
	After uint64 `json:"after,omitempty"` // only lines with a higher index: what an archive does not have yet
}

// Historian is the part of Backend for what was agreed on.
type Historian interface {
	Confirm(ctx context.Context, r ConfirmRequest) (*Confirmed, error)
	Rollback(ctx context.Context, r RollbackRequest) (*Applied, error)
	History(ctx context.Context) (*History, error)
	Show(ctx context.Context, number uint64) (*Shown, error)
	Audit(ctx context.Context, after uint64) (*Audit, error)
}

// ConfirmRequest keeps a provisional revision.
type ConfirmRequest struct {
	Revision uint64 `json:"revision"` // 0 = the one that is provisional
}

// Confirmed says that the revision stays.
type Confirmed struct {
	Revision Revision `json:"revision"`
	NotKept  string   `json:"not_kept,omitempty"` // why it is not in this node's own copy yet
}

// RollbackRequest goes back to the text of an earlier revision.
type RollbackRequest struct {
	To       uint64  `json:"to"`                        // 0 = take the provisional revision back
	Comment  string  `json:"comment,omitempty"`         // why
	Confirm  float64 `json:"confirm_seconds,omitempty"` // as in ApplyRequest
	Expected uint64  `json:"expected,omitempty"`        // as in ApplyRequest
}

// History answers PathHistory.
type History struct {
	Cluster   string `json:"cluster"`   // its id
	Serving   uint64 `json:"serving"`   // the revision that was agreed on
	Confirmed uint64 `json:"confirmed"` // what is served when that is not confirmed
	Revisions []Past `json:"revisions"` // that are kept, the newest first
}

// Past is one revision, with what became of it.
type Past struct {
	Revision
	From    string  `json:"from"`                      // node, and how the author came to it
	Bytes   int     `json:"bytes"`                     // of its text
	Before  uint64  `json:"before"`                    // the revision that was served until then; 0 = none
	Back    uint64  `json:"rollback_of,omitempty"`     // the revision whose text it is
	Confirm float64 `json:"confirm_seconds,omitempty"` // it had to be confirmed within this
	Fate    string  `json:"fate"`                      // confirmed, provisional, expired, taken back
	Served  bool    `json:"served"`                    // now
}

// Shown answers PathRevision.
type Shown struct {
	Past
	Policy string `json:"policy"` // the text
	Export string `json:"export"` // the text behind a header that says what it is; apply leaves the header out
}

// Audit answers PathAudit.
type Audit struct {
	Lines []AuditLine `json:"lines"` // the latest last
	// Forgotten: lines between the index asked for and the first that is kept may have been there, and are gone.
	Forgotten bool `json:"forgotten"`
	Bound     int  `json:"bound"` // lines that are kept

	Refused     []RefusedChange `json:"refused,omitempty"`      // changes that this node has refused since it started, the latest last
	RefusedGone int             `json:"refused_gone,omitempty"` // of them, those that had to make room
}

// AuditLine is one change that somebody wanted.
type AuditLine struct {
	Index  uint64    `json:"index"` // in the log
	Time   time.Time `json:"time"`
	Author string    `json:"author"`
	From   string    `json:"from"`
	Kind   string    `json:"kind"`
	What   string    `json:"what"`
	OK     bool      `json:"ok"` // carried out; else what says why not
}

// The states of a node's part in the cluster.
const (
	ClusterCurrent = "current" // changes can be made
	ClusterReading = "reading" // what was agreed on is not known here yet
	ClusterClosed  = "closed"  // the replicated state cannot be opened
	ClusterStopped = "stopped" // an entry of the log cannot be read or carried out here, so that none after it is
)

// Cluster is what this node knows of what was agreed on. A node by itself is a cluster of one.
type Cluster struct {
	ID          string       `json:"id"`        // "" = not known yet
	State       string       `json:"state"`     // current, reading, closed, stopped
	Leader      string       `json:"leader"`    // name of the node that leads; "" = nobody, as far as this node knows
	Leads       bool         `json:"leads"`     // it is this node
	Revision    uint64       `json:"revision"`  // that was agreed on; what this node serves stands in status
	Confirmed   uint64       `json:"confirmed"` // what is served when that is not confirmed
	Provisional *Provisional `json:"provisional,omitempty"`
	Problem     string       `json:"problem,omitempty"` // what is wrong, and what helps
	Members     []Member     `json:"members"`
}

// Provisional is a revision that waits for its confirmation.
type Provisional struct {
	Revision uint64  `json:"revision"`
	Before   uint64  `json:"before"` // what is served again without it
	Author   string  `json:"author"`
	Left     float64 `json:"seconds_left"`
}

// Member is one node of the cluster.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // where other members reach it; "" = nowhere
	Role    string `json:"role"`    // gateway, witness
	Version string `json:"version"` // of its binary
	Self    bool   `json:"self"`    // the node that answers
}
