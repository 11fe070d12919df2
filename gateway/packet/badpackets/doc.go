// Package badpackets makes the malformed and hostile frames that tests send: to Parse, to the pure pipeline and over the wire.
//
// It does not use the parser that it tests: frames are laid out here byte by byte. It is imported by tests only. The same seed gives
// the same frames in the same order. Its functions are pure and safe for concurrent use; each call returns fresh memory.
package badpackets
