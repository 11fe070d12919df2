package zerocopy

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit statuses of Main.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNoTools = 3 // the packages cannot be had: nothing was shown, which is not a pass
)

const (
	maxBoots  = 3
	bootLimit = 75 * time.Second
)

// options is what one run is started with.
type options struct {
	cache   string
	binary  string // static; becomes /init
	console bool   // show the guest's console
	out     io.Writer
}

// Main shows zero-copy in a guest, prints a line per case, and returns the exit status: 0 when every case held, 1 when one did not,
// 2 for a wrong call, 3 when the packages cannot be had.
func Main(args []string) int {
	o := options{out: os.Stdout}
	f := flag.NewFlagSet("demarc zerocopy", flag.ContinueOnError)
	f.StringVar(&o.cache, "cache", "", "directory for the fetched kernel (default: demarc/zerocopy in the user's cache directory)")
	f.BoolVar(&o.console, "console", false, "show the guest's console on standard error")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demarc zerocopy: takes no argument, got %q\n", f.Arg(0))
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	if o.binary, err = os.Executable(); err == nil {
		err = run(ctx, o)
	}
	var u unavailable
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &u):
		fmt.Fprintf(os.Stderr, "demarc zerocopy: not shown: %v\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return exitNoTools
	case errors.Is(err, errVerdict): // told, case by case
	default:
		fmt.Fprintf(os.Stderr, "demarc zerocopy: %v\n", err)
	}
	return exitFailed
}

// errVerdict says that a case did not hold; the lines printed say why.
var errVerdict = errors.New("a case did not hold")

func run(ctx context.Context, o options) error {
	if err := static(o.binary); err != nil {
		return err
	}
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no cache directory: %w: give one with --cache", err)
		}
		o.cache = filepath.Join(dir, "demarc", "zerocopy")
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	qemu, err := emulator(ctx)
	if err != nil {
		return err
	}
	dir, err := kernel(ctx, o.cache)
	if err != nil {
		return err
	}
	files, err := initFiles(dir, o.binary)
	if err != nil {
		return err
	}
	m := &machine{word: guestWord, memory: 512, files: files, plan: &forwarding, limit: bootLimit}
	for i, n := range nics {
		m.devices = append(m.devices, "-netdev", fmt.Sprintf("hubport,id=n%d,hubid=%d", i, n.hub), "-device", fmt.Sprintf("%s,netdev=n%d,mac=%s", virtioCard, i, n.mac))
	}
	s, err := m.run(ctx, o, qemu, filepath.Join(dir, "vmlinuz"))
	if err != nil {
		return err
	}
	return tell(o.out, s)
}

// machine is a guest to boot.
type machine struct {
	word    string   // what init is told
	memory  int      // MiB
	devices []string // QEMU's options for its network cards
	within  []string // the command that QEMU's is appended to, for a network of its own; none: as it is
	files   []entry  // its root
	plan    *plan
	limit   time.Duration // of one boot
	around  string        // what the devices of within have carried, once a boot has ended: for the reader of a failure
}

// virtioCard is a card as a guest needs it for zero-copy. iommu_platform: without it the driver does not use the DMA API, and refuses to bind.
const virtioCard = "virtio-net-pci,disable-legacy=on,iommu_platform=on,romfile="

// run boots until the guest has said what it had to say, or has died too often without.
func (m *machine) run(ctx context.Context, o options, qemu, kernel string) (*said, error) {
	initrd, err := makeInitramfs(m.files)
	if err != nil {
		return nil, err
	}
	defer os.Remove(initrd)
	for try := 1; ; try++ {
		console, err := m.boot(ctx, o, qemu, kernel, initrd)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s := m.plan.read(bytes.NewReader(console))
		dead := s.fatal == ""
		for _, v := range s.list {
			dead = dead && len(v.failed) == 0
		}
		if dead = dead && !s.list[len(s.list)-1].ended; !dead {
			return s, nil
		}
		why := fmt.Sprintf("the guest ended without a verdict (boot %d of %d, %v), its last line: %s", try, maxBoots, err, tail(console))
		if try == maxBoots {
			return nil, errors.New(why)
		}
		fmt.Fprintf(o.out, "%s; again\n", why)
	}
}

