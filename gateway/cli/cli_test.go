package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway"
	"demarc/gateway/api"
	"demarc/gateway/doctor"
	"demarc/gateway/hostnet"
	"demarc/gateway/revisions"
	"demarc/gateway/xsk"
)

func TestOutputs(t *testing.T) {
	policy := file(t, "p.toml", "new")
	for name, args := range map[string][]string{
		"status": {"status"}, "sessions": {"sessions"}, "drops": {"drops"}, "drops-all": {"drops", "--all"}, "routes": {"routes"},
		"neighbours": {"neighbours"}, "ports": {"ports"}, "policy": {"policy"}, "diff": {"diff", policy}, "apply": {"apply", policy},
		"apply-confirm": {"apply", policy, "--confirm", "90s"}, "confirm": {"confirm"}, "rollback": {"rollback", "3"}, "history": {"history"}, "audit": {"audit", "--after", "6"}, "show": {"show", "5"}, "export": {"export"},
	} {
		t.Run(name, func(t *testing.T) {
			r := call(t, t.Context(), "", append(args, "--socket", serve(t, &fake{}))...)
			if r.code != exitOK || r.err != "" {
				t.Fatalf("exit %d, stderr %q", r.code, r.err)
			}
			golden(t, name, r.out)
		})
	}
}

// What check warns of is said by diff and apply too, the first of it, and the policy is served all the same.
func TestApplyWarnsOfWhatIsHardlyMeant(t *testing.T) {
	text := "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"2001:db8::/64\"]\n[[tenant.rule]]\ndirection = \"out\"\naction = \"allow\"\n"
	for i := range 13 {
		text += fmt.Sprintf("[[tenant.rule]]\ndirection = \"out\"\naction = \"deny\"\nservice = [\"tcp/%d\"]\n", 80+i)
	}
	policy := file(t, "p.toml", text)
	for _, cmd := range []string{"diff", "apply"} {
		r := call(t, t.Context(), "", cmd, policy, "--socket", serve(t, &fake{}))
		if r.code != exitOK {
			t.Fatalf("%s: exit %d, stderr %q", cmd, r.code, r.err)
		}
		if n := strings.Count(r.out, "warning: "+policy+":"); n != mostWarnings || !strings.Contains(r.out, "warning: and 3 more, which demarc check says\n") || !strings.Contains(r.out, "tenant[1].rule[2]") {
			t.Errorf("%s: %d warnings of the file:\n%s", cmd, n, r.out)
		}
		r = call(t, t.Context(), "", cmd, policy, "--json", "--socket", serve(t, &fake{}))
		var d struct{ Warnings []string }
		if err := json.Unmarshal([]byte(r.out), &d); err != nil || len(d.Warnings) < mostWarnings+1 {
			t.Errorf("%s --json: %v, %q", cmd, err, d.Warnings)
		}
	}
}

func TestJSONIsTheWireStruct(t *testing.T) {
	policy := file(t, "p.toml", "new")
	f := &fake{}
	must := func(v any, err error) any {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ctx := t.Context()
	for _, c := range []struct {
		args []string
		want any
	}{
		{[]string{"status"}, someStatus()},
		{[]string{"sessions"}, &api.Sessions{Total: 14, Matched: 3, Sessions: someSessions()}},
		{[]string{"drops"}, must(f.Drops(ctx))},
		{[]string{"routes"}, must(f.Routes(ctx))},
		{[]string{"neighbours"}, must(f.Neighbours(ctx))},
		{[]string{"neighbors"}, must(f.Neighbours(ctx))},
		{[]string{"ports"}, must(f.Ports(ctx))},
		{[]string{"policy"}, map[string]string{"policy": "schema = 1\n# <b>\n"}},
		{[]string{"diff", policy}, must(f.Diff(ctx, api.DiffRequest{}))},
		{[]string{"apply", policy}, must(f.Apply(ctx, api.ApplyRequest{}))},
		{[]string{"confirm"}, must(f.Confirm(ctx, api.ConfirmRequest{}))},
		{[]string{"rollback", "3"}, must(f.Rollback(ctx, api.RollbackRequest{}))},
		{[]string{"history"}, must(f.History(ctx))},
		{[]string{"audit"}, must(f.Audit(ctx, 0))},
		{[]string{"show", "5"}, must(f.Show(ctx, 5))},
		{[]string{"export", "5"}, must(f.Show(ctx, 5))},
	} {
		t.Run(c.args[0], func(t *testing.T) {
			r := call(t, ctx, "", append(c.args, "--json", "--socket", serve(t, &fake{}))...)
			if r.code != exitOK || r.err != "" {
				t.Fatalf("exit %d, stderr %q", r.code, r.err)
			}
			want, err := json.Marshal(c.want)
			if err != nil {
				t.Fatal(err)
			}
			var got, wanted any
			if err := json.Unmarshal([]byte(r.out), &got); err != nil {
				t.Fatalf("%v: %s", err, r.out)
			}
			if err := json.Unmarshal(want, &wanted); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(wanted, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWhatTheNodeIsAsked(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	policy := file(t, "p.toml", "text of it")
	call(t, t.Context(), "", "sessions", "--tenant", "alpha", "--address", "198.18.0.0/16", "--port", "80", "--proto", "tcp", "--limit", "7", "--socket", s)
	if d := cmp.Diff(api.SessionFilter{Tenant: "alpha", Address: "198.18.0.0/16", Port: 80, Proto: "tcp", Limit: 7}, f.filter); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "", "status", "--rules", "--socket", s)
	if !f.rules {
		t.Error("status --rules did not ask for rules")
	}
	call(t, t.Context(), "", "apply", policy, "--expect", "4", "--socket", s)
	if d := cmp.Diff(api.ApplyRequest{Policy: "text of it", Source: policy, Expected: 4}, f.apply); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "piped", "apply", "-", "--socket", s)
	if d := cmp.Diff(api.ApplyRequest{Policy: "piped", Source: "standard input"}, f.apply); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "piped", "apply", "-", "--confirm", "90s", "--comment", "because", "--socket", s)
	if d := cmp.Diff(api.ApplyRequest{Policy: "piped", Source: "standard input", Confirm: 90, Comment: "because"}, f.apply); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "", "confirm", "5", "--socket", s)
	call(t, t.Context(), "", "rollback", "3", "--confirm", "1m", "--comment", "x", "--expect", "6", "--socket", s)
	call(t, t.Context(), "", "show", "4", "--socket", s)
	call(t, t.Context(), "", "audit", "--after", "88", "--socket", s)
	if d := cmp.Diff(recalled{api.ConfirmRequest{Revision: 5}, api.RollbackRequest{To: 3, Confirm: 60, Comment: "x", Expected: 6}, 4, 88}, f.recalled, cmp.AllowUnexported(recalled{})); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "", "confirm", "--socket", s)
	call(t, t.Context(), "", "rollback", "--socket", s)
	call(t, t.Context(), "", "export", "--socket", s)
	call(t, t.Context(), "", "audit", "--socket", s)
	if d := cmp.Diff(recalled{}, f.recalled, cmp.AllowUnexported(recalled{})); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "", "diff", "--to", "4", "--from", "2", "--socket", s)
	if d := cmp.Diff(api.DiffRequest{To: 4, From: 2}, f.diff); d != "" {
		t.Error(d)
	}
	call(t, t.Context(), "piped", "diff", "-", "--socket", s)
	if d := cmp.Diff(api.DiffRequest{Policy: "piped", Source: "standard input"}, f.diff); d != "" {
		t.Error(d)
	}
	if r := call(t, t.Context(), "same", "diff", "-", "--socket", s); !strings.Contains(r.out, "nothing would change") {
		t.Error(r)
	}
	t.Setenv(socketEnv, s)
	if r := call(t, t.Context(), "", "policy"); r.code != exitOK || r.out != "schema = 1\n# <b>\n" {
		t.Errorf("socket from the environment: %d %s", r.code, r)
	}
}

