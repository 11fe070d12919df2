// Package clustertest is a network in memory for tests of several members in one process, with partitions.
//
// It does not know what is sent, and nothing but tests uses it. Its functions may be called by any goroutine.
package clustertest
