package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/trace"
)

const lookPolicy = `
[[tenant.nat.forward]]
public = "%s"
proto = "udp"
port = 7070
inside = "%s"
inside_port = 7007
[[tenant.rule]]
name = "no-smtp"
direction = "out"
action = "deny"
service = ["tcp/25"]
[[tenant.rule]]
name = "talk"
direction = "in"
action = "allow"
service = ["udp/7007"]
`

func lookRig(t *testing.T, name string) *rig {
	r := newRig(t, name, rigPolicy("", ""))
	lookStart(t, r)
	return r
}

func lookStart(t *testing.T, r *rig) {
	t.Helper()
	r.write(r.policy, rigPolicy(fmt.Sprintf(lookPolicy, lookPool(t), r.Alpha1.V4), ""))
	r.start()
	for _, ns := range []string{r.Public1.Name, r.Alpha1.Name} {
		rigUDPEcho(r, ns, 7007)
	}
}

// lookPool is the first address of alpha's pool.
func lookPool(t *testing.T) netip.Addr {
	t.Helper()
	for _, l := range strings.Split(rigAlpha(""), "\n") {
		if strings.HasPrefix(l, "pool = ") {
			return netip.MustParsePrefix(strings.Trim(strings.Split(l, "\"")[1], "\"")).Addr()
		}
	}
	t.Fatal("alpha has no pool")
	return netip.Addr{}
}

// looker is a running command that prints a stream.
type looker struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	bad   bytes.Buffer
}

// look starts a command and returns once the node says that it looks.
func (r *rig) look(t *testing.T, args ...string) *looker {
	t.Helper()
	l := &looker{t: t, cmd: exec.Command(r.program, append(args, "--socket", r.socket)...), lines: make(chan string, 4096)}
	out, err := l.cmd.StdoutPipe()
	check(t, err)
	errs, err := l.cmd.StderrPipe()
	check(t, err)
	check(t, l.cmd.Start())
	t.Cleanup(func() { l.cmd.Process.Kill(); l.cmd.Wait() })
	begun := make(chan struct{})
	go func() {
		s := bufio.NewScanner(io.TeeReader(errs, &l.bad))
		for first := true; s.Scan(); first = false {
			if first && strings.Contains(s.Text(), "capturing") {
				close(begun)
			}
		}
	}()
	go func() {
		defer close(l.lines)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for first := true; s.Scan(); first = false {
			if first && strings.Contains(s.Text(), `"begin"`) {
				close(begun)
				continue
			}
			l.lines <- s.Text()
		}
	}()
	select {
	case <-begun:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not begin: %s", strings.Join(args, " "), l.bad.String())
	}
	return l
}

// next is the next line of the stream, nil at its end.
func (l *looker) next() *api.StreamLine {
	l.t.Helper()
	select {
	case s, ok := <-l.lines:
		if !ok {
			return nil
		}
		x := new(api.StreamLine)
		check(l.t, json.Unmarshal([]byte(s), x))
		return x
	case <-time.After(20 * time.Second):
		l.t.Fatalf("no line comes: %s", l.bad.String())
		return nil
	}
}

func (r *rig) explain(t *testing.T, args ...string) *api.Explanation {
	t.Helper()
	x := new(api.Explanation)
	r.ask(x, append([]string{"explain"}, args...)...)
	return x
}

func stepOf(x *api.Explanation, stage string) string {
	for _, p := range x.Passes {
		for _, s := range p.Steps {
			if s.Stage == stage {
				return s.Result + ": " + s.Text
			}
		}
	}
	return ""
}

func tell(r *rig, args ...string) string {
	text, bad, _ := r.cli(args...)
	return text + bad
}

