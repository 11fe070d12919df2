package gateway

import (
	"os"
	"path/filepath"
	"strconv"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/gateway/revisions"
)

// RecoverCluster makes the node of a data directory the only member of its cluster; see cluster.Recover.
func RecoverCluster(dataDir, id string) (cluster.Recovery, error) {
	host, _ := os.Hostname() // what is not known is left out
	var last uint64
	copies := filepath.Join(dataDir, "policies")
	if _, err := os.Stat(copies); err == nil { // a witness has none
		s, err := revisions.Open(copies)
		if err == nil {
			last, err = s.Last()
		}
		if err != nil {
			return cluster.Recovery{}, err
		}
	}
	return cluster.Recover(filepath.Join(dataDir, "cluster"), id, command.Who{Author: "uid " + strconv.Itoa(os.Getuid()), From: host}, time.Now(), last)
}
