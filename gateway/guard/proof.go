package guard

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// exiting is the kernel's mark of a thread that is ending (PF_EXITING of proc(5), field 9): it is set once the thread has left its last system call but the one that ends it, and
// from then on the thread runs nothing but its own end.
const exiting = 0x4

// over says that no thread of a process will ever run again, so that nothing more is sent by any of them. A process whose memory is large is over long before it can be waited
// for: the kernel takes 10 to 50 ms for each socket that it closes. False also where that cannot be told.
//
// A thread that was not seen could only have been made by one that was seen and was not ending yet. So when all of a first look are ending and a second look shows no other one, there is none.
func over(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	if text, err := os.ReadFile(fmt.Sprintf("%s/%d/stat", dir, pid)); err != nil || !ending(text) { // nearly always: the first thread stays to the end
		return false
	}
	seen := map[string]bool{}
	for {
		list, err := os.ReadDir(dir)
		if err != nil || len(list) == 0 {
			return false
		}
		more := false
		for _, e := range list {
			if seen[e.Name()] {
				continue
			}
			more = true
			text, err := os.ReadFile(dir + "/" + e.Name() + "/stat")
			if os.IsNotExist(err) {
				continue // it has ended meanwhile: the next look will not show it
			}
			if err != nil || !ending(text) {
				return false
			}
			seen[e.Name()] = true
		}
		if !more {
			return true
		}
	}
}

// first is the first thread of a process, which is looked at again and again: one call of the system, where to open it anew are six.
type first struct {
	fd   int // -1 = it could not be opened
	text [1024]byte
}

func openFirst(pid int) *first {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/task/%d/stat", pid, pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fd = -1
	}
	return &first{fd: fd}
}

// ending says whether the thread is ending. True also where that cannot be looked at so: over looks in its own way.
func (f *first) ending() bool {
	if f.fd < 0 {
		return true
	}
	n, err := unix.Pread(f.fd, f.text[:], 0)
	return err == nil && ending(f.text[:n])
}

func (f *first) close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}

// ending reads the mark off what the kernel says of a thread.
func ending(stat []byte) bool {
	i := bytes.LastIndexByte(stat, ')') // its name may have anything in it
	if i < 0 {
		return false
	}
	n := 0
	for f := range bytes.FieldsSeq(stat[i+1:]) {
		if n++; n == 7 {
			flags, err := strconv.ParseUint(string(f), 10, 64)
			return err == nil && flags&exiting != 0
		}
	}
	return false
}
