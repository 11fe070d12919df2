package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"demarc/configs/examples"
	"demarc/gateway/api"
	"demarc/gateway/revisions"
)

// untar reads an archive: name -> content.
func untar(t *testing.T, b []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, r := map[string]string{}, tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(h.Name, "demarc-support/")
		if !ok || h.Mode != 0o600 {
			t.Errorf("%s, mode %o", h.Name, h.Mode)
		}
		out[name] = string(data)
	}
}

// Planted secrets of each kind are left out, and nothing else is.
func TestRedact(t *testing.T) {
	const x = "hunter2"
	for name, text := range map[string]string{
		"a string":                  `password = "hunter2"`,
		"single quotes":             `api_token = 'hunter2'`,
		"an escaped quote":          `secret = "a\"hunter2"`,
		"more lines":                "psk = \"\"\"\nabc\nhunter2\n\"\"\"",
		"raw, more lines":           "private_key = '''\nhunter2\n'''",
		"a list":                    "tokens = [\n  \"abc\", # one\n  \"hunter2\",\n]",
		"an inline table":           `peer = { name = "x", password = "hunter2", port = 5 }`,
		"a table under the name":    `credentials = { a = "hunter2", b = "hunter2" }`,
		"a section":                 "[cluster.secrets]\nraft = \"hunter2\"\n\n# more\nsync = 'hunter2'\n",
		"a dotted key":              `bgp.auth_key = "hunter2"`,
		"quoted key":                `"shared-key" = "hunter2"`,
		"upper case":                `PASSWORD = "hunter2"`,
		"in a comment":              `# old password: hunter2 and hunter2 again`,
		"no quotes":                 "snmp_community = hunter2\n",
		"JSON":                      `{"a": 1, "auth_token": "hunter2", "b": [2]}`,
		"JSON list":                 `{"passwords": ["x", "hunter2"]}`,
		"a log line":                `time=x level=INFO msg=peer token=hunter2 err="x"`,
		"a quoted log value":        `level=INFO password="abc hunter2" n=1`,
		"a URL":                     `url = "https://user:hunter2@192.0.2.1/x"`,
		"a query":                   `url = "https://192.0.2.1/x?token=hunter2&y=1"`,
		"a header":                  `header = "Authorization: Bearer hunter2hunter2"`,
		"a private key":             "ca = \"\"\"\n-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\n\"\"\"",
		"a private key that breaks": "-----BEGIN PRIVATE KEY-----\nhunter2\n",
		"a hash":                    `user = "$6$abc$hunter2"`,
		"two on a line":             `{"password": "hunter2", "x": {"token": "hunter2"}}`,
		"an open string":            "secret = \"hunter2\nmore = \"hunter2\"",
	} {
		got, n := redact([]byte("before = 1\n" + text + "\n"))
		if strings.Contains(string(got), x) || n == 0 || !strings.HasPrefix(string(got), "before = 1\n") || !strings.Contains(string(got), leftOut) {
			t.Errorf("%s: %d left out:\n%s", name, n, got)
		}
		if again, n := redact(got); n != 0 || !bytes.Equal(again, got) {
			t.Errorf("%s: the second time %d more are left out:\n%s", name, n, again)
		}
	}
	for _, name := range []string{"lab.node.toml", "lab.policy.toml", "enterprise-voip.node.toml", "enterprise-voip.policy.toml", "provider-vlans.node.toml", "provider-vlans.policy.toml"} {
		text, err := examples.FS.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, n := redact(text); n != 0 || !bytes.Equal(got, text) {
			t.Errorf("%s: %d left out, and there is no secret in it", name, n)
		}
	}
	for _, text := range []string{`bypass = ["198.51.100.0/24"]`, `digest = "sha256:` + strings.Repeat("ab", 32) + `"`, "demarc_worker_panics_total{worker=\"0\"} 0\n", `{"key": "198.18.10.11:5"}`, "compass = 1", "# pass the rules\n"} {
		if got, n := redact([]byte(text)); n != 0 || string(got) != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("password = \"\"\"x\"\"\"\n[secrets]\na = [{\"\"}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, _ := redact(b)
		if len(got) > 20*len(b)+100 {
			t.Fatalf("%d bytes became %d", len(b), len(got))
		}
	})
}

