package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
	"demarc/gateway/trace"
)

func packetFlags(c *cobra.Command, f *api.PacketFilter) {
	filterFlags(c, &f.SessionFilter)
	c.Flags().StringVar(&f.Reason, "reason", "", "dropped for this reason")
}

func (a *app) explainCmd() *cobra.Command {
	var r api.ExplainRequest
	var frame, pcap string
	var record int
	c := command("explain", "say what would become of a packet now, and why",
		"Describe a packet; the node runs its real pipeline on it, in the state that it is in now, and prints what each stage decides. Nothing is left\n"+
			"behind: no session, port, count or log line. Exit status 0 also where the packet would be dropped.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			n := 0
			for _, given := range []bool{frame != "", pcap != "", r.Proto != "" || r.From != "" || r.To != ""} {
				if given {
					n++
				}
			}
			switch {
			case n != 1:
				return usageError{errors.New("describe the packet one way: --proto, --from and --to, or --frame, or --pcap")}
			case r.Tenant == "" && r.Interface == "":
				return usageError{errors.New("say where it comes in: --tenant or --interface")}
			case r.Tenant != "" && r.Interface != "":
				return usageError{errors.New("--tenant and --interface: one of them")}
			case r.Proto != "" && (r.From == "" || r.To == ""), n == 1 && frame == "" && pcap == "" && r.Proto == "":
				return usageError{errors.New("a packet has --proto, --from and --to")}
			}
			var err error
			if frame != "" {
				if r.Frame, err = hex.DecodeString(strings.NewReplacer(" ", "", ":", "", "\n", "", "0x", "").Replace(frame)); err != nil || len(r.Frame) == 0 {
					return usageError{fmt.Errorf("--frame: want the bytes in hex from the destination MAC on")}
				}
			}
			if pcap != "" {
				if r.Frame, err = readRecord(pcap, record); err != nil {
					return err
				}
			}
			var x api.Explanation
			if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathExplain, &r, &x) }); err != nil {
				return err
			}
			return show(a, cmd, &x, writeExplanation)
		})
	fl := c.Flags()
	fl.StringVar(&r.Tenant, "tenant", "", "comes from this tenant")
	fl.StringVar(&r.Interface, "interface", "", "comes in by this interface (also one of the backbone)")
	fl.StringVar(&r.Proto, "proto", "", "tcp, udp, icmp, icmpv6 or a number")
	fl.StringVar(&r.From, "from", "", "address:port, or address; of an icmp query the port is its identifier")
	fl.StringVar(&r.To, "to", "", "address:port, or address")
	fl.StringVar(&r.Flags, "flags", "", "of TCP, with commas (syn)")
	fl.Uint32Var(&r.Seq, "seq", 0, "of TCP (without it and --ack, and without syn: the next of the session)")
	fl.Uint32Var(&r.Ack, "ack", 0, "of TCP")
	fl.IntVar(&r.TTL, "ttl", 0, "hop limit (64)")
	fl.IntVar(&r.Len, "len", 0, "bytes of the IP packet (no payload)")
	fl.IntVar(&r.DSCP, "dscp", 0, "class, 0 to 63")
	fl.BoolVar(&r.DF, "df", false, "may not be fragmented")
	fl.StringVar(&r.ICMP, "icmp", "", "type, or type/code (echo request)")
	fl.StringVar(&r.Quote, "quote", "", "of an icmp error: proto,from,to of the packet that it is about")
	fl.StringVar(&r.MAC, "mac", "", "destination MAC (the interface's)")
	fl.StringVar(&frame, "frame", "", "the whole frame in hex, instead")
	fl.StringVar(&pcap, "pcap", "", "a frame of this pcap or pcapng file, instead")
	fl.IntVar(&record, "record", 1, "which one of --pcap, from 1")
	return a.data(c)
}

func writeExplanation(w io.Writer, x *api.Explanation) {
	for i := range x.Passes {
		p := &x.Passes[i]
		if len(x.Passes) > 1 {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "pass %d, worker %d\n", i+1, p.Worker)
		}
		in := "not IP"
		if p.In.Proto != "" {
			in = p.In.Proto + " " + p.In.Src + " > " + p.In.Dst
		}
		fmt.Fprintf(w, "%s, %d bytes\n", in, p.Length)
		writeSteps(w, p.Steps, "  ")
	}
	if x.Help != "" {
		fmt.Fprintf(w, "\nwhat helps: %s\n", clean(x.Help))
	}
}

// cutShort is why a stream has ended before its time, where that is what a line says.
func cutShort(l *api.StreamLine) error {
	if l.End != nil && l.End.Failed {
		return errors.New(l.End.Why)
	}
	return nil
}

func writeSteps(w io.Writer, steps []api.Step, indent string) {
	wide := 0
	for _, s := range steps {
		wide = max(wide, len(s.Stage))
	}
	for _, s := range steps {
		fmt.Fprintf(w, "%s%-*s  %-4s  %s\n", indent, wide, s.Stage, s.Result, clean(s.Text))
	}
}

