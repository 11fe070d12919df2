package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway"
)

// epochEnv has this program be a gateway whose wall clock began in 1970 when it started: `run --node FILE`. No clock of the machine is touched.
const epochEnv = "DEMARC_E2E_EPOCH"

// beEpochGateway is main of such a process.
func beEpochGateway(args []string) int {
	err := func() error {
		text, err := os.ReadFile(args[len(args)-1])
		if err != nil {
			return err
		}
		n, err := configs.DecodeNode(args[len(args)-1], text)
		if err != nil {
			return err
		}
		began := time.Now()
		g, err := gateway.New(gateway.Options{Node: n, NodeText: text, Version: "epoch", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			Wall: func() time.Time { return time.Unix(0, 0).Add(time.Since(began)) }})
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		return g.Run(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// keys is where a machine's certificate is.
func (m *machine) keys() string { return filepath.Join(m.dir, m.name) }

// TestClusterCertificates: new files are read without a restart; one that ends soon is warned of, and when it has ended what stands goes on; whoever comes with none, another
// authority's, or one that is not valid now is refused and counted; two thirds of a life are followed by a renewal once a member has the authority's key; and a gateway whose
// clock says 1970 serves, says so, and is named by the others.
func TestClusterCertificates(t *testing.T) {
	mostlyWaits(t)
	r := newTrioOf(t, func(dir string) { // old enough to have issued what ends now
		_, err := transport.NewAuthority(dir, "demarc", time.Now().Add(-2*transport.MemberLife))
		check(t, err)
	})
	gw1, gw2, wit := r.begin()
	ca, err := transport.OpenAuthority(r.ca)
	check(t, err)

	// 10 s are left, and nobody has the authority's key.
	ends := time.Now().Add(10 * time.Second)
	check(t, ca.Issue(gw2.keys(), "gw2", ends.Add(-transport.MemberLife)))
	r.eventually(5*time.Second, "gw2 has read its new certificate and warns", func() (bool, string) {
		s := gw2.self()
		return s.Until != nil && s.Until.Sub(ends).Abs() < 2*time.Second && strings.Contains(s.Problem, "the certificate of this node ends at") && strings.Contains(s.Problem, "demarc cluster cert gw2"), s.Problem
	})
	r.eventually(5*time.Second, "its log, the others and the metrics warn as well", func() (bool, string) {
		b, err := gw1.client.Text(t.Context(), "/metrics")
		check(t, err)
		want := fmt.Sprintf("demarc_cluster_member_certificate_expiry_timestamp_seconds{member=\"gw2\"} %.10g", float64(gw2.self().Until.Unix()))
		log := read(t, gw2.p.log)
		return strings.Contains(log, "the certificate of this node ends soon and was not renewed") && strings.Contains(gw1.says("gw2").Problem, "ends at") && metricIs(string(b), want), log
	})

	// Who is not let in meanwhile.
	foreign, err := transport.NewAuthority(filepath.Join(r.dir, "foreign"), "demarc", time.Now())
	check(t, err)
	before := gw1.members().Refused
	knock := func(a *transport.Authority, at time.Time) {
		t.Helper()
		conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"demarc-request/1"}, MinVersion: tls.VersionTLS13}
		if a != nil {
			dir := t.TempDir()
			check(t, a.Issue(dir, "gw2", at))
			c, err := tls.LoadX509KeyPair(filepath.Join(dir, transport.MemberCert), filepath.Join(dir, transport.MemberKey))
			check(t, err)
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil } // whomever the other side asks for
		}
		var c net.Conn
		check(t, r.Do("wit", func() error { c, err = net.DialTimeout("tcp", gw1.address, 5*time.Second); return err }))
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		s := tls.Client(c, conf)
		_, _ = io.WriteString(s, "\x00\x00\x00\x00")
		if b, err := io.ReadAll(s); len(b) > 0 || err == nil {
			t.Errorf("it is answered %q, %v", b, err)
		}
	}
	knock(nil, time.Time{})
	knock(foreign, time.Now())
	knock(ca, time.Now().Add(48*time.Hour))
	after := gw1.members().Refused
	for _, kind := range []string{"no_certificate", "other_authority", "clock"} {
		if after[kind] != before[kind]+1 {
			t.Errorf("%s: %d counted, 1 was refused", kind, after[kind]-before[kind])
		}
	}

	// It has ended: what stands goes on.
	r.eventually(20*time.Second, "gw2 says that its certificate has ended", func() (bool, string) {
		p := gw2.self().Problem
		return strings.Contains(p, "the certificate of this node has ended at"), p
	})
	gw1.must("apply", r.policy("after-the-end"))
	gw2.serves("after-the-end", 5*time.Second)
	if s := gw1.says("gw2"); s.Answered == nil || *s.Answered > 3 {
		t.Errorf("gw1 has not heard of gw2: %+v", s)
	}
	r.offline("cluster", "cert", "gw2", "--ca", r.ca, "--out", gw2.dir)
	r.eventually(5*time.Second, "a new one is all that it takes", func() (bool, string) { p := gw2.self().Problem; return p == "", p })

	// Two thirds of a life are over: the member that has the authority's key renews its own, and the other's.
	key, err := os.ReadFile(filepath.Join(r.ca, transport.AuthorityKey))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(wit.keys(), transport.AuthorityKey), key, 0o600))
	for _, m := range []*machine{gw1, wit} {
		check(t, ca.Issue(m.keys(), m.name, time.Now().Add(-transport.MemberLife*3/4)))
	}
	for _, m := range []*machine{gw1, wit} {
		r.eventually(10*time.Second, m.name+" has a renewed certificate", func() (bool, string) {
			u := m.self().Until
			return time.Until(*u) > transport.MemberLife-24*time.Hour && strings.Contains(read(t, m.p.log), `msg="certificate renewed" for=`+m.name), u.String()
		})
	}
	for _, m := range []*machine{gw1, gw2, wit} {
		m.whole(3)
	}

	// A gateway whose clock says 1970.
	gw2.kill()
	exe, err := os.Executable()
	check(t, err)
	gw2.tool, gw2.binary, gw2.env = program(t), exe, []string{epochEnv + "=1"}
	gw2.start()
	ping := gw2.stream("1s")
	r.eventually(10*time.Second, "the clock is named, there and here", func() (bool, string) {
		own, seen := gw2.status().Cluster.Problem, gw1.says("gw2").Problem
		return strings.Contains(own, "the wall clock of this node is off: it says 1970-01-01") && strings.Contains(seen, "one of the two clocks is off") && gw2.members().Refused["clock"] > 0, own + " / " + seen
	})
	if out := gw1.must("apply", r.policy("without-it")); !strings.Contains(out, "gw2 does not serve it yet: not reached") {
		t.Error(out)
	}
	gw2.serves("after-the-end", 0)
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back through a gateway in 1970", p.Received, p.Sent)
	}
	check(t, r.end(gw2.p, unix.SIGTERM))
	gw2.binary, gw2.env = "", nil
	gw2.start()
	gw2.serves("without-it", 10*time.Second)
	gw1.whole(3)
}

// metricIs finds a line of metrics, however its number is written.
func metricIs(text, want string) bool {
	series, value, _ := strings.Cut(want, "} ")
	for l := range strings.Lines(text) {
		s, v, ok := strings.Cut(strings.TrimSpace(l), "} ")
		var a, b float64
		if ok && s == series {
			_, err1 := fmt.Sscan(v, &a)
			_, err2 := fmt.Sscan(value, &b)
			return err1 == nil && err2 == nil && a == b
		}
	}
	return false
}
