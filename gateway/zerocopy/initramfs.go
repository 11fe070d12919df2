package zerocopy

import (
	"fmt"
	"io"
)

// entry is one file of an initramfs.
type entry struct {
	name         string
	mode         uint32 // with the type bits of stat(2)
	major, minor uint32 // of a device
	data         []byte
}

const (
	modeDir  = 0o040755
	modeFile = 0o100644
	modeExec = 0o100755
	modeChar = 0o020600
)

// writeCPIO writes an archive in the kernel's format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
// Directories must come before what lies in them.
func writeCPIO(w io.Writer, list []entry) error {
	var err error
	n := 0
	put := func(b []byte) {
		if err == nil {
			_, err = w.Write(b)
			n += len(b)
		}
	}
	pad := func() { put(make([]byte, -n&3)) }
	one := func(ino int, e *entry) {
		put(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			ino, e.mode, 0, 0, 1, 0, len(e.data), 0, 0, e.major, e.minor, len(e.name)+1, 0))
		put(append([]byte(e.name), 0))
		pad()
		put(e.data)
		pad()
	}
	for i := range list {
		if len(list[i].data) > 1<<30 {
			return fmt.Errorf("%s: %d bytes are too many for an initramfs", list[i].name, len(list[i].data))
		}
		one(i+1, &list[i])
	}
	one(0, &entry{name: "TRAILER!!!"})
	return err
}
