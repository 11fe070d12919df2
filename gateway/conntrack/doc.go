// Package conntrack is the session table of one worker: one entry for both directions of a conversation, how it is
// found, how long it lives, and which TCP segments belong to it.
//
// It does not judge (acl), translate (nat) or count limits (police), and it allocates nothing: its memory is handed in
// by whoever owns the worker, has a fixed little-endian layout without pointers, and is meant to be read by a second
// executor, cruise (session.h is the same layout for it, find.h the same lookup). Unsafe is used solely to lay that layout over the memory.
//
// One goroutine owns a Table and every Session in it. Another executor may read concurrently by the protocol written in
// DESIGN.md: index entry, sequence word, copy, sequence word, generation. Time is an argument: ticks of 2^20 ns
// (about 1.05 ms) that wrap; they are compared by signed difference, so no timeout may exceed 2^30 ticks (13 days).
package conntrack
