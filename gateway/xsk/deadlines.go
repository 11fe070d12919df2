package xsk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/gateway/lease"
	"demarc/gateway/xsk/bpf"
)

// Deadlines is the table of deadlines in memory that the XDP programs of all ports of a process read too. A new one serves no group. When the process
// ends, however it ends, the programs that stay attached go on reading it: nobody moves a deadline any more, so each runs out by itself.
type Deadlines struct {
	m   *ebpf.Map
	mem []byte
}

// NewDeadlines makes the table: one for a process, handed to the program of each port.
func NewDeadlines() (*Deadlines, error) {
	spec, err := bpf.LoadSteer()
	if err != nil {
		return nil, err
	}
	d := &Deadlines{}
	if d.m, err = ebpf.NewMap(spec.Maps[bpf.SteerMapDeadlines]); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = explain("make table of deadlines", err)
		}
		return nil, fmt.Errorf("table of deadlines: %w", err)
	}
	if d.mem, err = mapDeadlines(d.m.FD()); err != nil {
		return nil, errors.Join(err, d.m.Close())
	}
	return d, nil
}

// OpenDeadlines is the table of another process, by a descriptor of it, which is closed: for whoever is to end what that one was allowed to.
func OpenDeadlines(fd int) (*Deadlines, error) {
	mem, err := mapDeadlines(fd)
	if err = errors.Join(err, unix.Close(fd)); err != nil { // the mapping keeps the table
		return nil, err
	}
	return &Deadlines{mem: mem}, nil
}

func mapDeadlines(fd int) ([]byte, error) {
	mem, err := unix.Mmap(fd, 0, int(unsafe.Sizeof(lease.Deadlines{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map table of deadlines: %w", err)
	}
	return mem, nil
}

// FD is the table's descriptor, for a process that shares it.
func (d *Deadlines) FD() int { return d.m.FD() }

// Table is the table itself. It must not be used after Close.
func (d *Deadlines) Table() *lease.Deadlines { return (*lease.Deadlines)(unsafe.Pointer(&d.mem[0])) }

// keep adds the table to the maps that a program takes over. Without one the program has its own, which nobody writes.
func (d *Deadlines) keep(maps map[string]*ebpf.Map) map[string]*ebpf.Map {
	if d != nil {
		maps[bpf.SteerMapDeadlines] = d.m
	}
	return maps
}

// Close lets go of it; programs that have it keep it, as it stands. Idempotent.
func (d *Deadlines) Close() error {
	if d == nil || d.mem == nil {
		return nil
	}
	mem := d.mem
	d.mem = nil
	err := unix.Munmap(mem)
	if d.m != nil { // it is this process's
		err = errors.Join(err, d.m.Close())
	}
	return err
}

var readAhead = func() ([]byte, error) { return os.ReadFile("/proc/self/timens_offsets") } // a seam for tests

// BootAhead is by how much CLOCK_BOOTTIME as this process reads it is ahead of the kernel's own.
func BootAhead() (int64, error) { return bootAhead() }

// bootAhead is by how much CLOCK_BOOTTIME as this process reads it is ahead of the kernel's own, which the program reads: not at all but in a time namespace.
func bootAhead() (int64, error) {
	text, err := readAhead()
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // a kernel without time namespaces
	}
	if err != nil {
		return 0, fmt.Errorf("read the offsets of the time namespace: %w", err)
	}
	return parseAhead(string(text))
}

// parseAhead finds boottime in what the kernel says (time_namespaces(7)): a line a clock, its name, seconds and nanoseconds.
func parseAhead(text string) (int64, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "boottime" && f[0] != strconv.Itoa(unix.CLOCK_BOOTTIME) {
			continue
		}
		s, err := strconv.ParseInt(f[1], 10, 64)
		ns, nerr := strconv.ParseInt(f[2], 10, 64)
		if err := errors.Join(err, nerr); err != nil {
			return 0, fmt.Errorf("offset of the time namespace %q: %w", strings.TrimSpace(line), err)
		}
		return s*int64(time.Second) + ns, nil
	}
	return 0, fmt.Errorf("offsets of the time namespace %q: no boottime", text)
}
