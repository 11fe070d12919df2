package worker

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHurry: a worker's thread has the shortest slices that there are, and is otherwise as it was.
func TestHurry(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and it ends with the goroutine
		before, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		hurry()
		after, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		want := *before
		if before.Runtime > 0 { // a kernel that goes by it says it
			want.Runtime = shortSlice
		}
		if *after != want {
			t.Errorf("the thread was %+v, and is %+v, want %+v", *before, *after, want)
		}
	}()
	<-done
}
