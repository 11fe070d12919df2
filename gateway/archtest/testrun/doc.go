// Command testrun runs go test and holds what ran against docs/rfc.md: a requirement of the four NAT RFCs that the page leaves out, or a test
// that it names and that did not pass, fails the run, as a failing test does. With CI set, a skipped test fails it too.
//
//	testrun [-matrix docs/rfc.md] [-record FILE] [-slow N] -- STEP [-- STEP]...
//
// A step is the arguments of go test, each flag one word, and comes when the one before has ended. While the first one runs, the tests of the others are compiled.
//
// At the end it says how much of the processors' time the machine's host gave to others meanwhile.
//
// It does not change or choose tests. It is one process, whose record is one, and has no state but the record that it writes.
package main
