package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/acl"
	"demarc/bench/peers"
	"demarc/gateway/hostnet"
)

// device is one of the things that are compared.
type device interface {
	name() string
	// start configures it and returns when it forwards.
	start(ctx context.Context) error
	// sessions counts the established sessions that it holds.
	sessions(ctx context.Context) (int, error)
	// missing says which of its duties it does not do, asking the device itself; "" = it does all. flows began since start.
	missing(ctx context.Context, flows int) (string, error)
	// pids are its processes and threads, whose CPU time is ours.
	pids() []int
	// stop leaves the devices as start found them.
	stop() error
}

// kernel is the peer: forwarding with nftables.
type kernel struct {
	r       *room
	rules   []acl.Rule
	form    peers.Form
	rate    uint64
	ruleset string // as it was loaded
	threads []int  // NAPI
	loaded  bool
}

func (k *kernel) name() string { return "nft-expert" }
func (k *kernel) pids() []int  { return k.threads }

// nftVersion is what nft says, and the error when there is none.
func nftVersion() (string, error) {
	out, err := exec.Command("nft", "--version").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("the kernel's side of the bench needs the program nft: apt-get install nftables")
	}
	return strings.TrimSpace(string(out)), err
}

func (k *kernel) start(ctx context.Context) error {
	text, err := peers.Ruleset(peers.Config{Form: k.form, Rules: k.rules, In: devIn, Out: devOut, Inside: insideNet, Pool: pool, RateBits: k.rate})
	if err != nil {
		return err
	}
	k.ruleset = text
	file := filepath.Join(dirRun, "ruleset.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := k.r.Exec(nsGW, "nft", "-f", file); err != nil {
		return err
	}
	k.loaded = true
	if k.threads, err = k.r.interrupts(); err != nil {
		return err
	}
	return errors.Join(k.r.Sysctl(nsGW, "net.ipv4.ip_forward", "1"), ctx.Err())
}

func (k *kernel) stop() error {
	k.threads = nil
	errs := []error{k.r.Sysctl(nsGW, "net.ipv4.ip_forward", "0")}
	errs = append(errs, k.r.noInterrupts())
	if k.loaded {
		_, err := k.r.Exec(nsGW, "nft", "flush", "ruleset")
		errs = append(errs, err)
		k.loaded = false
	}
	errs = append(errs, k.r.Do(nsGW, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }))
	return errors.Join(errs...)
}

// sessions counts the entries that have seen both directions.
func (k *kernel) sessions(context.Context) (n int, err error) {
	err = k.r.Do(nsGW, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		if err != nil {
			return err
		}
		for line := range bytes.Lines(b) {
			if bytes.Contains(line, []byte(" udp ")) && bytes.Contains(line, []byte("dport=5004")) && !bytes.Contains(line, []byte("[UNREPLIED]")) {
				n++
			}
		}
		return nil
	})
	return n, err
}

func (k *kernel) missing(_ context.Context, flows int) (string, error) {
	listing, err := k.r.Exec(nsGW, "nft", "list", "ruleset")
	if err != nil {
		return "", err
	}
	return peers.Inspect(string(listing)).Missing(len(k.rules), flows), nil
}

// interrupts gives the gateway's devices NAPI, without which no frame of ours reaches a veth that has no native XDP program; GRO brings it. The
// inside's runs as a thread on the device's CPU, as an interrupt of a real device would; the maker's CPU stays the maker's. It returns the threads.
func (r *room) interrupts() (threads []int, err error) {
	before := napiThreads()
	err = r.Do(nsGW, func() error {
		return errors.Join(hostnet.SetOffloads(devIn, true, hostnet.GRO), hostnet.SetOffloads(devOut, true, hostnet.GRO), threaded(devIn, true))
	})
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(2 * time.Second)
	for len(threads) == 0 {
		for p := range napiThreads() {
			if !before[p] {
				threads = append(threads, p)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s got no NAPI thread within 2 s", devIn)
		}
		time.Sleep(time.Millisecond)
	}
	var set unix.CPUSet
	set.Set(deviceCPU)
	for _, p := range threads {
		if err := unix.SchedSetaffinity(p, &set); err != nil {
			return nil, fmt.Errorf("pin the NAPI thread of %s: %w", devIn, err)
		}
	}
	return threads, nil
}

// noInterrupts takes back what interrupts did.
func (r *room) noInterrupts() error {
	return r.Do(nsGW, func() error {
		return errors.Join(threaded(devIn, false), hostnet.SetOffloads(devIn, false, hostnet.GRO), hostnet.SetOffloads(devOut, false, hostnet.GRO))
	})
}

// threaded moves a device's NAPI into threads or back. It must be called on a thread that ends, in the device's namespace: the
// namespace's own sysfs is mounted in a private mount namespace.
func threaded(dev string, on bool) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	v := "0"
	if on {
		v = "1"
	}
	return os.WriteFile("/sys/class/net/"+dev+"/threaded", []byte(v), 0o644)
}

// napiThreads are the kernel's threads for a device called like our inside one, in any namespace.
func napiThreads() map[int]bool {
	out := map[int]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(b), "napi/"+devIn+"-") {
			continue
		}
		if p, err := strconv.Atoi(strings.Split(f, "/")[2]); err == nil {
			out[p] = true
		}
	}
	return out
}
