package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces, so that `ip netns exec NAME` works in a lab that is kept.
const netnsDir = "/run/netns"

// hostCommand is the hidden first argument that makes the executable a lab host.
const hostCommand = "lab-host"

// labEnv marks the processes of a lab with its full name, so that they can be found by pid after their maker died.
const labEnv = "DEMARC_LAB"

var initialised bool

var errNotInit = errors.New("netlab.Init was not called at the start of the program")

// Init makes the calling program fit to be its own lab host: called with the arguments "lab-host …" it runs that host and exits.
// It must be the first call of main or TestMain; New refuses without it, since the children would run the wrong program.
func Init() {
	initialised = true
	if len(os.Args) > 1 && os.Args[1] == hostCommand {
		os.Exit(Main(os.Args[2:]))
	}
}

// Lab is a set of namespaces and what is in them.
type Lab struct {
	name string // dm<name>-<pid>: prefix of all that it owns

	mu     sync.Mutex
	spaces map[string]*space
	closed bool
	meters int      // made so far
	atEnd  []func() // run first by Close, last added first
}

// space is one named namespace.
type space struct {
	name string // as a path element under netnsDir
	file *os.File
	h    *netlink.Handle // sockets live in the namespace; netlink.Handle is safe for concurrent use
}

// New makes an empty lab. The name is lower-case letters and digits; two labs of one process need two names. Leftovers of labs of
// the same name whose maker is dead are removed first.
func New(name string) (*Lab, error) {
	if !regexp.MustCompile(`^[a-z0-9]{1,16}$`).MatchString(name) {
		return nil, fmt.Errorf("lab name %q: want 1 to 16 lower-case letters and digits", name)
	}
	if !initialised {
		return nil, errNotInit
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root (namespaces and raw sockets)")
	}
	l := &Lab{name: fmt.Sprintf("dm%s-%d", name, os.Getpid()), spaces: map[string]*space{}}
	if old, _ := filepath.Glob(filepath.Join(netnsDir, l.name+"-*")); len(old) > 0 {
		return nil, fmt.Errorf("lab %s is in use by this process: %s exists", name, old[0])
	}
	if err := removeDead("dm" + name); err != nil {
		return nil, fmt.Errorf("remove leftovers: %w", err)
	}
	if err := shareNames(); err != nil {
		return nil, fmt.Errorf("%s: %w", netnsDir, err)
	}
	return l, nil
}

// shareNames makes the directory of names what `ip netns add` makes of it where nobody has: a mount of itself, which others' mount namespaces follow. Done later, while there are names, it lays a copy of them over
// them, and they can be removed no more.
func shareNames() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close() // ends the lock, which iproute2 takes too
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err := share(); !errors.Is(err, unix.EINVAL) { // it is no mount
		return err
	}
	if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return share()
}

// Name is the prefix of everything the lab owns.
func (l *Lab) Name() string { return l.name }

// NetNS is the name under which iproute2 knows a namespace of the lab.
func (l *Lab) NetNS(ns string) string { return l.name + "-" + ns }

// AddNamespace makes an empty namespace with its loopback up and settings of its own: no duplicate address detection, no router
// solicitation, no forwarding, no reverse-path filter.
func (l *Lab) AddNamespace(ns string) error {
	s := &space{name: l.NetNS(ns)}
	path := filepath.Join(netnsDir, s.name)
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
		if err != nil {
			return err
		}
		f.Close()
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
			os.Remove(path)
			return fmt.Errorf("mount on %s: %w", path, err)
		}
		// From here on dropNamespace can undo it.
		if s.file, err = os.Open(path); err != nil {
			return err
		}
		if s.h, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC); err != nil {
			return err
		}
		for _, kv := range [][2]string{
			{"net/ipv4/ip_forward", "0"},
			{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
			{"net/ipv6/conf/all/disable_ipv6", "0"}, {"net/ipv6/conf/default/disable_ipv6", "0"},
			{"net/ipv6/conf/all/forwarding", "0"},
			{"net/ipv6/conf/all/accept_dad", "0"}, {"net/ipv6/conf/default/accept_dad", "0"},
			{"net/ipv6/conf/default/dad_transmits", "0"},
			{"net/ipv6/conf/default/accept_ra", "0"}, {"net/ipv6/conf/default/router_solicitations", "0"},
		} {
			if err := os.WriteFile("/proc/sys/"+kv[0], []byte(kv[1]), 0o644); err != nil {
				return err
			}
		}
		lo, err := s.h.LinkByName("lo")
		if err != nil {
			return err
		}
		return s.h.LinkSetUp(lo)
	})
	if err != nil {
		dropNamespace(s)
		return fmt.Errorf("namespace %s: %w", s.name, err)
	}
	l.mu.Lock()
	l.spaces[ns] = s
	l.mu.Unlock()
	return nil
}

