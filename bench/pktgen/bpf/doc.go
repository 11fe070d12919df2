// Package bpf holds the XDP programs that make, judge and answer the bench's frames, compiled and ready to load.
//
// It does not load or attach them: pktgen does. pktgen.c is the source; the object and pktgen_bpfel.go beside it are generated
// from it by generate.sh and committed, so that a build needs no compiler for BPF. It has no state.
package bpf

//go:generate ./generate.sh
