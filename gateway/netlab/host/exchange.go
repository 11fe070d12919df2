package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// exchangeBytes are those of a request, and of the reply to it.
const exchangeBytes = 64

// stayOn keeps the process on one CPU: threads that it has, and by inheritance those that come.
func stayOn(cpu int) error {
	if cpu < 0 {
		return nil
	}
	runtime.GOMAXPROCS(1)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stay on cpu %d: %w", cpu, err)
		}
	}
	return nil
}

// request is what connection n says, reply what it must hear.
func request(b []byte, n uint64) {
	for i := 0; i < exchangeBytes; i += 8 {
		binary.BigEndian.PutUint64(b[i:], n^uint64(i)*0x9e3779b97f4a7c15)
	}
}

func reply(b, asked []byte) {
	for i := range exchangeBytes {
		b[i] = ^asked[exchangeBytes-1-i]
	}
}

// ExchangeServed is what the server of short connections did.
type ExchangeServed struct {
	Served uint64 `json:"served"`
}

// exchangeServe answers one request on each connection and closes it, so that who waits after the end of a connection is the server: the client's ports are
// free at once.
func exchangeServe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", "", "own ADDRESS:PORT, the first of the ports")
	ports := fs.Int("ports", 1, "how many")
	cpu := fs.Int("cpu", -1, "to stay on")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	own, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return nil, err
	}
	if err := stayOn(*cpu); err != nil {
		return nil, err
	}
	var r ExchangeServed
	var served atomic.Uint64
	var wg sync.WaitGroup
	var all []net.Listener
	for i := range *ports {
		l, err := net.Listen("tcp", netip.AddrPortFrom(own.Addr(), own.Port()+uint16(i)).String())
		if err != nil {
			return nil, err
		}
		all = append(all, l)
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return // closed
				}
				wg.Go(func() {
					defer c.Close()
					var in, out [exchangeBytes]byte
					c.SetDeadline(time.Now().Add(10 * time.Second))
					if _, err := io.ReadFull(c, in[:]); err != nil {
						return
					}
					reply(out[:], in[:])
					if _, err := c.Write(out[:]); err == nil {
						served.Add(1)
					}
				})
			}
		})
	}
	end, err := serving(ctx, own.String())
	if err != nil {
		return nil, err
	}
	<-end.Done()
	for _, l := range all {
		l.Close()
	}
	wg.Wait()
	r.Served = served.Load()
	return r, nil
}

// Exchanged is what the client of short connections saw.
type Exchanged struct {
	Done    uint64  `json:"done"`    // connected, asked, heard the right reply and the end
	Failed  uint64  `json:"failed"`  // not within the time
	Wrong   uint64  `json:"wrong"`   // heard something else
	Seconds float64 `json:"seconds"` // from the first to the end of the last
	Example string  `json:"example,omitempty"`
	Times   Latency `json:"times"` // of those that were done
}

// exchange opens connections one after the other, so many at a time.
func exchange(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of tcp-exchange-serve, the first of its ports")
	from := fs.String("from", "", "own address")
	ports := fs.Int("ports", 1, "of the server")
	many := fs.Int("many", 16, "connections at a time")
	d := fs.Duration("duration", time.Second, "how long connections are begun")
	patience := fs.Duration("patience", 5*time.Second, "with each")
	cpu := fs.Int("cpu", -1, "to stay on")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(*dst)
	if err != nil {
		return nil, err
	}
	own, err := netip.ParseAddr(*from)
	if err != nil {
		return nil, err
	}
	if *many < 1 || *ports < 1 {
		return nil, errors.New("want at least one port and one connection at a time")
	}
	if err := stayOn(*cpu); err != nil {
		return nil, err
	}
	var r Exchanged
	var mu sync.Mutex
	var times []time.Duration
	var number atomic.Uint64
	began := time.Now()
	end := began.Add(*d)
	var wg sync.WaitGroup
	for range *many {
		wg.Go(func() {
			dialer := net.Dialer{Timeout: *patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0)), Control: lateBind}
			for time.Now().Before(end) && ctx.Err() == nil {
				n := number.Add(1)
				at := time.Now()
				right, err := oneExchange(ctx, &dialer, netip.AddrPortFrom(to.Addr(), to.Port()+uint16(n%uint64(*ports))), n, at.Add(*patience))
				took := time.Since(at)
				mu.Lock()
				switch {
				case err != nil:
					r.Failed++
					r.Example = err.Error()
				case !right:
					r.Wrong++
				default:
					r.Done++
					times = append(times, took)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.Seconds, r.Times = time.Since(began).Seconds(), latencyOf(times)
	return r, nil
}

// lateBind leaves the choice of a port to connect, which knows the other end: so every other end has all ports.
func lateBind(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) })
	return errors.Join(e, err)
}

func oneExchange(ctx context.Context, d *net.Dialer, to netip.AddrPort, n uint64, deadline time.Time) (right bool, err error) {
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return false, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return false, err
	}
	var out, in, want [exchangeBytes]byte
	request(out[:], n)
	reply(want[:], out[:])
	if _, err := c.Write(out[:]); err != nil {
		return false, err
	}
	if _, err := io.ReadFull(c, in[:]); err != nil {
		return false, err
	}
	if _, err := c.Read(out[:1]); !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("after the reply: %w", err)
	}
	return in == want, nil
}
