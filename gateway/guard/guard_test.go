package guard

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/beat"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/xsk"
)

// The test's own program is parent and child too: TestMain looks what it is started as.
const (
	beParent = "be-parent"
	beChild  = "be-child"
	beOrphan = "be-orphan"
	toEnv    = "GUARD_TEST_TO" // where the child's last words go
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case beParent:
			_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // as process 1 is
			status, err := Run(Config{Args: append([]string{os.Args[0], beChild}, os.Args[2:]...), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(status)
		case beChild:
			os.Exit(child(os.Args[2:]))
		case beOrphan:
			time.Sleep(50 * time.Millisecond)
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// child is a data plane: it tells its last words and its number, and does what the test wants of it.
func child(args []string) int {
	p := Above()
	if p == nil {
		fmt.Println("no parent")
		return 99
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1, unix.SIGHUP)
	if to := os.Getenv(toEnv); to != "" {
		w := Words{Group: "east", Epoch: 7, Parcels: []beat.Parcel{{From: netip.MustParseAddr("127.0.0.1"), To: netip.MustParseAddrPort(to), Bytes: []byte("over")}}}
		if err := p.LastWords([]Words{w}, false, false); err != nil {
			fmt.Println(err)
			return 99
		}
	}
	switch args[0] {
	case "exit":
		n, _ := strconv.Atoi(args[1])
		return n
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	case "notify":
		err := p.Notify("READY=1\nSTATUS=here")
		fmt.Println(err, os.Getenv("NOTIFY_SOCKET"), os.Getenv("WATCHDOG_PID"), os.Getenv("WATCHDOG_USEC"))
		return 0
	case "orphan":
		// A shell that is gone at once leaves a process behind.
		c := exec.Command("sh", "-c", "\"$0\" "+beOrphan+" & echo $!", os.Args[0])
		out, err := c.Output()
		fmt.Print(string(out), err, "\n")
	}
	parent := os.Getppid()
	fmt.Println(os.Getpid())
	// The kernel signals the end of the thread that has started it, and may do so again for another one of the parent that it belongs to for a moment: what comes again is said once.
	// Whose parent is gone hears both; who was told to end hears no more.
	var after <-chan time.Time
	gone := p.Gone()
	said := map[os.Signal]bool{}
	for len(said) < 2 {
		select {
		case s := <-signals:
			if !said[s] {
				fmt.Println(s)
			}
			said[s] = true
		case <-gone:
			fmt.Println("gone")
			said[nil], gone = true, nil
		case <-after:
			if os.Getppid() == parent {
				return 0
			}
			after = time.After(10 * time.Second)
		}
		if after == nil {
			after = time.After(200 * time.Millisecond)
		}
	}
	return 0
}

// family is a parent with its child.
type family struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	errs  bytes.Buffer
	heard *net.UDPConn
	child int
}

func begin(t *testing.T, env []string, args ...string) *family {
	t.Helper()
	f := &family{t: t, lines: make(chan string, 64)}
	var err error
	if f.heard, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.heard.Close() })
	f.cmd = exec.Command("/proc/self/exe", append([]string{beParent}, args...)...)
	f.cmd.Env = append(append(os.Environ(), toEnv+"="+f.heard.LocalAddr().String()), env...)
	f.cmd.Stderr = &f.errs
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.child != 0 {
			_ = unix.Kill(f.child, unix.SIGKILL)
		}
		_ = f.cmd.Process.Kill()
	})
	go func() {
		for r := bufio.NewScanner(out); r.Scan(); {
			f.lines <- r.Text()
		}
		close(f.lines)
	}()
	return f
}

func (f *family) line() string {
	f.t.Helper()
	select {
	case s := <-f.lines:
		return s
	case <-time.After(10 * time.Second):
		f.t.Fatal("the child says nothing")
	}
	return ""
}

