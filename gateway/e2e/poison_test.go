package e2e

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// Frames that make a stage of the running gateway panic, each of a flow of its own: they cost themselves, and for a minute their source. Nobody beside
// it loses a packet, the log has one stack, and the gateway goes on and ends well.
func TestPoisonIsContained(t *testing.T) {
	never(t) // a program knows of no stage that is broken for a test
	s := standard(t, netlab.Options{})
	s.start("--break", "poison") // what tenants send to 203.0.113.66 panics
	before := s.status()
	mac, err := s.MAC(netlab.GW, netlab.AlphaPort)
	check(t, err)
	own, err := s.MAC(s.Alpha2.Name, netlab.HostDevice)
	check(t, err)
	send := s.rawFrames(s.Alpha2.Name, netlab.HostDevice)
	var beside, tenant host.Ping
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.runAny(s.Alpha1.Name, &beside, "ping", "-dst", s.Public1.V4.String(), "-count", "40", "-interval", "20ms")
	}()
	s2 := make(chan struct{})
	go func() {
		defer close(s2)
		s.runAny(s.Beta1.Name, &tenant, "ping", "-dst", s.Public1.V4.String(), "-count", "40", "-interval", "20ms")
	}()
	const frames, burst = 2000, 250
	for i := range frames {
		check(t, send(raw4(mac, own, s.Alpha2.V4, addr("203.0.113.66"), 17, 64, false, udp(uint16(2000+i), 9, []byte("poison")), 6)))
		if i%burst == burst-1 { // a port has some 1,300 frames to receive into: more would be lost, the pings too, where its worker has no processor for the few milliseconds that this takes
			until(5*time.Second, func() bool {
				d := drops(before, s.status())
				return d["internal_error"]+d["flow_blocked"] >= uint64(i+1)
			})
		}
	}
	<-done
	<-s2
	st := s.status()
	d := drops(before, st)
	if d["internal_error"] != 16 || d["flow_blocked"] != frames-16 || st.Workers[0].Panics != 16 || st.Workers[0].BlockedFlows != 17 {
		t.Errorf("%d poison frames: %v, %d panics, %d blocked; want 16 internal errors and the rest blocked, 16 flows and their source", frames, d, st.Workers[0].Panics, st.Workers[0].BlockedFlows)
	}
	for name, p := range map[string]*host.Ping{"another host of the tenant": &beside, "another tenant": &tenant} {
		if p.Sent != 40 || p.Received != 40 {
			t.Errorf("%s: %d of %d answers", name, p.Received, p.Sent)
		}
	}
	if !st.Ready || !st.Conservation.OK {
		t.Errorf("ready %v, frames: %s", st.Ready, st.Conservation.Detail)
	}
	log, err := os.ReadFile(s.gw.log)
	check(t, err)
	if n := bytes.Count(log, []byte("pipeline panic contained")); n != 1 {
		t.Errorf("%d lines in the log for 16 panics, want 1:\n%s", n, log)
	}
	if line := string(log); !strings.Contains(line, "openOut") || !strings.Contains(line, "dst=203.0.113.66") {
		t.Errorf("the log names neither the stage nor the flow:\n%s", line)
	}
	if err := s.end(s.gw, unix.SIGTERM); err != nil { // by hand: healthy would count the panics
		t.Errorf("the gateway did not end well: %v", err)
	}
}
