package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
)

func probeFlags(c *cobra.Command, r *api.ProbeRequest) {
	c.Flags().StringVar(&r.Interface, "interface", "", "from the gateway's address on this interface")
	c.Flags().StringVar(&r.Tenant, "tenant", "", "from the interface of this tenant that leads there; without either, from the backbone's")
}

func (a *app) pingCmd() *cobra.Command {
	var r api.ProbeRequest
	var interval, wait time.Duration
	c := command("ping ADDRESS", "ping from an interface of the gateway",
		"Send echo requests from an address of the gateway, as the backbone or a tenant's hosts see it, and print what comes back: answers and the\n"+
			"ICMP errors of routers on the way. The node sends and receives them itself; the host's stack has no part in it. IPv4 and IPv6.\n"+
			"Without -c until interrupted. Exit status 1 when there was no answer.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			r.Address, r.Interval, r.Timeout = args[0], interval.Seconds(), wait.Seconds()
			if r.Count < 0 {
				return usageError{fmt.Errorf("-c %d: want a number from 1", r.Count)}
			}
			return a.probe(cmd, api.PathPing, r, pingPrinter(r))
		})
	probeFlags(c, &r)
	c.Flags().IntVarP(&r.Count, "count", "c", 0, "so many requests")
	c.Flags().DurationVarP(&interval, "interval", "i", time.Second, "time between two requests")
	c.Flags().IntVarP(&r.Size, "size", "s", 56, "payload bytes")
	c.Flags().IntVarP(&r.TTL, "ttl", "t", 64, "hop limit")
	c.Flags().DurationVarP(&wait, "timeout", "W", time.Second, "time for an answer to the last request")
	c.Flags().BoolVar(&r.DF, "df", false, "IPv4: do not fragment on the way (IPv6 never is)")
	return a.data(c)
}

func (a *app) tracerouteCmd() *cobra.Command {
	var r api.ProbeRequest
	var wait time.Duration
	var icmp, udp bool
	var tcp int
	c := command("traceroute ADDRESS", "show the way to an address from an interface of the gateway",
		"Send packets with growing hop limits from an address of the gateway and print who answers: UDP to rising ports, echo requests with --icmp, or\n"+
			"TCP SYNs with --tcp PORT. Marks are those of traceroute(8): !H !N !P !X unreachable or prohibited, !F-1400 too big with the MTU. Exit\n"+
			"status 1 when nobody answered.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			r.Address, r.Timeout = args[0], wait.Seconds()
			byTCP := cmd.Flags().Changed("tcp")
			if icmp && udp || icmp && byTCP || udp && byTCP {
				return usageError{errors.New("--icmp, --udp and --tcp: choose one")}
			}
			if byTCP && (tcp < 1 || tcp > 65535) {
				return usageError{fmt.Errorf("--tcp %d: want a port", tcp)}
			}
			switch r.Proto = "udp"; {
			case icmp:
				r.Proto = "icmp"
			case byTCP:
				r.Proto, r.Port = "tcp", tcp
			}
			return a.probe(cmd, api.PathTrace, r, tracePrinter(r))
		})
	probeFlags(c, &r)
	c.Flags().BoolVarP(&icmp, "icmp", "I", false, "echo requests")
	c.Flags().BoolVarP(&udp, "udp", "U", false, "UDP, the default")
	c.Flags().IntVar(&tcp, "tcp", 0, "SYNs to this port")
	c.Flags().IntVarP(&r.MaxHops, "max-hops", "m", 30, "at most so many hops")
	c.Flags().IntVarP(&r.Queries, "queries", "q", 3, "packets a hop")
	c.Flags().IntVarP(&r.Size, "size", "s", 32, "payload bytes")
	c.Flags().DurationVarP(&wait, "timeout", "w", 2*time.Second, "time for an answer")
	return a.data(c)
}

// probe follows the node's events and prints them with one of the printers, or as lines of JSON.
func (a *app) probe(cmd *cobra.Command, path string, r api.ProbeRequest, human func(io.Writer, *api.ProbeEvent)) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	w, got := cmd.OutOrStdout(), 0
	say := func(e *api.ProbeEvent) error {
		if a.json {
			return json.NewEncoder(w).Encode(e)
		}
		human(w, e)
		return nil
	}
	var stats stats
	err = c.Probe(cmd.Context(), path, r, func(e *api.ProbeEvent) error {
		if e.Event == "reply" || e.Event == "probe" && e.From != "" {
			got++
		}
		stats.add(e)
		return say(e)
	})
	if err != nil {
		return err
	}
	if path == api.PathPing && cmd.Context().Err() != nil && !stats.began.IsZero() && !stats.over { // interrupted: the node cannot say how it ended
		if err := say(stats.end()); err != nil {
			return err
		}
	}
	if got == 0 {
		return errSilent
	}
	return nil
}

