// Package portprep readies a network device for the gateway, remembers what it found, and puts it back: tags stay in the frame and come in
// whatever their number, nothing joins packets, and received packets are spread over exactly the queues that are bound.
//
// What it changes is written to a file before it is changed. So a start after kill -9, and `demarc release`, put back what the first
// start found, not what the one that was killed had left. A device that went and came back, or a machine that was started again, has
// forgotten all settings, and then the file counts for nothing.
//
// It does not decide what a refusal by the driver means to a tenant's packets beyond Judge, attaches no program and opens no socket. A
// Port belongs to the control goroutine.
package portprep
