// Package confine gives up, for the whole process and for good, the rights that it needed only to start.
//
// It does not decide when: whoever starts the process calls it once traffic is forwarded. It keeps no state, and may be called by any
// goroutine while others run: the kernel's rights are a thread's, so they are changed on every thread at once.
package confine