func TestRefusals(t *testing.T) {
	two := &api.Fault{Status: http.StatusUnprocessableEntity, Err: errors.New("a\nb"), Problems: []api.Problem{{Text: "p.toml:1: one"}, {Text: "p.toml:2: two"}}}
	for _, c := range []struct {
		name   string
		refuse error
		args   []string
		stderr string
	}{
		{"every problem a line", two, []string{"apply", "-"}, "p.toml:1: one\np.toml:2: two\n"},
		{"diff too", two, []string{"diff", "-"}, "p.toml:1: one\np.toml:2: two\n"},
		{"conflict", &api.Fault{Status: http.StatusConflict, Err: errors.New("conflict: revision 5 is served, not 4")}, []string{"apply", "-", "--expect", "4"}, "demarc: conflict: revision 5 is served, not 4\n"},
		{"joined errors", errors.New("first\nsecond"), []string{"policy"}, "demarc: first\ndemarc: second\n"},
		{"json keeps stdout empty", errors.New("no"), []string{"status", "--json"}, "demarc: no\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := call(t, t.Context(), "x", append(c.args, "--socket", serve(t, &fake{refuse: c.refuse}))...)
			if r.code != exitFailed || r.out != "" || r.err != c.stderr {
				t.Errorf("exit %d, %s", r.code, r)
			}
		})
	}
	nobody := filepath.Join(t.TempDir(), "none")
	if r := call(t, t.Context(), "", "status", "--socket", nobody); r.code != exitFailed || !strings.HasPrefix(r.err, "demarc: no demarc runs here") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("no node: exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), "", "apply", filepath.Join(t.TempDir(), "none.toml"), "--socket", nobody); r.code != exitFailed || !strings.Contains(r.err, "none.toml") {
		t.Errorf("no file: exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), strings.Repeat("#", api.MaxPolicy+1), "apply", "-", "--socket", nobody); r.code != exitFailed || !strings.Contains(r.err, "more than 8 MiB") {
		t.Errorf("endless file: exit %d, %s", r.code, r)
	}
}

// TestInterrupted: what Ctrl-C has ended says so, and once; what went wrong beside it is not left out.
func TestInterrupted(t *testing.T) {
	for err, want := range map[error]string{
		errors.Join(context.Canceled, context.Canceled):                           "demarc: interrupted\n",
		errors.Join(fmt.Errorf("pair 2: %w", context.Canceled), errors.New("no")): "demarc: pair 2: interrupted\ndemarc: no\n",
	} {
		ctx, stop := context.WithCancel(t.Context())
		var out bytes.Buffer
		root := New("v", &cobra.Command{Use: "x", RunE: func(*cobra.Command, []string) error {
			stop()
			return err
		}})
		root.SetArgs([]string{"x"})
		root.SetErr(&out)
		if code := Execute(ctx, root); code != exitFailed || out.String() != want {
			t.Errorf("exit %d, %q, want %q", code, out.String(), want)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{}, {"nonsense"}, {"--nonsense"}, {"run"}, {"run", "extra", "--node", "n"}, {"run", "--node", "n", "--break", "everything"}, {"check"}, {"check", "a", "b"},
		{"apply"}, {"apply", "a", "b"}, {"apply", "a", "--expect", "-1"}, {"diff"}, {"status", "extra"}, {"status", "--nonsense"}, {"status", "--watch", "--interval", "1ms"},
		{"sessions", "--port", "70000"}, {"sessions", "--port", "http"}, {"sessions", "--limit", "-1"}, {"sessions", "--follow", "--interval", "0s"}, {"drops", "extra"}, {"routes", "extra"},
		{"neighbours", "extra"}, {"ports", "extra"}, {"policy", "extra"}, {"doctor", "extra"}, {"release"}, {"release", "a", "b"}, {"lab", "extra"}, {"lab", "--break", "everything"}, {"lab", "--cluster", "--break", "nat"}, {"lab", "--cluster", "--duration", "20s"},
		{"version", "extra"}, {"confirm", "x"}, {"confirm", "0"}, {"confirm", "1", "2"}, {"rollback", "-1"}, {"rollback", "--confirm", "60s"}, {"rollback", "--comment", "x"}, {"rollback", "3", "--confirm", "0s"},
		{"apply", "a", "--confirm", "25h"}, {"apply", "a", "--confirm", "10ms"}, {"apply", "a", "--confirm", "60"}, {"apply", "a", "--expect", "0"}, {"history", "extra"}, {"audit", "--after", "-1"}, {"show"}, {"show", "last"}, {"export", "0"},
		{"diff", "a", "--to", "3"}, {"diff", "--from", "3"}, {"diff", "--to", "0"}, {"diff", "a", "--from", "0"}, {"sessions", "--proto", "foo"}, {"sessions", "--proto", "300"}, {"sessions", "--address", "foo"}, {"sessions", "--address", "10.0.0.5/24"}, {"sessions", "--sort", "size"}, {"sessions", "--sort", "bytes", "--follow"}, {"lab", "--duration", "1s"}, {"completion"}, {"completion", "foo"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			r := call(t, t.Context(), "", args...)
			if r.code != exitUsage || r.out != "" || !strings.HasPrefix(r.err, "demarc: ") || !strings.Contains(r.err, "usage: demarc") {
				t.Errorf("exit %d, %s", r.code, r)
			}
		})
	}
	for line, says := range map[string]string{
		"statsu":       `there is no command "statsu": did you mean "status"?`,
		"apply":        "it needs an argument",
		"apply a b":    `"b" is one argument too many`,
		"check a b c":  `"b" is one argument too many`,
		"status extra": `"extra" is one argument too many`,
		"group move a": `after "a" an argument is missing`,
		"block a":      `after "a" an argument is missing`,
	} {
		if r := call(t, t.Context(), "", strings.Fields(line)...); r.code != exitUsage || !strings.HasPrefix(r.err, "demarc: "+says+"\nusage: demarc ") {
			t.Errorf("%s: exit %d, %s", line, r.code, r)
		}
	}
}

