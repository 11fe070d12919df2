// Package flow defines what identifies a conversation: the key that session, NAT and ACL tables share, and its hash.
//
// It does not parse packets and holds no table. Nothing in it has a pointer, so tables of keys cost the
// garbage collector nothing. All functions are pure and safe for concurrent use.
package flow
