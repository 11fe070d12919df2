package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// Recovery says what Recover found in a data directory, and has done if there was no error.
type Recovery struct {
	Cluster string   // the cluster's id
	Serving uint64   // the revision that is served afterwards
	Index   uint64   // of the last entry that is known here
	Gone    []string // names of the members that are forgotten
	Damage  error    // of log and snapshots; set, the copy of the state is used instead
	Aside   string   // where the damaged files are now
}

// Recover makes the node of a data directory the only member of its cluster, when a majority of the others is lost for good. Without the cluster's id nothing is changed: the error comes
// with what was found. The node must not run.
//
// last is the highest revision number that the node's own copies know of: numbers go on from there if the state knows of fewer.
func Recover(dir, cluster string, who command.Who, now time.Time, last uint64) (Recovery, error) {
	b, err := os.ReadFile(filepath.Join(dir, identityTxt))
	if err != nil {
		return Recovery{}, fmt.Errorf("%s is no directory of a node's replicated state: %w", dir, err)
	}
	id := strings.TrimSpace(string(b))
	if len(id) != 32 {
		return Recovery{}, fmt.Errorf("%s: is damaged: want 32 hex digits", filepath.Join(dir, identityTxt))
	}
	found, err := store.Recover(store.Config{Dir: dir, ID: id}, cluster, &command.Entry{Time: now.UTC(), Who: who, Recover: &command.Recover{Last: last}})
	r := Recovery{Cluster: found.Cluster, Damage: found.Damage, Aside: found.Aside}
	if found.State != nil {
		r.Serving, r.Index = found.State.Serving, found.State.Index
	}
	for _, m := range found.Gone {
		r.Gone = append(r.Gone, m.Name)
	}
	return r, err
}