func (l *Lab) space(ns string) (*space, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the lab is closed")
	}
	s := l.spaces[ns]
	if s == nil {
		return nil, fmt.Errorf("no namespace %q in lab %s", ns, l.name)
	}
	return s, nil
}

// Do runs fn on a thread of its own inside a namespace and waits for it. Sockets that fn opens belong to the namespace for good; goroutines
// that fn starts do not run there, so neither does a dial that races addresses.
func (l *Lab) Do(ns string, fn func() error) error {
	s, err := l.space(ns)
	if err != nil {
		return err
	}
	return onOwnThread(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", s.name, err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a locked thread that dies with it. The process's first thread is never used: it cannot die, and
// /proc/self would show its namespace as the process's.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Hold this thread until the next goroutine has another one.
			taken := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				close(taken)
				finish(fn, result)
			}()
			<-taken
			runtime.UnlockOSThread()
			return
		}
		finish(fn, result)
	}
	go run()
	return <-result
}

// finish answers even when fn leaves through runtime.Goexit, as t.Fatal does.
func finish(fn func() error, result chan<- error) {
	err := errors.New("the function ended its goroutine")
	defer func() { result <- err }()
	err = fn()
}

// Command is a process inside a namespace, to be started by the caller. It becomes the named program by exec, so that its pid and
// its signals are the program's own. Close kills it if it still runs.
func (l *Lab) Command(ns, name string, args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", append([]string{hostCommand, "exec", filepath.Join(netnsDir, l.NetNS(ns)), name}, args...)...)
	c.Env = append(os.Environ(), labEnv+"="+l.name)
	return c
}

// Host is one of the built-in tools (see Main) as a process inside a namespace.
func (l *Lab) Host(ns string, args ...string) *exec.Cmd {
	return l.Command(ns, "/proc/self/exe", append([]string{hostCommand}, args...)...)
}

// Exec runs a program inside a namespace to its end and returns what it printed on standard output. The error has the end of what it
// printed on standard error.
func (l *Lab) Exec(ns, name string, args ...string) ([]byte, error) {
	c := l.Command(ns, name, args...)
	var out, bad bytes.Buffer
	c.Stdout, c.Stderr = &out, &bad
	if err := c.Run(); err != nil {
		text := strings.TrimSpace(bad.String())
		if len(text) > 500 {
			text = "…" + text[len(text)-500:]
		}
		return out.Bytes(), fmt.Errorf("%s %s in %s: %w: %s", name, strings.Join(args, " "), ns, err, text)
	}
	return out.Bytes(), nil
}

// Sysctl sets a value under net. inside a namespace: "net.ipv4.ip_forward".
func (l *Lab) Sysctl(ns, key, value string) error {
	if !strings.HasPrefix(key, "net.") {
		return fmt.Errorf("sysctl %s: only net. belongs to a namespace", key)
	}
	return l.Do(ns, func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o644)
	})
}

// AtEnd adds something that Close does first.
func (l *Lab) AtEnd(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.atEnd = append(l.atEnd, fn)
}

