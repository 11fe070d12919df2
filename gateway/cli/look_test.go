package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
	"demarc/gateway/trace"
)

// looked is what the fake was asked last by those who look at packets.
var looked any

// elsewhere is a zone of somebody's.
var elsewhere = time.FixedZone("CET", 3600)

func someSteps() []api.Step {
	return []api.Step{{Stage: "interface", Result: "pass", Text: "alpha, faces tenant alpha"}, {Stage: "acl", Result: "drop", Text: "denied by rule 1 (out) \"no-smtp\": deny tcp/25: acl_deny: a rule says so"},
		{Stage: "verdict", Result: "drop", Text: "dropped, acl_deny: a rule says so"}}
}

func (f *fake) Explain(_ context.Context, r api.ExplainRequest) (*api.Explanation, error) {
	looked = r
	in := api.Tuple{Proto: "tcp", Src: "198.18.10.11:4000", Dst: "203.0.113.11:25"}
	return &api.Explanation{Interface: "alpha", Frame: []byte{1, 2}, Verdict: "drop", Reason: "acl_deny", Text: "dropped", Help: "change the rule", Revision: 4,
		Passes: []api.Pass{{Worker: 1, In: in, Length: 40, Verdict: "hand", Steps: someSteps()[:1]}, {Tenant: "alpha", In: in, Length: 40, Verdict: "drop", Reason: "acl_deny", Steps: someSteps()}}}, f.refuse
}

func (f *fake) Trace(_ context.Context, r api.TraceRequest, emit func(*api.StreamLine) error) error {
	looked = r
	if f.refuse != nil {
		return f.refuse
	}
	p := api.Packet{Time: time.Date(2026, 3, 4, 6, 6, 7, 8000, elsewhere), Pass: api.Pass{Worker: 1, Tenant: "alpha", In: api.Tuple{Proto: "tcp", Src: "198.18.10.11:4000", Dst: "203.0.113.11:25"}, Length: 40, Steps: someSteps()}}
	_ = emit(&api.StreamLine{Begin: &api.StreamBegin{Node: "n"}})
	_ = emit(&api.StreamLine{Packet: &p})
	return emit(&api.StreamLine{End: &api.StreamEnd{Why: "count", Matched: 3, Sent: 1, Lost: 2}})
}

func (f *fake) Capture(_ context.Context, r api.CaptureRequest, emit func(*api.StreamLine) error) error {
	looked = r
	if f.refuse != nil {
		return f.refuse
	}
	_ = emit(&api.StreamLine{Begin: &api.StreamBegin{Node: "n"}})
	_ = emit(&api.StreamLine{Frame: &api.Frame{Time: time.Unix(1, 2), Side: "before", Port: "t0", Tenant: "alpha", Verdict: "send", Length: 100, Data: bytes.Repeat([]byte{7}, 60)}})
	_ = emit(&api.StreamLine{Frame: &api.Frame{Time: time.Unix(1, 2), Side: "after", Verdict: "send", Length: 100, Data: bytes.Repeat([]byte{8}, 61)}})
	return emit(&api.StreamLine{End: &api.StreamEnd{Why: "time", Matched: 1, Sent: 2, Lost: 5}})
}

func (f *fake) Dropped(_ context.Context, r api.DroppedRequest, emit func(*api.StreamLine) error) error {
	looked = r
	_ = emit(&api.StreamLine{Begin: &api.StreamBegin{Node: "n"}})
	at := time.Date(2026, 3, 4, 6, 6, 7, 8000, elsewhere)
	out := api.Tuple{Proto: "udp", Src: "192.0.2.16:4000", Dst: "203.0.113.11:9"}
	_ = emit(&api.StreamLine{Dropped: &api.DroppedFrame{Time: at, Tenant: "alpha", Port: "t0", VLAN: 20, Reason: "acl_deny", In: api.Tuple{Proto: "udp", Src: "198.18.10.11:4000", Dst: "203.0.113.11:9"}, Length: 60, Data: []byte("0123456789abcdefXYZ")}})
	_ = emit(&api.StreamLine{Dropped: &api.DroppedFrame{Time: at, Worker: -1, Reason: "tenant_rate_bits", In: api.Tuple{Proto: "udp", Src: "198.18.10.11:4000", Dst: "203.0.113.11:9"}, Out: &out, After: true, Skipped: 77, Length: 60, Data: []byte{1, 2}}})
	_ = emit(&api.StreamLine{Dropped: &api.DroppedFrame{Time: at, Reason: "truncated", Length: 1, Data: []byte{9}}})
	return emit(&api.StreamLine{End: &api.StreamEnd{Why: "that is all", Matched: 3, Sent: 3}})
}

