package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/packet/badpackets"
	"demarc/gateway/verdict"
)

// Every bad packet of the collection, raw on the wire, from a tenant's host and from the backbone: each that is bad for certain is counted
// under its reason, nothing of it comes out anywhere and nothing answers it; the rest does no harm. Good traffic loses nothing meanwhile.
func TestLinkBadPacketsOnTheWire(t *testing.T) {
	s := standard(t, netlab.Options{})
	s.write(read(t, s.node), unlimited(t, read(t, s.policy)))
	s.start()
	s.serve(s.Public1.Name, "udp-echo", "-addr", ":7007")
	var p host.Ping
	s.run(s.Alpha1.Name, &p, "ping", "-dst", s.Public1.V4.String(), "-count", "2", "-interval", "10ms")

	macs := map[string]net.HardwareAddr{}
	for _, dev := range []string{netlab.AlphaPort, netlab.BetaPort, netlab.PublicPort} {
		m, err := s.MAC(netlab.GW, dev)
		check(t, err)
		macs[dev] = m
	}
	// What the gateway sends on any of its ports, but for the good stream and neighbour resolution, came from a bad packet.
	var strict atomic.Bool
	var leaked atomic.Int64
	var mu sync.Mutex
	var first []string
	now := "" // the case on the wire; under mu
	for sw, dev := range map[string]string{"sw-alpha": netlab.AlphaPort, "sw-beta": netlab.BetaPort, "sw-public": netlab.PublicPort} {
		s.capture(sw, "gw-"+dev, 0, func(f []byte) bool {
			if !strict.Load() || !bytes.Equal(f[6:12], macs[dev]) || bytes.Contains(f, host.ProbeMarker("good")) || binary.BigEndian.Uint16(f[12:]) == 0x0806 ||
				binary.BigEndian.Uint16(f[12:]) == 0x86dd && len(f) > 54 && f[20] == 58 && f[54] >= 133 && f[54] <= 137 || f[0]&1 == 1 {
				return false
			}
			leaked.Add(1)
			mu.Lock()
			if len(first) < 5 {
				first = append(first, fmt.Sprintf("%s, out of %s: % x", now, dev, f[:min(len(f), 80)]))
			}
			mu.Unlock()
			return false
		})
	}

	stop, done := make(chan struct{}), make(chan struct{})
	good := uint64(0)
	go func() { // the good stream, in pieces so that each is judged whole
		defer close(done)
		for {
			var g host.Probe
			s.runAny(s.Alpha1.Name, &g, "udp-probe", "-dst", "203.0.113.11:7007", "-tag", "good", "-pps", "500", "-duration", "1s")
			if g.Received != g.Sent || g.Sent == 0 || g.Duplicate+g.Foreign > 0 {
				t.Errorf("the good stream: %+v", g)
			}
			good += g.Received
			select {
			case <-stop:
				return
			default:
			}
		}
	}()

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	// Random damage makes the sender of an ARP message another host now and then (one run of some hundred). Who hears that sends what is for the other host to this one, as any router does: such are left out, of the ends of the good stream.
	claims := func(f []byte) bool {
		return len(f) >= 32 && f[12] == 8 && f[13] == 6 && (bytes.Equal(f[28:32], s.Alpha1.V4.AsSlice()) || bytes.Equal(f[28:32], s.Public1.V4.AsSlice()))
	}
	var rest []func() // sends what is not judged, behind all that is: an answer to it that comes late would be taken for one to what is
	// side sends from the far end of a port, past the switch, which would not pass everything on. Those that are bad for certain go in lots
	// of one reason.
	side := func(name, ns, dev, sw string, lot int, e badpackets.Ends) {
		own, err := s.MAC(ns, netlab.HostDevice)
		check(t, err)
		e.SrcMAC, e.DstMAC = [6]byte(own), [6]byte(macs[dev])
		send := s.rawFrames(sw, "gw-"+dev)
		got := func() map[string]uint64 {
			var d api.Drops
			check(t, s.client.Get(t.Context(), api.PathDrops, &d))
			return d.ByReason
		}
		var judged, unsendable int
		var harmless []badpackets.Case
		byReason := map[string][]badpackets.Case{}
		for _, c := range badpackets.AllFor(seed, e) {
			switch {
			case len(c.Frame) < 14 || len(c.Frame) > 1518: // no driver sends these
				unsendable++
			case c.Want == verdict.Unset && claims(c.Frame):
			case c.Want == verdict.Unset || c.Want == verdict.Pass:
				harmless = append(harmless, c)
			default:
				byReason[c.Want.String()] = append(byReason[c.Want.String()], c)
			}
		}
		strict.Store(true)
		failed, patience := 0, 5*time.Second // a machine is elsewhere for a second now and then
		for want, all := range byReason {
			for cases := range slices.Chunk(all, lot) {
				mu.Lock()
				now = name + ": " + cases[0].Name
				mu.Unlock()
				before := got()
				for _, c := range cases {
					check(t, send(c.Frame))
					judged++
				}
				var after map[string]uint64
				if !until(patience, func() bool { after = got(); return after[want] >= before[want]+uint64(len(cases)) }) {
					patience = time.Second // it has failed: the rest is for whoever looks why
					how := ""
					for k, n := range after {
						if n > before[k] {
							how += fmt.Sprintf(" %s %d", k, n-before[k])
						}
					}
					if failed++; failed < 10 {
						t.Errorf("%s: %d from %s to %s: counted as:%s, want %s", name, len(cases), cases[0].Name, cases[len(cases)-1].Name, how, want)
					}
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
		strict.Store(false)
		if judged < 2000 {
			t.Errorf("%s: only %d cases", name, judged)
		}
		rest = append(rest, func() {
			for i, c := range harmless {
				check(t, send(c.Frame))
				if i%64 == 63 {
					time.Sleep(2 * time.Millisecond)
				}
			}
			time.Sleep(50 * time.Millisecond)
			t.Logf("%s: %d judged, %d sent besides, %d that no driver sends", name, judged, len(harmless), unsendable)
			s.healthy(s.status())
		})
	}
	side("from a tenant", s.Alpha2.Name, netlab.AlphaPort, "sw-alpha", 1, badpackets.Ends{Src4: s.Alpha2.V4.As4(), Dst4: s.Public2.V4.As4(), Src6: s.Alpha2.V6.As16(), Dst6: s.Public2.V6.As16()})
	side("from the backbone", s.Public2.Name, netlab.PublicPort, "sw-public", 32, badpackets.Ends{Src4: s.Public2.V4.As4(), Dst4: addr("192.0.2.16").As4(), Src6: s.Public2.V6.As16(), Dst6: s.Alpha2.V6.As16()})
	side("to the gateway itself", s.Public2.Name, netlab.PublicPort, "sw-public", 32, badpackets.Ends{Src4: s.Public2.V4.As4(), Dst4: addr(netlab.PublicGW4).As4(), Src6: s.Public2.V6.As16(), Dst6: addr(netlab.PublicGW6).As16()})
	for _, send := range rest {
		send()
	}
	close(stop)
	<-done
	if n := leaked.Load(); n > 0 {
		t.Errorf("%d frames came out that bad packets had caused; the first:", n)
		for _, f := range first {
			t.Error(f)
		}
	}
	t.Logf("good stream: %d packets, none lost; drops: %v", good, drops(&api.Status{}, s.status()))
	s.stop()
}
