// Package bpf holds the XDP program that steers frames to the gateway or to the host, compiled and ready to load.
//
// It does not load or attach it: xsk does. steer.c is the source; the object and steer_bpfel.go beside it are generated
// from it by generate.sh and committed, so that a build needs no compiler for BPF. It has no state.
package bpf

//go:generate ./generate.sh
