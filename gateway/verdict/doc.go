// Package verdict names what a pipeline stage may decide about a packet and why.
//
// It does not act on a verdict: only the driver of the pipeline counts, frees and sends.
// It holds the one list of drop reasons that counters, `demarc drops`, metrics and traces share.
// Everything here is a constant or a pure function; it is safe for concurrent use.
package verdict
