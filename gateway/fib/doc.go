// Package fib answers where a packet goes next: routes to a next hop, and a next hop to a MAC address.
//
// It does not learn routes or resolve neighbours, and starts no probe: the compiler of a view brings the routes, the
// slow path writes the neighbours and their states.
//
// Concurrency: a Table is immutable and safe for concurrent use. Neighbors has one writer, the slow path; Lookup may be
// called by any goroutine at any time, takes no lock and never waits.
package fib
