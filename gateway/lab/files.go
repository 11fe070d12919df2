package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"demarc/configs/examples"
)

// files are the two configuration files of the demo, with the paths that this run uses.
type files struct {
	dir, node, policy, socket, log string
}

// writeFiles puts the lab's example configuration into dir, with the node's own directories moved there.
func writeFiles(dir string) (files, error) {
	f := files{dir: dir, node: filepath.Join(dir, "lab.node.toml"), policy: filepath.Join(dir, "lab.policy.toml"),
		socket: filepath.Join(dir, "demarc.sock"), log: filepath.Join(dir, "gateway.log")}
	node, err := examples.FS.ReadFile("lab.node.toml")
	if err != nil {
		return f, err
	}
	for key, value := range map[string]string{"data_dir": filepath.Join(dir, "data"), "socket": f.socket} {
		line := regexp.MustCompile(`(?m)^` + key + ` = ".*"$`)
		if n := len(line.FindAll(node, -1)); n != 1 {
			return f, fmt.Errorf("lab.node.toml has %d lines %s = …, want one", n, key)
		}
		node = line.ReplaceAll(node, fmt.Appendf(nil, "%s = %q", key, value))
	}
	policy, err := examples.FS.ReadFile("lab.policy.toml")
	if err != nil {
		return f, err
	}
	if err := os.WriteFile(f.node, node, 0o644); err != nil {
		return f, err
	}
	return f, os.WriteFile(f.policy, policy, 0o644)
}
