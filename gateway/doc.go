// Package gateway is the composition root of a node: New wires the rooms together, Run supervises them.
//
// It does not look at packets and holds no policy logic: compiling is snapshot's, judging pipeline's, moving frames worker's. Its own
// goroutines are the control side: they publish views downwards and read counters and events upwards. Apply, Diff and the reports may be
// called from any goroutine; changes are serialised by one lock that no worker ever takes.
package gateway
