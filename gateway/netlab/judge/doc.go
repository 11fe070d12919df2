// Package judge finds out from captures alone whether two nodes of a pair have served a group at once, and whether a packet went to another host
// than its own.
//
// It does not ask the nodes, and does not know how they decide. What it is told is frames, each with the time at which the kernel had it and the port of the
// switch that it came in by: the groups' addresses are the same on both nodes, so the port is what tells them apart. Flows of package host carry whose they
// are, so whatever was translated, it is seen. Nothing here is kept between calls, and no goroutine or clock is used: any number of callers at the same time, and tests hand it captures that they made up.
package judge
