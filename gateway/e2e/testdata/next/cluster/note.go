package cluster

import (
	"context"

	"demarc/cluster/command"
)

// Note writes a line into the audit log.
func (n *Node) Note(ctx context.Context, text string, who command.Who) error {
	_, err := n.propose(ctx, &command.Entry{Kind: command.KindNote, Who: who, Note: &command.Note{Text: text}})
	return err
}
