// Package csum computes and updates the Internet checksum (RFC 1071, RFC 1624).
//
// It does not know any header: callers say which bytes a checksum covers and where it stands.
// Everything here is a pure function, safe for concurrent use; nothing allocates.
//
// Partial sums are uint64 in network byte order: a 16-bit word read from a packet most significant byte first
// is added as it is. They may be added to each other as long as the pieces start at even offsets, and are turned
// into 16 bits by Fold at the very end.
package csum
