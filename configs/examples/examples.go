package examples

import "embed"

// FS has the files by name: lab.node.toml, lab.policy.toml and the others.
//
//go:embed *.toml
var FS embed.FS
