package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
)

// followLimit is how many sessions --follow looks at when it is not told. A node lists fewer for a tenant.
const followLimit = 100_000

func (a *app) sessionsCmd() *cobra.Command {
	var f api.SessionFilter
	var follow bool
	var every time.Duration
	var by string
	c := command("sessions", "list live sessions, as they enter and as they leave",
		"List the node's live sessions: the conversation as its first packet entered, and as it left. With --follow, print those that begin (+)\n"+
			"and end (-) from now on; what begins and ends between two looks is not seen.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if f.Limit < 0 {
				return usageError{fmt.Errorf("--limit %d: want a number from 1", f.Limit)}
			}
			if err := f.Check(); err != nil {
				return usageError{err}
			}
			switch {
			case by != "" && by != "bytes":
				return usageError{fmt.Errorf("--sort %q: want bytes", by)}
			case by != "" && follow:
				return usageError{errors.New("--sort is for a list, not for --follow")}
			}
			if follow {
				if every < 100*time.Millisecond {
					return usageError{errors.New("--interval is below 100ms")}
				}
				if f.Limit == 0 {
					f.Limit = followLimit
				}
				return a.follow(cmd, f, every)
			}
			most := cmp.Or(f.Limit, 1000)
			if by != "" { // the most of the first thousand in the table would be the most of nothing
				f.Limit = max(f.Limit, followLimit)
			}
			var s api.Sessions
			if err := a.ask(func(c *api.Client) error { return c.Get(cmd.Context(), sessionsPath(f), &s) }); err != nil {
				return err
			}
			if by != "" {
				slices.SortStableFunc(s.Sessions, func(x, y api.Session) int { return cmp.Compare(allBytes(&y), allBytes(&x)) })
			}
			return show(a, cmd, &s, func(w io.Writer, s *api.Sessions) {
				shown, only := s.Sessions, ""
				if by != "" {
					if s.Truncated {
						only = fmt.Sprintf("; sorted are the %d that were read", len(shown))
					}
					shown = shown[:min(len(shown), most)]
				}
				if len(shown) > 0 {
					writeSessions(w, shown, by != "")
				}
				fmt.Fprintf(w, "%d shown, %d matched, %d live%s%s\n", len(shown), s.Matched, s.Total, fewer(s, f.Limit), only)
			})
		})
	filterFlags(c, &f)
	c.AddCommand(a.cutCmd())
	c.Flags().IntVar(&f.Limit, "limit", 0, "at most so many (1000)")
	c.Flags().StringVar(&by, "sort", "", "the most `bytes` of both directions first, of the first 100000 that match; --limit of them are shown")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "print what begins and ends until interrupted")
	c.Flags().DurationVar(&every, "interval", time.Second, "time between two looks of --follow")
	return a.data(c)
}

func sessionsPath(f api.SessionFilter) string {
	q := url.Values{}
	set := func(k, v string) {
		if v != "" && v != "0" {
			q.Set(k, v)
		}
	}
	set("tenant", f.Tenant)
	set("address", f.Address)
	set("port", strconv.Itoa(f.Port))
	set("proto", f.Proto)
	set("limit", strconv.Itoa(f.Limit))
	if len(q) == 0 {
		return api.PathSessions
	}
	return api.PathSessions + "?" + q.Encode()
}

// fewer says that the node has listed fewer sessions than it was asked for although more match.
func fewer(s *api.Sessions, limit int) string {
	if !s.Truncated || len(s.Sessions) >= cmp.Or(limit, 1000) {
		return ""
	}
	return "; no more are listed at a time: say which with --tenant, --address, --port or --proto"
}

// writeSessions prints a table. Their class is told where one of them has another one than the usual.
func writeSessions(w io.Writer, list []api.Session, bytes bool) {
	classes := slices.ContainsFunc(list, func(s api.Session) bool { return s.Class != "" })
	const behindProto, behindBack = 3, 10
	heads := []string{"TENANT", "FROM", "PROTO", "STATE", "SOURCE", "DESTINATION", "LEAVES AS", "RULE", "OUTWARD", "BACK", "IDLE", "EXPIRES", "BY"}
	if bytes {
		heads = slices.Insert(heads, behindBack, "BYTES")
	}
	if classes {
		heads = slices.Insert(heads, behindProto, "CLASS")
	}
	t := newTable(w, heads...)
	for i := range list {
		s := &list[i]
		row := []any{s.Tenant, s.From, s.Proto, s.State, s.Src, s.Dst, leaves(s), ruleName(s), s.Orig.Packets, s.Reply.Packets, seconds(s.Idle), expires(s), carriedBy(s)}
		if bytes {
			row = slices.Insert(row, behindBack, any(scaled(float64(allBytes(s)))))
		}
		if classes {
			row = slices.Insert(row, behindProto, any(s.Class))
		}
		t.row(row...)
	}
	t.flush()
}