// runs waits until the child does.
func (f *family) runs() {
	f.t.Helper()
	var err error
	if f.child, err = strconv.Atoi(f.line()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *family) wait() unix.WaitStatus {
	f.t.Helper()
	done := make(chan struct{})
	go func() { f.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		f.t.Fatal("the parent does not end")
	}
	return unix.WaitStatus(f.cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// words is how often the last words come within a time.
func (f *family) words(d time.Duration) (n int) {
	f.t.Helper()
	_ = f.heard.SetReadDeadline(time.Now().Add(d))
	b := make([]byte, 64)
	for {
		k, err := f.heard.Read(b)
		if err != nil {
			return n
		}
		if string(b[:k]) != "over" {
			f.t.Errorf("%q was said", b[:k])
		}
		n++
	}
}

// TestPassesOn: signals go down, and how the data plane ends comes up as it is.
func TestPassesOn(t *testing.T) {
	for _, want := range []int{0, 1, 2, 77} {
		f := begin(t, nil, "exit", strconv.Itoa(want))
		if s := f.wait(); !s.Exited() || s.ExitStatus() != want {
			t.Errorf("exit status %d: %v", want, s)
		}
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1} {
		f := begin(t, nil, "run")
		f.runs()
		for pid, want := range map[int]string{f.child: "demarc", f.cmd.Process.Pid: "demarc-guard"} { // by which pkill finds one and not the other
			var b []byte
			var err error
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // its child may speak before it has named itself
				if b, err = os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(b)) == want {
					break
				}
				if time.Now().After(end) {
					t.Errorf("ps calls it %q, %v, want %q", b, err, want)
					break
				}
			}
		}
		_ = f.cmd.Process.Signal(sig)
		if got := f.line(); got != sig.String() {
			t.Errorf("%s: the data plane has %q", sig, got)
		}
		if s := f.wait(); !s.Exited() || s.ExitStatus() != 0 {
			t.Errorf("%s: %v", sig, s)
		}
	}
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGINT} {
		f := begin(t, nil, "run")
		f.runs()
		_ = unix.Kill(f.child, sig)
		if s := f.wait(); !s.Signaled() || s.Signal() != sig {
			t.Errorf("killed by %s: %v", sig, s)
		}
	}
}

// TestDeathIsTold: once the data plane has ended its last words are said, several times; not before, and not when it was only stopped.
func TestDeathIsTold(t *testing.T) {
	f := begin(t, nil, "run")
	f.runs()
	if n := f.words(100 * time.Millisecond); n != 0 {
		t.Fatal("it is told while it runs")
	}
	_ = unix.Kill(f.child, unix.SIGSTOP)
	if n := f.words(400 * time.Millisecond); n != 0 {
		t.Fatal("a stop is called death")
	}
	_ = unix.Kill(f.child, unix.SIGCONT)
	if n := f.words(100 * time.Millisecond); n != 0 {
		t.Fatal("going on is called death")
	}
	_ = unix.Kill(f.child, unix.SIGSTOP)
	_ = unix.Kill(f.child, unix.SIGKILL)
	f.wait() // all is said by then
	if n := f.words(100 * time.Millisecond); n != len(rounds) {
		t.Errorf("it is told %d times, want %d", n, len(rounds))
	}
	if text := f.errs.String(); !strings.Contains(text, "the others have been told") || !strings.Contains(text, "by=SIGKILL") || !strings.Contains(text, "groups=east") {
		t.Errorf("the log: %s", text)
	}
}

// TestParentDies: the data plane learns of it from the kernel, and ends in order.
func TestParentDies(t *testing.T) {
	f := begin(t, nil, "run")
	f.runs()
	_ = f.cmd.Process.Kill()
	if got := []string{f.line(), f.line()}; !(got[0] == endedBy.String() && got[1] == "gone" || got[1] == endedBy.String() && got[0] == "gone") {
		t.Errorf("the data plane has heard %q", got)
	}
	if n := f.words(300 * time.Millisecond); n != 0 {
		t.Error("somebody has told a death")
	}
}

// TestSystemdHearsTheParent: what the data plane says for systemd comes from the process that systemd knows, and the data plane is not told how to speak itself.
func TestSystemdHearsTheParent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := begin(t, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_PID=1", "WATCHDOG_USEC=500"}, "notify")
	if got := f.line(); got != "<nil>   500" {
		t.Errorf("the data plane: %q", got)
	}
	b := make([]byte, 100)
	_ = l.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1\nSTATUS=here" {
		t.Errorf("%q, %v", b[:n], err)
	}
	f.wait()
}

