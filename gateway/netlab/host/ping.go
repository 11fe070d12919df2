package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Ping is one series of echo requests.
type Ping struct {
	Dst      string  `json:"dst"`
	Sent     int     `json:"sent"`
	Received int     `json:"received"` // different answers that are byte for byte what was sent
	Bad      int     `json:"bad"`      // answers with another payload, or twice the same
	Errors   int     `json:"errors"`   // ICMP errors from anyone
	RTT      Latency `json:"rtt"`

	LongestMs float64 `json:"longest_ms"` // without an answer: between two, or from the last one until it ended; less the interval
}

func ping(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	to := fs.String("dst", "", "address")
	count := fs.Int("count", 5, "requests")
	interval := fs.Duration("interval", 200*time.Millisecond, "between requests")
	wait := fs.Duration("wait", time.Second, "for the last answer")
	size := fs.Int("size", 56, "payload bytes, at least 16")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	dst, err := netip.ParseAddr(*to)
	if err != nil {
		return nil, err
	}
	if *size < 16 || *size > 65000 || *count < 1 || *count > 65535 {
		return nil, errors.New("want 16 <= size <= 65000 and 1 <= count <= 65535")
	}
	network, any, proto := "ip4:icmp", "0.0.0.0", 1
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if dst.Is6() {
		network, any, proto = "ip6:ipv6-icmp", "::", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	conn, err := icmp.ListenPacket(network, any)
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	id := os.Getpid() & 0xffff
	r := Ping{Dst: dst.String()}
	var mu sync.Mutex
	sentAt := make([]time.Time, *count)
	answered := make([]bool, *count)
	var rtt []time.Duration
	var last time.Time // answer
	silent := func(now time.Time) {
		if !last.IsZero() {
			r.LongestMs = max(r.LongestMs, float64(now.Sub(last)-*interval)/1e6)
		}
		last = now
	}
	all := make(chan struct{})
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := conn.ReadFrom(buf)
			now := time.Now()
			if err != nil {
				return
			}
			m, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil {
				continue
			}
			mu.Lock()
			switch echo, ok := m.Body.(*icmp.Echo); {
			case m.Type == reply && ok && echo.ID == id && echo.Seq < *count && !sentAt[echo.Seq].IsZero():
				if answered[echo.Seq] || !bytesEqual(echo.Data, payload(*size, echo.Seq)) {
					r.Bad++
					break
				}
				answered[echo.Seq] = true
				silent(now)
				rtt = append(rtt, now.Sub(sentAt[echo.Seq]))
				if len(rtt) == *count {
					close(all)
				}
			case isICMPError(m.Type):
				r.Errors++
			}
			mu.Unlock()
		}
	}()

	to4 := &net.IPAddr{IP: dst.AsSlice()}
	start := time.Now()
	for seq := 0; seq < *count; seq++ {
		if !sleepUntil(ctx, start.Add(time.Duration(seq)**interval)) {
			break
		}
		msg := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: payload(*size, seq)}}
		b, err := msg.Marshal(nil) // ICMPv6: the kernel writes the checksum
		if err != nil {
			return nil, err
		}
		mu.Lock()
		sentAt[seq] = time.Now()
		mu.Unlock()
		// One that the own stack has no room for is one that nobody answers.
		if _, err := conn.WriteTo(b, to4); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return nil, fmt.Errorf("send to %s: %w", dst, err)
		}
		r.Sent++
	}
	select {
	case <-all:
	case <-time.After(*wait):
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	if r.Received, r.RTT = len(rtt), latencyOf(rtt); r.Received < r.Sent {
		silent(time.Now())
	}
	return r, nil
}

func isICMPError(t icmp.Type) bool {
	switch t {
	case ipv4.ICMPTypeDestinationUnreachable, ipv4.ICMPTypeTimeExceeded, ipv4.ICMPTypeParameterProblem,
		ipv6.ICMPTypeDestinationUnreachable, ipv6.ICMPTypePacketTooBig, ipv6.ICMPTypeTimeExceeded, ipv6.ICMPTypeParameterProblem:
		return true
	}
	return false
}

// payload differs for each request, so that an answer to another one is noticed.
func payload(size, seq int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, probeMagic)
	for i := 8; i < size; i++ {
		b[i] = byte(i + seq)
	}
	return b
}

func bytesEqual(a, b []byte) bool { return string(a) == string(b) }
