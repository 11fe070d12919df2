package pureload

import (
	"encoding/binary"
	"testing"
	"time"

	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/verdict"
)

// What is measured is judged, packet by packet; established flows stay as many, begun ones end.
func TestLoad(t *testing.T) {
	for _, flows := range []int{1, 4096 + 64} {
		l, err := Open(flows, 100)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Establish(); err != nil {
			t.Fatal(err)
		}
		of, sum := 0, time.Duration(0)
		ns, err := l.Packets(100_000, func(n int, took time.Duration) { of, sum = of+n, sum+took })
		if err != nil || ns <= 0 {
			t.Errorf("%d flows: %v ns: %v", flows, ns, err)
		}
		if of < 100_000 || float64(sum.Nanoseconds())/float64(of) != ns {
			t.Errorf("%d flows: parts are of %d packets, %v, and a packet is %v ns", flows, of, sum, ns)
		}
		if n := l.sh.Sessions.Len(); n != flows {
			t.Errorf("%d flows are %d sessions", flows, n)
		}
		// The frame is what a host would send, translated, with the right sums.
		l.put(0, flows-1)
		if _, err := l.judge(1); err != nil {
			t.Fatal(err)
		}
		ip := l.slots[0].Frame()[14:]
		if sum := csum.Checksum(csum.Sum(0, ip[:20])); sum != 0 || ip[8] != 63 || binary.BigEndian.Uint32(ip[12:])&^31 != 0xc0000200 {
			t.Errorf("the IP header is %x, its sum is off by %x", ip[:20], sum)
		}
		if sum := csum.Checksum(csum.Sum(csum.Pseudo4([4]byte(ip[12:16]), [4]byte(ip[16:20]), 17, len(ip)-20), ip[20:])); sum != 0 {
			t.Errorf("the UDP checksum is off by %x", sum)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	l, err := Open(64*pipeline.Burst, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 { // ports of the round before are free again
		if ns, err := l.Begin(nil); err != nil || ns <= 0 || l.sh.Sessions.Len() != 0 {
			t.Errorf("%v ns, %d sessions left: %v", ns, l.sh.Sessions.Len(), err)
		}
	}
}

// A packet that is not sent ends the measurement, with its reason.
func TestLoadSaysWhatIsNotSent(t *testing.T) {
	l, err := Open(64, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.frame[23] = 6 // TCP, which the list denies
	if _, err := l.Packets(64, nil); err == nil || l.slots[0].Verdict != verdict.Drop {
		t.Errorf("%v: %s", err, l.slots[0].Verdict)
	}
	for _, x := range [][2]int{{0, 1}, {1<<20 + 1, 1}, {1, 0}} {
		if _, err := Open(x[0], x[1]); err == nil {
			t.Errorf("%d flows and %d rules were taken", x[0], x[1])
		}
	}
	l.flows = 63
	if _, err := l.Begin(nil); err == nil {
		t.Error("63 flows are no bursts")
	}
}
