// Package revisions keeps the last confirmed policies of a node on disk, so that a restart after kill -9 or power loss serves the last
// one at once, without asking the cluster.
//
// It does not know what a policy is: text comes in and comes out byte for byte, or not at all. A file that was torn or
// whose bits changed is named and never served; the revision before it is. What was agreed on and who may change it is the cluster's to know.
//
// A Store may be used by several goroutines; a directory belongs to one process at a time.
package revisions
