package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/quiet"
)

// clientHosts is one host of each tenant: what real programs do, both do, at once where they do not measure.
func (s *site) clientHosts() []netlab.Host { return []netlab.Host{s.Alpha1, s.Beta1} }

// each runs f for a host of each tenant side by side.
func (s *site) each(f func(h netlab.Host)) {
	var wg sync.WaitGroup
	for _, h := range s.clientHosts() {
		wg.Go(func() { f(h) })
	}
	wg.Wait()
}

// judged runs f for hosts side by side, and judges what they miss on a machine that is there: what a pause has held back is sent at once, and may be more than a socket or a queue takes.
func (s *site) judged(hosts []netlab.Host, f func(h netlab.Host, missed func(format string, args ...any))) {
	s.t.Helper()
	quiet.Judge(s.t, func(l *quiet.Limits) {
		var mu sync.Mutex
		missed := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			l.Missed(format, args...)
		}
		var wg sync.WaitGroup
		for _, h := range hosts {
			wg.Go(func() { f(h, missed) })
		}
		wg.Wait()
	})
}

// iperf is one second of iperf3 between a host and the server of a port outside, which may still be at the end of the run before.
func (s *site) iperf(h netlab.Host, port string, args ...string) (out []byte, err error) {
	for range 10 {
		out, err = s.Exec(h.Name, "iperf3", append([]string{"-J", "-t", "1", "-c", s.Public1.V4.String(), "-p", port}, args...)...)
		if !bytes.Contains(out, []byte("the server is busy")) {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	return out, err
}

// daemon is a foreign program that runs in a namespace until the test ends.
type daemon struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
}

func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.Write(b)
}

func (d *daemon) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.String()
}

func (s *site) daemon(ns, name string, args ...string) *daemon {
	s.t.Helper()
	d := &daemon{cmd: s.Command(ns, name, args...)}
	d.cmd.Dir = s.dir
	d.cmd.Stdout, d.cmd.Stderr = d, d
	check(s.t, d.cmd.Start())
	s.t.Cleanup(func() {
		d.cmd.Process.Kill()
		d.cmd.Wait()
		if s.t.Failed() {
			said := d.said()
			s.t.Logf("%s said:\n%s", name, said[max(0, len(said)-2000):])
		}
	})
	return d
}

// listens polls until something in the namespace listens on a port.
func (s *site) listens(ns, proto, port string) {
	s.t.Helper()
	flag := map[string]string{"tcp": "-Hltn", "udp": "-Hlun"}[proto]
	if !until(10*time.Second, func() bool {
		out, err := s.Exec(ns, "ss", flag)
		return err == nil && regexp.MustCompile(`(?m):`+port+`\s`).Match(out)
	}) {
		s.t.Fatalf("nothing listens on %s port %s in %s", proto, port, ns)
	}
}

