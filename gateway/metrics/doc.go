// Package metrics shows a node's figures to Prometheus: a collector that reads the wire structs at each scrape.
//
// It does not count anything and keeps nothing between scrapes. Its series are bounded by the node's own ports, queues, workers and tenants
// and by the list of drop reasons; no address and no session ever becomes a label, and every series of what exists is there from the start.
//
// The handler may be called from any goroutine; what a scrape costs is what its Source costs.
package metrics
