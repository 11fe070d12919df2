package api

import (
	"context"
	"fmt"
	"net/http"
)

// Paths of what an operator does for the moment, which no policy says.
const (
	PathCut     = "/v1/sessions/cut" // POST CutRequest -> Cut
	PathBlocks  = "/v1/blocks"       // Blocks
	PathBlock   = "/v1/block"        // POST BlockRequest -> Blocked
	PathUnblock = "/v1/unblock"      // POST UnblockRequest -> Unblocked
)

// Actor is the part of Backend that acts for the moment.
type Actor interface {
	Cut(ctx context.Context, r CutRequest) (*Cut, error)
	Blocks(ctx context.Context) (*Blocks, error)
	Block(ctx context.Context, r BlockRequest) (*Blocked, error)
	Unblock(ctx context.Context, r UnblockRequest) (*Unblocked, error)
}

// CutRequest says which sessions are to end.
type CutRequest struct {
	Filter SessionFilter `json:"filter"`            // Limit is how many the answer lists, 0 = 20
	All    bool          `json:"all,omitempty"`     // said on purpose where the filter is empty
	DryRun bool          `json:"dry_run,omitempty"` // only count
}

// Cut answers PathCut. Once it is here, not one more packet of those sessions leaves.
type Cut struct {
	Total    int            `json:"total"`     // live sessions that were looked at
	Matched  int            `json:"matched"`   // of them, those that the filter meets
	Cut      int            `json:"cut"`       // of them, those that were ended; 0 when only counted
	Copies   int            `json:"copies"`    // beside those: copies that the filter meets. They end with the sessions of the node that serves their group
	ByTenant map[string]int `json:"by_tenant"` // matched
	Sessions []Session      `json:"sessions"`  // the first of them
	Took     float64        `json:"seconds"`
	Longest  float64        `json:"longest_pause_seconds"` // for which a worker moved no packet
}

// Side says as which side sees it an address is meant. Both empty: on every side.
type Side struct {
	Tenant   string `json:"tenant,omitempty"`
	Backbone bool   `json:"backbone,omitempty"`
}

// String is the side as people call it.
func (s Side) String() string {
	switch {
	case s.Backbone:
		return "backbone"
	case s.Tenant != "":
		return s.Tenant
	}
	return "every side"
}

// BlockRequest blocks an address for a while, as source and as destination.
type BlockRequest struct {
	Address string  `json:"address"` // address or prefix
	Side    Side    `json:"side"`
	Seconds float64 `json:"seconds"`           // 1 s to 7 days
	Force   bool    `json:"force,omitempty"`   // also what looks like a mistake
	DryRun  bool    `json:"dry_run,omitempty"` // only say what it would touch
}

// Blocked answers PathBlock. Once it is here, not one more packet of the address is received.
type Blocked struct {
	Block    Block          `json:"block"`
	Sessions int            `json:"sessions"`  // live sessions that it touches; they are not cut, and go on if they outlive it
	ByTenant map[string]int `json:"by_tenant"` // of them
	Replaced bool           `json:"replaced"`  // it was blocked already: only the time is new
	DryRun   bool           `json:"dry_run"`
	NotKept  string         `json:"not_kept,omitempty"` // why a restart would forget it
}

// Block is one blocked address.
type Block struct {
	Address string  `json:"address"`
	Side    Side    `json:"side"`
	Seconds float64 `json:"seconds"`        // still to go
	Dropped uint64  `json:"dropped"`        // packets, since it was blocked or the process started
	Idle    string  `json:"idle,omitempty"` // why it blocks nothing now
	Own     string  `json:"own,omitempty"`  // which of the gateway's own addresses it holds
}

// Blocks answers PathBlocks.
type Blocks struct {
	Blocks []Block `json:"blocks"`
	Max    int     `json:"max"` // how many there may be
}

// UnblockRequest ends blocks of exactly that address and side, or all of them.
type UnblockRequest struct {
	Address string `json:"address,omitempty"`
	Side    Side   `json:"side"`
	All     bool   `json:"all,omitempty"`
}

// Unblocked answers PathUnblock.
type Unblocked struct {
	Removed []Block `json:"removed"`
	NotKept string  `json:"not_kept,omitempty"` // why a restart would block them again
}

// BadRequest is a Fault with status 400.
func BadRequest(format string, args ...any) *Fault {
	return &Fault{Status: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
}
