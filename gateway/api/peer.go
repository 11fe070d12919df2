package api

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Peer is who is at the other end of a connection, for the history and the audit log.
type Peer struct {
	Name string // user name; "" = not known
	From string // how it came: "unix socket, pid 12", or the address that it came from

	Role   Role   // what it may do; "" = nothing
	Tenant string // of RoleTenant: which one
}

type peerKey struct{}

// withPeer puts a connection's peer into the context of its requests. Who it is gets looked up when somebody asks, and once.
func withPeer(ctx context.Context, who func() Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, sync.OnceValue(who))
}

// PeerOf is who sent a request; the zero Peer outside of one.
func PeerOf(ctx context.Context) Peer {
	if who, ok := ctx.Value(peerKey{}).(func() Peer); ok {
		return who()
	}
	return Peer{}
}

// unixPeer is a ConnContext for the unix socket: the kernel says who connected.
func unixPeer(ctx context.Context, c net.Conn) context.Context {
	if p, is := c.(*place); is {
		c = p.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return withPeer(ctx, func() Peer { return Peer{From: "unix socket"} })
	}
	return withPeer(ctx, func() Peer {
		p := localPeer("/proc", int(cred.Pid), cred.Uid)
		if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() { // whatever the file's mode was when it connected
			p.Role = RoleOperator
		}
		return p
	})
}

// localPeer names the user behind a process. Whoever became root by su or sudo is still the one who logged in: the kernel's audit id says so,
// and no process can change it once it is set.
func localPeer(proc string, pid int, uid uint32) Peer {
	const unset = 1<<32 - 1
	if b, err := os.ReadFile(fmt.Sprintf("%s/%d/loginuid", proc, pid)); err == nil {
		if login, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil && login != unset {
			uid = uint32(login)
		}
	}
	p := Peer{Name: fmt.Sprintf("uid %d", uid), From: fmt.Sprintf("unix socket, pid %d", pid)}
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		p.Name = u.Username
	}
	return p
}