// The help of every command that a user may see is a golden text: a verb or flag that changes is a change of the interface.
func TestHelp(t *testing.T) {
	var all []string
	t.Setenv(socketEnv, "")
	for _, c := range New("v0.1").Commands() {
		if !c.Hidden && c.Name() != "help" && c.Name() != "completion" {
			all = append(all, c.Name())
			for _, sub := range c.Commands() {
				all = append(all, c.Name()+" "+sub.Name())
			}
		}
	}
	var b strings.Builder
	b.WriteString(call(t, t.Context(), "", "--help").out)
	for _, name := range all {
		r := call(t, t.Context(), "", append(strings.Fields(name), "--help")...)
		if r.code != exitOK || r.err != "" {
			t.Errorf("%s --help: exit %d, %s", name, r.code, r)
		}
		if strings.Contains(r.out, "--break") {
			t.Errorf("%s --help shows --break", name)
		}
		b.WriteString("\n==== " + name + "\n" + r.out)
	}
	golden(t, "help", b.String())
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := call(t, t.Context(), "", "completion", shell); r.code != exitOK || len(r.out) < 1000 {
			t.Errorf("completion %s: exit %d, %d bytes", shell, r.code, len(r.out))
		}
	}
}

func TestVersion(t *testing.T) {
	if r := call(t, t.Context(), "", "version"); !strings.HasPrefix(r.out, "demarc v0.1, go") {
		t.Error(r)
	}
	if r := call(t, t.Context(), "", "--version"); r.out != "demarc v0.1\n" {
		t.Error(r)
	}
	var b built
	if r := call(t, t.Context(), "", "version", "--json"); json.Unmarshal([]byte(r.out), &b) != nil || b.Version != "v0.1" {
		t.Error(r)
	}
	if buildVersion() == "" {
		t.Error("a build without a version")
	}
}

func TestExtraCommandsAreThere(t *testing.T) {
	ran := false
	root := New("", &cobra.Command{Use: "bench", RunE: func(*cobra.Command, []string) error { ran = true; return nil }})
	root.SetArgs([]string{"bench"})
	if code := Execute(t.Context(), root); code != exitOK || !ran {
		t.Errorf("exit %d, ran %v", code, ran)
	}
}

func TestCheck(t *testing.T) {
	const ex = "../../configs/examples/"
	for _, name := range []string{"lab", "enterprise-voip", "provider-vlans"} {
		if r := call(t, t.Context(), "", "check", ex+name+".policy.toml", "--node", ex+name+".node.toml"); r.code != exitOK || !strings.HasPrefix(r.out, "ok: ") {
			t.Errorf("%s: exit %d, %s", name, r.code, r)
		}
	}
	if r := call(t, t.Context(), "", "check", "--node", ex+"lab.node.toml"); r.code != exitOK || r.out != "ok: 3 ports, 3 interfaces\n" {
		t.Errorf("node alone: exit %d, %s", r.code, r)
	}
	bad := file(t, "bad.toml", "schema = 1\nnmae = \"x\"\n[backbone]\ninterfaces = [\"a\"]\n[[tenant]]\nname = \"t\"\ninterfaces = [\"b\"]\n[[tenant.rule]]\ndirection = \"up\"\naction = \"allow\"\n")
	badNode := file(t, "node.toml", "schema = 1\nname = 5\n")
	r := call(t, t.Context(), "", "check", bad, "--node", badNode)
	if r.code != exitFailed || r.out != "" {
		t.Fatalf("exit %d, %s", r.code, r)
	}
	for _, want := range []string{"bad.toml:2:", "bad.toml:9:", "node.toml:2:"} {
		if !strings.Contains(r.err, want) {
			t.Errorf("no %q in\n%s", want, r.err)
		}
	}
	for line := range strings.Lines(r.err) {
		if !strings.HasPrefix(line, "/") {
			t.Errorf("a line that does not begin with its file: %q", line)
		}
	}
	j := call(t, t.Context(), "", "check", bad, "--node", badNode, "--json")
	var c checked
	if err := json.Unmarshal([]byte(j.out), &c); err != nil || j.code != exitFailed || c.OK || len(c.Problems) != strings.Count(r.err, "\n") {
		t.Errorf("exit %d, %v, %d problems for\n%s", j.code, err, len(c.Problems), r.err)
	}
	// Both files are right, but not for each other.
	if r := call(t, t.Context(), "", "check", ex+"lab.policy.toml", "--node", ex+"provider-vlans.node.toml"); r.code != exitFailed || strings.Count(r.err, "is not an interface of the node") != 3 {
		t.Errorf("exit %d, %s", r.code, r)
	}
	// A rule that never matches is a warning and no refusal.
	twice := "\n[[tenant.rule]]\nname = \"all\"\ndirection = \"out\"\naction = \"deny\"\n\n[[tenant.rule]]\nname = \"never\"\ndirection = \"out\"\naction = \"allow\"\nservice = [\"tcp/80\"]\n"
	text, err := os.ReadFile(ex + "lab.policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	if r := call(t, t.Context(), string(text)+twice, "check", "-"); r.code != exitOK || !strings.Contains(r.err, "warning: standard input:") || !strings.Contains(r.out, "warning") {
		t.Errorf("exit %d, %s", r.code, r)
	}
}

