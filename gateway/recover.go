package gateway

import (
	"os"
	"path/filepath"
	"strconv"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
)

// RecoverCluster makes the node of a data directory the only member of its cluster; see cluster.Recover.
func RecoverCluster(dataDir, id string) (cluster.Recovery, error) {
	host, _ := os.Hostname() // what is not known is left out
	return cluster.Recover(filepath.Join(dataDir, "cluster"), id, command.Who{Author: "uid " + strconv.Itoa(os.Getuid()), From: host}, time.Now())
}
