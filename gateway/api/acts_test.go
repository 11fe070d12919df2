package api

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func (e echo) Cut(_ context.Context, r CutRequest) (*Cut, error) {
	return &Cut{Matched: r.Filter.Port}, e.fault
}
func (e echo) Blocks(context.Context) (*Blocks, error) { return &Blocks{Max: 7}, e.fault }
func (e echo) Block(_ context.Context, r BlockRequest) (*Blocked, error) {
	return &Blocked{Block: Block{Address: r.Address, Side: r.Side, Seconds: r.Seconds}}, e.fault
}
func (e echo) Unblock(_ context.Context, r UnblockRequest) (*Unblocked, error) {
	return &Unblocked{Removed: []Block{{Address: r.Address}}}, e.fault
}

func TestActsArriveAsTheyWereSent(t *testing.T) {
	c, _ := serve(t, echo{})
	var cut Cut
	if err := c.Post(t.Context(), PathCut, CutRequest{Filter: SessionFilter{Port: 9}}, &cut); err != nil || cut.Matched != 9 {
		t.Errorf("%+v, %v", cut, err)
	}
	var b Blocked
	want := Block{Address: "192.0.2.1", Side: Side{Tenant: "t"}, Seconds: 1.5}
	if err := c.Post(t.Context(), PathBlock, BlockRequest{Address: want.Address, Side: want.Side, Seconds: 1.5}, &b); err != nil || cmp.Diff(want, b.Block) != "" {
		t.Errorf("%+v, %v", b, err)
	}
	var u Unblocked
	if err := c.Post(t.Context(), PathUnblock, UnblockRequest{Address: "x"}, &u); err != nil || u.Removed[0].Address != "x" {
		t.Errorf("%+v, %v", u, err)
	}
	var l Blocks
	if err := c.Get(t.Context(), PathBlocks, &l); err != nil || l.Max != 7 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := c.Post(t.Context(), PathBlock, map[string]any{"adress": "x"}, &b); err == nil {
		t.Error("a key that there is not was taken")
	}
}
