// Package bpf holds the XDP programs that carry established sessions and send what workers have ready, compiled and ready to load.
//
// It does not load it: cruise does. cruise.c and transmit.c are the sources; the objects and Go files beside them are generated from these by generate.sh and
// committed, so that a build needs no compiler for BPF. It has no state.
package bpf

//go:generate ./generate.sh