// TestCheckOnTheNodesMachine: what the node will refuse because of its kernel's own ports is a warning where its devices are, and nothing elsewhere.
func TestCheckOnTheNodesMachine(t *testing.T) {
	was := thisMachine
	defer func() { thisMachine = was }()
	lo, _, err := hostnet.EphemeralRange()
	if err != nil {
		t.Fatal(err)
	}
	const policy = "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[[tenant.nat.forward]]\nproto = \"tcp\"\npublic = \"203.0.113.2\"\nport = %d\ninside = \"198.18.0.9\"\n"
	node := file(t, "n.toml", "schema = 1\n[[port]]\nname = \"wan\"\ndevice = \"wan0\"\nhost.shared = [\"203.0.113.2\"]\n[[port]]\ndevice = \"in0\"\n[[interface]]\nname = \"wan\"\nport = \"wan\"\naddresses = [\"203.0.113.2/24\"]\n[[interface]]\nname = \"a\"\nport = \"in0\"\naddresses = [\"198.18.0.1/24\"]\n")
	for _, c := range []struct {
		here []string
		port uint16
		want string
	}{
		{[]string{"wan0", "in0"}, lo, fmt.Sprintf("p.toml:11: tenant[1].nat.forward[1].port: %d of 203.0.113.2 is the host's on port \"wan\"", lo)},
		{[]string{"wan0", "in0"}, lo - 1, ""},
		{[]string{"wan0"}, lo, ""}, // another machine
	} {
		thisMachine.link = func(name string) (hostnet.Link, error) {
			if slices.Contains(c.here, name) {
				return hostnet.Link{Name: name}, nil
			}
			return hostnet.Link{}, hostnet.ErrNotFound
		}
		r := call(t, t.Context(), "", "check", file(t, "p.toml", fmt.Sprintf(policy, c.port)), "--node", node)
		n := strings.Count(r.err, "warning: ")
		if r.code != exitOK || !strings.Contains(r.err, c.want) || (n == 1) != (c.want != "") || !strings.Contains(r.out, plural(n, "warning")) {
			t.Errorf("port %d where %v are: exit %d, %s", c.port, c.here, r.code, r)
		}
	}
}

func TestWatchPrintsRates(t *testing.T) {
	first, second := someStatus(), someStatus()
	second.Uptime += 2
	second.Tenants[0].Out = api.Counter{Packets: first.Tenants[0].Out.Packets + 4000, Bytes: first.Tenants[0].Out.Bytes + 5_000_000}
	second.Tenants[0].Drops = map[string]uint64{"acl_deny": 13}
	voice := &second.Tenants[0].Voice.Out
	voice.Within.Packets, voice.Within.Bytes, voice.Above.Packets, voice.Lost.Packets = voice.Within.Packets+100, voice.Within.Bytes+20_000, voice.Above.Packets+10, voice.Lost.Packets+2
	second.Tenants[1].In.Packets, first.Tenants[1].In.Packets = 10, 1000 // it was made anew
	for _, js := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		f := &fake{status: []*api.Status{first, second, second}}
		f.enough = cancel
		args := []string{"status", "--watch", "--interval", "100ms", "--socket", serve(t, f)}
		if js {
			args = append(args, "--json")
		}
		r := call(t, ctx, "", args...)
		cancel()
		if r.code != exitOK || r.err != "" {
			t.Fatalf("exit %d, %s", r.code, r)
		}
		if js {
			d := json.NewDecoder(strings.NewReader(r.out))
			for range 2 {
				var s api.Status
				if err := d.Decode(&s); err != nil || s.Node != "edge1" {
					t.Errorf("%v: %+v", err, s)
				}
			}
			continue
		}
		_, rates, _ := strings.Cut(r.out, "OUT pkt/s")
		if rates == "" {
			t.Fatal(r)
		}
		line := func(name string) []string {
			for l := range strings.Lines(rates) {
				if f := strings.Fields(l); len(f) > 0 && f[0] == name {
					return f
				}
			}
			return make([]string, 10)
		}
		if l := line("alpha"); l[3] != "2.00k" || l[4] != "20.0M" || l[5] != "0" || l[7] != "5" {
			t.Errorf("alpha: %q", l)
		}
		_, voices, _ := strings.Cut(rates, "VOICE OF")
		_, voices, _ = strings.Cut(voices, "\n")
		if l := strings.Join(strings.Fields(voices)[:7], " "); l != "alpha out 15.0Mbit/s 50 80.0k 5 1" {
			t.Errorf("voice: %q", l)
		}
		if l := line("beta"); l[5] != "5" {
			t.Errorf("beta: %q", l)
		}
	}
}

func TestFollow(t *testing.T) {
	s := someSessions()
	gen := s[0]
	gen.Gen++ // the same slot, another session
	looks := []*api.Sessions{{Sessions: s[:2]}, {Sessions: s}, {Sessions: []api.Session{gen, s[2]}}, {Sessions: []api.Session{gen, s[2]}}}
	run := func(looks []*api.Sessions, args ...string) result {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		f := &fake{sessions: looks, enough: cancel}
		r := call(t, ctx, "", append([]string{"sessions", "--follow", "--interval", "100ms", "--socket", serve(t, f)}, args...)...)
		if f.filter.Limit == 0 {
			t.Error("follow without a limit")
		}
		if r.code != exitOK {
			t.Errorf("exit %d", r.code)
		}
		return r
	}
	golden(t, "follow", run(looks).String())
	var events []string
	d := json.NewDecoder(strings.NewReader(run(looks, "--json").out))
	for d.More() {
		var e event
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e.Event+" "+e.Session.Tenant)
	}
	if d := cmp.Diff([]string{"new beta", "new alpha", "ended alpha", "ended alpha"}, events); d != "" {
		t.Error(d)
	}
	// Pushed out of a full list is not ended.
	r := run([]*api.Sessions{{Sessions: s[:2], Truncated: true, Matched: 9}, {Sessions: s[1:], Truncated: true, Matched: 9}, {Sessions: s[1:], Truncated: true}})
	if strings.Contains(r.out, "- ") || strings.Count(r.err, "9 sessions match, more than the 2 that are listed at a time: not all are followed") != 1 {
		t.Error(r)
	}
}

