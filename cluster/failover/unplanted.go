//go:build !plant

package failover

// planted are the faults that every machine of this process has: none, in all that is shipped. See planted.go.
func planted() plants { return plants{} }
