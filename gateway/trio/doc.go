// Package trio is a cluster of the documented shape as its users run it: two gateways and a witness, each a process in a namespace of its own, with their
// keys, their node files and hosts on both sides of each gateway. Demo and bench share it.
//
// It does not judge. It knows a node by its command line and its interface, like anybody. A Trio belongs to one goroutine; Node.Apply and Node.Stream may be called by
// several. Close ends the processes and removes all that it made but the directory that it was given.
package trio
