package e2e

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"demarc/cluster/transport"
	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

const remoteAddress = "127.0.0.1:7443" // in the gateway's namespace

// withRemote gives the site's node an interface over TCP, and returns its authority.
func (s *site) withRemote() (ca *transport.Authority, caDir string) {
	s.t.Helper()
	caDir = filepath.Join(s.dir, "ca")
	ca, err := transport.NewAuthority(caDir, "the lab", time.Now())
	check(s.t, err)
	check(s.t, ca.Issue(filepath.Join(s.dir, "node-keys"), "gw1", time.Now()))
	s.write(replace(s.t, read(s.t, s.node), "[api]\n", "[api]\nlisten = \""+remoteAddress+"\"\nkeys = \""+filepath.Join(s.dir, "node-keys")+"\"\n"), read(s.t, s.policy))
	return ca, caDir
}

// curl asks with the real one, as whoever owns the keys in dir; "" = nobody. It returns the status, "000" where there was none, and what came.
func (s *site) curl(dir, cert, key string, args ...string) (status, text string) {
	s.t.Helper()
	all := []string{"-sS", "-m", "10", "-w", "\n%{http_code}", "--cacert", filepath.Join(s.dir, "ca", transport.AuthorityCert), "--connect-to", "::" + remoteAddress}
	if dir != "" {
		all = append(all, "--cert", filepath.Join(dir, cert), "--key", filepath.Join(dir, key))
	}
	c := s.Command(netlab.GW, "curl", append(all, args...)...)
	out, _ := c.CombinedOutput() // its exit status says less than these
	i := strings.LastIndexByte(string(out), '\n')
	return string(out)[i+1:], string(out)[:max(i, 0)]
}

