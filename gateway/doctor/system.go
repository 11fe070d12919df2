package doctor

import (
	"bytes"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"demarc/cluster/transport"
	"demarc/gateway/hostnet"
)

// system is what the doctor looks at, so that tests can show it another machine.
type system struct {
	file       func(name string) ([]byte, error) // procfs and sysfs
	executable func() (string, error)
	xdpSocket  func() error
	bpf        func() error
	memlock    func() (uint64, error) // soft limit in bytes
	affinity   func() (map[int]bool, error)
	link       func(name string) (hostnet.Link, error)
	offloads   func(name string) (hostnet.Offloads, error)
	xdp        func(ifindex int) (hostnet.XDPFeatures, error)
	ephemeral  func() (lo, hi uint16, err error)
	places     func() (map[netip.Addr]place, error)
	keys       func(dir string) error
}

func thisMachine() system {
	return system{
		file: os.ReadFile, executable: os.Executable,
		xdpSocket: func() error {
			fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		},
		bpf: func() error { return features.HaveProgramType(ebpf.XDP) },
		memlock: func() (uint64, error) {
			var r unix.Rlimit
			err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r)
			return r.Cur, err
		},
		affinity: func() (map[int]bool, error) {
			var set unix.CPUSet
			if err := unix.SchedGetaffinity(0, &set); err != nil {
				return nil, err
			}
			out := map[int]bool{}
			for i := range len(set) * strconv.IntSize {
				if set.IsSet(i) {
					out[i] = true
				}
			}
			return out, nil
		},
		link: hostnet.LinkByName, offloads: hostnet.ReadOffloads, xdp: hostnet.ReadXDPFeatures, ephemeral: hostnet.EphemeralRange, places: places, keys: transport.CheckKeyring,
	}
}

// text reads a small file; "" when it is not there.
func (s *system) text(name string) string {
	b, err := s.file(name)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// field finds "name: value" in a file of procfs.
func (s *system) field(file, name string) string {
	for l := range strings.Lines(s.text(file)) {
		k, v, ok := strings.Cut(l, ":")
		if ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// kilobytes reads a field of /proc/meminfo that is in kB, as bytes.
func (s *system) kilobytes(name string) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(s.field("/proc/meminfo", name), " kB"), 10, 64)
	return n << 10, err == nil
}

// cpuList reads "0-3,5" as sysfs writes it.
func cpuList(s string) map[int]bool {
	out := map[int]bool{}
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		a, b, isRange := strings.Cut(part, "-")
		lo, err := strconv.Atoi(a)
		hi := lo
		if isRange && err == nil {
			hi, err = strconv.Atoi(b)
		}
		if err != nil || lo < 0 || hi > 1<<16 {
			continue
		}
		for i := lo; i <= hi; i++ {
			out[i] = true
		}
	}
	return out
}
