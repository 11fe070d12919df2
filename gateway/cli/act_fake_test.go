package cli

import (
	"context"

	"demarc/gateway/api"
)

// acted is what the fake was told to do.
type acted struct {
	cuts     []api.CutRequest
	blocked  []api.BlockRequest
	unblocks []api.UnblockRequest
	probes   []api.ProbeRequest
	tokens   []api.TokenRequest
	kept     []api.KeepRequest
	members  []string
	groups   []string
	revoked  []api.RevokeRequest
}

func (f *fake) Cut(_ context.Context, r api.CutRequest) (*api.Cut, error) {
	f.acted.cuts = append(f.acted.cuts, r)
	c := &api.Cut{Total: 345, Matched: 22, Copies: 7, ByTenant: map[string]int{"alpha": 20, "beta": 2}, Sessions: someSessions()[:2], Took: 0.002, Longest: 0.0001}
	if !r.DryRun {
		c.Cut = c.Matched
	}
	return c, f.refuse
}

func someBlocks() []api.Block {
	return []api.Block{{Address: "198.51.100.7", Seconds: 590, Dropped: 12345}, {Address: "203.0.113.0/28", Side: api.Side{Backbone: true}, Seconds: 61, Dropped: 3},
		{Address: "198.18.10.9", Side: api.Side{Tenant: "gone"}, Seconds: 5000, Idle: "the policy has no such tenant now"},
		{Address: "203.0.113.4", Seconds: 5000, Own: "203.0.113.4 is the virtual address of group east on interface transit"}}
}

func (f *fake) Blocks(context.Context) (*api.Blocks, error) {
	return &api.Blocks{Blocks: someBlocks(), Max: 1024}, f.refuse
}

func (f *fake) Block(_ context.Context, r api.BlockRequest) (*api.Blocked, error) {
	f.acted.blocked = append(f.acted.blocked, r)
	return &api.Blocked{Block: api.Block{Address: r.Address, Side: r.Side, Seconds: r.Seconds}, Sessions: 3, ByTenant: map[string]int{"alpha": 3}, DryRun: r.DryRun}, f.refuse
}

func (f *fake) Unblock(_ context.Context, r api.UnblockRequest) (*api.Unblocked, error) {
	f.acted.unblocks = append(f.acted.unblocks, r)
	return &api.Unblocked{Removed: someBlocks()[:1]}, f.refuse
}
