// Package command is what a cluster agrees on: the entries of the replicated log, and the state that they lead to.
//
// It does not know Raft, does no I/O and reads no clock. The same entries in the same order give the same state on every node and in
// every build that can read them: times are those that the entries carry, limits stand in the state. A State is never changed: Apply
// returns another one, so any goroutine may read the one that it holds without a lock.
//
// Texts of policies are not part of the state, which names them by digest. An entry carries its text once; keeping it is the caller's.
package command
