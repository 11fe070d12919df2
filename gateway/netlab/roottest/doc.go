// Package roottest guards the tests that need root: namespaces, XDP, raw sockets.
//
// It does not make anything: netlab does. It has no state and is safe for concurrent use.
package roottest
