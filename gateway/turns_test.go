package gateway

import (
	"slices"
	"sync"
	"testing"
)

// TestTurns: what is to be done for one group is done in order, and a group that takes its time holds up no other.
func TestTurns(t *testing.T) {
	var ts turns
	var mu sync.Mutex
	var wg sync.WaitGroup
	done := map[uint8][]int{}
	hung := make(chan struct{})
	ts.add(3, func() { <-hung })
	for i := range 300 {
		wg.Add(1)
		ts.add(uint8(1+i%2), func() {
			defer wg.Done()
			mu.Lock()
			done[uint8(1+i%2)] = append(done[uint8(1+i%2)], i)
			mu.Unlock()
		})
	}
	wg.Wait()
	close(hung)
	for group, list := range done {
		if len(list) != 150 || !slices.IsSorted(list) {
			t.Errorf("group %d: %v", group, list)
		}
	}
}
