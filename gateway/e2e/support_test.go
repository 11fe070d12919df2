package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// unpack reads a support archive.
func unpack(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	check(t, err)
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: mode %v, %v", file, info.Mode(), err)
	}
	z, err := gzip.NewReader(f)
	check(t, err)
	out, r := map[string][]byte{}, tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		check(t, err)
		b, err := io.ReadAll(r)
		check(t, err)
		out[strings.TrimPrefix(h.Name, "demarc-support/")] = b
	}
}

// One archive of a node that runs, and one of the same node when it is down. Secrets planted in both files, also where the schema knows none yet
// (comments), are in neither.
func TestSupportArchive(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	s.write(read(t, s.node)+"# snmp community: planted-secret\n", read(t, s.policy)+"# the peer's password = \"planted-secret\"\n")
	s.start()
	if _, err := s.Exec(s.Alpha1.Name, "ping", "-c", "1", "-W", "2", s.Public1.V4.String()); err != nil {
		t.Fatal(err)
	}
	up := filepath.Join(s.dir, "up.tar.gz")
	out, err := s.demarc("support", "-o", up)
	if err != nil || strings.Contains(out, "missing") || !strings.Contains(out, "2 secrets left out") {
		t.Errorf("%v\n%s", err, out)
	}
	got := unpack(t, up)
	for name, b := range got {
		if n := bytes.Count(b, []byte("(left out)")); n != map[string]int{"policy.toml": 1, "node.toml": 1}[name] {
			t.Errorf("%s: %d left out", name, n)
			for line := range strings.Lines(string(b)) {
				if strings.Contains(line, "(left out)") {
					t.Logf("%s: %s", name, line)
				}
			}
		}
	}
	var st api.Status
	check(t, json.Unmarshal(got["status.json"], &st))
	if st.Node != "lab" || !st.Ready || st.Tenants[0].Rules == nil {
		t.Errorf("status: %+v", st)
	}
	for name, want := range map[string]string{"policy.toml": "[[tenant]]", "node.toml": "[[port]]", "log.txt": "msg=forwarding", "metrics.txt": "demarc_gateway_ready 1", "doctor.txt": "ok    kernel", "routes.json": "203.0.113.0/24",
		"neighbours.json": s.Public1.V4.String(), "sessions.json": "alpha tenant icmp answered", "revisions.json": "sha256:", "ports.json": netlab.PublicPort, "machine/devices.json": "gro", "machine/links.json": netlab.AlphaPort} {
		if !bytes.Contains(got[name], []byte(want)) {
			t.Errorf("%s lacks %q:\n%.600s", name, want, got[name])
		}
	}
	s.stop()
	down := filepath.Join(s.dir, "down.tar.gz")
	if out, err = s.demarc("support", "-o", down, "--node", s.node); err != nil || !strings.Contains(out, "missing: everything of the running node: no demarc runs here") {
		t.Errorf("%v\n%s", err, out)
	}
	less := unpack(t, down)
	for _, name := range []string{"policy.toml", "node.toml", "revisions.json", "doctor.txt", "machine/links.json"} {
		if len(less[name]) == 0 {
			t.Errorf("down: no %s", name)
		}
	}
	if !bytes.Equal(less["policy.toml"], got["policy.toml"]) {
		t.Error("the policy on disk is not the one that was served")
	}
	for _, m := range []map[string][]byte{got, less} {
		for name, b := range m {
			if bytes.Contains(b, []byte("planted-secret")) {
				t.Errorf("%s has a secret", name)
			}
		}
	}
}
