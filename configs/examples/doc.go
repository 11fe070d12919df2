// Package examples carries the commented example files inside the binary, for the lab to start from.
//
// It does not read or check them: configs does. The file system is immutable and safe for concurrent use.
package examples
