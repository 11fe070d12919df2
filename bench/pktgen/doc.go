// Package pktgen is the far ends of a throughput bench: it makes UDP frames of a known plan at a rate, and judges each frame that a device
// under test passed on.
//
// It does not know what the device under test is, and makes no namespaces: it is given two devices. Frames are made by an XDP program that
// the kernel runs as live frames (BPF_PROG_TEST_RUN), and judged by one at the other end; package bpf has both. A frame counts as
// right only if every field is what the plan says: checksums, destination, TTL one less, a keyed check word over flow and sequence
// number, a source that belongs to the pool and is the one that this flow got at first, and not seen before.
//
// Ends belongs to one goroutine, except for Halt.
package pktgen
