// Package transport connects the members of a cluster: one TCP port, mutual TLS for all of it, Raft's streams, requests, keys for datagrams and
// copies of sessions told apart by the protocol that TLS negotiates.
//
// It does not know what is sent, who leads, or who should be a member; whom to let in it asks. Certificates are read from files and
// read again when the files change; connections that stand outlive them.
//
// A Transport may be used by any goroutine. Each accepted connection has one of its own until it is handed on; how many shake hands at
// a time is bounded.
package transport