// stream prints the lines of a stream until it ends or the user ends it, then what was lost. Each line is for fn, or JSON.
func (a *app) stream(cmd *cobra.Command, ctx context.Context, path string, req any, fn func(l *api.StreamLine) error) error {
	ended, lines := false, 0
	err := a.ask(func(c *api.Client) error {
		return c.Stream(ctx, path, req, func(l *api.StreamLine) error {
			if l.Begin == nil && l.End == nil {
				lines++
			}
			if e := l.End; e != nil {
				ended = true
				if !a.json {
					fmt.Fprintf(cmd.ErrOrStderr(), "demarc: %s, %d matched, %d lost (%s)\n", plural(int(e.Sent), "line"), e.Matched, e.Lost, e.Why)
				}
			}
			var err error
			if a.json {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(l)
			} else {
				err = fn(l)
			}
			return errors.Join(err, cutShort(l))
		})
	})
	if err == nil && !ended && ctx.Err() == nil {
		return errors.New("the node has ended the stream before its time")
	}
	return err
}

func (a *app) traceCmd() *cobra.Command {
	var r api.TraceRequest
	var d time.Duration
	c := command("trace", "follow live packets through the stages",
		"Print the live packets that match, with what each stage decided, until so many, or so long, or interrupted. Packets never wait for it: what\n"+
			"cannot be read in time is lost and counted.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if err := r.Check(); err != nil {
				return usageError{err}
			}
			if d < 0 {
				return usageError{fmt.Errorf("--duration %s: want a time from now on", d)}
			}
			r.Seconds = d.Seconds()
			return a.stream(cmd, cmd.Context(), api.PathFollow, &r, func(l *api.StreamLine) error {
				if l.Packet == nil {
					return nil
				}
				var b bytes.Buffer
				p := l.Packet
				fmt.Fprintf(&b, "%s worker %d %s %s %s > %s, %d bytes\n", stamp(p.Time, 6), p.Worker, clean(orDash(p.Tenant)), orDash(p.In.Proto), p.In.Src, p.In.Dst, p.Length)
				writeSteps(&b, p.Steps, "  ")
				_, err := cmd.OutOrStdout().Write(b.Bytes())
				return err
			})
		})
	packetFlags(c, &r.PacketFilter)
	c.Flags().StringVar(&r.Rule, "rule", "", "of conversations that this rule of the tenant decided")
	c.Flags().Uint64Var(&r.Count, "count", 0, "end after so many")
	c.Flags().Uint32Var(&r.Every, "sample", 1, "one in so many of those that match")
	c.Flags().DurationVar(&d, "duration", 0, "end after this time")
	return a.data(c)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// dropsLive is drops with --follow or --last.
func (a *app) dropsLive(cmd *cobra.Command, r api.DroppedRequest) error {
	if err := r.Check(); err != nil {
		return usageError{err}
	}
	return a.stream(cmd, cmd.Context(), api.PathDropped, &r, func(l *api.StreamLine) error {
		if l.Dropped == nil {
			return nil
		}
		var b bytes.Buffer
		writeDropped(&b, l.Dropped)
		_, err := cmd.OutOrStdout().Write(b.Bytes())
		return err
	})
}

func writeDropped(w io.Writer, d *api.DroppedFrame) {
	where := orDash(d.Port)
	if d.VLAN > 0 {
		where = fmt.Sprintf("%s.%d", where, d.VLAN)
	}
	in := "not IP"
	if d.In.Proto != "" {
		in = d.In.Proto + " " + d.In.Src + " > " + d.In.Dst
	}
	fmt.Fprintf(w, "%s %s %s %s: %s, frame of %d bytes", stamp(d.Time, 6), clean(orDash(d.Tenant)), d.Reason, where, in, d.Length)
	if d.After {
		fmt.Fprint(w, ", shown as it would have left")
	}
	if d.Out != nil {
		fmt.Fprintf(w, ": %s > %s", d.Out.Src, d.Out.Dst)
	}
	if d.Skipped > 0 {
		fmt.Fprintf(w, "; %d more before it are only counted", d.Skipped)
	}
	fmt.Fprintln(w)
	for at := 0; at < len(d.Data); at += 16 {
		fmt.Fprintf(w, "\t0x%04x: ", at)
		for i, x := range d.Data[at:min(at+16, len(d.Data))] {
			if i%2 == 0 {
				fmt.Fprint(w, " ")
			}
			fmt.Fprintf(w, "%02x", x)
		}
		fmt.Fprintln(w)
	}
}

