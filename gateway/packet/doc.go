// Package packet reads the headers of one frame and rewrites them in place.
//
// It does not decide anything about a packet beyond whether it is well formed, does not verify TCP, UDP or ICMP checksums
// of transit packets (rewrites are incremental, so damage stays visible to the receiver) and does not reassemble
// fragments. Building packets of our own is the job of package build.
//
// All functions are pure and allocate nothing. A Packet belongs to one goroutine, and its Buf is borrowed: nothing here keeps it
// beyond the call. Rewrites want a Packet that Parse has passed; on one that it has not passed they do nothing harmful
// but nothing useful either.
package packet
