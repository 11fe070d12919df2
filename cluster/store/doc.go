// Package store keeps the replicated state of one node: Raft's log, its snapshots, the texts of policies, and the state machine that
// entries are applied to.
//
// It does not know what a policy means, who may propose one, or when a confirm time is over; it has no timers of its own besides
// Raft's. Raft's types end here.
//
// A Store may be used by any goroutine. Entries are applied by one goroutine of Raft's, in order; the state that State returns is
// immutable. A data directory belongs to one process at a time, which bbolt's file lock holds it to.
package store
