// Package trace keeps what happened to packets: the recorder of drops, and the taps by which people follow live packets or capture them.
//
// It does not decide about packets, does no I/O and renders no text. A Recorder and a Tap belong to one worker, like the shard that they hang
// on: who reads them does so on the worker's thread, between two bursts. All of their memory is taken when they are made.
package trace