// The tools with which people look at a network, from a host of each tenant: tracepath, mtr in three protocols, dig over both transports,
// curl with many connections and with one.
func TestClientsTools(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_ratelimit", "0")) // each tenant is one peer to it
	check(t, s.Sysctl(s.Public1.Name, "net.ipv6.icmp.ratelimit", "0"))
	s.start()
	s.serve(s.Public2.Name, "dns-serve", "-addr", s.Public2.V4.String()+":53")
	s.serve(s.Public1.Name, "http-serve", "-addr", ":80")
	far := s.Public1.V4.String()
	run := func(h netlab.Host, name string, args ...string) string {
		out, err := s.Exec(h.Name, name, args...)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	s.each(func(h netlab.Host) {
		out := run(h, "tracepath", "-n", "-m", "5", far)
		if !regexp.MustCompile(`(?m)^ 1: +`+regexp.QuoteMeta(netlab.InsideGW4)+` `).MatchString(out) || !strings.Contains(out, "Resume: pmtu 1500 hops 2") {
			t.Errorf("tracepath from %s:\n%s", h.Name, out)
		}
		out = run(h, "tracepath", "-6", "-n", "-m", "5", s.Public1.V6.String())
		if !strings.Contains(out, "Resume: pmtu 1500 hops 2") {
			t.Errorf("tracepath over IPv6 from %s:\n%s", h.Name, out)
		}
		for _, how := range [][]string{{}, {"--udp"}, {"--tcp", "-P", "80"}} {
			out := run(h, "mtr", append(append([]string{"-n", "-C", "-c", "4", "-i", "0.1", "-G", "1"}, how...), far)...)
			// MTR.version,time,status,host,hop,address,loss,...
			var got []string
			for line := range strings.Lines(out) {
				if f := strings.Split(line, ","); len(f) > 7 && strings.HasPrefix(f[0], "MTR.") && f[4] != "Hop" {
					got = append(got, f[5]+" "+strings.TrimSpace(f[6]))
				}
			}
			if want := []string{netlab.InsideGW4 + " 0.00", far + " 0.00"}; strings.Join(got, ", ") != strings.Join(want, ", ") {
				t.Errorf("mtr %v from %s: %q, want %q\n%s", how, h.Name, got, want, out)
			}
		}
		for _, how := range []string{"+notcp", "+tcp"} {
			for range 5 {
				if out := run(h, "dig", "+short", "+tries=1", "+time=3", how, "@"+s.Public2.V4.String(), "www.lab.example"); strings.TrimSpace(out) != "203.0.113.80" {
					t.Errorf("dig %s from %s: %q", how, h.Name, out)
				}
			}
		}
		out = run(h, "curl", "-sS", "--max-time", "20", "--parallel", "--parallel-immediate", "--parallel-max", "100", "-o", "/dev/null", "-w", "%{http_code}\n", "http://"+far+"/file?seed=1&size=2000&n=[1-200]")
		if n := strings.Count(out, "200\n"); n != 200 {
			t.Errorf("curl in parallel from %s: %d of 200\n%s", h.Name, n, out)
		}
		out = run(h, "curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n", "http://"+far+"/file?seed=1&size=2000&n=[1-50]")
		if n, fresh := strings.Count(out, "200 "), strings.Count(out, " 1\n"); n != 50 || fresh != 1 {
			t.Errorf("curl over one connection from %s: %d of 50 by %d connections\n%s", h.Name, n, fresh, out)
		}
	})
	s.stop()
}

// iperf3 both ways over TCP and UDP, from a host of each tenant at once; alpha has a line of 20 Mbit/s.
func TestClientsIperf(t *testing.T) {
	s := standard(t, netlab.Options{})
	s.start()
	ports := map[string]string{s.Alpha1.Name: "5201", s.Beta1.Name: "5202"}
	for _, p := range ports {
		s.daemon(s.Public1.Name, "iperf3", "-s", "-p", p)
		s.listens(s.Public1.Name, "tcp", p)
	}
	type sum struct {
		Bytes, Packets float64
		Lost           float64 `json:"lost_packets"`
	}
	s.judged(s.clientHosts(), func(h netlab.Host, missed func(format string, args ...any)) {
		for _, args := range [][]string{{"-P", "4"}, {"-R"}, {"-R", "-P", "4"}, {"-u", "-b", "4M", "-l", "1000"}, {"-u", "-b", "4M", "-l", "172", "-R"}} {
			out, err := s.iperf(h, ports[h.Name], args...)
			var r struct {
				Error string
				End   struct {
					Sum         sum
					SumReceived sum `json:"sum_received"`
				}
			}
			if e := json.Unmarshal(out, &r); e != nil || err != nil || r.Error != "" {
				t.Errorf("iperf3 %v from %s: %v, %v, %s", args, h.Name, err, e, r.Error)
				continue
			}
			what := fmt.Sprintf("iperf3 %v from %s: %+v", args, h.Name, r.End)
			if args[0] == "-u" {
				if r.End.Sum.Packets < 300 || r.End.Sum.Lost != 0 {
					missed("%s", what)
				}
			} else if got := r.End.SumReceived.Bytes * 8; h == s.Alpha1 && got > 40e6 { // a shaped burst may come on top
				t.Error(what)
			} else if got < 5e6 {
				missed("%s", what)
			}
		}
	})
	s.stop()
}

// nmap from outside sees what is forwarded and nothing else, whatever it sends, and harms nobody; from inside it sees the far side as it is.
func TestClientsNmap(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_ratelimit", "0"))
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_msgs_per_sec", "10000"))
	s.start()
	s.serve(s.Alpha1.Name, "tcp-serve", "-addr", ":80", "-banner", "alpha1")
	s.serve(s.Public1.Name, "http-serve", "-addr", ":80")
	s.serve(s.Public1.Name, "dns-serve", "-addr", s.Public1.V4.String()+":53")
	before := s.status()
	// Ports in an nmap grepable line: 80/open/tcp//http///
	open := regexp.MustCompile(`([0-9]+)/(open|closed|unfiltered)/(tcp|udp)`)
	scan := func(ns string, args ...string) (found []string) {
		out, err := s.Exec(ns, "nmap", append([]string{"-n", "-Pn", "--max-retries", "1", "--min-rate", "1500", "-T4", "-oG", "-"}, args...)...)
		if err != nil || !strings.Contains(string(out), "1 host up") {
			t.Errorf("nmap %v: %v\n%s", args, err, out)
		}
		for _, m := range open.FindAllStringSubmatch(string(out), -1) {
			found = append(found, m[1]+" "+m[2]+" "+m[3])
		}
		return found
	}
	var wg sync.WaitGroup
	for _, x := range []struct {
		name, ns string
		want     string
		args     []string
	}{
		{"SYN at the forward", s.Public1.Name, "[8080 open tcp]", []string{"-sS", "-p", "1-2000,8080", "192.0.2.16"}},
		{"SYN by a stranger", s.Public2.Name, "[]", []string{"-sS", "-p", "1-500,8080", "192.0.2.16"}},
		{"ACK", s.Public1.Name, "[]", []string{"-sA", "-p", "1-300,8080", "192.0.2.16"}},
		{"Xmas, in fragments", s.Public1.Name, "[]", []string{"-sX", "-f", "-p", "1-300", "192.0.2.17"}},
		{"UDP", s.Public1.Name, "[]", []string{"-sU", "-p", "1-500", "192.0.2.16"}},
		{"the gateway itself", s.Public1.Name, "[]", []string{"-sS", "-p", "1-1000", netlab.PublicGW4}},
		{"SYN out of alpha", s.Alpha1.Name, "[79 closed tcp 80 open tcp 81 closed tcp]", []string{"-sS", "-p", "79-81", s.Public1.V4.String()}},
		{"SYN out of beta", s.Beta1.Name, "[79 closed tcp 80 open tcp 81 closed tcp]", []string{"-sS", "-p", "79-81", s.Public1.V4.String()}},
		{"UDP out of alpha", s.Alpha1.Name, "[53 open udp 54 closed udp]", []string{"-sU", "-p", "53-54", s.Public1.V4.String()}},
		{"UDP out of beta", s.Beta1.Name, "[53 open udp 54 closed udp]", []string{"-sU", "-p", "53-54", s.Public1.V4.String()}},
	} {
		wg.Go(func() {
			if got := fmt.Sprint(scan(x.ns, x.args...)); got != x.want {
				t.Errorf("%s: nmap found %s, want %s", x.name, got, x.want)
			}
		})
	}
	wg.Wait()
	t.Logf("dropped: %v", drops(before, s.status()))
	s.stop()
}
