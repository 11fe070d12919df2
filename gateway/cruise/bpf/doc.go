// Package bpf holds the XDP program that carries established sessions, compiled and ready to load.
//
// It does not load it: cruise does. cruise.c is the source; the object and cruise_bpfel.go beside it are generated from it by generate.sh and
// committed, so that a build needs no compiler for BPF. It has no state.
package bpf

//go:generate ./generate.sh
