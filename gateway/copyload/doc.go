// Package copyload is an owner's worker and a standby's worker in one process, with the stream of session records between them over a connection of two members (mTLS, loopback). It is for
// measuring how many session events a second come over, since no pair of two gateways on a machine with two CPUs can be given so many by packets that also cross devices.
//
// It does not open ports: a session begins by a frame that the pipeline judges and ends by an operator's cut, both in the worker's own steps. All else is what a node runs: tables, marks, sender, stream,
// transport, receiver, and the standby's worker steps. A Pair belongs to one goroutine. Close ends all that it began.
package copyload
