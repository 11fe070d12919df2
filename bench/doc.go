// Package bench is the command `demarc bench`: it measures the gateway beside the kernel's own nftables, on the same devices in the same run.
//
// What needs several nodes, `bench cluster` and `bench failover`, runs those of package trio.
//
// It does not share code with what it measures: the gateway runs as a child process in a namespace, like any user's, and is asked over its
// socket; frames are made and judged by package pktgen, the peer is written by package peers, figures are made by package report.
// One goroutine does everything in order; only the maker of frames runs beside it, on a thread of its own.
//
//go:generate go run demarc bench figures --write ../README.md
package bench
