//go:build linux && amd64

package instructions

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Case is work that is counted: Do is called once, when Ready has been.
type Case struct {
	Name  string
	Units int // packets, say, that Do has to do with
	Ready func()
	Do    func()
}

// A Result is what the work of a case took.
type Result struct {
	Name      string
	Units     int
	Steps     int            // instructions, those of the callees and of the runtime's helpers included
	Functions map[string]int // how many of them are in which function
}

// Per is the instructions for each unit.
func (r *Result) Per() float64 { return float64(r.Steps) / float64(r.Units) }

// Top names the n functions with most instructions, a line each.
func (r *Result) Top(n int) string {
	type one struct {
		name  string
		steps int
	}
	var all []one
	for name, steps := range r.Functions {
		all = append(all, one{name, steps})
	}
	slices.SortFunc(all, func(a, b one) int {
		if a.steps != b.steps {
			return b.steps - a.steps
		}
		return strings.Compare(a.name, b.name)
	})
	var b strings.Builder
	for _, f := range all[:min(n, len(all))] {
		fmt.Fprintf(&b, "  %8.1f  %s\n", float64(f.steps)/float64(r.Units), f.name)
	}
	return b.String()
}

const (
	counter  = "demarc/gateway/archtest/instructions.beCounted"
	childEnv = "DEMARC_COUNTED" // in the child: the name of the test that is counted
	limit    = 20_000_000       // steps of a case, then it is given up
	patience = 2 * time.Minute
)

// greeting is what the child tells its parent before it is stepped.
type greeting struct {
	Thread int
	Mark   uintptr // where mark begins
	Hello  uintptr // where hello begins, so that the parent knows that both have the same code
}

//go:noinline
func mark() {}

//go:noinline
func hello() {}

func entry(f func()) uintptr { return reflect.ValueOf(f).Pointer() }

// Count executes the cases in a process of their own, which runs the same test up to this call, and returns what each took. In that process it does not return.
func Count(t *testing.T, cases ...Case) []Result {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		beCounted(cases)
	}
	if info := debugBuild(); info != "" {
		t.Fatalf("instructions are counted of a program that was built as it is shipped: this one has %s", info)
	}
	runtime.LockOSThread() // ptrace knows its tracer by the thread
	defer runtime.UnlockOSThread()
	say, told, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer say.Close()
	start, begin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer begin.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name(), "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	cmd.ExtraFiles = []*os.File{told, start}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told.Close()
	start.Close()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var g greeting
	if line, err := bufio.NewReader(say).ReadString('\n'); err != nil || json.Unmarshal([]byte(line), &g) != nil {
		t.Fatalf("the counted process says %q (%v)\n%s", line, err, &out)
	}
	if g.Mark != entry(mark) || g.Hello != entry(hello) {
		t.Fatal("the counted process has its code elsewhere: build without -buildmode=pie")
	}
	tr := tracer{thread: g.Thread, mark: g.Mark}
	defer beside(t, g.Thread)()
	if err := tr.attach(); err != nil {
		t.Fatal(err)
	}
	defer tr.end(cmd.Process) // before it is waited for: a thread that is traced must be seen to end by its tracer
	if _, err := begin.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	var results []Result
	for i := range cases {
		r := Result{Name: cases[i].Name, Units: cases[i].Units, Functions: map[string]int{}}
		if err := tr.count(&r); err != nil {
			t.Fatalf("%s: %v\n%s", r.Name, err, &out)
		}
		results = append(results, r)
	}
	return results
}

// beCounted is the child: it makes each case ready with its parent looking on, in a thread of its own, and executes it between two marks.
func beCounted(cases []Case) {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	say, start := os.NewFile(3, "say"), 4
	line, err := json.Marshal(greeting{Thread: unix.Gettid(), Mark: entry(mark), Hello: entry(hello)})
	if err == nil {
		_, err = say.Write(append(line, '\n'))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if n, err := unix.Read(start, make([]byte, 1)); n != 1 {
		fmt.Println("nobody counts:", err)
		os.Exit(1)
	}
	for _, c := range cases {
		c.Ready()
		mark()
		c.Do()
		mark()
	}
	os.Exit(0)
}

// beside puts this thread and another on one processor, where to wake each other costs a fraction; what it returns gives this thread back all that it had.
func beside(t *testing.T, thread int) func() {
	t.Helper()
	var had, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &had); err != nil {
		t.Fatal(err)
	}
	for i := range 1024 {
		if had.IsSet(i) {
			one.Set(i)
			break
		}
	}
	for _, id := range []int{0, thread} {
		if err := unix.SchedSetaffinity(id, &one); err != nil {
			t.Fatal(err)
		}
	}
	return func() { _ = unix.SchedSetaffinity(0, &had) }
}

