package gateway

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/netlab/roottest"
)

// TestKeysThatANextStartWouldRefuse: a key that has become another's is said by the node that runs with it, once, and not only by the start that fails of it.
func TestKeysThatANextStartWouldRefuse(t *testing.T) {
	roottest.MostlyWaits(t)
	a, err := transport.NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for file, says := range map[string]string{"node.key": "node.key: its mode is 0777", "": "may put another key there"} {
		dir := t.TempDir()
		if err := a.Issue(dir, "gw1", time.Now()); err != nil {
			t.Fatal(err)
		}
		var lines bytes.Buffer
		log := slog.New(slog.NewTextHandler(&lines, nil))
		open := func() (*api.Remote, error) {
			return openRemote(configs.API{Listen: "127.0.0.1:7443", Keys: dir}, readRevoked(t.TempDir(), log), time.Now, log)
		}
		r, err := open()
		if err != nil {
			t.Fatal(err)
		}
		until := r.Until() // each time that it is asked it may look at the files
		if err := os.Chmod(filepath.Join(dir, file), 0o777); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); lines.Len() == 0; time.Sleep(10 * time.Millisecond) {
			if r.Until() != until {
				t.Fatal("it goes on with other keys")
			}
			if time.Now().After(end) {
				t.Fatalf("%q: nothing is said", file)
			}
		}
		for end := time.Now().Add(1100 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			r.Until()
		}
		if s := lines.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "level=ERROR") || !strings.Contains(s, says) {
			t.Errorf("%q: the log says %q", file, s)
		}
		if _, err := open(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: a start says %v", file, err)
		}
	}
}
