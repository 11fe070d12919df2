// Package lab is the demo: it builds the standard lab of netlab, runs the gateway in it as a child process, lets two tenants and the public
// side talk through it, shows what happens, and says which of the gateway's promises held.
//
// It does not judge the gateway by the gateway's word: each promise is checked on the hosts' side first (their tools, and meters on their
// own devices), and what the gateway says must then agree. It knows the gateway only by its command line and its status interface.
//
// Run is called once at a time per process (it owns the namespaces dmdemo-<pid>-*); it starts goroutines and has ended all of them, and
// removed all that it made, when it returns. Judging is a pure function of what was measured (promises.go), tested without root.
package lab
