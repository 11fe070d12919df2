package guard

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/beat"
	"demarc/gateway/confine"
	"demarc/gateway/xsk"
)

// Config is what Run needs.
type Config struct {
	Args  []string // of the data plane, its name first
	Stdin []byte   // of the data plane, where this process has read what stood there; nil = this process's own
	Log   *slog.Logger
}

// name is what the process calls itself, so that `pkill demarc` means the data plane and a list of processes tells the two apart.
const name = "demarc-guard"

// endedBy is the signal that a data plane gets when its parent has ended: it hands over, and leaves its ports prepared, since somebody is about to start it again.
const endedBy = unix.SIGUSR1

// passed are the signals that the data plane is to have. ABRT is systemd's when it hears nothing for too long.
var passed = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGQUIT, unix.SIGABRT}

// rounds are when the last words are said, from when the data plane has ended: nobody answers them.
var rounds = []time.Duration{0, 2 * time.Millisecond, 8 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond}

// lookPace is how often the parent looks at a data plane that serves a group. At one that serves none it does not look.
const lookPace = 3 * time.Millisecond

// grace waits for what programs have begun. Tests have it fail.
var grace = xsk.Grace

// parent is what the parent knows of its child.
type parent struct {
	log    *slog.Logger
	notify string        // path of systemd's socket; "" = none
	news   chan struct{} // has room for one: watch is to look at will and ended

	mu        sync.Mutex
	deadlines *xsk.Deadlines    // mu; nil = not told yet
	ended     bool              // mu: the data plane was waited for
	will      will              // mu: the last that was told
	said      map[string]uint64 // mu: of which groups, and under which epoch
	closed    int               // mu: leases
	problem   error             // mu: what could not be said
}

func newGuard(log *slog.Logger) *parent {
	return &parent{log: log, notify: os.Getenv("NOTIFY_SOCKET"), news: make(chan struct{}, 1), said: map[string]uint64{}}
}

// Run starts the data plane and returns how it ended, as an exit status. Where it was ended by a signal this process ends by the same one, and does not return, but as
// process 1, which cannot.
func Run(c Config) (status int, err error) {
	runtime.LockOSThread() // the kernel tells the child of the end of the thread that has started it
	p := newGuard(c.Log)
	signals := make(chan os.Signal, 16) // before there is anybody to pass them to: none may end this process
	signal.Notify(signals, passed...)
	child, conn, err := start(c)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	signal.Ignore(unix.SIGPIPE) // a log whose reader has gone is no reason to end
	go func() {                 // for the life of the process
		for s := range signals {
			_ = child.Signal(s) // it has ended: about to be seen below
			if s == unix.SIGABRT {
				_ = child.Signal(unix.SIGCONT) // else one that is stopped cannot die of it
			}
		}
	}()
	p.small()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		p.listen(conn)
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		p.watch(child.Pid)
	}()
	end := wait(child.Pid)
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // all that it has said is there
	<-heard
	p.part(true)
	p.know(func() { p.ended = true })
	<-watched
	p.tell(end)
	return pass(end), nil
}

// start starts the data plane with the other end of a socket, and without what is this process's own.
func start(c Config) (*os.Process, *net.UnixConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket to the data plane: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "data plane"), os.NewFile(uintptr(pair[1]), "guard")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, fmt.Errorf("socket to the data plane: %w", err)
	}
	stdin := os.Stdin
	if c.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			conn.Close()
			return nil, nil, err
		}
		defer r.Close()
		go func() {
			defer w.Close()
			_, _ = io.Copy(w, bytes.NewReader(c.Stdin)) // who does not read it misses nothing
		}()
		stdin = r
	}
	env := slices.DeleteFunc(os.Environ(), func(s string) bool {
		k, _, _ := strings.Cut(s, "=")
		return k == "NOTIFY_SOCKET" || k == "WATCHDOG_PID" || k == fdEnv // systemd hears this process alone
	})
	child, err := os.StartProcess("/proc/self/exe", c.Args, &os.ProcAttr{Env: append(env, fdEnv+"=3"), Files: []*os.File{stdin, os.Stdout, os.Stderr, theirs},
		Sys: &syscall.SysProcAttr{Pdeathsig: endedBy}})
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("start the data plane: %w", err)
	}
	return child, conn.(*net.UnixConn), nil
}

// small gives up what waiting needs none of: rights, memory, and its turn when nothing has happened. When something has, it comes first.
func (p *parent) small() {
	if _, err := confine.Keep(nil); err != nil {
		p.log.Warn("the parent process keeps rights that it does not need", "err", err)
	}
	call(name)
	prioritise()
	debug.SetGCPercent(20)
	debug.FreeOSMemory()
}

// call gives this process the name that ps, pgrep and pkill show.
func call(name string) {
	if f, err := os.OpenFile("/proc/self/comm", os.O_WRONLY, 0); err == nil { // of the whole process, from whichever thread
		_, _ = f.WriteString(name)
		f.Close()
	}
}

// prioritise has this thread come first. It is refused where the lease's thread is refused it too, which is said there.
func prioritise() {
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
}

