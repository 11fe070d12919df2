//go:build amd64 || arm64

package prefetch

import (
	"math"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Any number may be an address, and nothing is read beside the list.
func TestAnyAddress(t *testing.T) {
	page := unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mprotect(mem[page:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	inReach := listIn(mem[:page]) // its end is the end of what may be read
	for i, a := range []uintptr{0, 1, 63, 64, math.MaxUint64, math.MaxUint64 - 63, 1 << 47, 1 << 63, Of(mem, page), Of(mem, 2*page-1)} {
		inReach[len(inReach)-1-i] = a
	}
	for n := range inReach {
		Lines(inReach[n:])
		Pairs(inReach[n:])
	}
	Lines(nil)
	Pairs(nil)
	Lines(inReach[len(inReach):])
	Pairs(inReach[len(inReach):])
}

// What was asked for is there sooner. A test that only shows a difference of two: how large it is depends on the machine.
func TestItIsThereSooner(t *testing.T) {
	const lines, size = 64, 256 << 20
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	}()
	for i := 0; i < size; i += 4096 {
		mem[i] = 1
	}
	// Each line says where the next one is, so that without help they come one after the other.
	walk := func(at uint32) (took time.Duration, end uint32) {
		began := time.Now()
		for range lines {
			at = at*1664525 + 1013904223 + uint32(mem[at%size]&^1)
		}
		return time.Since(began), at
	}
	least := [2]time.Duration{time.Hour, time.Hour}
	at := uint32(7)
	for range 200 {
		for asked := range 2 {
			if asked == 1 {
				var ahead [lines]uintptr
				for i, x := 0, at; i < lines; i++ {
					ahead[i] = Of(mem, int(x%size))
					x = x*1664525 + 1013904223
				}
				Lines(ahead[:])
				for began := time.Now(); time.Since(began) < 20*time.Microsecond; {
				}
			}
			took, end := walk(at)
			least[asked] = min(least[asked], took)
			at = end
		}
	}
	t.Logf("%d lines in no cache, least of 200: %v, asked for before %v", lines, least[0], least[1])
	if 2*least[1] > least[0] {
		t.Errorf("%d lines took %v, and %v when they had been asked for before: want less than half", lines, least[0], least[1])
	}
}