func (a *app) captureCmd() *cobra.Command {
	var r api.CaptureRequest
	var d time.Duration
	var name string
	var before, after, both bool
	c := command("capture", "write live packets to a pcapng file, before and after translation",
		"Copy the live packets that match into a pcapng file, until so many, or so long, or interrupted. The file has the interfaces \"before\" (as\n"+
			"received) and \"after\" (as they leave). An inside host's address matches both, and both directions. Packets never wait for it: what cannot be\n"+
			"written in time is lost and counted. The file holds what people send: keep it as such.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if err := r.Check(); err != nil {
				return usageError{err}
			}
			switch {
			case name == "":
				return usageError{errors.New("-w: want a file, or - for standard output")}
			case d < 0:
				return usageError{fmt.Errorf("--duration %s: want a time from now on", d)}
			case before && after, both && (before || after):
				both, before, after = true, false, false
			}
			r.Before, r.After, r.Seconds = !after, !before, d.Seconds()
			if r.Snap == 0 {
				r.Snap = 256
			}
			return a.capture(cmd, r, name)
		})
	packetFlags(c, &r.PacketFilter)
	fl := c.Flags()
	fl.StringVar(&r.Rule, "rule", "", "of conversations that this rule of the tenant decided")
	fl.StringVarP(&name, "write", "w", "", "the file; - for standard output")
	fl.BoolVar(&before, "before", false, "only as received")
	fl.BoolVar(&after, "after", false, "only as they leave")
	fl.BoolVar(&both, "both", false, "both (the default)")
	fl.Uint64Var(&r.Count, "count", 0, "end after so many packets")
	fl.DurationVar(&d, "duration", 0, "end after this time")
	fl.IntVar(&r.Snap, "snaplen", 0, "bytes kept of each frame (256)")
	return c
}

func (a *app) capture(cmd *cobra.Command, r api.CaptureRequest, name string) (err error) {
	out := cmd.OutOrStdout()
	var file *os.File
	defer func() {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	var p trace.PCAPNG
	sides := map[string]int{}
	head := p.Begin(nil, "demarc "+a.version)
	for _, side := range []string{"before", "after"} {
		if side == "before" && r.Before || side == "after" && r.After {
			head, sides[side] = p.Interface(head, side, r.Snap)
		}
	}
	frames, ended := 0, false
	err = a.ask(func(c *api.Client) error {
		return c.Stream(cmd.Context(), api.PathCapture, &r, func(l *api.StreamLine) error {
			switch {
			case l.Begin != nil: // a node that refuses leaves alone what is in the file
				if name != "-" {
					var err error
					if file, err = captureFile(name); err != nil {
						return err
					}
					out = file
				}
				if _, err := out.Write(head); err != nil {
					return err
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "demarc: capturing")
			case l.Frame != nil:
				f := l.Frame
				frames++
				comment := []string{f.Verdict}
				for _, s := range []string{f.Reason, f.Tenant, f.Port} {
					if s != "" {
						comment = append(comment, clean(s))
					}
				}
				_, err := out.Write(p.Packet(nil, sides[f.Side], uint64(f.Time.UnixNano()), f.Length, f.Data, strings.Join(comment, " ")))
				return err
			case l.End != nil:
				ended = true
				fmt.Fprintf(cmd.ErrOrStderr(), "demarc: %s, %d packets matched, %d lost (%s)\n", plural(frames, "frame"), l.End.Matched, l.End.Lost, l.End.Why)
				var b []byte
				for _, i := range slices.Sorted(slices.Values(values(sides))) {
					b = p.Lost(b, i, uint64(time.Now().UnixNano()), l.End.Lost)
				}
				_, err := out.Write(b)
				return errors.Join(err, cutShort(l))
			}
			return nil
		})
	})
	if err == nil && !ended {
		if cmd.Context().Err() == nil {
			return errors.New("the node has ended the stream before its time: the file is good as far as it goes")
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "demarc: %s (interrupted)\n", plural(frames, "frame"))
	}
	return err
}

// captureFile opens an empty file for what people send: for its owner alone, also where it was there. What somebody else has put in its place, a file
// or a link, is not written to.
func captureFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	theirs := func(i fs.FileInfo) bool { return int(i.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() }
	flags, followed := os.O_WRONLY|syscall.O_NOFOLLOW, false
	l, err := os.Lstat(name)
	switch {
	case err == nil && l.Mode()&fs.ModeSymlink != 0 && (!theirs(l) || l.Sys().(*syscall.Stat_t).Uid == 0): // one's own, or the system's, as /dev/stdout
		flags, followed = os.O_WRONLY|os.O_CREATE, true
	case err == nil && l.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 && theirs(l): // before it is opened, which waits for who reads
		return nil, fmt.Errorf("%s belongs to somebody else: name another file", name)
	}
	f, err = os.OpenFile(name, flags, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a link of somebody else's: name another file", name)
	}
	if err != nil {
		return nil, err
	}
	i, err := f.Stat()
	switch {
	case err != nil:
	case !i.Mode().IsRegular() && (followed || i.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) == 0 || !theirs(i)): // a device, or a pipe of one's own, or of the shell's behind /dev/stdout
	case theirs(i):
		err = fmt.Errorf("%s belongs to somebody else: name another file", name)
	default:
		err = errors.Join(f.Chmod(0o600), f.Truncate(0))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func values(m map[string]int) (list []int) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// readRecord is one frame of a capture file.
func readRecord(name string, n int) ([]byte, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	frames, err := trace.ReadFrames(b, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if n < 1 || n > len(frames) {
		return nil, usageError{fmt.Errorf("--record %d: %s has %s", n, name, plural(len(frames), "frame"))}
	}
	return frames[n-1], nil
}
