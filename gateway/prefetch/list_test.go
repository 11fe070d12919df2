//go:build amd64 || arm64

package prefetch

import "unsafe"

// listIn is the list that fills mem.
func listIn(mem []byte) []uintptr {
	return unsafe.Slice((*uintptr)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}
