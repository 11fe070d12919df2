// Package clustertest is a network in memory for tests of several members in one process: partitions, links that are cut or lossy in one
// direction, delays.
//
// It does not know what is sent, and nothing but tests uses it. Its functions may be called by any goroutine.
package clustertest