// stats are what ping prints at the end when it was interrupted.
type stats struct {
	began        time.Time
	over         bool // the node has said the end itself
	sum, squares float64
	e            api.ProbeEvent
}

func (s *stats) add(e *api.ProbeEvent) {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	s.e.Sent = max(s.e.Sent, e.Sent, e.Seq) // a node of a release before tells of answers alone
	switch {
	case e.Event == "sent":
		s.e.Remark = e.Remark
	case e.Event == "error":
		s.e.Errors++
	case e.Event == "reply" && !e.Dup:
		if s.e.Received == 0 || e.Ms < s.e.Min {
			s.e.Min = e.Ms
		}
		s.e.Max = max(s.e.Max, e.Ms)
		s.sum += e.Ms
		s.squares += e.Ms * e.Ms
		s.e.Received++
	case e.Event == "end":
		s.over = true
	}
}

func (s *stats) end() *api.ProbeEvent {
	e := s.e
	e.Event, e.Seconds = "end", time.Since(s.began).Seconds()
	if n := float64(e.Received); n > 0 {
		e.Avg = s.sum / n
		e.Mdev = math.Sqrt(max(0, s.squares/n-e.Avg*e.Avg))
	}
	if e.Received+e.Errors > 0 {
		e.Remark = ""
	}
	return &e
}

func pingPrinter(r api.ProbeRequest) func(io.Writer, *api.ProbeEvent) {
	return func(w io.Writer, e *api.ProbeEvent) {
		switch e.Event {
		case "start":
			fmt.Fprintf(w, "PING %s from %s on %s%s: %d bytes of data\n", r.Address, e.Source, clean(e.Interface), viaText(e.Via), r.Size)
		case "reply":
			dup := ""
			if e.Dup {
				dup = " (DUP!)"
			}
			fmt.Fprintf(w, "%d bytes from %s: icmp_seq=%d ttl=%d time=%s ms%s\n", e.Bytes, e.From, e.Seq, e.TTL, millis(e.Ms), dup)
		case "error":
			fmt.Fprintf(w, "From %s icmp_seq=%d %s\n", e.From, e.Seq, e.Error)
		case "end":
			fmt.Fprintf(w, "\n--- %s ping statistics ---\n%d packets transmitted, %d received", r.Address, e.Sent, e.Received)
			if e.Errors > 0 {
				fmt.Fprintf(w, ", +%d errors", e.Errors)
			}
			loss := 0.
			if e.Sent > 0 {
				loss = 100 * float64(e.Sent-e.Received) / float64(e.Sent)
			}
			fmt.Fprintf(w, ", %.4g%% packet loss, time %.0fms\n", loss, e.Seconds*1000)
			if e.Received > 0 {
				fmt.Fprintf(w, "rtt min/avg/max/mdev = %.3f/%.3f/%.3f/%.3f ms\n", e.Min, e.Avg, e.Max, e.Mdev)
			}
			if e.Remark != "" {
				fmt.Fprintln(w, e.Remark)
			}
		}
	}
}

func viaText(via string) string {
	if via == "" {
		return ""
	}
	return " via " + via
}

// millis prints as ping does: three digits that matter.
func millis(ms float64) string {
	switch {
	case ms < 1:
		return fmt.Sprintf("%.3f", ms)
	case ms < 10:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

func tracePrinter(r api.ProbeRequest) func(io.Writer, *api.ProbeEvent) {
	hop, from := 0, ""
	return func(w io.Writer, e *api.ProbeEvent) {
		switch e.Event {
		case "start":
			fmt.Fprintf(w, "traceroute to %s from %s on %s%s, %d hops max, %s", r.Address, e.Source, clean(e.Interface), viaText(e.Via), r.MaxHops, r.Proto)
		case "probe":
			if e.Hop != hop {
				fmt.Fprintf(w, "\n%2d ", e.Hop)
				hop, from = e.Hop, ""
			}
			if e.From == "" {
				fmt.Fprint(w, " *")
				return
			}
			if e.From != from {
				fmt.Fprintf(w, " %s", e.From)
				from = e.From
			}
			fmt.Fprintf(w, "  %.3f ms", e.Ms)
			if e.Mark != "" {
				fmt.Fprintf(w, " %s", e.Mark)
			}
		case "end":
			fmt.Fprintln(w)
			if e.Remark != "" {
				fmt.Fprintln(w, e.Remark)
			}
		}
	}
}