// What explain says of a packet is what then happens to it on the wire, and saying so changes nothing.
func TestExplainOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := newRigWith(t, "explain", rigPolicy("", ""), netlab.Options{Queues: 2})
	r.write(r.node, rigNode(r.data, r.socket, "[workers]\ncount = 2\n")) // packets are handed over, and so are trials
	lookStart(t, r)
	from, to := addrPort(r.Alpha2.V4, 4444), addrPort(r.Public1.V4, 7007)
	var x *api.Explanation
	for range 3 {
		x = r.explain(t, "--tenant", "alpha", "--proto", "udp", "--from", from, "--to", to)
	}
	last := x.Passes[len(x.Passes)-1]
	if x.Verdict != "send" && x.Verdict != "neighbor" || last.Out == nil || last.In.Src != from || last.Out.Dst != to {
		t.Fatalf("%+v", x)
	}
	for stage, want := range map[string]string{"interface": "alpha, faces tenant alpha", "session": "none yet", "acl": "allowed by the default for out", "route": "of the backbone",
		"source nat": from + " becomes " + last.Out.Src + ", by a new mapping", "limits": "sessions of the tenant 0"} {
		if got := stepOf(x, stage); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", stage, got, want)
		}
	}
	st := r.status()
	a := rigTenantOf(st, "alpha")
	if a.Sessions != 0 || a.Created != 0 || a.Out.Packets != 0 || a.Pool.InUse != 0 || a.Pool.Held != 0 || a.Drops["acl_deny"]+a.Drops["no_route"]+a.Drops["spoofed_source"] != 0 {
		t.Fatalf("three explanations left behind: %+v", a)
	}
	c := rigUDP(r, r.Alpha2.Name, 4444, to)
	if err := answered(c, "hello"); err != nil {
		t.Fatal(err)
	}
	var list api.Sessions
	r.ask(&list, "sessions", "--port", "4444")
	if len(list.Sessions) != 1 || list.Sessions[0].XlatSrc != last.Out.Src {
		t.Fatalf("explained as %s, is %+v", last.Out.Src, list.Sessions)
	}
	// Now there is a session, both ways.
	x = r.explain(t, "--tenant", "alpha", "--proto", "udp", "--from", from, "--to", to)
	if got := stepOf(x, "session"); !strings.Contains(got, "found") || x.Verdict != "send" {
		t.Errorf("%s: %s", x.Verdict, got)
	}
	x = r.explain(t, "--interface", "backbone", "--proto", "udp", "--from", to, "--to", last.Out.Src)
	if p := x.Passes[len(x.Passes)-1]; x.Verdict != "send" || p.Out == nil || p.Out.Dst != from {
		t.Errorf("the answer: %+v", x)
	}
	// An ICMP error that quotes it goes to who sent it.
	x = r.explain(t, "--interface", "backbone", "--proto", "icmp", "--icmp", "3/1", "--quote", "udp,"+last.Out.Src+","+to, "--from", r.Public1.V4.String(), "--to", strings.Split(last.Out.Src, ":")[0])
	if p := x.Passes[len(x.Passes)-1]; x.Verdict != "send" || p.Out == nil || p.Out.Dst != r.Alpha2.V4.String() {
		t.Errorf("the error: %+v", x)
	}
	// A rule that denies is named, with its number.
	x = r.explain(t, "--tenant", "alpha", "--proto", "tcp", "--from", addrPort(r.Alpha1.V4, 5000), "--to", addrPort(r.Public1.V4, 25))
	if got := stepOf(x, "acl"); x.Verdict != "drop" || x.Reason != "acl_deny" || !strings.Contains(got, `drop: denied by rule 1 (out) "no-smtp"`) {
		t.Errorf("%s (%s): %s", x.Verdict, x.Reason, got)
	}
	x = r.explain(t, "--tenant", "alpha", "--proto", "udp", "--from", "198.51.100.7:1", "--to", to)
	if x.Reason != "spoofed_source" || !strings.Contains(x.Help, "prefix") {
		t.Errorf("%s, %s", x.Reason, x.Help)
	}
	x = r.explain(t, "--tenant", "alpha", "--proto", "udp", "--from", from, "--to", "203.0.113.222:53", "--ttl", "1")
	t.Log("\n" + tell(r, "explain", "--tenant", "alpha", "--proto", "tcp", "--from", addrPort(r.Alpha1.V4, 5000), "--to", addrPort(r.Public1.V4, 25)))
	t.Log("\n" + tell(r, "explain", "--tenant", "alpha", "--proto", "udp", "--from", addrPort(r.Alpha1.V4, 5000), "--to", to))
	if x.Reason != "ttl_exceeded" || !x.Answer {
		t.Errorf("hop limit 1: %s, answered %v", x.Reason, x.Answer)
	}
	// Hairpin: round by the forwarded port, in two passes at least, to the inside host.
	pub := addrPort(lookPool(t), 7070)
	x = r.explain(t, "--tenant", "alpha", "--proto", "udp", "--from", addrPort(r.Alpha2.V4, 5555), "--to", pub)
	if p := x.Passes[len(x.Passes)-1]; len(x.Passes) < 2 || p.Out == nil || p.Out.Dst != addrPort(r.Alpha1.V4, 7007) || !strings.Contains(stepOf(x, "destination nat"), "is forwarded to") {
		t.Errorf("hairpin: %+v", x)
	}
	h := rigUDP(r, r.Alpha2.Name, 5555, pub)
	if err := answered(h, "round"); err != nil {
		t.Error(err)
	}
	// Some of these hosts belong to the other worker than the one that gets their packets.
	handed := 0
	for host := range 40 {
		x := r.explain(t, "--tenant", "alpha", "--proto", "udp", "--from", fmt.Sprintf("198.18.10.%d:999", 100+host), "--to", to)
		if len(x.Passes) == 2 && x.Passes[0].Verdict == "hand" && x.Passes[1].Worker != x.Passes[0].Worker && x.Verdict == "send" {
			handed++
		}
	}
	if handed < 5 || handed > 35 {
		t.Errorf("%d of 40 hosts were handed over between two workers", handed)
	}
	text, _, code := r.cli("explain", "--tenant", "alpha", "--frame", fmt.Sprintf("%x", x.Frame))
	t.Log("\n" + text)
	if code != 0 || !strings.Contains(text, "verdict") || !strings.Contains(text, "goes round") {
		t.Errorf("by frame: status %d\n%s", code, text)
	}
	for args, says := range map[string]string{"--interface nowhere --proto udp --from 1.2.3.4:1 --to 1.2.3.5:2": "there are", "--tenant alpha --proto udp --from 1.2.3.4 --to 1.2.3.5:2": "needs ports",
		"--tenant alpha --proto udp --from 1.2.3.4:1 --to [2001:db8::1]:2": "two families", "--tenant alpha --proto tcp --from 1.2.3.4:1 --to 1.2.3.5:2 --flags sin": `flag "sin"`,
		"--tenant alpha --proto udp --from 1.2.3.4:1 --to 1.2.3.5:2 --len 8": "headers alone"} {
		if _, bad, code := r.cli(append([]string{"explain"}, strings.Fields(args)...)...); code != 1 || !strings.Contains(bad, says) {
			t.Errorf("%s: status %d, %s", args, code, bad)
		}
	}
	if st := r.status(); !st.Conservation.OK {
		t.Error(st.Conservation.Detail)
	}
}

