package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	holdBlock    = 1024                  // is what goes each way in one exchange
	holdTogether = 50 * time.Millisecond // those that are due within so long begin together
	holdManyMore = 4096                  // of more than so many a process leaves time for others to be done before it ends them
	holdOthers   = 3 * time.Second       // that is so long, and
	holdEnds     = 4 * time.Second       // it ends them over so long
)

// block is what the connection id says in a round, the one way or the other. Both ends know it: a block of another connection, or another round,
// is found.
func block(id, round uint64, reply bool) []byte {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], id)
	binary.BigEndian.PutUint64(key[8:], round)
	if reply {
		key[16] = 1
	}
	b := make([]byte, holdBlock)
	rand.NewChaCha8(key).Read(b)
	binary.BigEndian.PutUint64(b, id)
	binary.BigEndian.PutUint64(b[8:], round)
	return b
}

// exchanged has a block go there and another one back, and looks at what came.
func exchanged(c net.Conn, id, round uint64) error {
	if _, err := c.Write(block(id, round, false)); err != nil {
		return err
	}
	b := make([]byte, holdBlock)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if !bytes.Equal(b, block(id, round, true)) {
		return errors.New("wrong content")
	}
	return nil
}

// silent dials from an address ("" = what the system takes) connections on which nothing goes but what is written. As Go makes them, both ends ask after each other every 15 seconds: on a hundred thousand connections
// those are 27,000 packets a second, and none of them is idle.
func silent(from string) *net.Dialer {
	d := &net.Dialer{KeepAlive: -1}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return d
}

// listenSilent is the other end's part of it.
func listenSilent(ctx context.Context, addr string) (net.Listener, error) {
	return (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", addr)
}

// HoldServed is what the outside of held connections saw.
type HoldServed struct {
	Accepted int    `json:"accepted"`
	Blocks   uint64 `json:"blocks"`
	Bad      int    `json:"bad"` // with content that is not what its connection and round say
}

func tcpHoldServe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", ":8081", "listen address")
	most := fs.Int("most", 1000, "connections at a time")
	after := fs.Duration("after", 0, "so long it takes to answer a block")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *after < 0 {
		return nil, errors.New("an answer cannot come before its block")
	}
	if err := roomFor(*most); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var r HoldServed
	err := accepting(ctx, *addr, func(c net.Conn) {
		mu.Lock()
		r.Accepted++
		mu.Unlock()
		b := make([]byte, holdBlock)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return // who opened it says what that means
			}
			id, round := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
			good := bytes.Equal(b, block(id, round, false))
			mu.Lock()
			r.Blocks++
			if !good {
				r.Bad++
			}
			mu.Unlock()
			if !good {
				return
			}
			time.Sleep(*after)
			if _, err := c.Write(block(id, round, true)); err != nil {
				return
			}
		}
	})
	mu.Lock()
	defer mu.Unlock()
	return r, err
}

// Held is what became of connections.
type Held struct {
	Opened    int            `json:"opened"`
	Idle      int            `json:"idle"`      // of those, that carry nothing between the beginning and the end
	Tried     int            `json:"tried"`     // of the idle ones, at the end
	Lost      int            `json:"lost"`      // that could not carry a further block each way, with the right content, in time at the end
	LostIdle  int            `json:"lost_idle"` // of those, idle ones
	Why       map[string]int `json:"why,omitempty"`
	Blocks    uint64         `json:"blocks"`     // that went there and back
	LongestMs float64        `json:"longest_ms"` // for one of them
}

// roomFor has the process be allowed to hold so many connections, if it may allow itself.
func roomFor(connections int) error {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	need := uint64(connections) + 64
	if r.Cur >= need {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: need, Max: max(need, r.Max)}); err != nil {
		return fmt.Errorf("%d connections need as many files, the limit is %d: %w", connections, r.Max, err)
	}
	return nil
}

