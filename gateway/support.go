package gateway

import (
	"context"

	"demarc/gateway/api"
)

// NodeFile is the text of the node file that the node was started with.
func (b backend) NodeFile(context.Context) ([]byte, error) { return b.g.o.NodeText, nil }

// Log is the last lines of the log.
func (b backend) Log(context.Context) ([]byte, error) {
	if b.g.o.Lines == nil {
		return nil, nil
	}
	return b.g.o.Lines.Last(), nil
}

// Revisions lists what is kept of applied policies.
func (b backend) Revisions(context.Context) (*api.Revisions, error) {
	list, damaged, err := b.g.store.List()
	if err != nil {
		return nil, err
	}
	out := &api.Revisions{Revisions: []api.Revision{}, Damaged: []string{}}
	for _, r := range list {
		out.Revisions = append(out.Revisions, api.Revision{Number: r.Number, Digest: "sha256:" + r.Digest, Source: r.Meta.Source, AppliedAt: r.Meta.Time})
	}
	for _, d := range damaged {
		out.Damaged = append(out.Damaged, d.String())
	}
	return out, nil
}
