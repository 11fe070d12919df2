package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fdEnv names the descriptor of the socket to the parent.
const fdEnv = "DEMARC_GUARD"

// sayTime is how long the parent may take to read: it does nothing else.
const sayTime = 2 * time.Second

// Parent is the process above this one, as the data plane knows it. All methods of nil do nothing.
type Parent struct {
	conn *net.UnixConn
	mu   sync.Mutex // one at a time says something
	gone chan struct{}
}

// Above is the parent of this process; nil where it has none, because it was started as itself.
var Above = sync.OnceValue(func() *Parent {
	fd, err := strconv.Atoi(os.Getenv(fdEnv))
	os.Unsetenv(fdEnv)
	if err != nil || fd < 3 {
		return nil
	}
	// Whoever has set that by hand has no socket there that its parent has made.
	if who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || int(who.Pid) != os.Getppid() {
		return nil
	}
	f := os.NewFile(uintptr(fd), "guard")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil
	}
	call("demarc") // and not that of the link which it was started by
	return newParent(conn)
})

func newParent(conn *net.UnixConn) *Parent {
	p := &Parent{conn: conn, gone: make(chan struct{})}
	go func() { // as long as the process: the parent never says anything, so this ends when it has
		_, _ = conn.Read(make([]byte, 1))
		close(p.gone)
	}()
	return p
}

// Gone is closed when the parent has ended; nil = never.
func (p *Parent) Gone() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.gone
}

func (p *Parent) say(what byte, text, rights []byte) error {
	if p == nil {
		return nil
	}
	if len(text) > maxSay {
		return fmt.Errorf("tell the parent process: %d bytes, at most %d", len(text), maxSay)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.conn.SetWriteDeadline(time.Now().Add(sayTime))
	b := appendSay(nil, what, text)
	for len(b) > 0 {
		n, _, err := p.conn.WriteMsgUnix(b, rights, nil)
		if err != nil {
			p.conn.CloseWrite() // half of it may have been read: nothing can follow
			return fmt.Errorf("tell the parent process: %w", err)
		}
		b, rights = b[n:], nil
	}
	return nil
}

// Notify hands on what is for systemd.
func (p *Parent) Notify(text string) error { return p.say(sayNotify, []byte(text), nil) }

// Deadlines hands over the table of deadlines, by its descriptor, which stays the caller's.
func (p *Parent) Deadlines(fd int) error { return p.say(sayDeadlines, nil, unix.UnixRights(fd)) }

// LastWords are what is to be said when this process has ended, instead of what was to be said until now. zerocopy: some of its sockets are such that a driver may send by itself
// what stands in their rings until they are closed. offload: its XDP programs carry sessions.
func (p *Parent) LastWords(list []Words, zerocopy, offload bool) error {
	text, err := json.Marshal(will{list, zerocopy, offload})
	if err != nil {
		return errors.Join(errors.New("last words"), err)
	}
	return p.say(sayWords, text, nil)
}
