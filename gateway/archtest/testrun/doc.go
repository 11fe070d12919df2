// Command testrun runs go test and holds what ran against docs/rfc.md: a requirement of the four NAT RFCs that the page leaves out, or a test
// that it names and that did not pass, fails the run, as a failing test does. With CI set, a skipped test fails it too.
//
//	testrun [-matrix docs/rfc.md] [-record FILE] [-slow N] -- LANE [++ LANE]... [-- LANE [++ LANE]...]...
//
// Lanes with "++" between them run at the same time, those after "--" when all of these have ended. A lane is the arguments of go test, after any of these words:
// @waiting has it run only the tests that begin with roottest.MostlyWaits, @others all but those; @low has it take what processor time the other lanes leave. While a step
// runs, the tests of the next one are compiled.
//
// It does not change tests, and what runs is nowhere listed: a test that says nothing is one of the others. It has one child for each lane, whose record is one,
// and has no state but the record that it writes.
package main