// trace shows the packets of its filter, both ways, and nobody else's; it ends by itself.
func TestTraceOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := lookRig(t, "trace")
	dst := addrPort(r.Public1.V4, 7007)
	mine, other, beta := rigUDP(r, r.Alpha2.Name, 0, dst), rigUDP(r, r.Alpha1.Name, 0, dst), rigUDP(r, r.Beta1.Name, 0, dst)
	l := r.look(t, "trace", "--json", "--tenant", "alpha", "--address", r.Alpha2.V4.String(), "--proto", "udp", "--count", "6")
	for range 3 {
		for _, c := range []*net.UDPConn{other, beta, mine} {
			if err := answered(c, "trace me"); err != nil {
				t.Fatal(err)
			}
		}
	}
	in, out, made := 0, 0, 0
	for {
		x := l.next()
		if x == nil {
			t.Fatal("no last line")
		}
		if x.End != nil {
			if x.End.Why != "count" || x.End.Sent != 6 || x.End.Lost != 0 {
				t.Errorf("%+v", x.End)
			}
			break
		}
		p := x.Packet
		switch me := r.Alpha2.V4.String() + ":"; {
		case p.Verdict == "hand":
			t.Errorf("a packet is shown twice: %+v", p)
		case p.Direction == "out" && strings.HasPrefix(p.In.Src, me) && p.Out != nil && !strings.HasPrefix(p.Out.Src, me):
			out++
		case p.Direction == "in" && p.Out != nil && strings.HasPrefix(p.Out.Dst, me) && !strings.HasPrefix(p.In.Dst, me):
			in++
		default:
			t.Errorf("whose is this? %+v", p)
		}
		for _, s := range p.Steps {
			if s.Stage == "source nat" {
				made++
			}
		}
	}
	if in != 3 || out != 3 || made != 1 {
		t.Errorf("%d out, %d in, %d opened a session", out, in, made)
	}
	if l.next() != nil {
		t.Error("something follows the last line")
	}
	if err := l.cmd.Wait(); err != nil {
		t.Error(err)
	}
	// One in three, for a time.
	people := make(chan string, 1)
	go func() {
		text, bad, _ := r.cli("trace", "--tenant", "alpha", "--address", r.Alpha2.V4.String(), "--count", "2", "--duration", "20s")
		people <- text + bad
	}()
	l = r.look(t, "trace", "--json", "--tenant", "alpha", "--address", r.Alpha2.V4.String(), "--sample", "3", "--duration", "2s")
	for range 3 {
		if err := answered(mine, "again"); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for x := l.next(); x != nil; x = l.next() {
		if x.Packet != nil {
			n++
		} else if x.End.Why != "time" || x.End.Matched != 6 {
			t.Errorf("%+v", x.End)
		}
	}
	if n != 2 {
		t.Errorf("%d of 6 packets, want 2", n)
	}
	c := rigUDP(r, r.Alpha2.Name, 0, dst)
	if err := answered(c, "for people"); err != nil {
		t.Fatal(err)
	}
	if text := <-people; !strings.Contains(text, "2 lines, ") || !strings.Contains(text, "  session ") {
		t.Errorf("for people:\n%s", text)
	} else {
		t.Log("\n" + text)
	}
	// Who goes makes room: ten one after the other, where eight may look at once.
	for range 10 {
		l := r.look(t, "trace", "--json")
		check(t, l.cmd.Process.Signal(syscall.SIGKILL))
		l.cmd.Wait()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, bad, code := r.cli("trace", "--duration", "1ms"); code == 0 {
				break
			} else if time.Now().After(end) {
				t.Fatal(bad)
			}
		}
	}
	if _, bad, code := r.cli("trace", "--rule", "nobody", "--tenant", "alpha"); code != 1 || !strings.Contains(bad, `no rule "nobody"`) {
		t.Errorf("status %d, %s", code, bad)
	}
}

