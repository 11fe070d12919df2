package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// DNSServed is what the name server saw.
type DNSServed struct {
	Queries int            `json:"queries"`
	Bad     int            `json:"bad"`
	Peers   map[string]int `json:"peers"`
}

func dnsServe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", ":53", "listen address")
	name := fs.String("name", "www.lab.example.", "the one name")
	answer := fs.String("answer", "203.0.113.80", "its IPv4 address")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	a, err := netip.ParseAddr(*answer)
	if err != nil || !a.Is4() {
		return nil, fmt.Errorf("answer %q: want an IPv4 address", *answer)
	}
	conn, err := listenUDP(*addr)
	if err != nil {
		return nil, err
	}
	end, err := serving(ctx, conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(end, func() { conn.Close() })
	tcp, err := net.Listen("tcp", conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(end, func() { tcp.Close() })
	go dnsOverTCP(tcp, *name, a)
	r := DNSServed{Peers: map[string]int{}}
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if end.Err() != nil {
				return r, nil
			}
			return nil, err
		}
		reply, err := dnsAnswer(buf[:n], *name, a)
		if err != nil {
			r.Bad++
			continue
		}
		r.Queries++
		r.Peers[from.Addr().Unmap().String()]++
		conn.WriteToUDPAddrPort(reply, from) // what is lost here the asker misses
	}
}

// dnsOverTCP answers one query a connection, each behind its length (RFC 1035 4.2.2). They are not counted.
func dnsOverTCP(l net.Listener, name string, a netip.Addr) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, query); err != nil {
				return
			}
			if reply, err := dnsAnswer(query, name, a); err == nil {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
			}
		}()
	}
}

// dnsAnswer answers an A question for name, and says NXDOMAIN to all others.
func dnsAnswer(query []byte, name string, a netip.Addr) ([]byte, error) {
	var q dnsmessage.Message
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	if q.Response || len(q.Questions) != 1 {
		return nil, errors.New("not one question")
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired},
		Questions: q.Questions,
	}
	if q.Questions[0].Name.String() != name {
		reply.RCode = dnsmessage.RCodeNameError
	} else if q.Questions[0].Type == dnsmessage.TypeA {
		reply.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: a.As4()},
		}}
	}
	return reply.Pack()
}

// DNS is a series of queries.
type DNS struct {
	Asked    int     `json:"asked"`
	Answered int     `json:"answered"` // with the address that was expected
	Wrong    int     `json:"wrong"`    // with another one, or for another query
	RTT      Latency `json:"rtt"`
}

func dnsQuery(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	server := fs.String("server", "", "ADDRESS:PORT")
	name := fs.String("name", "www.lab.example.", "question")
	want := fs.String("want", "203.0.113.80", "the right answer")
	count := fs.Int("count", 1, "queries, each from a new socket")
	interval := fs.Duration("interval", 200*time.Millisecond, "between queries")
	timeout := fs.Duration("timeout", time.Second, "for one answer")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	qname, err := dnsmessage.NewName(*name)
	if err != nil {
		return nil, err
	}
	var r DNS
	var rtt []time.Duration
	start := time.Now()
	for i := 0; i < *count && sleepUntil(ctx, start.Add(time.Duration(i)**interval)); i++ {
		r.Asked++
		begin := time.Now()
		got, err := ask(*server, qname, *timeout)
		switch {
		case errors.Is(err, errNoAnswer):
		case err != nil:
			return nil, err
		case got != *want:
			r.Wrong++
		default:
			r.Answered++
			rtt = append(rtt, time.Since(begin))
		}
	}
	r.RTT = latencyOf(rtt)
	return r, nil
}

var errNoAnswer = errors.New("no answer")

// ask returns the address in the answer, or what is wrong with the answer.
func ask(server string, name dnsmessage.Name, timeout time.Duration) (string, error) {
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := q.Pack()
	if err != nil {
		return "", err
	}
	conn, err := net.Dial("udp", server)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write(b); err != nil {
		return "", errNoAnswer
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		return "", errNoAnswer
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf[:n]); err != nil {
		return "malformed", nil
	}
	if m.ID != q.ID || !m.Response || len(m.Answers) != 1 {
		return fmt.Sprintf("%s with %d answers", m.RCode, len(m.Answers)), nil
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	if !ok {
		return "no address", nil
	}
	return netip.AddrFrom4(a.A).String(), nil
}
