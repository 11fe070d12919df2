package zerocopy

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// guestWord is what the kernel hands to init as its argument.
const guestWord = "zerocopy-guest"

// nic is a network card of the guest. Cards on one hub hear each other.
type nic struct {
	hub int
	mac string
}

// nics: the two ports of the gateway, then the far ends of the same two hubs.
var nics = []nic{{0, "52:54:00:00:01:01"}, {1, "52:54:00:00:01:02"}, {0, "52:54:00:00:01:11"}, {1, "52:54:00:00:01:12"}}

// Guest reports whether this process is init of a guest that Main has booted.
func Guest() bool {
	return os.Getpid() == 1 && len(os.Args) == 2 && os.Args[0] == "/init" && os.Args[1] == guestWord
}

// Init does the guest's part when this process is init of such a guest, and does not return then. Otherwise it does nothing. A program
// that may be booted calls it before anything else.
func Init() {
	if !Guest() {
		return
	}
	out := os.Stdout
	defer func() { // whatever happens, the guest ends and says why
		if p := recover(); p != nil {
			(&record{Fatal: fmt.Sprintf("panic: %v", p)}).write(out)
		}
		unix.Sync()
		time.Sleep(50 * time.Millisecond) // the serial line drains
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		select {}
	}()
	devs, kernel, err := setUp()
	if err != nil {
		(&record{Fatal: err.Error()}).write(out)
		return
	}
	(&record{Boot: kernel}).write(out)
	fars := [2]*far{}
	if fars[0], err = openFar(devs[2].Index, mac(devs[2].HardwareAddr), "198.18.10.0/24", "2001:db8:a::/64"); err == nil {
		fars[1], err = openFar(devs[3].Index, mac(devs[3].HardwareAddr), "192.0.2.100/32", "2001:db8:ff::64/128")
	}
	if err != nil {
		(&record{Fatal: err.Error()}).write(out)
		return
	}
	for _, name := range cases {
		if !runCase(name, devs, fars, out) {
			return // what it left behind would be judged with the next one
		}
	}
}

// setUp makes of an empty guest a machine with four devices that are up.
func setUp() (devs [4]net.Interface, kernel string, err error) {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"bpf", "/sys/fs/bpf"}} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return devs, "", fmt.Errorf("mount %s: %w", m.kind, err)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return devs, "", err
	}
	kernel = unix.ByteSliceToString(u.Release[:])
	for _, m := range modules {
		f, err := os.Open(filepath.Join("/modules", m+".ko"))
		if err != nil {
			return devs, "", err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return devs, "", fmt.Errorf("load %s: %w", m, err)
		}
	}
	// The far ends are driven by hand; the kernel's own IPv6 chatter would be judged as stray frames.
	for _, w := range []string{"all", "default"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+w+"/disable_ipv6", []byte("1"), 0o644) // absent when the kernel has no IPv6
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		found := 0
		list, err := net.Interfaces()
		if err != nil {
			return devs, "", err
		}
		for _, l := range list {
			for i, n := range nics {
				if l.HardwareAddr.String() == n.mac {
					devs[i] = l
					found++
				}
			}
		}
		if found == len(nics) {
			break
		}
		if time.Now().After(deadline) {
			return devs, "", fmt.Errorf("%d of %d network cards came up", found, len(nics))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := linkUp("lo"); err != nil {
		return devs, "", err
	}
	for i := range devs {
		if err := linkUp(devs[i].Name); err != nil {
			return devs, "", err
		}
	}
	return devs, kernel, nil
}

func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("flags of %s: %w", name, err)
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
