// Package roottest guards the tests that need what not every machine gives: root above all, for namespaces, XDP and raw sockets.
//
// It does not make anything: netlab does. It has no state and is safe for concurrent use.
package roottest
