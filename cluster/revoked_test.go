package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"demarc/cluster/command"
)

// listener is whoever lets clients in.
type listener struct {
	mu   sync.Mutex
	told [][]command.Revoked
}

func (l *listener) tell(list []command.Revoked) {
	l.mu.Lock()
	l.told = append(l.told, list)
	l.mu.Unlock()
}

// says is what it was told last, "?" before anything.
func (l *listener) says() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.told) == 0 {
		return "?"
	}
	return revokedNames(l.told[len(l.told)-1])
}

func revokedNames(list []command.Revoked) string {
	var names []string
	for _, r := range list {
		names = append(names, r.Client)
	}
	return strings.Join(names, " ")
}

// TestRevokedEverywhere: what one node is told to refuse all are told, one that joins before it has the log, and one that starts before it knows what is agreed on.
func TestRevokedEverywhere(t *testing.T) {
	s := newSite(t)
	hs := []*host{s.host("gw1", command.RoleGateway), s.host("wit", command.RoleWitness)}
	ms := []*member{hs[0].run()}
	begun(t, ms[0])
	eventually(t, "a list without anybody is told too", func() bool { return hs[0].hears.says() == "" })
	ms = append(ms, hs[1].enter(ms[0], ""))
	voting(t, ms, 2)
	root := command.Who{Author: "root"}
	for _, r := range []command.Revoke{{Client: "alice"}, {Client: "robert"}, {Client: "robert", Undo: true}, {Client: "anna"}} {
		if err := ms[1].Revoke(t.Context(), r, root); err != nil {
			t.Fatal(err)
		}
	}
	if err := ms[1].Revoke(t.Context(), command.Revoke{Client: "nobody", Undo: true}, root); err == nil || !strings.Contains(err.Error(), "every certificate of nobody is not revoked") {
		t.Error(err)
	}
	const want = "alice anna"
	for _, h := range hs {
		eventually(t, h.name+" hears it", func() bool { return h.hears.says() == want })
		eventually(t, h.name+" keeps it", func() bool { l, err := ReadRevoked(h.dir); return err == nil && revokedNames(l) == want })
	}

	// One that joins knows it before it runs.
	third := s.host("gw2", command.RoleGateway)
	token, _, err := ms[0].Token(t.Context(), third.role, command.MaxTokenLife, root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := third.join(ms[0].Address(), token, ""); err != nil {
		t.Fatal(err)
	}
	if l, err := ReadRevoked(third.dir); err != nil || revokedNames(l) != want {
		t.Errorf("a newcomer knows %v, %v", l, err)
	}

	// A start by itself, without a majority, is not told of what passes by in the log, and has its copy.
	ms[0].stop()
	ms[1].stop()
	h := hs[0]
	h.hears = &listener{}
	h.run()
	if got := h.hears.says(); got != "?" {
		t.Errorf("before it knows what is agreed on it is told %q", got)
	}
	if l, err := ReadRevoked(h.dir); err != nil || revokedNames(l) != want {
		t.Errorf("its copy: %v, %v", l, err)
	}
	// A copy that is damaged is an error until the cluster has said better.
	if err := os.WriteFile(filepath.Join(h.dir, revokedFile), []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRevoked(h.dir); err == nil || !strings.Contains(err.Error(), revokedFile) {
		t.Errorf("damaged: %v", err)
	}
	hs[1].run()
	eventually(t, "it hears what is agreed on", func() bool { return h.hears.says() == want })
	eventually(t, "its copy is mended", func() bool { l, err := ReadRevoked(h.dir); return err == nil && revokedNames(l) == want })
	h.hears.mu.Lock()
	defer h.hears.mu.Unlock()
	if slices.ContainsFunc(h.hears.told, func(l []command.Revoked) bool { return revokedNames(l) != want }) {
		t.Errorf("lists of long ago were told: %v", h.hears.told)
	}
}
