// Package pureload is a worker's pipeline by itself: a shard with tables and a view as a node has them, given bursts of frames by hand. It is for measuring what the pipeline takes of a packet, without device, kernel or another worker.
//
// It does not open ports and needs no rights. A Load belongs to one goroutine, which should stay on its thread. Close gives its memory back.
package pureload
