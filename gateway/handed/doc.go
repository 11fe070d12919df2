// Package handed keeps the one file by which a process hands the next one what it had: a header that says whose it is and of when, and chunks that it does not look into.
//
// It does not know what is in a chunk, decide whether what it reads may still be used (the caller does, by the header), or read a clock. It is written once, whole or not at all, and taken
// once: who takes it moves it aside first, so that what ends a process while it reads does not meet it again.
//
// A Writer and a Reader belong to one goroutine each, and a directory to one process, which holds its lock.
package handed
