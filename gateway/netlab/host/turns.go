package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	turnBytes = 64
	turnsWarm = 200 // first turns that are not counted, or as many as the time has: caches, neighbours, and a gateway that looks at what begins
)

// Turned is what one who asks one thing at a time saw.
type Turned struct {
	Done  uint64  `json:"done"` // answered rightly
	Lost  uint64  `json:"lost"` // not within the time
	Wrong uint64  `json:"wrong"`
	Again uint64  `json:"again,omitempty"` // answers to a question that had been answered
	Times Latency `json:"times"`
}

// blockingUDP is a socket that a thread waits at: the way through the runtime's poller would be a part of each time.
func blockingUDP(own netip.AddrPort, patience time.Duration) (fd int, err error) {
	if !own.Addr().Is4() {
		return -1, errors.New("want an IPv4 address")
	}
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	t := unix.NsecToTimeval(patience.Nanoseconds())
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t), unix.Bind(fd, &unix.SockaddrInet4{Addr: own.Addr().As4(), Port: int(own.Port())})); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// again says of a read that nothing came.
func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

// turnsServe answers each question, one after the other.
func turnsServe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", "", "own ADDRESS:PORT, IPv4")
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
	fd, err := blockingUDP(own, 50*time.Millisecond)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	end, err := serving(ctx, own.String())
	if err != nil {
		return nil, err
	}
	r := struct {
		Answered uint64 `json:"answered"`
	}{}
	var in, out [turnBytes]byte
	for end.Err() == nil {
		n, from, err := unix.Recvfrom(fd, in[:], 0)
		if again(err) || err == nil && n != turnBytes {
			continue
		}
		if err != nil {
			return nil, err
		}
		reply(out[:], in[:])
		if err := unix.Sendto(fd, out[:], 0, from); err != nil && !again(err) {
			return nil, err
		}
		r.Answered++
	}
	return r, nil
}

// turns asks and waits for the answer, again and again.
func turns(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of udp-turns-serve")
	from := fs.String("from", "", "own address")
	d := fs.Duration("duration", time.Second, "how long is asked, the first turns left out")
	patience := fs.Duration("patience", 200*time.Millisecond, "with each answer")
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
	if !to.Addr().Is4() || *d <= 0 || *patience <= 0 {
		return nil, errors.New("want an IPv4 address to ask, and times above 0")
	}
	if err := stayOn(*cpu); err != nil {
		return nil, err
	}
	fd, err := blockingUDP(netip.AddrPortFrom(own, 0), *patience)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		return nil, err
	}
	var r Turned
	var times []time.Duration
	lost := map[uint64]bool{} // questions whose answer may still come
	var out, in, want [turnBytes]byte
	end, warm := time.Now().Add(*d), false
	for n := uint64(0); ctx.Err() == nil; n++ {
		if over := !time.Now().Before(end); warm && over {
			break
		} else if !warm && (over || n == turnsWarm) {
			end, warm = time.Now().Add(*d), true
		}
		request(out[:], n)
		reply(want[:], out[:])
		at := time.Now()
		if _, err := unix.Write(fd, out[:]); err != nil {
			return nil, err
		}
		for {
			k, err := unix.Read(fd, in[:])
			if again(err) {
				if errors.Is(err, unix.EINTR) && time.Since(at) < *patience {
					continue
				}
				r.Lost++
				lost[n] = true
				break
			}
			if err != nil {
				return nil, err
			}
			if k == turnBytes && in == want {
				if r.Done++; warm {
					times = append(times, time.Since(at))
				}
				break
			}
			asked := answers(in[:k])
			if asked >= n {
				r.Wrong++
				break
			}
			if !lost[asked] { // what comes after its time is the answer to a question that was given up, once
				r.Again++
			}
			delete(lost, asked)
		}
	}
	r.Times = latencyOf(times)
	return r, nil
}

// answers is the number of the question that an answer says it is to; more than any for what is none.
func answers(in []byte) uint64 {
	if len(in) != turnBytes {
		return 1<<64 - 1
	}
	var asked [turnBytes]byte
	reply(asked[:], in) // twice is what it was
	n := binary.BigEndian.Uint64(asked[:])
	var again [turnBytes]byte
	if request(again[:], n); again != asked {
		return 1<<64 - 1
	}
	return n
}
