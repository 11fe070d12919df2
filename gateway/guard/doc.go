// Package guard is the small process above a gateway's: it starts the same program once more, as the data plane, waits for its end, and then says in its
// name that it serves nothing any more: it closes the leases in the table that the XDP programs read, and sends what the data plane has sealed for that day.
//
// It does not seal, decide or restart anything. It passes signals down, what is for systemd up, and the exit status to whoever started it. A data plane that is
// stopped is not dead: only what wait(2) says has ended is.
//
// Run is the parent's side: one goroutine on a thread of its own, which the kernel's word to the child hangs on, and one that reads. Above is the child's side: it may
// be used by any goroutine.
package guard
