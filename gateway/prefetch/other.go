//go:build !amd64 && !arm64

package prefetch

// Lines does nothing: what is looked at later is loaded then.
func Lines([]uintptr) {}

// Pairs does nothing, as Lines.
func Pairs([]uintptr) {}
