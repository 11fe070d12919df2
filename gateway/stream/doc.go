// Package stream is the owner's end of session streams: what stands between the goroutine that owns a replica.Sender and the connection to a standby.
//
// It does not know tables, groups or members: those who own senders hand them in, and whoever wires a node dials. A Stream's Turn and Rest belong to the goroutine that owns its
// Sender, a worker say, which waits for nothing: frames go into a bounded number of buffers, and while none is free what has changed stays a mark. All else may be called by anybody.
package stream