// A dropped packet is there with its reason and its first bytes as they came from the wire.
func TestDropsFollowOnTheWire(t *testing.T) {
	r := lookRig(t, "dropped")
	l := r.look(t, "drops", "--follow", "--json", "--tenant", "alpha", "--reason", "acl_deny", "--address", r.Alpha1.V4.String())
	var tries [2]host.Attempt
	r.wait(r.spawn(r.Alpha1.Name, &tries[0], "tcp-connect", "-dst", addrPort(r.Public1.V4, 25), "-timeout", "300ms"),
		r.spawn(r.Alpha2.Name, &tries[1], "tcp-connect", "-dst", addrPort(r.Public1.V4, 25), "-timeout", "300ms"))
	d := l.next().Dropped
	src, dst := r.Alpha1.V4.As4(), r.Public1.V4.As4()
	if d == nil || d.Tenant != "alpha" || d.Reason != "acl_deny" || d.In.Proto != "tcp" || d.In.Dst != addrPort(r.Public1.V4, 25) || d.After || d.Length < 54 ||
		len(d.Data) != min(d.Length, trace.DropBytes) || !bytes.Equal(d.Data[26:34], append(src[:], dst[:]...)) || d.Data[47]&2 == 0 || time.Since(d.Time).Abs() > time.Minute {
		t.Fatalf("%+v", d)
	}
	// Everything is recorded, asked for or not: the other host's too, and what a neighbour that is not there makes of a packet.
	nobody := rigUDP(r, r.Alpha2.Name, 0, "203.0.113.222:9")
	nobody.Write([]byte("is anybody there?"))
	var text string
	r.until(20*time.Second, "recorded", func() (bool, string) {
		text, _, _ = r.cli("drops", "--last", "100")
		return strings.Contains(text, "no_neighbor"), text
	})
	for _, want := range []string{r.Alpha2.V4.String() + ":", "acl_deny", "\t0x0000:  "} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	t.Log("\n" + text)
	one, _, _ := r.cli("drops", "--last", "1", "--reason", "acl_deny", "--tenant", "alpha")
	if strings.Count(one, "frame of") != 1 || !strings.Contains(one, "acl_deny") {
		t.Errorf("--last 1:\n%s", one)
	}
	for args, code := range map[string]int{"drops --tenant alpha": 2, "drops --last -1": 2, "drops --follow --all": 2, "drops --last 1 --reason nonsense": 1} {
		if _, _, got := r.cli(strings.Fields(args)...); got != code {
			t.Errorf("%s: status %d, want %d", args, got, code)
		}
	}
}