// allBytes are those of both directions.
func allBytes(s *api.Session) uint64 { return s.Orig.Bytes + s.Reply.Bytes }

// expires is when the session ends if nothing more is seen; a copy does not, before the node ends it that serves it.
func expires(s *api.Session) string {
	if s.Copy {
		return "copy"
	}
	return seconds(s.Expires)
}

// carriedBy says who carries packets of the session.
func carriedBy(s *api.Session) string {
	if s.Cruising {
		return "xdp"
	}
	return "worker " + strconv.Itoa(s.Worker)
}

// leaves is what NAT made of the session, "" when nothing.
func leaves(s *api.Session) string {
	switch {
	case !s.NAT, s.XlatSrc == s.Src && s.XlatDst == s.Dst:
		return ""
	case s.XlatDst == s.Dst:
		return s.XlatSrc
	case s.XlatSrc == s.Src:
		return "to " + s.XlatDst
	}
	return s.XlatSrc + " to " + s.XlatDst
}

func ruleName(s *api.Session) string {
	switch {
	case s.Rule < 0:
		return "default"
	case s.RuleName != "":
		return s.RuleName
	}
	return strconv.Itoa(s.Rule + 1)
}

// sessionID names a session for as long as the node's process runs.
type sessionID struct {
	worker    int
	slot, gen uint32
}

// event is a line of sessions --follow --json.
type event struct {
	Event   string      `json:"event"` // "new", "ended"
	Session api.Session `json:"session"`
}

// follow prints what changes between looks. While more match than the limit, ends are not told, since a session that is not in the list
// may only have been pushed out of it.
func (a *app) follow(cmd *cobra.Command, f api.SessionFilter, every time.Duration) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	var known map[sessionID]api.Session
	told := false
	for {
		var s api.Sessions
		if err := c.Get(cmd.Context(), sessionsPath(f), &s); err != nil {
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		}
		if s.Truncated && !told {
			told = true
			fmt.Fprintf(cmd.ErrOrStderr(), "demarc: %d sessions match, more than the %d that are listed at a time: not all are followed\n", s.Matched, len(s.Sessions))
		}
		now := make(map[sessionID]api.Session, len(s.Sessions))
		for _, x := range s.Sessions {
			id := sessionID{x.Worker, x.Slot, x.Gen}
			now[id] = x
			if _, ok := known[id]; !ok && known != nil {
				if err := a.event(cmd, "new", x); err != nil {
					return err
				}
			}
		}
		var gone []sessionID
		for id := range known {
			if _, ok := now[id]; !ok {
				gone = append(gone, id)
			}
		}
		slices.SortFunc(gone, func(x, y sessionID) int {
			if x.worker != y.worker {
				return x.worker - y.worker
			}
			return int(int64(x.slot) - int64(y.slot))
		})
		for _, id := range gone {
			if s.Truncated {
				now[id] = known[id]
				continue
			}
			if err := a.event(cmd, "ended", known[id]); err != nil {
				return err
			}
		}
		known = now
		if !sleep(cmd.Context(), every) {
			return nil
		}
	}
}

func (a *app) event(cmd *cobra.Command, what string, s api.Session) error {
	w := cmd.OutOrStdout()
	if a.json {
		return json.NewEncoder(w).Encode(event{what, s})
	}
	sign := "+"
	if what == "ended" {
		sign = "-"
	}
	as := leaves(&s)
	switch {
	case strings.HasPrefix(as, "to "):
		as = " " + as
	case as != "":
		as = " as " + as
	}
	_, err := fmt.Fprintf(w, "%s %s %s %s %s -> %s%s by %s, %d/%d packets\n", sign, clean(s.Tenant), s.Proto, s.State, s.Src, s.Dst, as, clean(ruleName(&s)),
		s.Orig.Packets, s.Reply.Packets)
	return err
}

func (a *app) dropsCmd() *cobra.Command {
	var all bool
	var r api.DroppedRequest
	c := command("drops", "say what was dropped: by reason, tenant, port and rule",
		"Print how many packets were dropped since the start: by reason, by tenant, by the XDP program of each port, and by deny rule. With --follow or\n"+
			"--last, print dropped packets one by one with their first bytes: the node always keeps the last few thousand, but for those that the XDP\n"+
			"program dropped, and in a flood a part of each kind.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			switch live := r.Follow || cmd.Flags().Changed("last"); {
			case live && all:
				return usageError{errors.New("--all is for the counts, not for --follow and --last")}
			case r.Last < 0:
				return usageError{fmt.Errorf("--last %d: want a number from 1", r.Last)}
			case live:
				return a.dropsLive(cmd, r)
			case r.PacketFilter != api.PacketFilter{}:
				return usageError{errors.New("a filter is for --follow and --last: without them all counts are printed, those of each tenant too")}
			}
			return get(a, cmd, api.PathDrops, func(w io.Writer, d *api.Drops) { writeDrops(w, d, all) })
		})
	c.Flags().BoolVar(&all, "all", false, "also reasons that never happened")
	c.Flags().BoolVarP(&r.Follow, "follow", "f", false, "print what is dropped from now on, until interrupted")
	c.Flags().IntVar(&r.Last, "last", 0, "print so many of the last ones first")
	packetFlags(c, &r.PacketFilter)
	return a.data(c)
}

