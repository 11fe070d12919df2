// Package failover decides which node serves a group: who may own it, who may emit for it now, when a node stands down and when one takes over.
//
// It does not send, keep or time anything, and does not know what a packet is: what happened comes in as an event together with the time on the
// node's own clock, what is to be done goes out as actions. So it is pure, and its test goes through thousands of bad hours in seconds.
//
// A Node belongs to one goroutine. A State is never changed, so whoever holds one may read it.
package failover
