package host

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Fresh is what became of connections that were opened one after the other, all the time.
type Fresh struct {
	Tried  int            `json:"tried"`
	Failed int            `json:"failed"`        // that did not open, though there was time
	Why    map[string]int `json:"why,omitempty"` // of those, and of those that were lost
	Open   []Opened       `json:"open"`
}

// Opened is a connection that opened. Its two times hold whenever this process got the processor: nothing of it was sent before the first, and by the second a block had gone each
// way. An event between the two found it on its way.
type Opened struct {
	Began int64 `json:"began"` // Unix, ns
	Open  int64 `json:"open"`
	Lost  bool  `json:"lost,omitempty"` // it carried no further block in time at the end
	Half  bool  `json:"half,omitempty"` // its handshake was complete at Open, and no block went each way: it is lost, and the other end may never have accepted it
}

// Lost are those that were lost.
func (f *Fresh) Lost() (lost []Opened) {
	for _, o := range f.Open {
		if o.Lost {
			lost = append(lost, o)
		}
	}
	return lost
}

// tcpOpen opens connections to a tcp-hold-serve at a rate until it is told to end, keeps them, and has each carry a block each way at the end.
func tcpOpen(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of tcp-hold-serve")
	list := fs.String("from", "", "own addresses, with commas between; empty = what the system takes")
	rate := fs.Float64("rate", 100, "connections a second")
	most := fs.Int("most", 4500, "connections; no more are opened then")
	within := fs.Duration("within", 5*time.Second, "what takes longer at the end is lost, and what has not opened then has failed")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddrPort(*dst); err != nil {
		return nil, err
	}
	if *rate <= 0 || *rate > 1e5 || *most < 1 {
		return nil, errors.New("want a rate up to 100000, and a connection at least")
	}
	if err := roomFor(*most); err != nil {
		return nil, err
	}
	end, err := serving(ctx, *dst)
	if err != nil {
		return nil, err
	}
	from := strings.Split(*list, ",")
	first := rand.Uint64()
	var mu sync.Mutex
	r := Fresh{Why: map[string]int{}}
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		r.Why[howFailed(err)]++
	}
	// An attempt lives as long as all do: it ends by itself within the time that is given at the end.
	last, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(end, func() { time.AfterFunc(*within, cancel) })
	one := func(i int) {
		id := first + uint64(i)
		d := silent(from[i%len(from)])
		o := Opened{Began: time.Now().UnixNano()}
		c, err := d.DialContext(last, "tcp", *dst)
		if err == nil {
			defer c.Close()
			o.Open, o.Lost, o.Half = time.Now().UnixNano(), true, true
			stop := context.AfterFunc(last, func() { c.SetDeadline(time.Now()) })
			defer stop()
			err = exchanged(c, id, 0)
		}
		if err != nil {
			if last.Err() != nil {
				err = os.ErrDeadlineExceeded // by our own end
			}
			note(err)
			mu.Lock()
			if o.Half {
				r.Open = append(r.Open, o)
			} else {
				r.Failed++
			}
			mu.Unlock()
			return
		}
		o.Open, o.Lost, o.Half = time.Now().UnixNano(), false, false
		<-end.Done()
		if err := exchanged(c, id, 1); err != nil {
			note(err)
			o.Lost = true
		}
		mu.Lock()
		r.Open = append(r.Open, o)
		mu.Unlock()
	}
	var wg sync.WaitGroup
	begin, gap := time.Now(), time.Duration(float64(time.Second) / *rate)
	for i := 0; i < *most && sleepUntil(end, begin.Add(time.Duration(i)*gap)); i++ {
		r.Tried++ // only here
		wg.Go(func() { one(i) })
	}
	<-end.Done()
	wg.Wait()
	if r.Tried == 0 {
		return nil, fmt.Errorf("no connection to %s was tried", *dst)
	}
	return r, nil
}
