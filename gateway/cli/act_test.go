package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"demarc/gateway/api"
)

func TestCutSaysHowManyFirst(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	r := call(t, t.Context(), "", "sessions", "cut", "--tenant", "alpha", "--address", "198.18.10.11", "--port", "80", "--proto", "tcp", "--socket", s)
	if r.code != exitFailed || !strings.Contains(r.err, "22 sessions of 345 would be cut (alpha 20, beta 2)\n7 sessions beside those: copies of what another node serves.") || !strings.Contains(r.err, "--yes") {
		t.Errorf("without a terminal: exit %d, %s", r.code, r)
	}
	want := api.SessionFilter{Tenant: "alpha", Address: "198.18.10.11", Port: 80, Proto: "tcp"}
	if d := cmp.Diff([]api.CutRequest{{Filter: want, DryRun: true}}, f.acted.cuts); d != "" {
		t.Fatal(d)
	}
	f.acted.cuts = nil
	r = call(t, t.Context(), "", "sessions", "cut", "--all", "--yes", "--socket", s)
	if r.code != exitOK || !strings.HasPrefix(r.out, "22 sessions of 345 cut (alpha 20, beta 2)\n7 sessions beside those: copies of what another node serves.") || len(f.acted.cuts) != 1 || !f.acted.cuts[0].All || f.acted.cuts[0].DryRun {
		t.Errorf("exit %d, %s, %+v", r.code, r, f.acted.cuts)
	}
	f.acted.cuts = nil
	r = call(t, t.Context(), "", "sessions", "cut", "--proto", "udp", "--dry-run", "--yes", "--socket", s)
	if r.code != exitOK || len(f.acted.cuts) != 1 || !f.acted.cuts[0].DryRun || !strings.Contains(r.out, "… and 20 more\n") {
		t.Errorf("exit %d, %s, %+v", r.code, r, f.acted.cuts)
	}
	f.acted.cuts = nil
	r = call(t, t.Context(), "", "sessions", "cut", "--proto", "udp", "--yes", "--json", "--socket", s)
	if r.code != exitOK || !strings.Contains(r.out, `"cut": 22`) {
		t.Errorf("exit %d, %s", r.code, r)
	}
}

// On a terminal it asks, and only yes is yes.
func TestCutAsksOnATerminal(t *testing.T) {
	for answer, cuts := range map[string]int{"y\n": 2, "yes\n": 2, "n\n": 1, "\n": 1, "what?\n": 1} {
		f := &fake{}
		s := serve(t, f)
		ours, theirs := terminal(t)
		if _, err := ours.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		root := New("v0.1")
		root.SetArgs([]string{"sessions", "cut", "--proto", "udp", "--socket", s})
		root.SetIn(theirs)
		var out, errs strings.Builder
		root.SetOut(&out)
		root.SetErr(&errs)
		code := Execute(t.Context(), root)
		if len(f.acted.cuts) != cuts || (code == exitOK) != (cuts == 2) || !strings.Contains(errs.String(), "cut them? [y/N]") {
			t.Errorf("%q: exit %d, %d requests, %s", answer, code, len(f.acted.cuts), errs.String())
		}
	}
}

// terminal is a pair of ends of one.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.IoctlRetInt(int(ours.Fd()), unix.TIOCGPTPEER) // works without a mounted devpts too
	if err != nil {
		t.Fatal(err)
	}
	theirs = os.NewFile(uintptr(fd), "pts")
	t.Cleanup(func() { theirs.Close(); ours.Close() })
	return ours, theirs
}

func TestBlockVerbs(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	for _, c := range []struct {
		args string
		want api.BlockRequest
		out  string
	}{
		{"block 198.51.100.7 for 10m", api.BlockRequest{Address: "198.51.100.7", Seconds: 600}, "3 sessions live touched (alpha 3)\n198.51.100.7 is blocked on every side for 10m00s\n"},
		{"block 2001:db8::/32 90s --backbone", api.BlockRequest{Address: "2001:db8::/32", Seconds: 90, Side: api.Side{Backbone: true}}, "3 sessions live touched (alpha 3)\n2001:db8::/32 is blocked on backbone for 1m30s\n"},
		{"block 198.18.10.11 1h --tenant alpha --force --dry-run", api.BlockRequest{Address: "198.18.10.11", Seconds: 3600, Side: api.Side{Tenant: "alpha"}, Force: true, DryRun: true},
			"3 sessions live touched (alpha 3)\n198.18.10.11 would be blocked on alpha for 1h00m\n"},
	} {
		r := call(t, t.Context(), "", append(strings.Fields(c.args), "--socket", s)...)
		if r.code != exitOK || r.out != c.out {
			t.Errorf("%s: exit %d, %s", c.args, r.code, r)
		}
		if d := cmp.Diff(c.want, f.acted.blocked[len(f.acted.blocked)-1]); d != "" {
			t.Errorf("%s: %s", c.args, d)
		}
	}
	golden(t, "blocks", call(t, t.Context(), "", "blocks", "--socket", s).out)
	if r := call(t, t.Context(), "", "unblock", "198.51.100.7", "--socket", s); r.out != "198.51.100.7 is free on every side, 12345 packets dropped\n" || f.acted.unblocks[0].Address != "198.51.100.7" {
		t.Error(r)
	}
	if r := call(t, t.Context(), "", "unblock", "--all", "--socket", s); r.code != exitOK || !f.acted.unblocks[1].All {
		t.Error(r)
	}
	for _, args := range []string{"block", "block 198.51.100.7", "block 198.51.100.7 until 10m", "block 198.51.100.7 soon", "block 198.51.100.7 for 10", "block 1.2.3.4 1m --tenant a --backbone",
		"unblock", "unblock 1.2.3.4 --all", "unblock --all --backbone", "blocks extra", "sessions cut", "sessions cut --all --tenant alpha", "sessions cut --port 70000 --yes", "sessions cut --address 10.0.0.5/24 --yes", "sessions cut alpha"} {
		if r := call(t, t.Context(), "", append(strings.Fields(args), "--socket", s)...); r.code != exitUsage {
			t.Errorf("%s: exit %d, %s", args, r.code, r)
		}
	}
}
