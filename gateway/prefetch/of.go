package prefetch

import "unsafe"

// Of is where the byte at an offset of b lies, which need not be within it.
func Of(b []byte, offset int) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b))) + uintptr(offset)
}