// The table has a column more where a session is of another class than the usual, and one where they are sorted.
func TestSessionsColumns(t *testing.T) {
	list := someSessions()
	list[2].Class, list[2].Orig.Bytes = "voice", 5_000_000
	serveList := func() string {
		return serve(t, &fake{sessions: []*api.Sessions{{Total: 14, Matched: 3, Sessions: slices.Clone(list)}}})
	}
	golden(t, "sessions-class", call(t, t.Context(), "", "sessions", "--socket", serveList()).out)
	golden(t, "sessions-bytes", call(t, t.Context(), "", "sessions", "--sort", "bytes", "--socket", serveList()).out)
	var s api.Sessions
	if r := call(t, t.Context(), "", "sessions", "--sort", "bytes", "--json", "--socket", serveList()); json.Unmarshal([]byte(r.out), &s) != nil || len(s.Sessions) != 3 || s.Sessions[0].Class != "voice" || s.Sessions[1].Orig.Bytes != 1000 {
		t.Error(r)
	}
}

// A node that lists fewer than it was asked for has it said.
func TestSessionsAreFewerThanAskedFor(t *testing.T) {
	s := serve(t, &fake{sessions: []*api.Sessions{{Total: 14, Matched: 9, Truncated: true, Sessions: someSessions()}}})
	if r := call(t, t.Context(), "", "sessions", "--limit", "7", "--socket", s); !strings.HasSuffix(r.out, "\n3 shown, 9 matched, 14 live; no more are listed at a time: say which with --tenant, --address, --port or --proto\n") {
		t.Error(r)
	}
	if r := call(t, t.Context(), "", "sessions", "--limit", "3", "--socket", s); !strings.HasSuffix(r.out, "\n3 shown, 9 matched, 14 live\n") {
		t.Error(r)
	}
}

func TestStatusOfATroubledNode(t *testing.T) {
	s := someStatus()
	s.Ready, s.WhyNotReady, s.Broken, s.Damaged = false, "starting or stopping", "nat", []string{"0000000007.policy: the digest does not fit"}
	s.Later = []string{"revision 6 uses tenant.contact, which this release (version v0.1) does not know"}
	s.Conservation = api.Conservation{Detail: "worker 0: 3 frames are nowhere"}
	s.Node = "evil\x1b[2J"
	s.Resumed = &api.Resumed{Version: "v1", Away: 0.4, Problem: "damaged: chunk 7 does not have its sum"}
	s.SlowPath.Routers = api.Routers{Up: 1, NoAnswer: 2, NoLink: 1, Dead: []api.DeadHop{{Interface: "wan", Address: "203.0.113.10", Why: "no answer", Since: 75}, {Interface: "sat", Address: "198.51.100.10", Why: "no link", Since: 3}}}
	s.SlowPath.Conflicts = []api.Conflict{{Interface: "alpha", Address: "198.18.10.1", MAC: "02:00:00:00:00:66", Count: 12, Age: 3}}
	s.Tenants[0].Rules = []api.RuleHits{{Rule: 0, Name: "web", Direction: "in", Action: "allow", Hits: 3}, {Rule: -1, Name: "default", Direction: "in", Action: "deny"}}
	s.Drops = map[string]uint64{"no_route": 0}
	s.Cluster.Leads, s.Cluster.Leader, s.Cluster.Revision, s.Cluster.Problem = false, "", 5, "no room\x1b"
	s.Cluster.Provisional = &api.Provisional{Revision: 5, Before: 4, Author: "eve\n", Left: 41.7}
	var b bytes.Buffer
	writeStatus(&b, s, nil)
	for state, want := range map[string]string{api.ClusterReading: "revision 4 is served from this node's own copy", api.ClusterClosed: "CLOSED",
		api.ClusterStopped: "STOPPED, nobody leads: no entry is applied here any more; revision 4 goes on being served"} {
		var b bytes.Buffer
		s.Cluster.State = state
		if writeCluster(&b, s); !strings.Contains(b.String(), want) {
			t.Errorf("%s: %s", state, b.String())
		}
		b.Reset()
		w := *s
		w.Role = string(roleWitness)
		if writeCluster(&b, &w); strings.Contains(b.String(), "served") {
			t.Errorf("%s: a witness serves nothing: %s", state, b.String())
		}
	}
	golden(t, "status-troubled", b.String())
	b.Reset()
	s.Resumed = &api.Resumed{Version: "v1", Away: 0.4, Took: 0.05, Taken: 1203, Over: 3, Refused: map[string]uint64{"table_full": 0, "no_tenant": 2, "conflict": 1}}
	if writeStatus(&b, s, nil); !strings.Contains(b.String(), "\nresumed   1203 sessions of the process before (v1) after 0.45 s, 3 were over, 1 refused: conflict, 2 refused: no_tenant\n") {
		t.Errorf("of the process before: %s", b.String())
	}
	b.Reset()
	writeStatus(&b, s, nil)
	if strings.Contains(b.String(), "\x1b") {
		t.Error("a name moves the cursor")
	}
}