// watch looks whether the data plane is over while it has something to release, and speaks at once then: waiting for its end takes as long as the kernel needs to give back its
// memory and sockets, which is longer than a lease. It returns when all is said.
func (p *parent) watch(pid int) {
	runtime.LockOSThread()
	prioritise()
	first := openFirst(pid)
	defer first.close()
	pause := unix.NsecToTimespec(int64(lookPace))
	for {
		p.mu.Lock()
		look, done := len(p.will.Words) > 0 && !p.will.Wait, p.ended
		p.mu.Unlock()
		switch {
		case done:
			return
		case !look:
			<-p.news
		case first.ending() && over(pid):
			p.part(false)
			return
		default:
			_ = unix.Nanosleep(&pause, nil) // and no timer of Go's: the kernel wakes this very thread
		}
	}
}

// know changes what watch goes by.
func (p *parent) know(change func()) {
	p.mu.Lock()
	change()
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// listen takes in what the data plane says until it has ended.
func (p *parent) listen(conn *net.UnixConn) {
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		var head [headLen]byte
		fd := -1
		for n := 0; n < headLen; {
			m, k, _, _, err := conn.ReadMsgUnix(head[n:], oob)
			if err != nil || m == 0 {
				return // it has ended
			}
			n += m
			if got := descriptor(oob[:k]); got >= 0 {
				fd = got
			}
		}
		what, n, err := readHead(head)
		if err == nil {
			text := make([]byte, n)
			if _, rerr := io.ReadFull(conn, text); rerr != nil {
				return
			}
			err = p.hear(what, text, fd)
		}
		if err != nil { // the same program on both sides: it is broken
			p.log.Error("what the data plane says to its parent process makes no sense: its death may be found by the end of its leases only", "err", err)
		}
	}
}

func (p *parent) hear(what byte, text []byte, fd int) error {
	switch what {
	case sayNotify:
		p.tellSystemd(text)
	case sayDeadlines:
		return p.take(fd)
	case sayWords:
		w, err := readWill(text)
		if err != nil {
			return fmt.Errorf("last words: %w", err)
		}
		p.know(func() { p.will = w })
	}
	return nil
}

// descriptor is the one that came along; negative = none did.
func descriptor(oob []byte) int {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(list) == 0 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	return fds[0]
}

func (p *parent) take(fd int) error {
	d, err := xsk.OpenDeadlines(fd)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadlines != nil {
		p.deadlines.Close()
	}
	p.deadlines = d
	return nil
}

func (p *parent) tellSystemd(text []byte) {
	if p.notify == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: p.notify, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write(text)
}

// wait returns how the child has ended. A child that is stopped or goes on is neither told nor taken for one that has. As process 1 of a container others become its
// children; they are waited for too, so that none stays a zombie.
func wait(pid int) unix.WaitStatus {
	for {
		var s unix.WaitStatus
		got, err := unix.Wait4(-1, &s, 0, nil)
		if err == nil && got == pid && dead(s) {
			return s
		}
		if err == unix.ECHILD { // cannot be: nobody else waits for it
			panic("the data plane was waited for by somebody else")
		}
	}
}

// dead says whether a process has ended: its threads are gone, and with them all that only they had open.
func dead(s unix.WaitStatus) bool { return s.Exited() || s.Signaled() }

// part says what the data plane cannot say any more, once of each term. None of its threads runs again, so nothing of it leaves; what arrives meets deadlines that are over. What its programs had begun
// before may still leave, where they carry sessions: grace waits for that. last = it was waited for; without, it says nothing if grace fails.
func (p *parent) part(last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadlines != nil {
		t := p.deadlines.Table()
		for id := range len(t) {
			if t.Until(uint8(id)) != 0 {
				t.Write(uint8(id), t.Epoch(uint8(id)), 0)
				p.closed++
			}
		}
	}
	if p.will.Grace {
		if err := grace(); err != nil && !last {
			return
		}
	}
	began := time.Now()
	var all []beat.Parcel
	for _, w := range p.will.Words {
		if p.said[w.Group] != w.Epoch {
			all = append(all, w.Parcels...)
			p.said[w.Group] = w.Epoch
		}
	}
	if len(all) == 0 {
		return
	}
	o := beat.NewOutbox()
	defer o.Close()
	for _, at := range rounds {
		time.Sleep(time.Until(began.Add(at)))
		p.problem = cmp.Or(p.problem, o.Post(all))
	}
}

// tell has the log say what was done, unless all was in order.
func (p *parent) tell(end unix.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch groups := strings.Join(slices.Sorted(maps.Keys(p.said)), " "); {
	case groups != "":
		p.log.Warn("the data plane has ended and serves nothing any more: the others have been told", "by", describe(end), "leases", p.closed, "groups", groups)
	case end.Signaled():
		p.log.Warn("the data plane has ended", "by", describe(end))
	}
	if p.problem != nil {
		p.log.Warn("not all others could be told that the data plane has ended", "err", p.problem)
	}
	_ = p.deadlines.Close() // nil too
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return unix.SignalName(s.Signal())
	}
	return "exit status " + strconv.Itoa(s.ExitStatus())
}

// pass ends this process as the data plane has ended, or says as what exit status it is to end.
func pass(s unix.WaitStatus) int {
	if !s.Signaled() {
		return s.ExitStatus()
	}
	switch s.Signal() {
	case unix.SIGKILL, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2: // of others Go would print what this process was doing
		signal.Reset(s.Signal())
		_ = unix.Kill(os.Getpid(), s.Signal())
		time.Sleep(time.Second) // process 1 does not die of it
	}
	return 128 + int(s.Signal())
}
