// Package hostnet asks and tells the kernel about the host's network by netlink: links, addresses, queues, drivers,
// offloads, neighbours, and what changes in them.
//
// It does not move packets, decide nothing about them, and creates no links (that is netlab's job).
//
// Functions are safe for concurrent use. Each acts in the network namespace of the calling thread: a caller that changes
// namespaces locks its thread. Watch blocks and calls back on the goroutine that called it.
package hostnet
