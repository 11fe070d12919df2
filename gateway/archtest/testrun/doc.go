// Command testrun runs go test and holds what ran against docs/rfc.md: a requirement of the four NAT RFCs that the page leaves out, or a test
// that it names and that did not pass, fails the run, as a failing test does. With CI set, a skipped test fails it too.
//
//	testrun [-matrix docs/rfc.md] [-record FILE] [-slow N] -- ARGUMENTS OF GO TEST [-- ARGUMENTS OF A SECOND RUN]...
//
// It does not choose or change tests. It is one process with one child at a time, whose record is one, and has no state but the record that it writes.
package main
