package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is kept of changes that this node has refused by itself: nobody else has heard of them, so no log of the cluster's has them.
const (
	refusedKept = 200
	refusedWhy  = 300 // bytes of each reason
)

// RefusedChange is a change that somebody asked this node for and did not get.
type RefusedChange struct {
	Time   time.Time `json:"time"` // of the last time
	Author string    `json:"author"`
	From   string    `json:"from"`
	What   string    `json:"what"`   // path
	Status int       `json:"status"` // of the answer
	Why    string    `json:"why"`
	Times  int       `json:"times"` // how often this was asked for and refused
}

// refusedChanges are the latest of them, in memory. Who asks for the same again counts once more; who asks for much pushes out what is its own.
type refusedChanges struct {
	mu   sync.Mutex
	list []RefusedChange // mu: the latest last
	gone int             // mu: lines that had to make room
}

func (r *refusedChanges) add(now time.Time, p Peer, what string, err error) {
	c := RefusedChange{Time: now.UTC(), Author: p.Name, From: p.From, What: what, Status: statusOf(err), Why: briefly(err), Times: 1}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(r.list, func(x RefusedChange) bool {
		return x.Author == c.Author && x.What == c.What && x.Status == c.Status && x.Why == c.Why
	}); i >= 0 {
		c.Times += r.list[i].Times
		r.list = slices.Delete(r.list, i, i+1)
	} else if len(r.list) >= refusedKept {
		r.gone++
		r.list = slices.Delete(r.list, r.crowd(), r.crowd()+1)
	}
	r.list = append(r.list, c)
}

// crowd is the oldest line of who has the most of them. The caller holds mu.
func (r *refusedChanges) crowd() int {
	count := map[string]int{}
	for i := range r.list {
		count[r.list[i].Author]++
	}
	at := 0
	for i := range r.list {
		if count[r.list[i].Author] > count[r.list[at].Author] {
			at = i
		}
	}
	return at
}

// take is a copy for an answer.
func (r *refusedChanges) take() (list []RefusedChange, gone int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list), r.gone
}

// briefly is why something was refused, without what was sent: that may be long, and nothing for a list. Of a policy it is where its errors are.
func briefly(err error) string {
	problems := problemsOf(err)
	switch {
	case len(problems) > 0:
		p := problems[0]
		where := p.Path
		if p.Line > 0 {
			where = fmt.Sprintf("line %d: %s", p.Line, p.Path)
		}
		if p.Node != "" {
			where = p.Node + ": " + where
		}
		text := "1 error: " + where
		if len(problems) > 1 {
			text = fmt.Sprintf("%d errors, the first: %s", len(problems), where)
		}
		return text[:min(len(text), refusedWhy)]
	case statusOf(err) == http.StatusBadRequest:
		return "the request is wrong"
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	if len(text) > refusedWhy {
		text = strings.ToValidUTF8(text[:refusedWhy], "") + "…"
	}
	return text
}

// tellRefused adds them to the answer of the audit route.
func tellRefused(rt *route) *route {
	rt.also = func(s *Server, answer any) {
		a := answer.(*Audit)
		list, gone := s.refused.take()
		a.Refused, a.RefusedGone = append(a.Refused, list...), a.RefusedGone+gone
	}
	return rt
}
