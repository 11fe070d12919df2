// Package api is the node's HTTP/JSON interface: the wire structs, the server that hands requests to a Backend, and the client that the CLI,
// the lab and the bench use.
//
// It does not compute anything: the composition root fills these structs. Server and Client may be used from any goroutine.
// They are plain values without behaviour; who has one owns it. Field names in JSON are a promise to operators' scripts: fields
// are added, never renamed, and a count that is zero is still written.
//
// Units are in the field's comment. Packets and bytes are totals since the process started unless the comment says otherwise; bytes are
// IP bytes without the link header for tenants and sessions (what a bill counts, and a rate beside rates.overhead), and whole frames without
// checksum for ports. Times are RFC 3339 wall-clock times, for reading only; durations are seconds.
package api