// tell prints a line per case and says whether all held.
func tell(w io.Writer, s *said) error {
	if s.fatal != "" {
		fmt.Fprintf(w, "guest     FAILED  %s\n", s.fatal)
		return errVerdict
	}
	var err error
	for _, v := range s.list {
		if v.ok() {
			fmt.Fprintf(w, "%-8s  ok      virtio_net, kernel %s; %s; %s; %d frames right to the byte at the far side; %s; %s\n", v.name, s.kernel,
				v.done["attach"], v.done["sockets"], v.frames, v.done["umem"], v.done["status"])
			continue
		}
		err = errVerdict
		if len(v.failed) == 0 {
			fmt.Fprintf(w, "%-8s  NOT RUN\n", v.name)
			continue
		}
		fmt.Fprintf(w, "%-8s  FAILED  %s\n", v.name, strings.Join(v.failed, "; "))
	}
	return err
}

func tail(b []byte) string {
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), "\r", "")), "\n")
	return lines[len(lines)-1]
}

// static makes sure that the binary can be init: there is no dynamic loader in the guest.
func static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// initFiles is a root with a program as init, and the modules that the cards need.
func initFiles(dir, binary string) ([]entry, error) {
	list := []entry{{name: "dev", mode: modeDir}, {name: "proc", mode: modeDir}, {name: "sys", mode: modeDir}, {name: "run", mode: modeDir}, {name: "modules", mode: modeDir},
		{name: "dev/console", mode: modeChar, major: 5, minor: 1}}
	b, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	list = append(list, entry{name: "init", mode: modeExec, data: b})
	for _, m := range modules {
		if b, err = os.ReadFile(filepath.Join(dir, m+".ko")); err != nil {
			return nil, err
		}
		list = append(list, entry{name: "modules/" + m + ".ko", mode: modeFile, data: b})
	}
	return list, nil
}

// makeInitramfs writes a file that the caller removes.
func makeInitramfs(list []entry) (path string, err error) {
	f, err := os.CreateTemp("", "demarc-zerocopy-*.cpio")
	if err != nil {
		return "", err
	}
	if err = errors.Join(writeCPIO(f, list), f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// boot runs one guest to its end and returns what it wrote on its console.
func (m *machine) boot(ctx context.Context, o options, qemu, kernel, initrd string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	// One CPU: two crashed guests of this QEMU at random.
	// nokaslr: virtio_net maps the header of what a zero-copy socket sends (xsk_hdr, zeros, the same for all) by dma_map_single, which may be done to memory of the kernel's own image but not to a module's. The card is told of an
	// address that has nothing to do with the header, and which it is depends on where kernel and module are put. Where it is somewhere in the guest's memory the header is what lies there: no frame of a socket's leaves the card, though
	// each is taken and completed, and the kernel's own frames leave. Without it the address is that of no memory (1 GiB and more), where the emulator reads zeros.
	args := slices.Concat(m.within, []string{qemu, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(m.memory), "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr -- " + m.word}, m.devices)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	if o.console {
		cmd.Stdout = io.MultiWriter(&out, os.Stderr)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err := onOneCPU(cmd.Start)
	if err == nil {
		seen := m.look(cmd.Process.Pid)
		err = cmd.Wait()
		seen()
	}
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("stopped after %s", m.limit)
	case err != nil && errs.Len() > 0:
		err = fmt.Errorf("%w: %s", err, tail(errs.Bytes()))
	}
	return out.Bytes(), err
}

// look reads each second what devices have carried in the network of a process that is to become a guest. It ends with the function that it returns, and keeps the last reading.
func (m *machine) look(pid int) (end func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		again := time.NewTicker(time.Second)
		defer again.Stop()
		for len(m.within) > 0 {
			select {
			case <-ended:
				return
			case <-again.C:
			}
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid)); err == nil && bytes.Contains(b, []byte("port0:")) { // none of one that has ended
				m.around = string(b)
			}
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}

// onOneCPU has what start starts run on one of this machine's processors. For a guest with one processor QEMU 7.2 leaves memory barriers out, though its devices
// work in another thread (later versions leave them in, because of virtio); on two processors cards were deaf or mute from then on in 3 of 16 boots, as after
// a notification that was lost. On one processor nothing is seen out of order.
func onOneCPU(start func() error) error {
	runtime.LockOSThread() // affinity is a thread's
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	last := 0
	for c := range len(all) * 64 {
		if all.IsSet(c) {
			last = c
		}
	}
	one.Set(last)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(start(), unix.SchedSetaffinity(0, &all))
}
