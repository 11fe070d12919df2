// Package regen is for the tests that make committed eBPF objects again: what is committed must be what the source says.
//
// It does not install a compiler; .ci/setup.sh does. It keeps no state: each call has a folder of its own. No other code imports it.
package regen
