package e2e

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

const sharedPolicy = `schema = 1
name = "one address"
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]
[tenant.nat]
pool = ["203.0.113.1"]
[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.10.0/24", "2001:db8:b::/64"]
[tenant.nat]
pool = ["192.0.2.32/28"]
`

// The smallest site: the host's address on the backbone port is also the address that a tenant is translated to. All at the same time:
// ssh to it, the host's own downloads and pings from it, and the tenant's downloads, UDP and pings.
func TestSteerOneAddressForHostAndNAT(t *testing.T) {
	s := standard(t, netlab.Options{})
	node := replace(t, read(t, s.node), "device = \"bb0\"\n", "device = \"bb0\"\n[port.host]\nshared = [\"203.0.113.1\"]\n")
	// The 39,000 sessions below get no answer, and such may have a third of the table; past a sixth they are hurried out.
	s.write(replace(t, node, "sessions = 65536\n", "sessions = 262144\n"), sharedPolicy)
	check(t, s.AddAddr(netlab.GW, netlab.PublicPort, prefix("203.0.113.1/24")))
	check(t, s.Sysctl(netlab.GW, "net.ipv4.ip_forward", "1"))
	s.serve(s.Public1.Name, "http-serve", "-addr", ":80")
	s.serve(s.Public1.Name, "udp-echo", "-addr", ":7007")
	ssh := s.startSSH(netlab.GW, "203.0.113.1")
	s.start()
	kernel := s.kernelForwarded()

	var wg sync.WaitGroup
	for _, from := range []string{s.Public1.Name, s.Public2.Name} {
		wg.Go(func() {
			for i := range 4 {
				out, err := s.Exec(from, "ssh", ssh.args("head", "-c", "200000", "/dev/zero", "|", "sha256sum")...)
				if want := fmt.Sprintf("%x", sha256.Sum256(make([]byte, 200000))); !strings.HasPrefix(string(out), want) {
					t.Errorf("ssh %d from %s: %q, %v", i, from, out, err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 20 {
			out, err := s.Exec(netlab.GW, "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code} %{size_download}",
				fmt.Sprintf("http://203.0.113.11/file?seed=%d&size=500000", i))
			if string(out) != "200 500000" {
				t.Errorf("the host's own curl %d: %q, %v", i, out, err)
			}
		}
	})
	wg.Go(func() {
		// -e: identifiers below 1024 are the host's own on a shared address.
		if out, err := s.Exec(netlab.GW, "ping", "-q", "-n", "-e", "700", "-c", "20", "-i", "0.05", "203.0.113.11"); err != nil || !strings.Contains(string(out), " 0% packet loss") {
			t.Errorf("the host's own ping: %v\n%s", err, out)
		}
	})
	downloads := make([]host.Download, 20)
	for h, ns := range []string{s.Alpha1.Name, s.Alpha2.Name} {
		wg.Go(func() {
			for i := h; i < len(downloads); i += 2 {
				if err := s.Run(t.Context(), ns, &downloads[i], "http-get", "-url", "http://203.0.113.11", "-size", "500000", "-seed", fmt.Sprint(i+50)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var probe host.Probe
	var ping host.Ping
	wg.Go(func() {
		if err := s.Run(t.Context(), s.Alpha1.Name, &probe, "udp-probe", "-dst", "203.0.113.11:7007", "-pps", "500", "-duration", "1500ms"); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := s.Run(t.Context(), s.Alpha2.Name, &ping, "ping", "-dst", "203.0.113.11", "-count", "20", "-interval", "50ms"); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	for i, d := range downloads {
		as, err := netip.ParseAddrPort(d.SeenAs)
		if !d.OK || err != nil || as.Addr().String() != "203.0.113.1" || as.Port() >= 32768 && as.Port() <= 60999 {
			t.Errorf("download %d: %+v", i, d)
		}
	}
	if probe.Sent != probe.Received || probe.Foreign+probe.Duplicate > 0 || ping.Received != ping.Sent || ping.Bad > 0 {
		t.Errorf("tenant's probe %+v\nping %+v", probe, ping)
	}
	if n := s.kernelForwarded() - kernel; n > 0 {
		t.Errorf("the kernel forwarded %d packets", n)
	}

	// Every source port and identifier that a tenant's host can have: what it becomes is never the host's.
	mac, err := s.MAC(netlab.GW, netlab.AlphaPort)
	check(t, err)
	own, err := s.MAC(s.Alpha2.Name, netlab.HostDevice)
	check(t, err)
	send := s.rawFrames(s.Alpha2.Name, netlab.HostDevice)
	n, paced := 0, time.Now()
	flood := func(frame []byte) {
		check(t, send(frame))
		if n++; n%256 == 0 { // about 60,000 a second, and no burst after a pause
			paced = paced.Add(4 * time.Millisecond)
			if late := time.Since(paced); late > 0 {
				paced = paced.Add(late)
			}
			time.Sleep(time.Until(paced))
		}
	}
	to := s.Public2.V4
	all := []uint16{22, 53, 1023, 1024, 32768, 60999}
	for port := 1; port < 65536; port += 5 {
		all = append(all, uint16(port))
	}
	// What a busy machine lost before it came to the gateway is sent again.
	var list api.Sessions
	for missing, try := 1, 0; missing > 0 && try < 10; try++ {
		have := map[string]bool{}
		for _, se := range list.Sessions {
			have[se.Proto+" "+se.Src] = true
		}
		missing = 0
		again := func(proto string, port uint16, frame []byte) {
			if !have[proto+" "+addrPort(s.Alpha2.V4, port)] {
				missing++
				flood(frame)
			}
		}
		for _, p := range all {
			again("udp", p, raw4(mac, own, s.Alpha2.V4, to, 17, 64, false, udp(p, 9, []byte("x")), 6))
			again("tcp", p, raw4(mac, own, s.Alpha2.V4, to, 6, 64, false, tcpSyn(p, 9), 16))
			again("icmp", p, raw4(mac, own, s.Alpha2.V4, to, 1, 64, false, echoRequest(p), 2))
		}
		check(t, s.client.Get(t.Context(), api.PathSessions+"?tenant=alpha&limit=100000", &list))
	}
	seen, bad := map[string]int{}, 0
	public := map[string]string{}
	for _, se := range list.Sessions {
		seen[se.Proto]++
		x, err := netip.ParseAddrPort(se.XlatSrc)
		check(t, err)
		p := x.Port()
		if p >= 32768 && p <= 60999 || se.Proto == "tcp" && p == 22 || se.Proto == "icmp" && p < 1024 || x.Addr().String() != "203.0.113.1" {
			if bad++; bad < 10 {
				t.Errorf("%s %s became %s: that is the host's", se.Proto, se.Src, se.XlatSrc)
			}
		}
		k := se.Proto + se.XlatSrc
		if other, ok := public[k]; ok && other != se.Src {
			t.Errorf("%s %s is what both %s and %s became", se.Proto, se.XlatSrc, other, se.Src)
		}
		public[k] = se.Src
	}
	for _, proto := range []string{"tcp", "udp", "icmp"} {
		if seen[proto] < len(all) {
			t.Errorf("%s: only %d sessions", proto, seen[proto])
		}
	}
	// With all that open, the host still has its own.
	out, err := s.Exec(s.Public1.Name, "ssh", ssh.args("echo", sshWord)...)
	if strings.TrimSpace(string(out)) != sshWord {
		t.Errorf("ssh with %d sessions open: %q, %v", list.Matched, out, err)
	}
	t.Logf("sessions looked at: %v, drops: %v", seen, drops(&api.Status{}, s.status()))
	s.stop()
}
