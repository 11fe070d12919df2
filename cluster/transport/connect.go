package transport

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// anotherAfter is when a connection that has not come about is tried once more beside the first attempt, unless it took longer before. The kernel repeats a SYN that was lost after one
// second, and then after three: where a path has just come back, nothing would be known by it for as long (RFC 6298 section 2, RFC 8305 section 5 does the same between addresses).
const anotherAfter = 250 * time.Millisecond

// attempts is how many there are at once.
const attempts = 4

// connector opens TCP connections, and knows how long that took. The zero value is ready. It is safe for concurrent use.
type connector struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error) // nil = that of the system
	mu   sync.Mutex
	took map[string]time.Duration // by address, the last time
}

// attempt is what has become of one.
type attempt struct {
	conn net.Conn
	err  error
}

// connect returns the first connection that comes about, or the first error that is not for want of an answer: that of the end of ctx, if there is none.
func (k *connector) connect(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dial := k.dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	ended := make(chan attempt)
	begin := func() {
		began := time.Now()
		c, err := dial(ctx, "tcp", address)
		if err == nil {
			k.note(address, time.Since(began))
		}
		select {
		case ended <- attempt{c, err}:
		case <-ctx.Done(): // another one was faster, or nobody waits
			if c != nil {
				c.Close()
			}
		}
	}
	another := time.NewTicker(k.pause(address))
	defer another.Stop()
	go begin()
	begun := 1
	for {
		select {
		case a := <-ended:
			return a.conn, a.err
		case <-another.C:
			if begun < attempts { // what the kernel sends again of these comes as often from then on
				begun++
				go begin()
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("nobody answers (TCP): %w", ctx.Err())
		}
	}
}

// pause is how long an attempt is waited for before another one begins beside it: longer where an answer is longer under way.
func (k *connector) pause(address string) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(anotherAfter, 2*k.took[address])
}

func (k *connector) note(address string, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.took == nil || len(k.took) >= 1024 { // of addresses that members had once
		k.took = map[string]time.Duration{}
	}
	k.took[address] = min(took, time.Second)
}
