package store

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// lines hands Raft's own messages to our log. Raft says the same at each try, many times a second while a member is away: here it is said when it begins, and
// from then on once a minute with how often it was not said. What Raft has to say of a member begins anew once it is replicated to again.
type lines struct {
	log *slog.Logger
	now func() time.Time // a reader's clock: nothing but how much is written depends on it

	mu   sync.Mutex
	said map[about]*said // mu
}

// about is what a message is about: the message itself, and which member, if any.
type about struct{ what, who string }

type said struct {
	at   time.Time
	held int // since then
}

const (
	sayAgain = time.Minute
	maxSaid  = 256 // messages that are remembered
)

// logger is what Raft is given.
func (l *lines) logger() hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off})
	h.RegisterSink(l)
	return h
}

// Accept takes one message of Raft's.
func (l *lines) Accept(_ string, level hclog.Level, msg string, args ...any) {
	// A node that has just started knows of no leader: that none is heard then is how it begins, and no trouble.
	if msg == "heartbeat timeout reached, starting election" && fmt.Sprint(value(args, "last-leader-id")) == "" {
		return
	}
	who := member(args)
	l.mu.Lock()
	if level < hclog.Warn {
		l.turn(msg, who, args)
		l.mu.Unlock()
		return
	}
	k, now := about{msg, who}, l.now()
	s := l.said[k]
	if s != nil && now.Sub(s.at) < sayAgain {
		s.held++
		l.mu.Unlock()
		return
	}
	if len(l.said) >= maxSaid { // of members that have gone: to say something once too often is no harm
		clear(l.said)
	}
	l.said[k] = &said{at: now}
	l.mu.Unlock()
	var b strings.Builder
	b.WriteString(msg)
	for i := 0; i+1 < len(args); i += 2 {
		fmt.Fprintf(&b, " %v=%v", args[i], args[i+1])
	}
	out := []any{"says", b.String()}
	if s != nil && s.held > 0 {
		out = append(out, "and_before", s.held)
	}
	l.log.Warn("raft", out...)
}

// turn forgets what was said before a change for the better: should it come again, that is news.
func (l *lines) turn(msg, who string, args []any) {
	address := who // some messages name a member by that
	switch {
	case msg == "pipelining replication":
		if v, ok := value(args, "peer").(raft.Server); ok {
			address = string(v.Address)
		}
	case msg == "entering leader state", msg == "entering follower state" && fmt.Sprint(value(args, "leader-address")) != "":
		who, address = "", ""
	default:
		return
	}
	for k := range l.said {
		if k.who == who || k.who == address {
			delete(l.said, k)
		}
	}
}

// member is the id of the member that a message is about; "" = none.
func member(args []any) string {
	for _, key := range []string{"peer", "server-id"} {
		switch v := value(args, key).(type) {
		case nil:
		case raft.Server:
			return string(v.ID)
		default:
			return fmt.Sprint(v)
		}
	}
	return ""
}

func value(args []any, key string) any {
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == key {
			return args[i+1]
		}
	}
	return nil
}