func TestLookOutputs(t *testing.T) {
	for name, args := range map[string][]string{
		"explain":    {"explain", "--tenant", "alpha", "--proto", "tcp", "--from", "198.18.10.11:4000", "--to", "203.0.113.11:25"},
		"trace":      {"trace"},
		"drops-last": {"drops", "--last", "3"},
	} {
		r := call(t, t.Context(), "", append(args, "--socket", serve(t, &fake{}))...)
		if r.code != exitOK {
			t.Errorf("%s: exit %d, %s", name, r.code, r)
		}
		golden(t, name, r.String())
	}
}

func TestWhatLookersAsk(t *testing.T) {
	s := serve(t, &fake{})
	filter := api.PacketFilter{SessionFilter: api.SessionFilter{Tenant: "alpha", Address: "198.18.10.0/24", Port: 53, Proto: "udp"}, Reason: "acl_deny"}
	flags := []string{"--tenant", "alpha", "--address", "198.18.10.0/24", "--port", "53", "--proto", "udp", "--reason", "acl_deny", "--socket", s}
	withRule := filter
	withRule.Rule = "web"
	file := filepath.Join(t.TempDir(), "c")
	for _, c := range []struct {
		args []string
		want any
	}{
		{append([]string{"trace", "--rule", "web", "--count", "5", "--sample", "3", "--duration", "2s", "--json"}, flags...), api.TraceRequest{PacketFilter: withRule, Every: 3, Count: 5, Seconds: 2}},
		{append([]string{"drops", "--follow", "--last", "9"}, flags...), api.DroppedRequest{PacketFilter: filter, Last: 9, Follow: true}},
		{append([]string{"capture", "-w", file, "--before", "--snaplen", "99", "--count", "4", "--rule", "web"}, flags...), api.CaptureRequest{PacketFilter: withRule, Before: true, Count: 4, Snap: 99}},
		{append([]string{"capture", "-w", file}, flags...), api.CaptureRequest{PacketFilter: filter, Before: true, After: true, Snap: 256}},
		{[]string{"explain", "--interface", "wan", "--frame", "02:00 0a", "--socket", s}, api.ExplainRequest{Interface: "wan", Frame: []byte{2, 0, 10}}},
		{[]string{"explain", "--tenant", "a", "--proto", "tcp", "--from", "x", "--to", "y", "--flags", "ack", "--ttl", "3", "--len", "99", "--df", "--dscp", "46", "--socket", s},
			api.ExplainRequest{Tenant: "a", Proto: "tcp", From: "x", To: "y", Flags: "ack", TTL: 3, Len: 99, DF: true, DSCP: 46}},
	} {
		if r := call(t, t.Context(), "", c.args...); r.code != exitOK {
			t.Errorf("%v: exit %d, %s", c.args, r.code, r)
		}
		if d := cmp.Diff(c.want, looked); d != "" {
			t.Errorf("%v: %s", c.args, d)
		}
	}
}

func TestTraceJSONIsALineEach(t *testing.T) {
	r := call(t, t.Context(), "", "trace", "--json", "--socket", serve(t, &fake{}))
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 3 {
		t.Fatalf("%s", r)
	}
	for _, l := range lines {
		if err := json.Unmarshal([]byte(l), new(api.StreamLine)); err != nil {
			t.Error(err)
		}
	}
}

func TestCaptureWritesAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.pcapng")
	r := call(t, t.Context(), "", "capture", "-w", file, "--socket", serve(t, &fake{}))
	b, err := os.ReadFile(file)
	if err != nil || r.code != exitOK || !strings.Contains(r.err, "5 lost (time)") {
		t.Fatalf("%v, %s", err, r)
	}
	frames, err := trace.ReadFrames(b, 9)
	if err != nil || len(frames) != 2 || len(frames[0]) != 60 || len(frames[1]) != 61 || !bytes.Contains(b, []byte("before")) || !bytes.Contains(b, []byte("send alpha t0")) {
		t.Errorf("%d frames, %v", len(frames), err)
	}
	if r := call(t, t.Context(), "", "capture", "-w", "-", "--socket", serve(t, &fake{})); r.out != string(b) && len(r.out) != len(b) {
		t.Error("standard output is not the same")
	}
}