// Close ends the lab's processes, by pid, and removes its links and namespaces. Calling it again does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	atEnd := l.atEnd
	spaces := l.spaces
	l.mu.Unlock()
	for i := len(atEnd) - 1; i >= 0; i-- {
		atEnd[i]()
	}
	ended := endProcesses(l.name)
	// Side by side: the kernel waits some 20 ms for each link that goes, most of that without a lock.
	var dropped sync.WaitGroup
	errs := make(chan error, len(spaces))
	for _, s := range spaces {
		dropped.Go(func() { errs <- dropNamespace(s) })
	}
	dropped.Wait()
	close(errs)
	all := []error{ended}
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// dropNamespace removes its links at once (the kernel would do so some time after the last user is gone), then the namespace.
func dropNamespace(s *space) error {
	if s.h != nil {
		if links, err := s.h.LinkList(); err == nil {
			for _, link := range links {
				if link.Attrs().Flags&unix.IFF_LOOPBACK == 0 {
					s.h.LinkDel(link) // the other end of a pair may be gone already: no error of ours
				}
			}
		}
		s.h.Close()
	}
	if s.file != nil {
		s.file.Close()
	}
	return unmountNamespace(s.name)
}

func unmountNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// dead reports whether a process has ended. One that nobody has waited for yet has.
func dead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, rest, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// Sweep removes what labs of this name have left behind, whoever made them, and says what there was. It is for callers who know that none of them is in use, since they hold a
// lock that every maker of such labs takes: a maker's pid may be somebody else's by now.
func Sweep(name string) (found []string, err error) {
	paths, err := filepath.Glob(filepath.Join(netnsDir, "dm"+name+"-*"))
	if err != nil {
		return nil, err
	}
	own := regexp.MustCompile(`^(dm` + regexp.QuoteMeta(name) + `-[0-9]+)(-|$)`)
	labs := map[string][]string{} // their namespaces
	for _, p := range paths {
		if m := own.FindStringSubmatch(filepath.Base(p)); m != nil {
			labs[m[1]] = append(labs[m[1]], p)
		}
	}
	for lab := range labsOfProcesses(own) { // the namespaces may be gone already
		labs[lab] = slices.Clip(labs[lab])
	}
	var errs []error
	for lab, spaces := range labs {
		if n := len(marked(lab)); n > 0 {
			found = append(found, fmt.Sprintf("%d processes of %s", n, lab))
		}
		errs = append(errs, endProcesses(lab))
		for _, p := range spaces {
			found = append(found, p)
			errs = append(errs, unmountNamespace(filepath.Base(p)))
		}
	}
	slices.Sort(found)
	return found, errors.Join(errs...)
}

// removeDead removes the labs called prefix-<pid> whose maker no longer runs.
func removeDead(prefix string) error {
	paths, err := filepath.Glob(filepath.Join(netnsDir, prefix+"-*"))
	if err != nil {
		return err
	}
	own := regexp.MustCompile(`^(` + regexp.QuoteMeta(prefix) + `-([0-9]+))-`)
	ended := map[string]bool{}
	for _, p := range paths {
		m := own.FindStringSubmatch(filepath.Base(p))
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[2])
		if err != nil || pid == os.Getpid() || !dead(pid) {
			continue
		}
		if !ended[m[1]] {
			ended[m[1]] = true
			if err := endProcesses(m[1]); err != nil {
				return err
			}
		}
		if err := unmountNamespace(filepath.Base(p)); err != nil {
			return err
		}
	}
	return nil
}

// endProcesses kills the processes that carry the lab's mark in their environment, and waits until they are gone.
func endProcesses(lab string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids := marked(lab)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of lab %s do not end", pids, lab)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// marked finds the live processes of a lab. A dead one that nobody has waited for yet shows an empty environment.
func marked(lab string) (pids []int) {
	eachMarked(func(pid int, of string) {
		if of == lab {
			pids = append(pids, pid)
		}
	})
	return pids
}

// labsOfProcesses are the labs with such a name that have a live process.
func labsOfProcesses(name *regexp.Regexp) map[string]bool {
	labs := map[string]bool{}
	eachMarked(func(_ int, of string) {
		if name.MatchString(of) {
			labs[of] = true
		}
	})
	return labs
}

func eachMarked(fn func(pid int, lab string)) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(d + "/environ")
		if err != nil {
			continue
		}
		for _, kv := range bytes.Split(env, []byte{0}) {
			if lab, ok := bytes.CutPrefix(kv, []byte(labEnv+"=")); ok {
				fn(pid, string(lab))
			}
		}
	}
}