func TestFindings(t *testing.T) {
	list := []doctor.Finding{{Level: doctor.OK, Subject: "kernel", What: "6.12 has AF_XDP"}, {Level: doctor.Bad, Subject: "port trunk", What: "rxvlan is on", Why: "tenants would fall together", Mend: "ethtool -K veth1 rxvlan off"}}
	var b bytes.Buffer
	writeFindings(&b, &list)
	golden(t, "findings", b.String())
	r := call(t, t.Context(), "", "doctor", "--json")
	var got []struct{ Level, Subject, What string }
	if err := json.Unmarshal([]byte(r.out), &got); err != nil {
		t.Errorf("exit %d, %v, %s", r.code, err, r)
	}
	bad := false
	for _, f := range got {
		bad = bad || f.Level == doctor.Bad.String()
	}
	if bad != (r.code == exitFailed) {
		t.Errorf("exit %d with bad = %v", r.code, bad)
	}
	pair := "../../configs/examples/pair.policy.toml"
	if r := call(t, t.Context(), "", "doctor", "--policy", pair); !strings.Contains(r.out, "group east: alone is not said") || !strings.Contains(r.out, "demarc group take west --force") {
		t.Errorf("of a pair without a witness the doctor says:\n%s", r.out)
	}
	dir := t.TempDir()
	kept, err := revisions.Open(filepath.Join(dir, "policies"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(pair)
	if err == nil {
		_, err = kept.Save([]byte(strings.Replace(string(text), "tenants = [\"acme\"]\n", "tenants = [\"acme\"]\nalone = \"auto\"\n", 1)), revisions.Meta{})
	}
	if err != nil {
		t.Fatal(err)
	}
	node, err := os.ReadFile("../../configs/examples/pair.node.toml")
	if err != nil {
		t.Fatal(err)
	}
	if r := call(t, t.Context(), "", "doctor", "--node", file(t, "n.toml", strings.Replace(string(node), "schema = 1\n", fmt.Sprintf("schema = 1\ndata_dir = %q\n", dir), 1))); !strings.Contains(r.out, `group east: alone = "auto": without a witness both nodes serve it`) {
		t.Errorf("of the policy that is kept the doctor says:\n%s", r.out)
	}
	for name, says := range map[string]string{file(t, "bad.toml", "schema = 1\nnmae = \"x\"\n"): "bad.toml:2: ", filepath.Join(dir, "none.toml"): "none.toml: no such file"} { // the machine is looked at all the same
		if r := call(t, t.Context(), "", "doctor", "--policy", name); r.code != exitFailed || !strings.Contains(r.out, "kernel") || !strings.Contains(r.err, says) {
			t.Errorf("exit %d, %s", r.code, r)
		}
	}
	if r := call(t, t.Context(), "", "doctor", "--node", file(t, "n.toml", "schema = 2\n")); r.code != exitFailed || !strings.Contains(r.err, "n.toml") {
		t.Errorf("exit %d, %s", r.code, r)
	}
}

type closer func() error

func (c closer) Close() error { return c() }

func TestRelease(t *testing.T) {
	was := thisMachine
	defer func() { thisMachine = was }()
	var released []int
	refuse, left := error(nil), error(nil)
	put, asked := "", ""
	held, locked := map[int]error{}, 0
	thisMachine = machine{
		lock: func(i int) (io.Closer, error) {
			if err := held[i]; err != nil {
				return nil, err
			}
			locked++
			return closer(func() error { locked--; return nil }), nil
		},
		settings: func(dir, device string, i int) (string, error) {
			asked = fmt.Sprintf("%s %s %d", dir, device, i)
			return put, left
		},
		link: func(name string) (hostnet.Link, error) {
			i, ok := map[string]int{"eth0": 3, "veth7": 7, "bb0": 9}[name]
			if !ok {
				return hostnet.Link{}, errors.New("not found")
			}
			return hostnet.Link{Index: i, Name: name}, nil
		},
		release: func(i int) error {
			if held[i] == nil && locked != 1 {
				t.Errorf("the program of %d is taken off with %d locks held", i, locked)
			}
			released = append(released, i)
			return refuse
		},
	}
	none := filepath.Join(t.TempDir(), "none")
	node := file(t, "n.toml", "schema = 1\nname = \"n\"\n[[port]]\nname = \"spare\"\ndevice = \"veth7\"\n[[interface]]\nname = \"i\"\nport = \"spare\"\naddresses = [\"203.0.113.1/24\"]\n")
	for _, c := range []struct {
		name string
		args []string
		code int
		want []int
		says string
	}{
		{"a device", []string{"eth0", "--socket", none}, exitOK, []int{3}, "eth0 belongs to the kernel again"},
		{"a port of a node file", []string{"spare", "--node", node, "--socket", none}, exitOK, []int{7}, "veth7 belongs"},
		{"no such device", []string{"eth5", "--socket", none}, exitFailed, nil, "device eth5: not found"},
		{"served", []string{"eth0", "--socket", serve(t, &fake{})}, exitFailed, nil, "is served by the gateway"},
		{"served, by its port's name", []string{"wan", "--socket", serve(t, &fake{})}, exitFailed, nil, "device eth0 is served"},
		{"served, by force", []string{"wan", "--force", "--socket", serve(t, &fake{})}, exitOK, []int{3}, "eth0 belongs"},
		{"another port of a node that runs", []string{"bb0", "--socket", serve(t, &fake{})}, exitOK, []int{9}, "bb0 belongs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			released = nil
			r := call(t, t.Context(), "", append([]string{"release"}, c.args...)...)
			if r.code != c.code || !strings.Contains(r.out+r.err, c.says) || !cmp.Equal(released, c.want) || locked != 0 {
				t.Errorf("exit %d, released %v, %d locks held, %s", r.code, released, locked, r)
			}
		})
	}
	// A gateway that serves the device and answers at no socket that is known here.
	for err, says := range map[error]string{
		&gateway.PortHeldError{PID: 71, Command: "demarc run --node /etc/other.toml"}: "device eth0 is served by another demarc process (71: demarc run --node /etc/other.toml): stop it first, or say --force",
		&gateway.PortHeldError{}: "device eth0 is served by another demarc process: stop it first",
		errors.New("no sockets"): "whether a gateway serves it cannot be found out: no sockets",
	} {
		held[3], released, asked = err, nil, ""
		if r := call(t, t.Context(), "", "release", "eth0", "--socket", none); r.code != exitFailed || !strings.Contains(r.err, says) || released != nil || asked != "" {
			t.Errorf("%v: released %v, %s", err, released, r)
		}
		_, known := err.(*gateway.PortHeldError)
		if r := call(t, t.Context(), "", "release", "eth0", "--force", "--socket", none); (r.code == exitOK) != known || (released != nil) != known || asked != "" {
			t.Errorf("by force, %v: released %v, settings of %q, %s", err, released, asked, r)
		}
	}
	delete(held, 3)
	// The socket of the node file, where the command line and the environment name none.
	file2 := file(t, "n2.toml", "schema = 1\nname = \"n\"\n[api]\nsocket = \""+serve(t, &fake{})+"\"\n[[port]]\nname = \"wan\"\ndevice = \"eth0\"\n[[interface]]\nname = \"i\"\nport = \"wan\"\naddresses = [\"203.0.113.1/24\"]\n")
	if r := call(t, t.Context(), "", "release", "wan", "--node", file2); r.code != exitFailed || !strings.Contains(r.err, "device eth0 is served by the gateway at ") {
		t.Error(r)
	}
	asked = ""
	refuse = errors.New("release device 3: somebody's (id 4, native) is not demarc's")
	if r := call(t, t.Context(), "", "release", "eth0", "--socket", none); r.code != exitFailed || !strings.Contains(r.err, "is not demarc's") || asked != "" {
		t.Error(r, asked)
	}
	// Settings that no gateway has put back.
	release := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"release"}, args...)...)
	}
	refuse, put = nil, "gro off -> on"
	if r := release("spare", "--node", node, "--socket", none); r.code != exitOK || !strings.Contains(r.out, "put back on veth7: gro off -> on\n") || asked != "/var/lib/demarc veth7 7" {
		t.Error(r, asked)
	}
	asked = ""
	if r := release("wan", "--force", "--socket", serve(t, &fake{})); r.code != exitOK || asked != "" {
		t.Error("the settings of a device that is served were touched:", r, asked)
	}
	refuse = fmt.Errorf("release device 3: %w", xsk.ErrNotAttached)
	if r := release("eth0", "--socket", none); r.code != exitOK || r.out != "put back on eth0: gro off -> on\n" {
		t.Error("only the settings were left:", r)
	}
	left = errors.New("put lro back to on: no")
	if r := release("eth0", "--socket", none); r.code != exitFailed || !strings.Contains(r.err, "put lro back to on: no") {
		t.Error(r)
	}
	put, left = "", nil
	if r := release("eth0", "--socket", none); r.code != exitFailed || !strings.Contains(r.err, "no XDP program is attached") {
		t.Error("nothing was left:", r)
	}
}

