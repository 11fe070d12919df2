// Package doctor looks at the machine and at what the node file asks of it, and says what is wrong and the line that mends it.
//
// It does not change anything: no setting, no file, no program on a port. A probe socket is closed before Check returns.
//
// Check may take as long as the kernel does; it is called by one goroutine.
package doctor
