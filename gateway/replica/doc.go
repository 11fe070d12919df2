// Package replica keeps a second node's copy of what a group's owner holds: sessions with their NAT bindings, port blocks, rates and counters.
//
// It does not send bytes, read a clock or know a table: what stands in tables comes through Source, what shall stand in the other node's goes
// through Sink, time is an argument, and frames are handed to whoever carries them, in order. So it is pure, and its test goes through lost
// links, kills and changes of role in seconds.
//
// A Sender belongs to the goroutine that owns its Source's tables, a Receiver and a Blocks to one goroutine each. DESIGN.md says why it is so.
package replica
