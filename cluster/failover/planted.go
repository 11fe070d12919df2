//go:build plant

package failover

var inAll plants

// planted are the faults that every machine of this process has. They are there to see that a judge finds them, in programs that are built for that alone.
func planted() plants { return inAll }

// Plant puts a fault into every machine that is made from now on; false = it is none of this room's.
func Plant(fault string) bool {
	switch fault {
	case "lease-from-reply":
		inAll.fromReply = true
	case "no-wait":
		inAll.noWait = true
	case "any-epoch":
		inAll.noEpoch = true
	case "stale-takes":
		inAll.staleTakes = true
	default:
		return false
	}
	return true
}
