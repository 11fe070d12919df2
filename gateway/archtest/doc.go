// Package archtest holds the project to its own rules: who may import whom, what pure packages may not touch, where documents stand.
//
// It does not run or import what it judges: it reads the source. rules_test.go has the rules as tables, with the reason beside each.
//
// There is no code outside of its tests, and they share no state: each parses what it needs or reads what was parsed once.
package archtest
