package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/packet/csum"
)

// Datagrams larger than the link, from a host of each tenant and back: ping and iperf3, whose kernels cut them and put them together.
func TestClientsFragments(t *testing.T) {
	s := standard(t, netlab.Options{})
	s.start()
	ports := map[string]string{s.Alpha1.Name: "5201", s.Beta1.Name: "5202"}
	for _, p := range ports {
		s.daemon(s.Public1.Name, "iperf3", "-s", "-p", p)
		s.listens(s.Public1.Name, "tcp", p)
	}
	before := s.status()
	s.judged(s.clientHosts(), func(h netlab.Host, missed func(format string, args ...any)) {
		for _, to := range []string{s.Public1.V4.String(), s.Public1.V6.String()} {
			out, err := s.Exec(h.Name, "ping", "-n", "-c", "10", "-i", "0.05", "-W", "1", "-s", "4000", to)
			if err != nil || !strings.Contains(string(out), "10 packets transmitted, 10 received, 0% packet loss") {
				missed("ping -s 4000 from %s to %s: %v\n%s", h.Name, to, err, out)
			}
		}
		for _, args := range [][]string{{}, {"-R"}} {
			out, err := s.iperf(h, ports[h.Name], append([]string{"-u", "-b", "4M", "-l", "8000"}, args...)...)
			var r struct {
				Error string
				End   struct {
					Sum struct {
						Packets float64
						Lost    float64 `json:"lost_packets"`
					}
				}
			}
			if e := json.Unmarshal(out, &r); e != nil || err != nil || r.Error != "" {
				t.Errorf("iperf3 -u -l 8000 %v from %s: %v, %v, %s", args, h.Name, err, e, r.Error)
			} else if r.End.Sum.Packets < 40 || r.End.Sum.Lost != 0 {
				missed("iperf3 -u -l 8000 %v from %s: %+v", args, h.Name, r.End)
			}
		}
	})
	for reason, n := range drops(before, s.status()) {
		if strings.HasPrefix(reason, "fragment") {
			t.Errorf("%d dropped as %s", n, reason)
		}
	}
	s.stop()
}

// One datagram in four pieces, in every order and each order with one of them twice: the far host's kernel puts it together, or it could not say that
// nobody has that port.
func TestFragmentsInAnyOrderOnTheWire(t *testing.T) {
	s := standard(t, netlab.Options{})
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_ratelimit", "0"))
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_msgs_per_sec", "10000"))
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_msgs_burst", "10000"))
	s.write(read(t, s.node), unlimited(t, read(t, s.policy)))
	s.start()
	mac, err := s.MAC(netlab.GW, netlab.AlphaPort)
	check(t, err)
	own, err := s.MAC(s.Alpha2.Name, netlab.HostDevice)
	check(t, err)
	send := s.rawFrames(s.Alpha2.Name, netlab.HostDevice)
	said := map[uint16]bool{} // by source port; the capture's goroutine alone
	came := s.capture(s.Alpha2.Name, netlab.HostDevice, 1000, func(f []byte) bool {
		if len(f) < 66 || f[12] != 8 || f[23] != 1 || f[34] != 3 || f[35] != 3 || said[binary.BigEndian.Uint16(f[62:])] {
			return false
		}
		said[binary.BigEndian.Uint16(f[62:])] = true
		return true
	})
	if out, err := s.Exec(s.Alpha2.Name, "ping", "-n", "-c", "1", "-W", "3", s.Public1.V4.String()); err != nil { // both ends know each other from here on
		t.Fatalf("ping: %v\n%s", err, out)
	}
	n := 0
	var walk func(order, rest []int)
	walk = func(order, rest []int) {
		if len(rest) > 0 {
			for i := range rest {
				walk(append(slices.Clone(order), rest[i]), slices.Delete(slices.Clone(rest), i, i+1))
			}
			return
		}
		for twice := range 5 { // 4: none
			whole := raw4(mac, own, s.Alpha2.V4, s.Public1.V4, 17, 64, false, udp(uint16(20000+n), 9, bytes.Repeat([]byte{byte(n)}, 3000)), 6)
			var pieces [][]byte
			for at := 0; at < len(whole)-34; at += 800 {
				end := min(at+800, len(whole)-34)
				p := append(slices.Clone(whole[:34]), whole[34+at:34+end]...)
				binary.BigEndian.PutUint16(p[16:], uint16(len(p)-14))
				binary.BigEndian.PutUint16(p[18:], uint16(n))
				fo := uint16(at / 8)
				if end < len(whole)-34 {
					fo |= 0x2000
				}
				binary.BigEndian.PutUint16(p[20:], fo)
				p[24], p[25] = 0, 0
				binary.BigEndian.PutUint16(p[24:], csum.Checksum(csum.Sum(0, p[14:34])))
				pieces = append(pieces, p)
			}
			var frames [][]byte
			for i, o := range order {
				if frames = append(frames, pieces[o]); i == twice {
					frames = append(frames, pieces[o])
				}
			}
			for _, f := range frames {
				check(t, send(f))
			}
			n++
		}
	}
	walk(nil, []int{0, 1, 2, 3})
	if !until(5*time.Second, func() bool { return came.Seen() >= n }) {
		t.Errorf("%d datagrams sent in pieces, %d arrived whole; %v", n, came.Seen(), drops(&api.Status{}, s.status()))
	}
	s.stop()
}