// tcpHold opens connections, has a block go there and back on some of them now and then, and once more at the end. It is ready when all are open.
func tcpHold(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of tcp-hold-serve")
	list := fs.String("from", "", "own addresses, with commas between; empty = what the system takes")
	busy := fs.Int("count", 10, "connections")
	every := fs.Duration("every", 0, "between two blocks on each; 0 = idle until the end")
	idle := fs.Int("idle", 0, "more connections, which are idle until the end")
	sample := fs.Int("sample", 0, "of the idle ones that are tried at the end, drawn then; 0 = all")
	patience := fs.Duration("patience", 8*time.Second, "to open all")
	rate := fs.Float64("rate", 0, "connections opened a second at most; 0 = as many as can be")
	within := fs.Duration("within", 5*time.Second, "what takes longer at the end is lost")
	asked := fs.Float64("asked", 0, "at the end so many a second are asked, of idle ones and of others; 0 = all at once")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddrPort(*dst); err != nil {
		return nil, err
	}
	if *asked < 0 || *busy < 0 || *idle < 0 || *busy+*idle < 1 || *every < 0 || *sample < 0 || *rate < 0 {
		return nil, errors.New("want a connection at least, and nothing negative")
	}
	count := *busy + *idle
	if err := roomFor(count); err != nil {
		return nil, err
	}
	if *every == 0 {
		*busy = 0
	}
	from := strings.Split(*list, ",")
	opening, cancel := context.WithTimeout(ctx, *patience)
	defer cancel()
	first := rand.Uint64()
	var mu sync.Mutex
	r := Held{Why: map[string]int{}}
	conns := make([]net.Conn, count)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	exchange := func(c net.Conn, id, round uint64) error {
		began := time.Now()
		if err := exchanged(c, id, round); err != nil {
			return err
		}
		mu.Lock()
		r.Blocks++
		r.LongestMs = max(r.LongestMs, float64(time.Since(began))/1e6)
		mu.Unlock()
		return nil
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	var bad error
	opened := time.Now()
	for i := range conns {
		if *rate > 0 {
			sleepUntil(opening, opened.Add(time.Duration(float64(i) / *rate * float64(time.Second))))
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			d := silent(from[i%len(from)])
			c, err := d.DialContext(opening, "tcp", *dst)
			if err == nil {
				conns[i] = c
				end, _ := opening.Deadline()
				c.SetDeadline(end)
				if err = exchange(c, first+uint64(i), 0); err == nil {
					c.SetDeadline(time.Time{})
				}
			}
			if err != nil {
				mu.Lock()
				bad = fmt.Errorf("connection %d of %d: %w", i+1, count, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if bad != nil {
		return nil, bad
	}
	r.Opened, r.Idle, r.LongestMs, r.Blocks = count, count-*busy, 0, 0
	end, err := serving(ctx, *dst)
	if err != nil {
		return nil, err
	}
	note := func(err error, idle bool) {
		if err == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		r.Lost++
		if idle {
			r.LostIdle++
		}
		r.Why[howFailed(err)]++
	}
	// ask waits for a connection's turn at the end, which began at a time: thousands at one moment would measure how long a burst of theirs takes.
	ask := func(began time.Time, n int, c net.Conn) {
		if *asked > 0 {
			sleepUntil(context.Background(), began.Add(time.Duration(float64(n) / *asked * float64(time.Second))))
			c.SetDeadline(time.Now().Add(*within))
		}
	}
	began := time.Now()
	for i, c := range conns[:*busy] {
		wg.Go(func() {
			note(func() error {
				round, id := uint64(0), first+uint64(i)
				// Not all at once, but some together: a wakeup for each of thousands costs more than all that they carry.
				due := began.Add((*every * time.Duration(i) / time.Duration(*busy)).Truncate(holdTogether))
				for sleepUntil(end, due) {
					round++
					if err := exchange(c, id, round); err != nil {
						return err
					}
					due = due.Add(*every)
				}
				ask(time.Now(), i, c)
				return exchange(c, id, round+1)
			}(), false)
		})
	}
	<-end.Done()
	// One that waits for an answer has this long for it and for one more.
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(*within))
	}
	// Nobody knows before the end which of the idle ones are asked.
	chosen := rand.Perm(r.Idle)
	if *sample > 0 {
		chosen = chosen[:min(*sample, r.Idle)]
	}
	r.Tried = len(chosen)
	began = time.Now()
	for n, i := range chosen {
		c := conns[*busy+i]
		ask(began, n, c)
		wg.Go(func() { note(exchange(c, first+uint64(*busy+i), 1), true) })
	}
	wg.Wait()
	if count > holdManyMore {
		// The ends of a hundred thousand are a load of their own, and other processes still ask theirs: one word ends each, and not all say it at once.
		began = time.Now().Add(holdOthers)
		for i, c := range conns {
			sleepUntil(context.Background(), began.Add(holdEnds*time.Duration(i)/time.Duration(count)))
			_ = c.(*net.TCPConn).SetLinger(0) // it was dialled as one, and is ended whatever comes of that
			c.Close()
		}
	}
	return r, nil
}
