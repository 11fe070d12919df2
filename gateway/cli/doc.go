// Package cli is the command line: it reads arguments and files, asks a node over its socket, and prints the answer for people or as JSON.
//
// It does not decide anything about packets or policies, and it never changes a node other than through the node's own interface, with one
// exception that says so: release, which is for nodes that are gone.
//
// Exit status: 0 done, 1 refused or failed, 2 wrong usage. Data goes to standard output, everything else to standard error. A command is
// used once, by one goroutine.
package cli
