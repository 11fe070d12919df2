// Package aclgen makes rule lists and keys from a seed, for tests and benchmarks that want lists like real ones.
//
// It does not read ClassBench seed files; it draws from distributions of the same kind (nested prefixes of uneven
// length, few services that repeat, some port ranges, some wildcards). Nothing in it is meant for the data path. All
// functions are pure: the same arguments give the same result.
package aclgen
