// Package cluster has nodes agree on one policy: who may change it, in which order changes happened, and what is served when nobody
// confirms a change in time.
//
// It does not compile a policy, touch a device or know what a packet is: what it needs of the gateway comes in as functions. A single
// node is a cluster of one, by the same code. What is agreed on stands in command, which is pure; how it is kept in store.
//
// A Node may be used by any goroutine. One goroutine of its own carries revisions to the gateway, one at a time and always the newest.
package cluster
