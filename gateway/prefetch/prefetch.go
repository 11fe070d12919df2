//go:build amd64 || arm64

package prefetch

// Lines asks for the cache line that each address lies in.
//
//go:noescape
func Lines(addrs []uintptr)

// Pairs asks for that line and for the one behind it.
//
//go:noescape
func Pairs(addrs []uintptr)
