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
	"strings"
	"syscall"
	"time"
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
	initrd, err := makeInitramfs(dir, o.binary)
	if err != nil {
		return err
	}
	defer os.Remove(initrd)
	for try := 1; ; try++ {
		console, err := boot(ctx, o, qemu, filepath.Join(dir, "vmlinuz"), initrd)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		list, kernel, fatal := read(bytes.NewReader(console))
		dead := fatal == ""
		for _, v := range list {
			dead = dead && len(v.failed) == 0
		}
		if dead = dead && !list[len(list)-1].ended; !dead {
			return tell(o.out, list, kernel, fatal)
		}
		why := fmt.Sprintf("the guest ended without a verdict (boot %d of %d, %v), its last line: %s", try, maxBoots, err, tail(console))
		if try == maxBoots {
			return errors.New(why)
		}
		fmt.Fprintf(o.out, "%s; again\n", why)
	}
}

// tell prints a line per case and says whether all held.
func tell(w io.Writer, list []*verdict, kernel, fatal string) error {
	if fatal != "" {
		fmt.Fprintf(w, "guest     FAILED  %s\n", fatal)
		return errVerdict
	}
	var err error
	for _, v := range list {
		if v.ok() {
			fmt.Fprintf(w, "%-8s  ok      virtio_net, kernel %s; %s; %s; %d frames right to the byte at the far side; %s; %s\n", v.name, kernel,
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

// makeInitramfs writes a file that the caller removes.
func makeInitramfs(dir, binary string) (path string, err error) {
	list := []entry{{name: "dev", mode: modeDir}, {name: "proc", mode: modeDir}, {name: "sys", mode: modeDir}, {name: "run", mode: modeDir}, {name: "modules", mode: modeDir},
		{name: "dev/console", mode: modeChar, major: 5, minor: 1}}
	b, err := os.ReadFile(binary)
	if err != nil {
		return "", err
	}
	list = append(list, entry{name: "init", mode: modeExec, data: b})
	for _, m := range modules {
		if b, err = os.ReadFile(filepath.Join(dir, m+".ko")); err != nil {
			return "", err
		}
		list = append(list, entry{name: "modules/" + m + ".ko", mode: modeFile, data: b})
	}
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
func boot(ctx context.Context, o options, qemu, kernel, initrd string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	// One CPU: two crashed guests of this QEMU at random.
	args := []string{"-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-monitor", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off -- " + guestWord}
	for i, n := range nics {
		// iommu_platform: without it the driver does not use the DMA API, and refuses to bind zero-copy.
		args = append(args, "-netdev", fmt.Sprintf("hubport,id=n%d,hubid=%d", i, n.hub),
			"-device", fmt.Sprintf("virtio-net-pci,disable-legacy=on,iommu_platform=on,romfile=,netdev=n%d,mac=%s", i, n.mac))
	}
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	if o.console {
		cmd.Stdout = io.MultiWriter(&out, os.Stderr)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("stopped after %s", bootLimit)
	case err != nil && errs.Len() > 0:
		err = fmt.Errorf("%w: %s", err, tail(errs.Bytes()))
	}
	return out.Bytes(), err
}
