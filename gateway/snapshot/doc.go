// Package snapshot compiles a policy, a node file and the machine's links into a View: the immutable answer sheet that workers read.
//
// It does not do I/O, start goroutines or know frames; schema structs stop here. A View is never changed after Compile. What must live
// on from one View to the next (rate words, session counts, rule hits, tenant ids) hangs on it by pointer and is handed
// over by Compile(prev). Compile may run beside workers that read prev.
package snapshot
