//go:build plant

package replica

var (
	inAll  plants
	blocks Plant
)

// planted and plantedBlocks are the faults that everything of this process has. They are there to see that a judge finds them, in programs that are built for that alone.
func planted() plants { return inAll }

func plantedBlocks() Plant { return blocks }

// AddPlant puts a fault into everything that is made from now on; false = it is none of this room's.
func AddPlant(fault string) bool {
	switch fault {
	case "bulk-ignores-deletes":
		inAll.deafBulk = true
	case "blocks-stay-open":
		blocks.StayOn = true
	case "any-epoch":
		inAll.anyEpoch = true
	default:
		return false
	}
	return true
}