// TestNoZombies: as process 1 of a container the parent gets the orphans of others too.
func TestNoZombies(t *testing.T) {
	f := begin(t, nil, "orphan")
	orphan := f.line()
	f.line() // how the shell has ended
	f.runs()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile("/proc/" + orphan + "/stat")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it is left: %s", b)
		}
	}
	if n := f.words(50 * time.Millisecond); n != 0 {
		t.Error("the end of another process is called the data plane's")
	}
	_ = unix.Kill(f.child, unix.SIGTERM)
	if s := f.wait(); s != 0 {
		t.Errorf("%v", s)
	}
}

// TestProcess1: in a container the parent is process 1, which no signal of its own ends.
func TestProcess1(t *testing.T) {
	roottest.Require(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		do   []string
		want int
	}{{[]string{"exit", "3"}, 3}, {[]string{"kill"}, 128 + int(unix.SIGKILL)}} {
		cmd := exec.Command("unshare", append([]string{"--pid", "--fork", "--mount-proc", self, beParent}, c.do...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != c.want {
			t.Errorf("%v: %v, want exit status %d\n%s", c.do, err, c.want, out.Bytes())
		}
	}
}

// TestOver: a process is over when none of its threads runs again, before and after it can be waited for.
func TestOver(t *testing.T) {
	c := exec.Command("/proc/self/exe", "-test.run=^$", "-test.timeout=1h")
	c.Args = append([]string{"x) 1 2 3 4 5 6 7 8 (", beParent}, "run") // many threads, and a child that is nobody's business
	c.Env = os.Environ()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	f := openFirst(pid)
	defer f.close()
	if f.fd < 0 {
		t.Fatal("its first thread cannot be opened")
	}
	is := func(what string, want bool) {
		t.Helper()
		if got := over(pid); got != want {
			t.Errorf("%s: over: %v", what, got)
		}
		if got := f.ending(); got != want {
			t.Errorf("%s: its first thread is ending: %v", what, got)
		}
	}
	is("it runs", false)
	_ = unix.Kill(pid, unix.SIGSTOP)
	for b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !bytes.Contains(b, []byte(") T ")); b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) {
		time.Sleep(time.Millisecond)
	}
	is("it is stopped", false)
	_ = unix.Kill(pid, unix.SIGKILL)
	for end := time.Now().Add(10 * time.Second); !over(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is killed, and not over")
		}
	}
	is("a zombie", true)
	c.Wait()
	is("waited for", false)                                     // nobody knows
	if none := openFirst(pid); none.fd >= 0 || !none.ending() { // over has the word then
		t.Errorf("what cannot be opened: %+v", none)
	}
	for _, c := range []struct {
		stat string
		want bool
	}{{"1 (a) S 1 1 1 0 -1 4194304 9", false}, {"1 (a) S 1 1 1 0 -1 4194308 9", true}, {"1 (a) 4 4 4 4 4 4 4) R 1 1 1 0 -1 0 9", false}, {"1 (a) S 1", false}, {"", false}} {
		if got := ending([]byte(c.stat)); got != c.want {
			t.Errorf("%q: %v", c.stat, got)
		}
	}
}

// TestWaits: where a driver may send by itself, nothing is said before the sockets are closed.
func TestWaits(t *testing.T) {
	heard, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	f := &family{t: t, heard: heard}
	c := exec.Command("true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for !over(c.Process.Pid) { // it has ended, and was not waited for
		time.Sleep(time.Millisecond)
	}
	for _, wait := range []bool{true, false} {
		p := newGuard(slog.New(slog.DiscardHandler))
		p.will = will{Wait: wait, Words: []Words{{Group: "g", Epoch: 1, Parcels: []beat.Parcel{{From: netip.MustParseAddr("127.0.0.1"), To: heard.LocalAddr().(*net.UDPAddr).AddrPort(), Bytes: []byte("over")}}}}}
		watched := make(chan struct{})
		go func() { p.watch(c.Process.Pid); close(watched) }()
		if !wait {
			<-watched // all is said by then
		}
		if n := f.words(150 * time.Millisecond); (n == 0) != wait {
			t.Errorf("wait %v: told %d times", wait, n)
		}
		p.part(true)
		if n := f.words(100 * time.Millisecond); (n == 0) == wait {
			t.Errorf("wait %v: told %d times more when it has ended", wait, n)
		}
		p.know(func() { p.ended = true })
		<-watched
	}
	c.Wait()
}

