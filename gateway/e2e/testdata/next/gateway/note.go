package gateway

import (
	"context"

	"demarc/gateway/api"
)

func (m membership) Note(ctx context.Context, r api.NoteRequest) (*api.Members, error) {
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := n.Note(ctx, r.Text, m.who(ctx)); err != nil {
		return nil, refusedByMembers(err)
	}
	return m.Members(ctx)
}

func (b backend) Note(ctx context.Context, r api.NoteRequest) (*api.Members, error) {
	return b.g.membership().Note(ctx, r)
}