// TestRemoteInterface asks a real node over TCP with the real curl, as everybody who might: each right and each wrong thing.
func TestRemoteInterface(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	ca, caDir := s.withRemote()
	s.start()
	for _, h := range []netlab.Host{s.Alpha1, s.Beta1} {
		if _, err := s.Exec(h.Name, "ping", "-c", "1", "-W", "2", s.Public1.V4.String()); err != nil {
			t.Fatal(err)
		}
	}
	keysOf := map[string]string{}
	for name, role := range map[string]string{"alice": "operator", "noc": "read-only", "portal": "tenant=alpha", "stranger": "tenant=nobody"} {
		keysOf[name] = filepath.Join(s.dir, "keys", name)
		if out, err := s.Exec(netlab.GW, program(t), "cluster", "client", name, "--role", role, "--ca", caDir, "--out", keysOf[name]); err != nil || !strings.Contains(string(out), name+" ("+strings.SplitN(role, "=", 2)[0]) {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	ask := func(who string, args ...string) (string, string) {
		return s.curl(keysOf[who], transport.ClientCert, transport.ClientKey, args...)
	}

	// Every GET of the node's own document, as each of them.
	var doc struct {
		Paths map[string]map[string]struct {
			Security []map[string][]string `json:"security"`
		} `json:"paths"`
	}
	code, text := ask("portal", "https://gw1"+api.PathOpenAPI)
	if err := json.Unmarshal([]byte(text), &doc); err != nil || code != "200" || len(doc.Paths) < 15 {
		t.Fatalf("%s, %v, %.300s", code, err, text)
	}
	for who, mayAlso := range map[string]string{"alice": "operator read-only tenant", "noc": "read-only tenant", "portal": "tenant"} {
		var urls []string
		want := map[string]bool{}
		for path, ops := range doc.Paths {
			if op, ok := ops["get"]; ok {
				urls = append(urls, "-o", "/dev/null", "https://gw1"+path)
				want[path] = strings.Contains(mayAlso, op.Security[0]["client"][0])
			}
		}
		_, text := ask(who, append([]string{"-w", "%{http_code} %{url_effective}\n"}, urls...)...)
		n := 0
		for line := range strings.Lines(text) {
			if code, url, ok := strings.Cut(strings.TrimSpace(line), " https://gw1"); ok {
				if n++; (code == "200") != want[url] || code != "200" && code != "403" {
					t.Errorf("%s gets %s for %s", who, code, url)
				}
			}
		}
		if n < len(want)-1 { // the last line is cut off as the status
			t.Errorf("%s: %d answers for %d paths:\n%s", who, n, len(want), text)
		}
	}

	// A tenant sees its own session, and nothing of the other's, who has the same addresses inside.
	beta := netip.MustParsePrefix("192.0.2.32/28")
	addresses := regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`)
	for path, own := range map[string]string{api.PathStatus + "?rules=1": `"name":"alpha"`, api.PathSessions: `"tenant":"alpha"`, api.PathDrops: `"by_reason"`} {
		code, text := ask("portal", "https://gw1"+path)
		if code != "200" || !strings.Contains(text, own) || strings.Contains(text, "beta") || strings.Contains(text, netlab.PublicPort) {
			t.Errorf("%s: %s %s", path, code, text)
		}
		for _, a := range addresses.FindAllString(text, -1) {
			if ip, err := netip.ParseAddr(a); err == nil && beta.Contains(ip) {
				t.Errorf("%s holds beta's %s: %s", path, a, text)
			}
		}
		if code, text := ask("stranger", "https://gw1"+path); strings.Contains(text, "alpha") || strings.Contains(text, "beta") {
			t.Errorf("a tenant that is not there: %s: %s %s", path, code, text)
		}
	}
	for _, who := range []string{"alice", "noc", "portal"} { // more than are listed at a time counts as that
		if code, text := ask(who, "https://gw1"+api.PathSessions+"?limit=2000000"); code != "200" || !strings.Contains(text, `"truncated":false`) {
			t.Errorf("%s asks for more sessions than are listed at a time: %s %.300s", who, code, text)
		}
	}
	for _, tenant := range []string{"beta", "nobody"} { // the same answer whether there is one
		if code, text := ask("portal", "https://gw1"+api.PathSessions+"?tenant="+tenant); code != "403" || !strings.Contains(text, `this certificate is for tenant \"alpha\" alone`) {
			t.Errorf("%s's sessions: %s %s", tenant, code, text)
		}
	}
	for _, who := range []string{"noc", "portal"} {
		for _, path := range []string{api.PathApply, api.PathCapture, api.PathFollow, api.PathBlock, api.PathCut, api.PathExplain} {
			if code, text := ask(who, "--json", "{}", "https://gw1"+path); code != "403" || !strings.Contains(text, "needs the role operator") {
				t.Errorf("%s: %s: %s %s", who, path, code, text)
			}
		}
	}

	// Who is not let in, and what curl says of it.
	other, err := transport.NewAuthority(filepath.Join(s.dir, "other"), "the lab", time.Now())
	check(t, err)
	issue := func(name string, a *transport.Authority, now time.Time) {
		keysOf[name] = filepath.Join(s.dir, "keys", name)
		_, err := a.IssueClient(keysOf[name], transport.Client{Name: name, Role: transport.RoleOperator}, time.Hour, now)
		check(t, err)
	}
	issue("foreign", other, time.Now())
	issue("expired", ca, time.Now().Add(-3*time.Hour))
	issue("early", ca, time.Now().Add(24*time.Hour))
	url := "https://gw1" + api.PathStatus
	for name, says := range map[string]string{"foreign": "unknown ca", "expired": "certificate expired", "early": "certificate expired", "": "certificate required"} {
		if code, text := ask(name, url); code != "000" || !strings.Contains(text, says) {
			t.Errorf("%s: %s %s", name, code, text)
		}
	}
	if code, text := s.curl(filepath.Join(s.dir, "node-keys"), transport.MemberCert, transport.MemberKey, url); code != "000" || !strings.Contains(text, "bad certificate") {
		t.Errorf("a member's certificate: %s %s", code, text)
	}
	if code, text := ask("alice", "http://gw1/"); code != "400" || !strings.Contains(text, "this port speaks TLS") {
		t.Errorf("without TLS: %s %s", code, text)
	}
	if code, text := ask("alice", "--tls-max", "1.2", url); code != "000" {
		t.Errorf("TLS 1.2: %s %s", code, text)
	}
	refused := map[string]uint64{"other_authority": 1, "clock": 2, "no_certificate": 1, "not_a_client": 1, "handshake": 2, "busy": 0}
	var st *api.Status
	until(5*time.Second, func() bool { // an alert is sent before it is counted, and curl has ended with it
		st = s.status()
		for kind, n := range refused {
			if st.API.Refused[kind] < n {
				return false
			}
		}
		return true
	})
	for kind, n := range refused {
		if st.API.Refused[kind] != n {
			t.Errorf("%s: %d counted, %d were refused", kind, st.API.Refused[kind], n)
		}
	}
	if code, text := ask("noc", "https://gw1"+api.PathMetrics); code != "200" || !strings.Contains(text, `demarc_api_refused_connections_total{kind="clock"} 2`) || !strings.Contains(text, "demarc_api_forbidden_requests_total ") {
		t.Errorf("metrics: %s %.300s", code, text)
	}

	// Not even a socket that somebody has opened to all lets others in.
	for _, name := range []string{filepath.Dir(s.dir), s.dir} {
		check(t, os.Chmod(name, 0o755))
	}
	check(t, os.Chmod(s.socket, 0o666))
	for user, want := range map[string]string{"0": "200", "65534": "403"} {
		out, err := s.Exec(netlab.GW, "setpriv", "--reuid", user, "--clear-groups", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", s.socket, "http://demarc"+api.PathStatus)
		if err != nil || string(out) != want {
			t.Errorf("user %s on the socket: %v, %s, want %s", user, err, out, want)
		}
	}
	check(t, os.Chmod(s.socket, 0o600))

	// The command line, from elsewhere.
	cli := func(who string, args ...string) (string, error) {
		out, err := s.Exec(netlab.GW, program(t), append([]string{"--server", "https://" + remoteAddress, "--keys", keysOf[who]}, args...)...)
		return string(out), err
	}
	if out, err := cli("portal", "status"); err != nil || !strings.Contains(out, "alpha") || strings.Contains(out, "beta") || strings.Contains(out, "WORKER") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := cli("noc", "status"); err != nil || !strings.Contains(out, "api       "+remoteAddress) || !strings.Contains(out, "WORKER") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := cli("alice", "apply", s.policy); err != nil || !strings.Contains(out, "is served") {
		t.Errorf("%v\n%s", err, out)
	}
	var past api.History
	if out, err := cli("noc", "history", "--json"); err != nil || json.Unmarshal([]byte(out), &past) != nil || past.Revisions[0].Author != "alice" || !strings.Contains(past.Revisions[0].From, "127.0.0.1:") {
		t.Errorf("who has applied it: %v\n%s", err, out)
	}
	for who, says := range map[string]string{"noc": `needs the role operator, and "noc" is read-only`, "expired": "is not valid now", "foreign": "is not of the authority in"} {
		if out, err := cli(who, "apply", s.policy); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s applies: %v\n%s", who, err, out)
		}
	}
	check(t, os.Chmod(filepath.Join(keysOf["alice"], transport.ClientKey), 0o644))
	if _, err := cli("alice", "status"); err == nil || !strings.Contains(err.Error(), "others may read it") {
		t.Errorf("a key that others may read: %v", err)
	}
	check(t, os.Chmod(filepath.Join(keysOf["alice"], transport.ClientKey), 0o600))

	// What is secret is in no archive and no log.
	archive := filepath.Join(s.dir, "x.tar.gz")
	if out, err := s.demarc("support", "-o", archive); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	all := unpack(t, archive)
	all["the log"] = []byte(read(t, s.gw.log))
	var secrets []string
	for _, file := range []string{filepath.Join(s.dir, "node-keys", transport.MemberKey), filepath.Join(keysOf["alice"], transport.ClientKey), filepath.Join(caDir, transport.AuthorityKey)} {
		secrets = append(secrets, strings.Split(read(t, file), "\n")[1])
	}
	for name, b := range all {
		for _, secret := range secrets {
			if strings.Contains(string(b), secret) {
				t.Errorf("%s has a key", name)
			}
		}
	}
	if log := read(t, s.gw.log); !strings.Contains(log, `msg="change asked for and carried out" by=alice from=127.0.0.1:`) || strings.Contains(log, "[[tenant]]") {
		t.Errorf("the log:\n%s", s.gw.lastLines(20))
	}
	s.stop()

	// A node whose key others may read does not start, and says which.
	check(t, os.Chmod(filepath.Join(s.dir, "node-keys", transport.MemberKey), 0o640))
	p := s.launch(nil)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		t.Error("it started")
		s.end(p, os.Kill)
	}
	if text := p.lastLines(5); p.err == nil || !strings.Contains(text, "api.keys:") || !strings.Contains(text, "chmod 600") {
		t.Errorf("%v\n%s", p.err, text)
	}
}

