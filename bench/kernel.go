package bench

import (
	"bytes"
	"cmp"
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
	"demarc/gateway/netlab"
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
	called  string // where it is not nft-expert
	rate    uint64
	ruleset string // as it was loaded
	threads []int  // NAPI
	loaded  bool
	took    time.Duration // from the ruleset's text to the kernel's rules
}

func (k *kernel) name() string { return cmp.Or(k.called, peerName) }
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
	text, err := peers.Ruleset(peers.Config{Form: k.form, Rules: k.rules, V6: k.r.plan.V6(), In: devIn, Out: devOut, Inside: insideNet, Pool: k.r.plan.Pool, RateBits: k.rate})
	if err != nil {
		return err
	}
	k.ruleset = text
	file := filepath.Join(dirRun, "ruleset.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	began := time.Now()
	if _, err := k.r.Exec(nsGW, "nft", "-f", file); err != nil {
		return err
	}
	k.loaded, k.took = true, time.Since(began)
	if k.threads, err = k.r.interrupts(); err != nil {
		return err
	}
	return errors.Join(k.r.forwarding(true), ctx.Err())
}

// forwarding has the kernel forward packets of the room's family, or not.
func (r *room) forwarding(on bool) error {
	v := "0"
	if on {
		v = "1"
	}
	if r.plan.V6() {
		return r.Sysctl(nsGW, "net.ipv6.conf.all.forwarding", v)
	}
	return r.Sysctl(nsGW, "net.ipv4.ip_forward", v)
}

func (k *kernel) stop() error {
	k.threads = nil
	errs := []error{k.r.forwarding(false)}
	errs = append(errs, k.r.noInterrupts())
	if k.loaded {
		_, err := k.r.Exec(nsGW, "nft", "flush", "ruleset")
		errs = append(errs, err)
		k.loaded = false
	}
	// The flush takes both families.
	errs = append(errs, k.r.Do(nsGW, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }))
	return errors.Join(errs...)
}

// manyEntries are more than are read one by one: of so many the kernel's own count must do. The judge has seen all answers by then.
const manyEntries = 1 << 17

// sessions counts the entries that have seen both directions.
func (k *kernel) sessions(context.Context) (n int, err error) {
	if k.r.plan.Flows > manyEntries {
		out, err := k.r.Exec(nsGW, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(out)))
	}
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
	return peers.Inspect(string(listing)).Missing(len(k.rules), flows, !k.r.plan.V6()), nil
}

// interrupts gives the gateway's devices NAPI, without which no frame of ours reaches a veth that has no native XDP program; GRO brings it. The
// inside's runs as a thread on the device's CPU, as an interrupt of a real device would; the maker's CPU stays the maker's. It returns the threads.
func (r *room) interrupts() (threads []int, err error) {
	err = r.Do(nsGW, func() error {
		return errors.Join(hostnet.SetOffloads(devIn, true, hostnet.GRO), hostnet.SetOffloads(devOut, true, hostnet.GRO))
	})
	if err != nil {
		return nil, err
	}
	return r.inline(false)
}

// napi moves the NAPI of devices into threads on the device's CPU.
func (r *room) napi(ns string, devs ...string) (threads []int, err error) {
	before := netlab.NAPIThreads(devIn, devOut, devDst)
	if err := r.Do(ns, func() error { return netlab.Threaded(true, devs...) }); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(2 * time.Second)
	for len(threads) < len(devs) {
		threads = nil
		for p := range netlab.NAPIThreads(devIn, devOut, devDst) {
			if !before[p] {
				threads = append(threads, p)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%v got %d NAPI threads within 2 s", devs, len(threads))
		}
		time.Sleep(time.Millisecond)
	}
	var set unix.CPUSet
	set.Set(deviceCPU)
	for _, p := range threads {
		if err := unix.SchedSetaffinity(p, &set); err != nil {
			return nil, fmt.Errorf("pin a NAPI thread of %v: %w", devs, err)
		}
	}
	return threads, nil
}

// inliner is a device whose frames are taken by threads of the kernel's on the device's CPU. They can be taken on the CPU that sends as well, which is what the kernel does by itself.
type inliner interface {
	inline(on bool) error
}

func (p *plain) inline(on bool) (err error) {
	p.threads, err = p.r.inline(on)
	return err
}

func (k *kernel) inline(on bool) (err error) {
	k.threads, err = k.r.inline(on)
	return err
}

// inline ends the threads that interrupts made, or makes them again. It returns them.
func (r *room) inline(on bool) (threads []int, err error) {
	if on {
		return nil, r.Do(nsGW, func() error { // before 6.17 the threads stay until NAPI goes, which goes with gro
			return errors.Join(netlab.Threaded(false, devIn, devOut), hostnet.SetOffloads(devIn, false, hostnet.GRO), hostnet.SetOffloads(devOut, false, hostnet.GRO),
				hostnet.SetOffloads(devIn, true, hostnet.GRO), hostnet.SetOffloads(devOut, true, hostnet.GRO))
		})
	}
	devs := []string{devIn}
	if r.bothSides {
		devs = append(devs, devOut)
	}
	return r.napi(nsGW, devs...)
}

// noInterrupts takes back what interrupts did.
func (r *room) noInterrupts() error {
	return r.Do(nsGW, func() error {
		return errors.Join(netlab.Threaded(false, devIn, devOut), hostnet.SetOffloads(devIn, false, hostnet.GRO), hostnet.SetOffloads(devOut, false, hostnet.GRO))
	})
}
