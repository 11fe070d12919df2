// Package pktgen is the far ends of a throughput bench: it makes UDP frames of a known plan at a rate, of IPv4 or IPv6 and of any size, and judges each frame that a device
// under test passed on.
//
// It does not know what the device under test is, and makes no namespaces: it is given two devices. Frames are made by an XDP program that
// the kernel runs as live frames (BPF_PROG_TEST_RUN), those of both ends, and judged by one at each end; package bpf has them. A frame counts as
// right only if every field is what the plan says: checksums, destination, TTL, a keyed check word over flow, sequence number and time stamp, every byte
// of filler, a source that belongs to the pool and is the one that this flow got at first (or the one that was sent, where nothing is translated), and not seen before.
//
// Talks is the same for TCP connections: a client and a server that answer each other's frames and keep nothing of a connection but how far it is.
//
// Ends and Talks belong to one goroutine each, except for Halt.
package pktgen