// A tracer steps one thread. All its calls are of the thread that attached.
type tracer struct {
	thread int
	mark   uintptr
}

func (tr *tracer) attach() error {
	if err := unix.PtraceAttach(tr.thread); err != nil {
		return fmt.Errorf("ptrace of thread %d: %w (it wants CAP_SYS_PTRACE, or kernel.yama.ptrace_scope 0 or 1)", tr.thread, err)
	}
	return tr.stopped()
}

// stopped waits until the thread stands still for SIGTRAP or SIGSTOP. Other signals are not passed on: those are the runtime's, which wants to be asked to yield.
func (tr *tracer) stopped() error {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(tr.thread, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case !ws.Stopped():
			return fmt.Errorf("the counted process ended: status %#x", uint32(ws))
		case ws.StopSignal() == unix.SIGTRAP || ws.StopSignal() == unix.SIGSTOP:
			return nil
		case ws.StopSignal() == unix.SIGSEGV:
			return errors.New("the counted process has a fault")
		default:
			if err := unix.PtraceSingleStep(tr.thread); err != nil {
				return err
			}
		}
	}
}

// end kills the process and sees the thread end.
func (tr *tracer) end(p *os.Process) {
	_ = p.Kill()
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(tr.thread, &ws, unix.WALL, nil); err != nil && !errors.Is(err, unix.EINTR) || err == nil && !ws.Stopped() {
			return
		}
	}
}

// runTo lets the thread run until it is about to execute what stands at an address.
func (tr *tracer) runTo(at uintptr) error {
	var was [1]byte
	if _, err := unix.PtracePeekText(tr.thread, at, was[:]); err != nil {
		return err
	}
	if _, err := unix.PtracePokeText(tr.thread, at, []byte{0xcc}); err != nil { // a breakpoint
		return err
	}
	var regs unix.PtraceRegs
	for {
		if err := unix.PtraceCont(tr.thread, 0); err != nil {
			return err
		}
		if err := tr.stopped(); err != nil {
			return err
		}
		if err := unix.PtraceGetRegs(tr.thread, &regs); err != nil {
			return err
		}
		if regs.Rip == uint64(at)+1 {
			break
		}
	}
	if _, err := unix.PtracePokeText(tr.thread, at, was[:]); err != nil {
		return err
	}
	regs.Rip = uint64(at)
	return unix.PtraceSetRegs(tr.thread, &regs)
}

func (tr *tracer) step() error {
	if err := unix.PtraceSingleStep(tr.thread); err != nil {
		return err
	}
	return tr.stopped()
}

// count lets the thread run to the next mark and steps it to the one after that.
func (tr *tracer) count(r *Result) error {
	if err := tr.runTo(tr.mark); err != nil {
		return err
	}
	names := map[uint64]string{} // by address, since FuncForPC is slow
	var regs unix.PtraceRegs
	for n := 0; ; n++ {
		if n == limit {
			return fmt.Errorf("%d steps and no end", n)
		}
		if err := tr.step(); err != nil {
			return err
		}
		if err := unix.PtraceGetRegs(tr.thread, &regs); err != nil {
			return err
		}
		if regs.Rip == uint64(tr.mark) {
			return tr.step() // so that the next case does not begin with this mark
		}
		name, ok := names[regs.Rip]
		if !ok {
			if f := runtime.FuncForPC(uintptr(regs.Rip)); f != nil {
				name = f.Name()
			}
			names[regs.Rip] = name
		}
		if strings.HasPrefix(name, "runtime.morestack") {
			// The runtime wants a goroutine that runs for 10 ms to yield, which a stepped one does all the time. It returns to its caller, which begins anew.
			var back [8]byte
			if _, err := unix.PtracePeekData(tr.thread, uintptr(regs.Rsp), back[:]); err != nil {
				return err
			}
			if err := tr.runTo(uintptr(binary.LittleEndian.Uint64(back[:]))); err != nil {
				return err
			}
			continue
		}
		if name != counter {
			r.Steps++
			r.Functions[name]++
		}
	}
}

// debugBuild says which setting makes a program's instructions others than those that are shipped.
func debugBuild() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" || s.Key == "-cover" && s.Value == "true" || s.Key == "-gcflags" && s.Value != "" {
			return s.Key + "=" + s.Value
		}
	}
	return ""
}
