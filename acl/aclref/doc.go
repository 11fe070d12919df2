// Package aclref defines what a rule list means: it walks the rules in order and returns the first that matches.
//
// It does not hurry, and nothing outside of tests, generators and explanations should call it per packet. It is a pure
// function of its arguments and shares no code with the compiler, so that the two can check each other.
package aclref
