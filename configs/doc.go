// Package configs is the schema of the two files an operator writes (policy and node): strict decoding, defaults,
// validation with every error at once, and differences between two policies.
//
// It does not read files, touch the network or know what a packet is: bytes come in, checked structs and errors go out.
// All functions are pure; the structs they return belong to the caller.
package configs