// TestGraceBeforeLastWords: where programs carry sessions, what they had begun leaves before the others are told; where that cannot be waited for nothing is said before the process has been waited for.
func TestGraceBeforeLastWords(t *testing.T) {
	roottest.Require(t)
	d, err := xsk.NewDeadlines()
	if err != nil {
		t.Fatal(err)
	}
	heard, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	f := &family{t: t, heard: heard}
	if err := xsk.Grace(); err != nil {
		t.Errorf("a grace period: %v", err)
	}
	defer func() { grace = xsk.Grace }()
	for _, fails := range []error{nil, unix.EINVAL} {
		d.Table().Write(1, 5, 1<<62)
		grace = func() error {
			if d.Table().Until(1) != 0 {
				t.Error("what comes now is still carried")
			}
			if n := f.words(20 * time.Millisecond); n > 0 {
				t.Error("the others know it already")
			}
			return fails
		}
		p := newGuard(slog.New(slog.DiscardHandler))
		p.deadlines = d
		p.will = will{Grace: true, Words: []Words{{Group: "g", Epoch: 1, Parcels: []beat.Parcel{{From: netip.MustParseAddr("127.0.0.1"), To: heard.LocalAddr().(*net.UDPAddr).AddrPort(), Bytes: []byte("over")}}}}}
		p.part(false)
		if n := f.words(100 * time.Millisecond); (n > 0) != (fails == nil) {
			t.Errorf("grace %v: told %d times", fails, n)
		}
		p.part(true)
		if n := f.words(100 * time.Millisecond); (n > 0) != (fails != nil) {
			t.Errorf("grace %v: told %d times when it was waited for", fails, n)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestClosesLeases: the table that the XDP programs read comes to the parent by its descriptor, and serves nobody once the data plane is over.
func TestClosesLeases(t *testing.T) {
	roottest.Require(t)
	d, err := xsk.NewDeadlines()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]*net.UnixConn{}
	for i, fd := range pair {
		file := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
	}
	p := newGuard(slog.New(slog.DiscardHandler))
	heard := make(chan struct{})
	go func() { p.listen(conns[1]); close(heard) }()
	c := newParent(conns[0])
	for id, until := range map[uint8]uint64{1: 1 << 62, 7: 1 << 62, 255: 1} {
		d.Table().Write(id, 5, until)
	}
	if err := errors.Join(c.Notify("X=1"), c.Deadlines(d.FD()), c.LastWords(nil, true, true)); err != nil {
		t.Fatal(err)
	}
	conns[0].Close()
	<-heard
	if d.Table().Until(7) == 0 {
		t.Error("a lease was closed while the data plane runs")
	}
	p.part(true)
	for id := range 256 {
		if u := d.Table().Until(uint8(id)); u != 0 {
			t.Errorf("group %d may be served until %d", id, u)
		}
	}
	if d.Table().Epoch(7) != 5 || p.closed != 3 {
		t.Errorf("epoch %d, %d closed", d.Table().Epoch(7), p.closed)
	}
}

// TestNobodyAbove: who says by hand that there is a parent, has none.
func TestNobodyAbove(t *testing.T) {
	c := exec.Command("/proc/self/exe", beChild, "exit", "0")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	c.ExtraFiles = []*os.File{w}
	c.Env = append(os.Environ(), fdEnv+"=3")
	if out, _ := c.CombinedOutput(); !strings.Contains(string(out), "no parent") {
		t.Errorf("%s", out)
	}
}

// TestNonsense: what is no word of a data plane is refused.
func TestNonsense(t *testing.T) {
	if _, _, err := readHead([headLen]byte{'x', 1}); err == nil {
		t.Error("an unknown word")
	}
	if _, _, err := readHead([headLen]byte{sayWords, 0, 0, 0, 0x80}); err == nil {
		t.Error("two gigabytes")
	}
	if _, err := readWill([]byte("{")); err == nil {
		t.Error("half a will")
	}
}
