package store

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestRaftSaysItOnce: a member that is away costs a line when it goes and one a minute, not one a try; another member, another trouble and a return are news.
func TestRaftSaysItOnce(t *testing.T) {
	var out bytes.Buffer
	now := time.Now()
	l := &lines{log: slog.New(slog.NewTextHandler(&out, nil)), now: func() time.Time { return now }, said: map[about]*said{}}
	log := l.logger()
	took := func() string {
		s := out.String()
		out.Reset()
		return s
	}
	two, three := raft.Server{ID: "id2", Address: "192.0.2.2:7400"}, raft.Server{ID: "id3", Address: "192.0.2.3:7400"}
	away := func() {
		for range 100 {
			log.Error("failed to appendEntries to", "peer", two, "error", errors.New("no route to host"))
			log.Error("failed to heartbeat to", "peer", two.Address, "backoff time", time.Second, "error", errors.New("no route to host"))
			log.Warn("failed to contact", "server-id", two.ID, "time", time.Second)
			now = now.Add(100 * time.Millisecond)
		}
	}
	away()
	if s := took(); strings.Count(s, "\n") != 3 || strings.Contains(s, "and_before") || !strings.Contains(s, "failed to appendEntries to peer={Voter id2 192.0.2.2:7400} error=no route to host") {
		t.Errorf("ten seconds:\n%s", s)
	}
	for range 12 {
		away()
	}
	if s := took(); strings.Count(s, "\n") != 6 || strings.Count(s, "and_before=599") != 6 {
		t.Errorf("two minutes more:\n%s", s)
	}
	log.Warn("failed to contact", "server-id", three.ID, "time", time.Second)
	log.Warn("clearing log suffix", "from", 3, "to", 4)
	log.Info("entering follower state", "follower", "x", "leader-address", "", "leader-id", "")
	log.Warn("clearing log suffix", "from", 3, "to", 4)
	if s := took(); strings.Count(s, "\n") != 2 {
		t.Errorf("other troubles:\n%s", s)
	}
	log.Info("pipelining replication", "peer", three)
	away()
	if s := took(); s != "" {
		t.Errorf("another one is back:\n%s", s)
	}
	log.Info("pipelining replication", "peer", two)
	away()
	if s := took(); strings.Count(s, "\n") != 3 {
		t.Errorf("it was back and is away again:\n%s", s)
	}
	log.Info("entering leader state", "leader", "x")
	log.Warn("clearing log suffix", "from", 3, "to", 4)
	if s := took(); strings.Count(s, "\n") != 1 {
		t.Errorf("after a new leader:\n%s", s)
	}
	const lost = "heartbeat timeout reached, starting election"
	log.Warn(lost, "last-leader-addr", raft.ServerAddress(""), "last-leader-id", raft.ServerID(""))
	if s := took(); s != "" {
		t.Errorf("at a start:\n%s", s)
	}
	log.Warn(lost, "last-leader-addr", two.Address, "last-leader-id", two.ID)
	if s := took(); strings.Count(s, "\n") != 1 {
		t.Errorf("a leader is lost:\n%s", s)
	}
	for i := range 10_000 {
		log.Warn("failed to contact", "server-id", i)
	}
	if len(l.said) > maxSaid {
		t.Errorf("%d messages are remembered", len(l.said))
	}
}