func writeDrops(w io.Writer, d *api.Drops, all bool) {
	fmt.Fprintf(w, "%s dropped\n", plural(int(d.Total), "packet"))
	if d.Total > 0 || all {
		writeReasons(w, d.ByReason, all)
	}
	part := func(what string, m map[string]map[string]uint64) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(w, "\n%s %s: %s\n", what, clean(name), plural(int(sum(m[name])), "packet"))
			writeReasons(w, m[name], false)
		}
	}
	part("tenant", d.ByTenant)
	part("port", d.ByPort)
	if len(d.ByBlock) > 0 {
		fmt.Fprintln(w, "\nblocked addresses:")
		writeBlocks(w, d.ByBlock)
	}
	if len(d.ByRule) > 0 {
		fmt.Fprintln(w, "\nnew sessions refused by rule:")
		writeRules(w, d.ByRule)
	}
}

func (a *app) routesCmd() *cobra.Command {
	return a.data(command("routes", "list the routes of the backbone and of each tenant", "List the routes that the node serves. A route with several next hops has a line for each; conversations are shared among those\n"+
		"that are up, and go from one that dies to the others. A backup has them while none of the others is up. TAKES says where new ones go now.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return get(a, cmd, api.PathRoutes, func(w io.Writer, r *api.Routes) {
				t := newTable(w, "ZONE", "PREFIX", "KIND", "VIA", "INTERFACE", "RESOLVED", "TAKES", "STATE")
				for _, x := range r.Routes {
					if len(x.Hops) == 0 {
						t.row(x.Zone, x.Prefix, x.Kind, x.Via, x.Interface, yes(x.Resolved), "", "")
					}
					for _, h := range x.Hops {
						state := h.State
						if h.Backup {
							state = "backup, " + state
						}
						if h.Since > 0 {
							state += " for " + seconds(h.Since)
						}
						t.row(x.Zone, x.Prefix, x.Kind, h.Via, h.Interface, yes(h.Resolved), yes(h.Takes), state)
					}
				}
				t.flush()
			})
		}))
}

func (a *app) neighboursCmd() *cobra.Command {
	c := a.data(command("neighbours", "list next hops and their MAC addresses", "List the next hops that the node knows or is asking for.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return get(a, cmd, api.PathNeighbours, func(w io.Writer, n *api.Neighbours) {
				t := newTable(w, "INTERFACE", "ADDRESS", "MAC", "STATE", "AGE", "IN USE", "WAITING")
				for _, x := range n.Neighbours {
					t.row(x.Interface, x.Address, x.MAC, x.State, seconds(x.Age), yes(x.Used), x.Waiting)
				}
				t.flush()
			})
		}))
	c.Aliases = []string{"neighbors"}
	return c
}

func (a *app) portsCmd() *cobra.Command {
	return a.data(command("ports", "list ports, their queues and modes, and interfaces",
		"List network devices, their queues with the real AF_XDP mode, and the interfaces on them with the side that each faces.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return get(a, cmd, api.PathPorts, writePorts)
		}))
}

func writePorts(w io.Writer, p *api.Ports) {
	t := newTable(w, "PORT", "DEVICE", "MAC", "MTU", "DRIVER", "XDP", "TO HOST", "XDP DROPPED")
	for i := range p.Ports {
		x := &p.Ports[i]
		t.row(x.Name, x.Device, x.MAC, x.MTU, x.Driver, x.Attach, x.XDPToHost, x.XDPDropped)
	}
	t.flush()
	fmt.Fprintln(w)
	writeQueues(w, p.Ports)
	writeSettings(w, p.Ports)
	fmt.Fprintln(w)
	t = newTable(w, "INTERFACE", "PORT", "VLAN", "FACES", "MTU", "ADDRESSES")
	for i := range p.Interfaces {
		x := &p.Interfaces[i]
		vlan := ""
		if x.VLAN > 0 {
			vlan = strconv.Itoa(x.VLAN)
		}
		t.row(x.Name, x.Port, vlan, x.Faces, x.MTU, strings.Join(x.Addresses, " "))
	}
	t.flush()
}
