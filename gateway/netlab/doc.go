// Package netlab builds networks of namespaces, veth pairs and switches on one machine, and the hosts that talk in them: what the demo, the
// root tests and the benches share.
//
// It does not know the gateway: nothing of it is imported here, and what the hosts measure is measured without it. It needs root and a
// kernel with veth, bridge and tc BPF, and no program: everything goes over netlink, and clients and servers are part of this binary
// (Main), started as children inside a namespace. It never changes the caller's namespace, sysctls or links.
//
// Concurrency: a Lab is built by one goroutine; Do, Command, Run, Meter and Capture may then be used by many. A thread that entered
// a namespace is never given back to the Go scheduler: it ends with the goroutine that locked it. Everything a Lab makes carries the
// pid of its maker; Close removes it all, and New removes what a maker that is dead by now left behind.
//
// A program that uses netlab is also its own host: children are this executable called with the arguments "lab-host …". Such a program
// (and each TestMain) calls Init before anything else.
package netlab
