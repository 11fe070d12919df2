package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
	"demarc/cluster/transport"
)

// Joined is what a newcomer learns, and keeps until it has the log.
type Joined struct {
	Cluster  string           `json:"cluster"`
	Members  []command.Member `json:"members"`
	Revision command.Revision `json:"revision"` // the confirmed one; Number 0 = there is none

	Revoked []command.Revoked `json:"revoked,omitempty"` // clients that it must not let in before it has the log
}

// joinedFile lies beside the store's files. It is written last: it is there = the node has joined.
const joinedFile = "joined.json"

// Newcomer is a node that is to join. All but Replace and Keep are required.
type Newcomer struct {
	Dir     string // of its replicated state
	Name    string
	Role    command.Role
	Version string

	Features []string // see Config
	Address  string   // where the others will reach it
	Keys     string   // directory
	Contact  string   // address of any member
	Token    string
	Replace  string // name of the member whose place it takes; may be its own

	// Keep has the node keep the confirmed policy where its start finds it: it has something to serve before it has the log. nil on a witness.
	Keep func(r command.Revision, text []byte) error
}

// Join has a cluster take a node in that does not run yet, and prepares its directory. It may be tried again until it succeeds.
func Join(ctx context.Context, w Newcomer) (Joined, error) {
	var j Joined
	for _, f := range []string{"raft.db", joinedFile} {
		if _, err := os.Stat(filepath.Join(w.Dir, f)); !errors.Is(err, fs.ErrNotExist) {
			return j, fmt.Errorf("%s holds the state of a cluster already; of one, if this node was alone: move it away if that is over (mv %s %s.old), and join again", w.Dir, w.Dir, w.Dir)
		}
	}
	if !strings.HasPrefix(w.Token, "demarc-") {
		return j, errors.New("this is no token: `demarc cluster token` on a member makes one, such as demarc-…")
	}
	keys, err := transport.OpenKeyring(w.Keys, time.Now, nil)
	if err != nil {
		return j, keysError(w.Keys, w.Name, err)
	}
	if keys.Name() != w.Name {
		return j, fmt.Errorf("the certificate in %s is %s's, the node file says that this node is %s", w.Keys, keys.Name(), w.Name)
	}
	if err := os.MkdirAll(w.Dir, 0o700); err != nil {
		return j, fmt.Errorf("join: %w", err)
	}
	id, err := identity(filepath.Join(w.Dir, identityTxt))
	if err != nil {
		return j, err
	}
	m := command.Member{ID: id, Name: w.Name, Role: w.Role, Address: w.Address, Version: w.Version, Level: command.Level, Key: keys.Key(), Features: w.Features}
	c, err := transport.DialRequest(ctx, keys, w.Contact)
	if err != nil {
		return j, fmt.Errorf("no member answers at %w", err)
	}
	defer c.Close()
	q := request{Kind: askJoin, Member: &m, Token: w.Token, Replace: w.Replace, Who: command.Who{Author: w.Name}}
	if d, ok := ctx.Deadline(); ok {
		q.Wait = time.Until(d)
	}
	a, text, err := exchange(ctx, c, q, nil)
	switch {
	case err != nil:
		return j, fmt.Errorf("%s gave no answer, so it is not known whether this node has joined: try again: %w", w.Contact, err)
	case a.Refused != "":
		return j, errors.New(a.Refused)
	case a.Result.Refused != nil:
		return j, a.Result.Refused
	case a.Joined == nil:
		return j, fmt.Errorf("%s gave no sensible answer: is it of another release?", w.Contact)
	}
	j = *a.Joined
	if j.Revision.Number != 0 {
		if command.Digest(text) != j.Revision.Digest {
			return j, errors.New("the policy has come damaged: try again")
		}
		if w.Keep != nil {
			if err := w.Keep(j.Revision, text); err != nil {
				return j, fmt.Errorf("keep the cluster's policy: %w", err)
			}
		}
	}
	b, err := json.Marshal(j)
	if err == nil && len(j.Revoked) > 0 {
		err = writeRevoked(w.Dir, j.Revoked)
	}
	if err == nil {
		err = store.ReplaceFile(filepath.Join(w.Dir, joinedFile), b)
	}
	if err != nil {
		return j, fmt.Errorf("join: %w", err)
	}
	return j, nil
}

// keysError says what to do about keys that cannot be read.
func keysError(dir, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the cluster's keys: %w: make them with `demarc cluster cert %s` where the authority is, and put them into %s", err, name, dir)
	}
	return fmt.Errorf("the cluster's keys: %w", err)
}

// readJoined is what a newcomer was told; nil when this node did not join.
func readJoined(dir string) (*Joined, error) {
	file := filepath.Join(dir, joinedFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what this node has joined: %w", err)
	}
	var j Joined
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, fmt.Errorf("%s: is damaged: move %s away and join again", file, dir)
	}
	return &j, nil
}

// ClusterID is the cluster that this node belongs to; "" = none yet.
func (n *Node) ClusterID() string {
	if s := n.st.State(); s.Cluster != "" {
		return s.Cluster
	}
	if n.joined != nil {
		return n.joined.Cluster
	}
	return ""
}