func TestSupportOfARunningNode(t *testing.T) {
	s := serve(t, &fake{})
	file := filepath.Join(t.TempDir(), "x.tar.gz")
	r := call(t, t.Context(), "", "support", "-o", file, "--socket", s)
	if r.code != exitOK || !strings.Contains(r.out, "secrets left out; addresses of hosts are in it") {
		t.Fatalf("exit %d, %s", r.code, r)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := untar(t, data)
	for _, name := range []string{"README.txt", "version.json", "status.json", "ports.json", "routes.json", "neighbours.json", "drops.json", "blocks.json", "sessions.json", "revisions.json", "history.json", "audit.json", "members.json", "kept.json", "groups.json", "group-events.json", "policy.toml", "node.toml", "log.txt",
		"doctor.txt", "machine/links.json", "machine/devices.json", "machine/proc/version.txt", "machine/proc/net/softnet_stat.txt"} {
		if got[name] == "" {
			t.Errorf("no %s", name)
		}
	}
	for name, text := range got {
		if strings.Contains(text, "planted") {
			t.Errorf("%s has a secret:\n%s", name, text)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON any more", name)
		}
		if name != "README.txt" && !strings.Contains(got["README.txt"], name) {
			t.Errorf("README does not name %s", name)
		}
	}
	if !strings.Contains(got["README.txt"], "metrics.txt: ") { // the fake serves none
		t.Errorf("README does not say what is missing:\n%s", got["README.txt"])
	}
	var sum sessionSummary
	if err := json.Unmarshal([]byte(got["sessions.json"]), &sum); err != nil || sum.Total != 14 || sum.By["alpha tenant tcp established"] != 1 || len(sum.First) != 3 {
		t.Errorf("%+v, %v", sum, err)
	}
	// Never over a file that is there.
	if r := call(t, t.Context(), "", "support", "-o", file, "--socket", s); r.code != exitFailed || !strings.Contains(r.err, "is there already") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	if now, _ := os.ReadFile(file); !bytes.Equal(now, data) {
		t.Error("the file has changed")
	}
	if r := call(t, t.Context(), "", "support", "-o", "-", "--socket", s); r.code != exitOK || untar(t, []byte(r.out))["status.json"] == "" {
		t.Errorf("to standard output: exit %d, %s", r.code, r.err)
	}
}

// A node that is down leaves its policies, its block list and the machine; what is missing is said.
func TestSupportOfANodeThatIsDown(t *testing.T) {
	dir := t.TempDir()
	store, err := revisions.Open(filepath.Join(dir, "policies"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Save([]byte("schema = 1\n# token: planted\n"), revisions.Meta{Source: "p.toml"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blocks"), []byte("demarc blocks 1 x\n[]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := examples.FS.ReadFile("lab.node.toml")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(text)) {
		if strings.HasPrefix(l, "data_dir = ") {
			l = "data_dir = \"" + dir + "\"\n"
		}
		lines = append(lines, l)
	}
	node, out := file(t, "node.toml", strings.Join(lines, "")), filepath.Join(t.TempDir(), "x.tar.gz")
	nobody := filepath.Join(t.TempDir(), "none")
	r := call(t, t.Context(), "", "support", "-o", out, "--node", node, "--socket", nobody, "--json")
	var s supported
	if r.code != exitOK || json.Unmarshal([]byte(r.out), &s) != nil || s.File != out {
		t.Fatalf("exit %d, %s", r.code, r)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := untar(t, data)
	var revs api.Revisions
	if json.Unmarshal([]byte(got["revisions.json"]), &revs) != nil || len(revs.Revisions) != 1 || !strings.Contains(got["policy.toml"], "schema = 1") || strings.Contains(got["policy.toml"], "planted") || got["blocks.txt"] == "" || got["doctor.txt"] == "" || got["node.toml"] == "" {
		t.Errorf("%v", s)
	}
	if all := strings.Join(s.Missing, "\n"); !strings.Contains(all, "no demarc runs here") || !strings.Contains(all, "journalctl") {
		t.Errorf("missing: %s", all)
	}
	// A node that runs is found by its node file, with another socket than the default one.
	text = bytes.Replace([]byte(strings.Join(lines, "")), []byte("/run/demarc-lab/demarc.sock"), []byte(serve(t, &fake{})), 1)
	up := filepath.Join(t.TempDir(), "up.tar.gz")
	if r := call(t, t.Context(), "", "support", "-o", up, "--node", file(t, "node.toml", string(text))); r.code != exitOK || strings.Contains(r.out, "missing: everything of the running node") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	// Without a node file it still is an archive.
	out += "2"
	if r := call(t, t.Context(), "", "support", "-o", out, "--socket", nobody); r.code != exitOK || !strings.Contains(r.out, "missing: node.toml: the node is down and --node names no file") {
		t.Errorf("exit %d, %s", r.code, r)
	}
}
