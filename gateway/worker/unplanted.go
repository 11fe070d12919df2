//go:build !plant

package worker

// noLook has nobody look at deadlines before frames leave, caught has workers in a loop that does not end, and paced gives a clock another pace: none of it, in all that is shipped. See planted.go.
const noLook = false

func caught() bool { return false }

func dawdle(int) {}

func paced(ns uint64) uint64 { return ns }
