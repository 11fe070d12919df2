// Package standby is the receiving end of copies: it takes the streams of other gateways from their connections, and has this node's workers write what is in them, each its own tables,
// between two bursts.
//
// It does not dial, knows no certificates and decides nothing about who owns a group: whom it hears of a group, and whether this node owns it, it is told.
//
// Each connection has a goroutine of its own, which takes its frames in turn with the others under one lock. Serving never waits for that lock, nor for a worker.
package standby