// The files of README's first deployment are good ones.
func TestFirstDeploymentOfReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## The first real deployment\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var blocks []string
	for _, b := range strings.Split(section, "```toml\n")[1:] {
		b, _, _ = strings.Cut(b, "```")
		blocks = append(blocks, b)
	}
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of TOML, want the node file and the policy", len(blocks))
	}
	r := call(t, t.Context(), "", "check", file(t, "policy.toml", blocks[1]), "--node", file(t, "node.toml", blocks[0]))
	if r.code != exitOK || !strings.Contains(section, "\n"+r.out) {
		t.Errorf("exit %d, and README does not show what check says: %s", r.code, r)
	}
}

// A start that comes before its ports waits as long as it is told, says for which, and then says what is missing.
func TestRunWaitsForPorts(t *testing.T) {
	dir := t.TempDir()
	node := file(t, "n.toml", "schema = 1\nname = \"n\"\ndata_dir = \""+dir+"/data\"\n[[port]]\ndevice = \"dmnone0\"\n[[port]]\ndevice = \"lo\"\n[[interface]]\nname = \"i\"\nport = \"dmnone0\"\naddresses = [\"203.0.113.1/24\"]\n")
	start := time.Now()
	r := call(t, t.Context(), "", "run", "--node", node, "--wait", "300ms")
	if took := time.Since(start); r.code != exitFailed || took < 300*time.Millisecond || strings.Count(r.err, `msg="waiting for ports to be there and up" devices=dmnone0 most=300ms`) != 1 || !strings.Contains(r.err, "device dmnone0") {
		t.Errorf("exit %d after %s, %s", r.code, took, r)
	}
	if r := call(t, t.Context(), "", "run", "--node", node); r.code != exitFailed || strings.Contains(r.err, "waiting") {
		t.Errorf("without --wait: exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), "", "run", "--node", node, "--wait", "-1s"); r.code != exitUsage || !strings.Contains(r.err, "want a time like 30s") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel) // as SIGTERM does
	if r := call(t, ctx, "", "run", "--node", node, "--wait", "1m"); r.code != exitOK {
		t.Errorf("ended while it waits: exit %d, %s", r.code, r)
	}
}

// A start that cannot be says every reason, a line each, before it touches anything.
func TestRunRefusesBadFiles(t *testing.T) {
	r := call(t, t.Context(), "", "run", "--node", file(t, "n.toml", "schema = 1\nname = 5\nprot = 1\n"))
	if r.code != exitFailed || r.out != "" || !strings.Contains(r.err, "n.toml:2:") || !strings.Contains(r.err, "n.toml:3:") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	dir := t.TempDir()
	node := file(t, "n.toml", "schema = 1\nname = \"n\"\ndata_dir = \""+dir+"/data\"\n[tables]\nsessions = 1024\n[[port]]\ndevice = \"dmnone0\"\n[[port]]\ndevice = \"dmnone1\"\n[[interface]]\nname = \"i\"\nport = \"dmnone0\"\naddresses = [\"203.0.113.1/24\"]\n")
	r = call(t, t.Context(), "", "run", "--node", node)
	if r.code != exitFailed || strings.Count(r.err, "\n") != 2 || !strings.Contains(r.err, "device dmnone0") || !strings.Contains(r.err, "device dmnone1") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), "", "run", "--node", node, "--policy", filepath.Join(dir, "none")); r.code != exitFailed || !strings.Contains(r.err, "none: no such file or directory, and no policy is kept in "+dir+"/data: write one") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	// Once a policy is kept, its file is not missed: what stops this start is something else.
	kept, err := revisions.Open(filepath.Join(dir, "data", "policies"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kept.Save([]byte("schema = 1\n"), revisions.Meta{}); err != nil {
		t.Fatal(err)
	}
	if r := call(t, t.Context(), "", "run", "--node", node, "--policy", filepath.Join(dir, "none")); r.code != exitFailed || strings.Contains(r.err, "demarc: open") || !strings.Contains(r.err, "device dmnone0") ||
		!strings.Contains(r.err, `msg="no policy file: what is kept is served"`) {
		t.Errorf("exit %d, %s", r.code, r)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if r := call(t, t.Context(), "", "run", "--node", node, "--policy", filepath.Join(dir, "folder")); r.code != exitFailed || !strings.Contains(r.err, "is a directory") {
		t.Errorf("a file that cannot be read: exit %d, %s", r.code, r)
	}
}

func TestRootHint(t *testing.T) {
	denied := &os.PathError{Op: "mkdir", Path: "/x", Err: os.ErrPermission}
	for _, c := range []struct {
		err  error
		euid int
		want bool
	}{{denied, 1000, true}, {denied, 0, false}, {errors.New("other"), 1000, false}} {
		got := rootHint(c.err, c.euid)
		if !errors.Is(got, c.err) || strings.Contains(got.Error(), "not root") != c.want {
			t.Errorf("%v as %d: %v", c.err, c.euid, got)
		}
	}
	if rootHint(nil, 1000) != nil {
		t.Error("a hint without an error")
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{path, "@demarc-notify-test"} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		notify("READY=1")
		b := make([]byte, 64)
		if err := l.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%s: %q, %v", name, b[:n], err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	notify("READY=1") // must not block or fail
}

// Why a process ends was taken in before it does; whoever takes in nothing holds it up for a second at most.
func TestWhyItFailedIsTakenIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	done := make(chan struct{})
	go func() { failed(errors.New("a port is missing\nand another")); close(done) }()
	check := func(want string, fds int) (fd int) {
		t.Helper()
		b, oob := make([]byte, 128), make([]byte, 64)
		if err := l.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, m, _, _, err := l.ReadMsgUnix(b, oob)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v, want %q", b[:n], err, want)
		}
		if fds == 0 {
			return -1
		}
		c, err := unix.ParseSocketControlMessage(oob[:m])
		if err != nil || len(c) != 1 {
			t.Fatal(len(c), err)
		}
		got, err := unix.ParseUnixRights(&c[0])
		if err != nil || len(got) != fds {
			t.Fatal(got, err)
		}
		return got[0]
	}
	check("STATUS=a port is missing; and another", 0)
	fd := check("BARRIER=1", 1)
	select {
	case <-done:
		t.Error("it did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits although its words were taken in")
	}
	began := time.Now()
	failed(errors.New("nobody reads"))
	if took := time.Since(began); took < 900*time.Millisecond || took > 10*time.Second {
		t.Errorf("it waited %v", took)
	}
	failed(nil)
}

// The watchdog is fed as long as the node says that it lives, and the line is told when it is another one.
func TestFeed(t *testing.T) {
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", l.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	if d := watchdogInterval(); d != 60*time.Millisecond {
		t.Fatalf("interval %v", d)
	}
	var dead atomic.Bool
	var hung atomic.Int32 // how often it was asked in vain
	var line atomic.Pointer[string]
	say := func(s string) { line.Store(&s) }
	say("one")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var log bytes.Buffer
	go func() {
		defer close(done)
		feed(ctx, slog.New(slog.NewTextHandler(&log, nil)), func() string { return *line.Load() }, func(ctx context.Context) error {
			if dead.Load() {
				<-ctx.Done() // a worker that hangs
				hung.Add(1)
				return ctx.Err()
			}
			return nil
		})
	}()
	read := func(d time.Duration) string {
		b := make([]byte, 256)
		if err := l.SetReadDeadline(time.Now().Add(d)); err != nil {
			t.Fatal(err)
		}
		n, _ := l.Read(b) // nothing within d is an answer too
		return string(b[:n])
	}
	for range 3 {
		if got := read(5 * time.Second); got != "WATCHDOG=1" {
			t.Errorf("%q", got)
		}
	}
	say("two")
	deadline := time.Now().Add(5 * time.Second)
	for got := ""; got != "WATCHDOG=1\nSTATUS=two"; got = read(5 * time.Second) {
		if time.Now().After(deadline) {
			t.Fatal("the new line is not told")
		}
	}
	dead.Store(true)
	for hung.Load() == 0 { // who feeds it may be without a processor for as long as is read below
		if time.Sleep(time.Millisecond); time.Now().After(deadline) {
			t.Fatal("nobody asks the worker")
		}
	}
	for read(200*time.Millisecond) != "" { // what was on its way
		if time.Now().After(deadline) {
			t.Fatal("the watchdog is fed for a worker that hangs")
		}
	}
	dead.Store(false)
	if got := read(5 * time.Second); got != "WATCHDOG=1" {
		t.Errorf("after it came back: %q", got)
	}
	cancel()
	<-done
	if !strings.Contains(log.String(), "a worker does not answer") {
		t.Errorf("the log: %s", log.String())
	}
	t.Setenv("WATCHDOG_PID", "1")
	if d := watchdogInterval(); d != 0 {
		t.Errorf("another process's watchdog: %v", d)
	}
}

func TestLogger(t *testing.T) {
	for _, c := range []struct {
		log  configs.Log
		want string
	}{{configs.Log{Level: "warn", Format: "text"}, "level=WARN"}, {configs.Log{Level: "debug", Format: "json"}, `"level":"DEBUG"`}} {
		var b bytes.Buffer
		l := logger(&b, c.log)
		l.Debug("d")
		l.Warn("w")
		if !strings.Contains(b.String(), c.want) || strings.Contains(b.String(), "DEBUG") != (c.log.Level == "debug") {
			t.Errorf("%+v: %s", c.log, b.String())
		}
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 7: "7", 0.5: "0.50", 999: "999", 1000: "1.00k", 19_999_999: "20.0M", 123_456: "123k", 999_700: "1.00M", 5e15: "5000T"} {
		if got := scaled(n); got != want {
			t.Errorf("scaled(%v) = %s, want %s", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0s", 0.25: "250ms", 12.3: "12s", 200: "3m20s", 18_600: "5h10m", 273_600: "3d04h"} {
		if got := seconds(s); got != want {
			t.Errorf("seconds(%v) = %s, want %s", s, got, want)
		}
	}
}

func TestStamp(t *testing.T) {
	at := time.Date(2026, 3, 4, 0, 6, 7, 8_009_000, elsewhere)
	for digits, want := range map[int]string{0: "2026-03-03 23:06:07 UTC", 3: "2026-03-03 23:06:07.008 UTC", 6: "2026-03-03 23:06:07.008009 UTC"} {
		if got := stamp(at, digits); got != want {
			t.Errorf("%d digits: %s, want %s", digits, got, want)
		}
	}
}

func TestApplyRefusesWhatTheWireCannotCarry(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "latin.toml")
	if err := os.WriteFile(file, []byte("schema = 1\n# caf\xe9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"apply", "diff"} {
		r := call(t, t.Context(), "", verb, file, "--socket", filepath.Join(dir, "none"))
		if r.code != exitFailed || !strings.Contains(r.err, "latin.toml:2: byte 0xe9 is not UTF-8") {
			t.Errorf("%s: %d %q", verb, r.code, r.err)
		}
	}
	if r := call(t, t.Context(), "", "apply", file, "--expect", "0"); r.code != exitUsage || !strings.Contains(r.err, "from 1") {
		t.Errorf("--expect 0: %d %q", r.code, r.err)
	}
}
