//go:build !plant

package worker

// noLook has nobody look at deadlines before frames leave, and paced gives a clock another pace: neither, in all that is shipped. See planted.go.
const noLook = false

func paced(ns uint64) uint64 { return ns }
