package trio

import (
	"context"
	"errors"
	"fmt"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// Stream is paced traffic through a gateway, from its host inside to its host outside and back, every packet with a sequence number, on several sessions.
type Stream struct {
	Node   *Node
	cancel context.CancelFunc
	echo   *netlab.Server
	probes []host.Probe
	done   []chan error
}

// longest is more than any stream lasts: it ends when it is told to.
const longest = "1h"

const warmTag = "warm"

// Stream begins traffic on so many sessions, pps packets a second on each.
func (n *Node) Stream(ctx context.Context, sessions, pps int) (s *Stream, err error) {
	s = &Stream{Node: n, probes: make([]host.Probe, sessions)}
	if s.echo, err = n.t.Serve(n.Name+"out", "udp-echo", "-addr", fmt.Sprintf(":%d", EchoPort)); err != nil {
		return nil, err
	}
	// The first packets wait for the neighbours on both sides, and few may: what is counted begins when they are known.
	warm := host.Probe{}
	for try := 0; warm.Received == 0; try++ {
		if try == 5 {
			return nil, errors.Join(fmt.Errorf("nothing comes back through %s", n.Name), s.echo.Stop(nil))
		}
		if err := n.t.Run(ctx, n.Name+"in", &warm, "udp-probe", "-dst", fmt.Sprintf("%s:%d", Outside, EchoPort), "-pps", "20", "-duration", "50ms", "-wait", "1s", "-tag", warmTag); err != nil {
			return nil, errors.Join(err, s.echo.Stop(nil))
		}
	}
	ctx, s.cancel = context.WithCancel(ctx)
	for i := range s.probes {
		done := make(chan error, 1)
		s.done = append(s.done, done)
		go func() {
			done <- n.t.Run(ctx, n.Name+"in", &s.probes[i], "udp-probe", "-dst", fmt.Sprintf("%s:%d", Outside, EchoPort), "-pps", fmt.Sprint(pps), "-duration", longest,
				"-tag", fmt.Sprintf("%s-%d", n.Name, i), "-wait", "1s")
		}()
	}
	return s, nil
}

// Passed is what came of a stream.
type Passed struct {
	Sent, Back, There uint64        // packets; Back are those that came back, There those that the host outside saw
	Longest           time.Duration // between two that came back on one session
}

// Lost is how many did not come back.
func (p *Passed) Lost() uint64 { return p.Sent - min(p.Sent, p.Back) }

// End ends a stream and says what came of it.
func (s *Stream) End() (p Passed, err error) {
	s.cancel()
	var errs []error
	for i, done := range s.done {
		errs = append(errs, <-done)
		r := &s.probes[i]
		p.Sent, p.Back = p.Sent+r.Sent, p.Back+r.Received
		p.Longest = max(p.Longest, time.Duration(r.LongestMs*float64(time.Millisecond)))
		if r.Duplicate+r.Foreign > 0 {
			errs = append(errs, fmt.Errorf("%s: %d packets came twice, %d were not its own", r.Tag, r.Duplicate, r.Foreign))
		}
	}
	var e host.Echo
	errs = append(errs, s.echo.Stop(&e))
	for tag, t := range e.Tags {
		if tag != warmTag {
			p.There += t.Packets
		}
	}
	return p, errors.Join(errs...)
}