// A capture has both sides of an inside host's packets, both ways, and tcpdump reads it.
func TestCaptureOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := lookRig(t, "capture")
	file := filepath.Join(r.dir, "c.pcapng")
	dst := addrPort(r.Public1.V4, 7007)
	mine, other := rigUDP(r, r.Alpha2.Name, 0, dst), rigUDP(r, r.Alpha1.Name, 0, dst)
	l := r.look(t, "capture", "-w", file, "--address", r.Alpha2.V4.String(), "--proto", "udp", "--count", "4")
	for range 2 {
		for _, c := range []*net.UDPConn{other, mine} {
			if err := answered(c, "capture me"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, l.bad.String())
	}
	b, err := os.ReadFile(file)
	check(t, err)
	frames, err := trace.ReadFrames(b, 100)
	if err != nil || len(frames) != 8 {
		t.Fatalf("%d frames, %v: want 4 packets before and after: %s", len(frames), err, l.bad.String())
	}
	out, err := exec.Command("tcpdump", "-nn", "-r", file).CombinedOutput()
	if err != nil {
		t.Fatalf("tcpdump: %v\n%s", err, out)
	}
	me, pool, counts := r.Alpha2.V4.String()+".", "192.0.2.", map[string]int{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if i := slices.Index(f, ">"); i > 0 {
			for k, v := range map[string]bool{"out before": strings.HasPrefix(f[i-1], me), "out after": strings.HasPrefix(f[i-1], pool), "in before": strings.HasPrefix(f[i+1], pool), "in after": strings.HasPrefix(f[i+1], me)} {
				if v {
					counts[k]++
				}
			}
		}
	}
	for _, k := range []string{"out before", "out after", "in before", "in after"} {
		if counts[k] != 2 {
			t.Errorf("%s: %d, want 2\n%s", k, counts[k], out)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// Only what a rule's conversations receive, and explain takes a frame of it.
	l = r.look(t, "capture", "-w", file, "--tenant", "alpha", "--rule", "talk", "--before", "--count", "1")
	from := rigUDP(r, r.Public1.Name, 0, addrPort(lookPool(t), 7070))
	if err := answered(from, "by the forward"); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, l.bad.String())
	}
	var x api.Explanation
	r.ask(&x, "explain", "--interface", "backbone", "--pcap", file)
	if x.Verdict != "send" || !strings.Contains(stepOf(&x, "session"), `"talk"`) {
		t.Errorf("%+v", x)
	}
}
