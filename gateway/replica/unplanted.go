//go:build !plant

package replica

// planted and plantedBlocks are the faults that everything of this process has: none, in all that is shipped. See planted.go.
func planted() plants { return plants{} }

func plantedBlocks() Plant { return Plant{} }
