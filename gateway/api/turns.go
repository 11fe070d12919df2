package api

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// turns has each tenant ask one thing at a time, and then rest four times as long as the answer took. A question about sessions goes through all of
// them on the workers' own threads, so nobody's polling may take more than a fifth of that.
type turns struct {
	mu sync.Mutex
	of map[string]*turn
}

type turn struct {
	c     chan struct{} // holds one thing while nobody asks
	queue int           // turns.mu: those who ask or wait
	next  time.Time     // of who holds what is in c
}

const (
	turnQueue   = 8
	longestRest = 2 * time.Second
)

// take waits for the tenant's turn. done gives it on.
func (t *turns) take(ctx context.Context, tenant string) (done func(), err error) {
	t.mu.Lock()
	if t.of == nil {
		t.of = map[string]*turn{}
	}
	u := t.of[tenant]
	if u == nil {
		u = &turn{c: make(chan struct{}, 1)}
		u.c <- struct{}{}
		t.of[tenant] = u
	}
	full := u.queue >= turnQueue
	if !full {
		u.queue++
	}
	t.mu.Unlock()
	if full {
		return nil, &Fault{Status: http.StatusTooManyRequests, Err: errors.New("the tenant asks too much at a time: wait for an answer before the next question")}
	}
	leave := func() {
		t.mu.Lock()
		u.queue--
		t.mu.Unlock()
	}
	select {
	case <-u.c:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	rest := time.NewTimer(time.Until(u.next))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-ctx.Done():
		u.c <- struct{}{}
		leave()
		return nil, ctx.Err()
	}
	began := time.Now()
	return func() {
		u.next = time.Now().Add(min(4*time.Since(began), longestRest))
		u.c <- struct{}{}
		leave()
	}, nil
}
