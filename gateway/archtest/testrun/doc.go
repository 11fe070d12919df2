// Command testrun runs go test and holds what ran against docs/rfc.md: a requirement of the four NAT RFCs that the page leaves out, or a test
// that it names and that did not pass, fails the run, as a failing test does. With CI set, a skipped test fails it too.
//
//	testrun [-matrix docs/rfc.md] [-record FILE] [-slow N] -- STEP [-- STEP]...
//
// A step is the arguments of go test, and comes when the one before has ended. After the word @waiting it runs only the tests that begin with
// roottest.MostlyWaits, after @others all but those; then each flag is one word. While the first step runs, the tests of the others are compiled.
//
// At the end it says how much of the processors' time the machine's host gave to others meanwhile.
//
// It does not change tests, and what runs is nowhere listed: a test that says nothing is one of the others. It is one process, whose record is one,
// and has no state but the record that it writes.
package main
