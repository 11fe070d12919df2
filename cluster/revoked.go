package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// revokedFile is what this node last knew of revoked clients: a start must not let in, before it knows what is agreed on, whom it had refused.
const revokedFile = "revoked.json"

// ReadRevoked lists the clients that the node of a directory knew to be revoked when it last ran. No file = none.
func ReadRevoked(dir string) ([]command.Revoked, error) {
	file := filepath.Join(dir, revokedFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []command.Revoked
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, which says whose certificates are revoked: %w", file, err)
	}
	return list, nil
}

func writeRevoked(dir string, list []command.Revoked) error {
	b, err := json.Marshal(list)
	if err == nil {
		err = store.ReplaceFile(filepath.Join(dir, revokedFile), b)
	}
	return err
}

// Revoke has every node refuse a client's certificates, or takes that back.
func (n *Node) Revoke(ctx context.Context, r command.Revoke, who command.Who) error {
	_, err := n.propose(ctx, &command.Entry{Kind: command.KindRevoke, Who: who, Revoke: &r})
	return err
}

// tellRevoked hands on who is revoked, once this node knows what was agreed on: while the log of before its start is gone through, lists of long ago pass by.
func (n *Node) tellRevoked() {
	if n.cfg.Revoked == nil || !n.current.Load() {
		return
	}
	n.telling.Lock()
	defer n.telling.Unlock()
	list := n.st.State().Revoked
	if n.told != nil && slices.Equal(*n.told, list) {
		return
	}
	n.told = &list
	n.cfg.Revoked(list)
}

// keepRevoked has the node's own copy follow. It reports whether there is nothing left to do.
func (n *Node) keepRevoked() (done bool) {
	list := n.st.State().Revoked
	now := n.cfg.Mono()
	switch {
	case n.copied.known && slices.Equal(n.copied.list, list):
		return true
	case n.copied.failed != "" && now-n.copied.at < uint64(againAfter):
		return false
	}
	n.copied.at = now
	if !n.copied.known {
		if had, err := ReadRevoked(n.cfg.Dir); err == nil && slices.Equal(had, list) {
			n.copied.known, n.copied.list = true, list
			return true
		}
	}
	if err := writeRevoked(n.cfg.Dir, list); err != nil {
		if err.Error() != n.copied.failed {
			n.copied.failed = err.Error()
			n.log.Error("keep who is revoked; a start may let them in until it knows what is agreed on", "err", err)
		}
		return false
	}
	n.copied.known, n.copied.list, n.copied.failed = true, list, ""
	return true
}

// copied is what stands in revokedFile. Run's alone.
type copied struct {
	known  bool // list is what stands there
	list   []command.Revoked
	failed string
	at     uint64 // Mono, of the last try
}
