// Package quiet has tests hold times against limits while the machine is there, and not while it is elsewhere.
//
// It does not excuse anything else: what a test finds wrong that is not a time is a fault at once, and so is a time on a machine that was there. Whether it was there says
// host.Machine, measured beside the test, never the result. It needs root and netlab.Init. Callers may be concurrent; each measures for itself.
package quiet
