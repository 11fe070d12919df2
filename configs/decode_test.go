package configs

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each file in testdata is wrong in many ways; beside it stands every line that an operator is shown.
func TestErrorTexts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(name, ".policy.toml") {
				_, err = DecodePolicy(filepath.Base(name), data)
			} else {
				_, err = DecodeNode(filepath.Base(name), data)
			}
			var list ErrorList
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("error is %T: %v", err, err)
			}
			if !slices.IsSortedFunc(list, func(a, b Error) int { return a.Line - b.Line }) {
				t.Error("not sorted by line")
			}
			golden(t, strings.TrimSuffix(name, ".toml")+".txt", err.Error()+"\n")
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Error(d)
	}
}

const small = `schema = 1
[backbone]
interfaces = ["wan"]
[[tenant]]
name = "a"
interfaces = ["in"]
prefixes = ["198.18.0.0/24"]
`

func decodePolicy(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := DecodePolicy("p.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaults(t *testing.T) {
	p := decodePolicy(t, small+"[[tenant.nat.forward]]\npublic = \"192.0.2.1\"\nproto = \"tcp\"\nport = 80\ninside = \"198.18.0.1\"\n")
	a := &p.Tenants[0]
	if a.NAT.Forward[0].InsidePort != 80 || a.DefaultOut != "allow" || a.NAT.Ports != "dynamic" || a.Rates.In.Mode != "shape" {
		t.Errorf("%+v", a)
	}
	if p.Timeouts.TCPEstablished.Duration != 124*time.Minute || p.Timeouts.NATHold.Duration != 2*time.Minute {
		t.Errorf("%+v", p.Timeouts)
	}
	n, err := DecodeNode("n.toml", []byte("schema = 1\ndata_dir = \"/d\"\n[[port]]\ndevice = \"e\"\n[port.host]\nshared = [\"192.0.2.1\"]\n[[interface]]\nname = \"i\"\nport = \"e\"\naddresses = [\"192.0.2.1/24\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if n.API.Socket != "/d/demarc.sock" || n.Ports[0].Name != "e" || !*n.Workers.NeedWakeup || n.Tables.Mappings != DefaultSessions || !slices.Equal(n.Ports[0].Host.TCPPorts, []int{22}) {
		t.Errorf("%+v", n)
	}
}

// TestAPIKeys: the interface over TCP shows the certificate that the node has for the cluster, unless it is given its own.
func TestAPIKeys(t *testing.T) {
	const rest = "[[port]]\ndevice = \"e\"\n[[interface]]\nname = \"i\"\nport = \"e\"\naddresses = [\"192.0.2.1/24\"]\n"
	for text, want := range map[string]string{
		"[api]\nlisten = \"192.0.2.1:7443\"\n":                                                             DefaultKeys,
		"[api]\nlisten = \"192.0.2.1:7443\"\nkeys = \"/k\"\n":                                              "/k",
		"[api]\nlisten = \"192.0.2.1:7443\"\n" + "[cluster]\nlisten = \"192.0.2.1:7400\"\nkeys = \"/c\"\n": "/c",
		"[cluster]\nlisten = \"192.0.2.1:7400\"\nkeys = \"/c\"\n":                                          "",
		"[api]\nlisten = \"192.0.2.1:7443\"\n[cluster]\nlisten = \"192.0.2.1:7400\"\n":                     DefaultKeys,
		"": "",
	} {
		n, err := DecodeNode("n.toml", []byte("schema = 1\nname = \"n\"\ndata_dir = \"/d\"\n"+text+rest))
		if err != nil || n.API.Keys != want {
			t.Errorf("%q: %v, want %s, %v", text, n, want, err)
		}
	}
	for text, want := range map[string]string{
		"keys = \"/k\"\n":            "is for api.listen, which is not there",
		"listen = \":7443\"\n":       "is not an address and port",
		"listen = \"192.0.2.1:0\"\n": "is not an address and port",
		"listen = \"192.0.2.1:7\"\nmetrics = \"192.0.2.1:7\"\n": "is the address of api.metrics",
		"listen = \"192.0.2.1:7443\"\nkeys = \"k\"\n":           "is not an absolute path",
	} {
		if _, err := DecodeNode("n.toml", []byte("schema = 1\nname = \"n\"\ndata_dir = \"/d\"\n[api]\n"+text+rest)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// Lines must be right for every way of writing the same thing.
func TestLines(t *testing.T) {
	for _, c := range []struct {
		text string
		line int
	}{
		{"schema = 1\nbackbone = { interfaces = [\"wan\"], oops = 1 }\n", 2},
		{"schema = 1\nbackbone.interfaces = [\"wan\"]\nbackbone.oops = 1\n", 3},
		{"schema = 1\nname = \"\"\"a\nb\"\"\"\n[backbone]\ninterfaces = [ # comment ]\n \"wan\",\n\n]\n\"oops\" = 1\n", 9},
		{"schema = 1\nname = '''a\nb''''\n[backbone]\ninterfaces = [\"wan\"]\n'oops' = 1\n", 6},
		{"schema = 1\nname = \"\"\"a \\\n b\"\"\"\n[ backbone ]\ninterfaces = [\"wan\"]\r\noops = 1\n", 6},
		{"schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[ backbone . oops ]]\n", 4},
		{"schema = 1\n[backbone]\ninterfaces = [\n\"wan\",\n\"]\\\"#\", # not a name\n]\n", 5},
	} {
		_, err := DecodePolicy("p", []byte(c.text))
		var list ErrorList
		if !errors.As(err, &list) || list[0].Line != c.line && list[len(list)-1].Line != c.line {
			t.Errorf("want line %d:\n%s\n%v", c.line, c.text, err)
		}
	}
}

// Hostile files cost bounded time and memory and are refused with a line of text, not a crash.
func TestBounds(t *testing.T) {
	many := func(n int, f func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(f(i))
		}
		return b.String()
	}
	for _, c := range []struct{ name, text, want string }{
		{"bytes", strings.Repeat("#", MaxBytes+1), "is 8388609 bytes long: at most 8388608"},
		{"arrays", "a = " + strings.Repeat("[", 1<<20), "brackets are nested deeper than 16"},
		{"tables", "a = " + strings.Repeat("{b=", 1<<20), "brackets are nested deeper than 16"},
		{"dots", strings.Repeat("a.", 1<<20) + "a = 1", "a key has more than 8 parts"},
		{"errors", small + many(5000, func(i int) string { return fmt.Sprintf("oops%d = 1\n", i) }), "and 4000 more"},
		{"laughs", small + "[objects.hosts]\nh0 = [\"192.0.2.1\"]\n" + many(30, func(i int) string {
			return fmt.Sprintf("h%d = [%s]\n", i+1, many(20, func(int) string { return fmt.Sprintf("\"h%d\",", i) }))
		}) + "[[tenant.rule]]\ndirection = \"in\"\naction = \"maybe\"\nfrom = [\"h30\"]\n", "maybe"},
		{"deep", small + "default_out = \"maybe\"\n[objects.hosts]\nh0 = [\"192.0.2.1\"]\n" + many(16_000, func(i int) string { return fmt.Sprintf("h%d = [\"h%d\"]\n", i+1, i) }) +
			"[[tenant.rule]]\ndirection = \"in\"\naction = \"allow\"\nfrom = [\"h16000\"]\nto = [\"h16000\"]\n", "maybe"},
		{"guesses", small + "[objects.hosts]\n" + many(16_000, func(i int) string { return fmt.Sprintf("h%d = [\"h%d\", \"nope%d\"]\n", i, i/2+1, i) }), "\"nope0\" is not an address or a host object"},
		{"wide", small + "default_out = \"maybe\"\n[objects.hosts]\n" + many(16_000, func(i int) string {
			if i < 31 {
				return fmt.Sprintf("h%d = [%s]\n", i, strings.Repeat(fmt.Sprintf("\"h%d\",", i+1), 1000))
			}
			return fmt.Sprintf("h%d = [\"h0\"]\n", i+16_000)
		}) + "h31 = [\"192.0.2.1\"]\n", "maybe"},
		{"list", small + "[objects.hosts]\nh = [" + strings.Repeat("\"a\",", maxList+1) + "]\n", "at most 131072"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := DecodePolicy("p", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want %q, got %.300v", c.want, err)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	words := []string{"alpha", "beta", "interfaces", "prefixes", "tcp", "udp"}
	for in, want := range map[string]string{"tpc": "tcp", "interface": "interfaces", "Alpha": "alpha", "prefxes": "prefixes", "zzz": "", "": "", "gamma": ""} {
		if got := nearest(in, words); got != want {
			t.Errorf("nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestDurationAndRate(t *testing.T) {
	for in, want := range map[string]Rate{"20M": 20_000_000, "1.5G": 1_500_000_000, "64k": 64_000, "0": 0, "123": 123, "10T": MaxRate, "0.001k": 1} {
		var r Rate
		if err := r.UnmarshalText([]byte(in)); err != nil || r != want {
			t.Errorf("%q: %d %v", in, r, err)
		}
		var back Rate
		if err := back.UnmarshalText([]byte(r.String())); err != nil || back != r {
			t.Errorf("%q came back as %d: %v", r, back, err)
		}
	}
	for _, in := range []string{"", "M", "20m", "20K", "20Mbit", "-1", "+1", "1.2.3M", ".5M", "5.M", "1.0001k", "1.5", " 1", "11T", "99999999999999999999", "1e6", "18446744073709552k"} {
		var r Rate
		if err := r.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was read as %d", in, r)
		}
	}
	for in, want := range map[string]string{"2h4m": "2h4m", "124m": "2h4m", "90s": "1m30s", "1h": "1h", "20ms": "20ms", "60m0s": "1h", "10m": "10m"} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || d.String() != want {
			t.Errorf("%q: %s %v", in, d, err)
		}
	}
	for _, in := range []string{"", "90", "-1s", "+1s", "1d", "forever"} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was read as %s", in, d)
		}
	}
}

func fuzz(f *testing.F, pattern string, decode func([]byte) (any, error)) {
	for _, dir := range []string{"examples", "testdata"} {
		files, _ := filepath.Glob(filepath.Join(dir, pattern))
		if len(files) == 0 {
			f.Fatal("no seeds in " + dir)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := decode(data)
		if err == nil {
			if v == nil {
				t.Fatal("neither a file nor an error")
			}
			return
		}
		var list ErrorList
		if !errors.As(err, &list) || len(list) == 0 {
			t.Fatalf("error is %T", err)
		}
		lines := strings.Count(string(data), "\n") + 1
		for _, e := range list {
			if e.Line > lines || e.Line < 0 || e.Msg == "" {
				t.Fatalf("%+v in a text of %d lines", e, lines)
			}
			if strings.ContainsAny(e.Error(), "\n\r\x1b") {
				t.Fatalf("%q is not one clean line", e.Error())
			}
		}
		if _, again := decode(data); again == nil || again.Error() != err.Error() {
			t.Fatal("the same text gave another answer")
		}
	})
}

func FuzzDecodePolicy(f *testing.F) {
	fuzz(f, "*.policy.toml", func(data []byte) (any, error) {
		p, err := DecodePolicy("f", data)
		if err != nil {
			return nil, err
		}
		// What was accepted must resolve: the compiler relies on it.
		for i := range p.Tenants {
			t := &p.Tenants[i]
			for _, r := range t.Rules {
				if _, _, err := p.Hosts(t, r.From); err != nil {
					panic(err)
				}
				if _, _, err := p.Hosts(t, r.To); err != nil {
					panic(err)
				}
				if _, err := p.Services(t, r.Service); err != nil {
					panic(err)
				}
			}
			if _, err := PoolAddrs(t.NAT.Pool); err != nil {
				panic(err)
			}
			if _, err := DSCPs(t.Rates.Voice.DSCP); err != nil {
				panic(err)
			}
		}
		p.Warnings()
		if d := Diff(p, p); len(d) != 0 {
			panic(fmt.Sprint("differs from itself: ", d))
		}
		return p, nil
	})
}

func FuzzDecodeNode(f *testing.F) {
	fuzz(f, "*.node.toml", func(data []byte) (any, error) {
		n, err := DecodeNode("f", data)
		if err != nil {
			return nil, err
		}
		return n, nil
	})
}

func TestAByteOrderMarkSaysNothing(t *testing.T) {
	b, err := os.ReadFile("examples/lab.policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodePolicy("bom.toml", append([]byte("\xef\xbb\xbf"), b...)); err != nil {
		t.Error(err)
	}
}
