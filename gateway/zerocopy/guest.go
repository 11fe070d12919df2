package zerocopy

import (
	"fmt"
	"io"
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
func Guest() bool { return told(guestWord) }

// told reports whether this process is init of a guest that was booted with a word. Before it stand options that the kernel itself did not read, as nokaslr, which is for what unpacks it.
func told(word string) bool {
	return os.Getpid() == 1 && len(os.Args) >= 2 && os.Args[0] == "/init" && os.Args[len(os.Args)-1] == word
}

// Init does the guest's part when this process is init of such a guest, and does not return then. Otherwise it does nothing. A program
// that may be booted calls it before anything else.
func Init() {
	if !Guest() {
		return
	}
	live(func(out io.Writer) error {
		devs, fars, err := setUp(out)
		if err != nil {
			return err
		}
		for _, name := range forwarding.cases {
			if !runCase(name, devs, fars, out) {
				return nil // what it left behind would be judged with the next one
			}
		}
		return nil
	})
}

// live is the life of a guest: whatever happens, it ends and says why. It does not return.
func live(fn func(out io.Writer) error) {
	out := os.Stdout
	defer func() {
		if p := recover(); p != nil {
			(&record{Fatal: fmt.Sprintf("panic: %v", p)}).write(out)
		}
		unix.Sync()
		time.Sleep(50 * time.Millisecond) // the serial line drains
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		select {}
	}()
	if err := fn(out); err != nil {
		(&record{Fatal: err.Error()}).write(out)
	}
}

// setUp makes of an empty guest a machine with four devices that are up, and opens the far ends.
func setUp(out io.Writer) (devs [4]net.Interface, fars [2]*far, err error) {
	if err := mountAll(); err != nil {
		return devs, fars, err
	}
	if err := loadModules(); err != nil {
		return devs, fars, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return devs, fars, err
	}
	(&record{Boot: unix.ByteSliceToString(u.Release[:])}).write(out)
	// The far ends are driven by hand; the kernel's own IPv6 chatter would be judged as stray frames.
	for _, w := range []string{"all", "default"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+w+"/disable_ipv6", []byte("1"), 0o644) // absent when the kernel has no IPv6
	}
	if devs, err = findCards(); err != nil {
		return devs, fars, err
	}
	for _, name := range []string{"lo", devs[0].Name, devs[1].Name, devs[2].Name, devs[3].Name} {
		if err := linkUp(name); err != nil {
			return devs, fars, err
		}
	}
	if fars[0], err = openFar(devs[2].Index, mac(devs[2].HardwareAddr), 0, "198.18.10.0/24", "2001:db8:a::/64"); err == nil {
		fars[1], err = openFar(devs[3].Index, mac(devs[3].HardwareAddr), 0, "192.0.2.100/32", "2001:db8:ff::64/128")
	}
	return devs, fars, err
}

func mountAll() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"bpf", "/sys/fs/bpf"}} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.kind, err)
		}
	}
	return nil
}

func loadModules() error {
	for _, m := range modules {
		f, err := os.Open(filepath.Join("/modules", m+".ko"))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	return nil
}

// findCards waits for the cards of nics.
func findCards() (devs [4]net.Interface, err error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		found := 0
		list, err := net.Interfaces()
		if err != nil {
			return devs, err
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
			return devs, nil
		}
		if time.Now().After(deadline) {
			return devs, fmt.Errorf("%d of %d network cards came up", found, len(nics))
		}
	}
}

func linkUp(name string) error { return linkFlag(name, true) }

// linkFlag sets a device up or down.
func linkFlag(name string, up bool) error {
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
	flags := r.Uint16() &^ unix.IFF_UP
	if up {
		flags |= unix.IFF_UP
	}
	r.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("set %s up %v: %w", name, up, err)
	}
	return nil
}
