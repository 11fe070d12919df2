// Package lease is the table of deadlines: until when this node may send for each group.
//
// It does not decide anything and reads no clock: the time is an argument, the memory is handed in. One goroutine writes it; workers, pipelines and the XDP
// programs of all ports read it meanwhile, a word at a time.
package lease