// TestInterfacePage runs what docs/api.md shows, as it stands there but for addresses and paths, and in its order.
func TestInterfacePage(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	_, caDir := s.withRemote()
	s.start()
	if _, err := s.Exec(s.Alpha1.Name, "ping", "-c", "1", "-W", "2", s.Public1.V4.String()); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	pinged := make(chan struct{})
	go func() { // something for trace to see
		defer close(pinged)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = s.Exec(s.Alpha1.Name, "ping", "-c", "5", "-i", "0.1", "-W", "1", s.Public1.V4.String())
			}
		}
	}()
	defer func() { close(stop); <-pinged }()
	dir := t.TempDir()
	text := strings.NewReplacer("/var/lib/demarc/demarc.sock", s.socket, "192.0.2.1:7443", remoteAddress, "/etc/demarc/ca", caDir).Replace(read(t, "../../docs/api.md"))
	wants := [][]string{ // by fence
		{"alice (operator), valid until", "alpha-portal (tenant alpha), valid until"},
		{"WORKER", "INTERFACE"},
		{`"ready":true`, `"proto":"icmp"`, `"verdict":`, `"end":{`},
		{`"by_reason"`, `"same":true`, `"revision":{"number":2`, `"address":"203.0.113.99`, "demarc_gateway_ready 1"},
	}
	fences := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(fences) != len(wants) {
		t.Fatalf("the page has %d pieces of shell, the test knows %d", len(fences), len(wants))
	}
	for i, f := range fences {
		c := s.Command(netlab.GW, "sh", "-eu", "-c", "cd "+dir+"\n"+f[1])
		c.Env = append(c.Env, "PATH="+filepath.Dir(program(t))+":"+os.Getenv("PATH"))
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s\n%s", err, f[1], out)
		}
		for _, want := range wants[i] {
			if !strings.Contains(string(out), want) {
				t.Errorf("piece %d lacks %s:\n%s\n%.2000s", i, want, f[1], out)
			}
		}
	}
}