// TestCaptureOverAFile: what is in the file stays until the node has agreed; then the file is its owner's alone. What somebody else has put there is not written to.
func TestCaptureOverAFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	capture := func(f *fake, name string) result {
		return call(t, t.Context(), "", "capture", "-w", name, "--socket", serve(t, f))
	}
	is := func(name, text string) {
		t.Helper()
		if b, err := os.ReadFile(name); err != nil || string(b) != text {
			t.Errorf("%s holds %d bytes, %v", name, len(b), err)
		}
	}
	good := func(r result, name string) {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil || r.code != exitOK {
			t.Fatalf("exit %d, %v, %s", r.code, err, r)
		}
		if frames, err := trace.ReadFrames(b, 9); err != nil || len(frames) != 2 {
			t.Errorf("%d frames, %v", len(frames), err)
		}
		if i, err := os.Stat(name); err != nil || i.Mode() != 0o600 {
			t.Errorf("mode %v, %v", i.Mode(), err)
		}
	}
	old := write("old", strings.Repeat("yesterday's", 1000))
	if r := capture(&fake{refuse: api.BadRequest("no tenant")}, old); r.code != exitFailed || r.err != "demarc: no tenant\n" {
		t.Error(r)
	}
	is(old, strings.Repeat("yesterday's", 1000))
	if os.Geteuid() == 0 { // a pipe of somebody else's, who waits for what comes
		pipe := filepath.Join(dir, "pipe")
		if err := errors.Join(syscall.Mkfifo(pipe, 0o666), os.Chown(pipe, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		if r := capture(&fake{}, pipe); r.code != exitFailed || !strings.Contains(r.err, "somebody else") {
			t.Error(r)
		}
	}
	if r := capture(&fake{refuse: api.BadRequest("no tenant")}, filepath.Join(dir, "new")); r.code != exitFailed {
		t.Error(r)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); !os.IsNotExist(err) {
		t.Errorf("a refusal has made a file: %v", err)
	}
	good(capture(&fake{}, old), old)
	// One's own link is followed.
	target, link := write("target", "x"), filepath.Join(dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	good(capture(&fake{}, link), target)
	if r := capture(&fake{}, os.DevNull); r.code != exitOK {
		t.Error(r)
	}
	if os.Geteuid() != 0 { // only root may give files away
		return
	}
	mine := write("mine", "mine")
	for name, says := range map[string]string{"theirs": "belongs to somebody else", "their-link": "is a link of somebody else's"} {
		name = filepath.Join(dir, name)
		if says == "is a link of somebody else's" {
			if err := os.Symlink(mine, name); err != nil {
				t.Fatal(err)
			}
		} else {
			write("theirs", "mine")
		}
		if err := os.Lchown(name, 1, 1); err != nil {
			t.Fatal(err)
		}
		if r := capture(&fake{}, name); r.code != exitFailed || !strings.Contains(r.err, name+" "+says+": name another file") {
			t.Errorf("exit %d, %s", r.code, r)
		}
		is(name, "mine")
	}
}

func TestLookUsage(t *testing.T) {
	for _, args := range [][]string{{"explain"}, {"explain", "--tenant", "a"}, {"explain", "--proto", "udp", "--from", "a", "--to", "b"}, {"explain", "--tenant", "a", "--interface", "b", "--frame", "00"},
		{"explain", "--tenant", "a", "--frame", "zz"}, {"explain", "--tenant", "a", "--frame", "00", "--proto", "udp"}, {"explain", "--tenant", "a", "--proto", "udp", "--from", "b"}, {"trace", "--proto", "foo"}, {"trace", "extra"},
		{"trace", "--duration", "-1s"}, {"capture"}, {"capture", "-w", "x", "--duration", "-1s"}, {"capture", "-w", "x", "--address", "foo"}, {"drops", "--tenant", "a"}, {"drops", "--last", "-1"}, {"drops", "--last", "1", "--all"}} {
		if r := call(t, t.Context(), "", args...); r.code != exitUsage || r.out != "" {
			t.Errorf("%v: exit %d, %s", args, r.code, r)
		}
	}
	r := call(t, t.Context(), "", "trace", "--socket", serve(t, &fake{refuse: &api.Fault{Status: http.StatusBadRequest, Err: errString("no tenant")}}))
	if r.code != exitFailed || r.err != "demarc: no tenant\n" {
		t.Errorf("refused: %d %s", r.code, r)
	}
}

type errString string

func (e errString) Error() string { return string(e) }
