package api

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"testing"
)

// who is a Backend that notes who asked.
type who struct {
	echo
	seen chan Peer
}

func (w who) Policy(ctx context.Context) ([]byte, error) {
	w.seen <- PeerOf(ctx)
	return nil, nil
}

// A request over the unix socket comes with the user and the process that sent it.
func TestPeerOfUnixSocket(t *testing.T) {
	w := who{seen: make(chan Peer, 1)}
	c, _ := serve(t, w)
	if _, err := c.Text(t.Context(), PathPolicy); err != nil {
		t.Fatal(err)
	}
	want := localPeer("/proc", os.Getpid(), uint32(os.Getuid()))
	want.Role = RoleOperator
	if got := <-w.seen; got != want || got.Name == "" || got.From != fmt.Sprintf("unix socket, pid %d", os.Getpid()) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if p := PeerOf(t.Context()); p != (Peer{}) {
		t.Errorf("outside of a request: %+v", p)
	}
}

// Who logged in counts, not who he has become since; an id that was never set is none.
func TestPeerIsWhoLoggedIn(t *testing.T) {
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "7"), 0o700); err != nil {
		t.Fatal(err)
	}
	root := "uid 0"
	if u, err := user.LookupId("0"); err == nil {
		root = u.Username
	}
	for login, want := range map[string]string{"4294967295": root, "4000000001\n": "uid 4000000001", "": root, "x": root, "-1": root, "0": root} {
		if err := os.WriteFile(filepath.Join(proc, "7", "loginuid"), []byte(login), 0o600); err != nil {
			t.Fatal(err)
		}
		if p := localPeer(proc, 7, 0); p.Name != want || p.From != "unix socket, pid 7" {
			t.Errorf("login id %q: %+v, want %s", login, p, want)
		}
	}
	if p := localPeer(proc, 8, 4000000002); p.Name != "uid 4000000002" {
		t.Errorf("no login id: %+v", p)
	}
}
