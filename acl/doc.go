// Package acl compiles an ordered list of rules into a classifier whose lookup cost hardly grows with the number of rules.
//
// It does not know tenants, directions, names, logs or counters: whoever compiles a list keeps what stands beside
// each rule and finds it again by Match.Index. It does not parse packets, and it imports nothing of ours.
//
// A Program is immutable. Any number of goroutines may call Lookup at once; it takes no lock and allocates nothing.
// Compile is a pure function: the same list gives the same Program. aclref holds the slow scan that defines what
// Lookup must answer; aclgen makes rule lists for tests and benchmarks.
package acl
