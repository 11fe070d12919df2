package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	netlab.Init()
	os.Exit(m.Run())
}

// fake is a node with fixed answers that notes what it was asked.
type fake struct {
	mu       sync.Mutex
	status   []*api.Status // one after the other, the last one again and again
	sessions []*api.Sessions
	filter   api.SessionFilter
	rules    bool
	diff     api.DiffRequest
	apply    api.ApplyRequest
	refuse   error
	looked   int
	acted    acted
	recalled recalled
	enough   func() // called when status and sessions have all been given
}

func next[T any](f *fake, list []T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked++
	if f.looked >= len(list) && f.enough != nil {
		f.enough()
	}
	return list[min(f.looked, len(list))-1]
}

func (f *fake) Status(_ context.Context, rules bool) (*api.Status, error) {
	f.mu.Lock()
	f.rules = rules
	f.mu.Unlock()
	return next(f, f.status), f.refuse
}

func (f *fake) Sessions(_ context.Context, q api.SessionFilter) (*api.Sessions, error) {
	f.mu.Lock()
	f.filter = q
	f.mu.Unlock()
	return next(f, f.sessions), f.refuse
}

func (f *fake) Drops(context.Context) (*api.Drops, error) {
	return &api.Drops{Total: 12, ByBlock: someBlocks(), ByReason: map[string]uint64{"acl_deny": 3, "ttl_exceeded": 2, "xdp_foreign_mac": 7, "no_route": 0},
		ByTenant: map[string]map[string]uint64{"beta": {"ttl_exceeded": 2}, "alpha": {"acl_deny": 3}}, ByPort: map[string]map[string]uint64{"wan": {"xdp_foreign_mac": 7}},
		ByRule: []api.RuleHits{{Rule: 1, Name: "alpha: no-smtp", Direction: "out", Action: "deny", Hits: 2}, {Rule: -1, Name: "alpha: default", Direction: "in", Action: "deny", Hits: 1}}}, nil
}

func (f *fake) Routes(context.Context) (*api.Routes, error) {
	return &api.Routes{Routes: []api.Route{{Zone: "backbone", Prefix: "0.0.0.0/0", Kind: "static", Via: "203.0.113.10", Interface: "wan", Resolved: true,
		Hops: []api.RouteHop{{Via: "203.0.113.10", Interface: "wan", State: "up", Since: 3720, Resolved: true}, {Via: "198.51.100.10", Interface: "sat", State: "no answer", Since: 12}}},
		{Zone: "alpha", Prefix: "198.18.10.0/24", Kind: "connected", Interface: "alpha", Resolved: true},
		{Zone: "alpha", Prefix: "2001:db8:a:1::/64", Kind: "static", Via: "2001:db8:a::7", Interface: "alpha", Hops: []api.RouteHop{{Via: "2001:db8:a::7", Interface: "alpha", State: "asked"}}}, {Zone: "backbone", Prefix: "192.0.2.16/28", Kind: "nat", Resolved: true}}}, nil
}

func (f *fake) Neighbours(context.Context) (*api.Neighbours, error) {
	return &api.Neighbours{Neighbours: []api.Neighbour{{Interface: "wan", Address: "203.0.113.10", MAC: "02:00:00:00:00:10", State: "reachable", Age: 12.3, Used: true},
		{Interface: "alpha", Address: "198.18.10.99", State: "pending", Waiting: 3}}}, nil
}

func (f *fake) Ports(context.Context) (*api.Ports, error) {
	return &api.Ports{Ports: somePorts(), Interfaces: []api.Interface{{Name: "wan", Port: "wan", Faces: "backbone", Addresses: []string{"203.0.113.1/24", "2001:db8:ff::1/64"}, MTU: 1500}, {Name: "cust", Port: "trunk", VLAN: 101, MTU: 1500}}}, nil
}

func (f *fake) Policy(context.Context) ([]byte, error) {
	return []byte("schema = 1\n# <b>\n"), f.refuse
}

func (f *fake) Diff(_ context.Context, r api.DiffRequest) (*api.Diff, error) {
	f.diff = r
	if f.refuse != nil {
		return nil, f.refuse
	}
	if strings.Contains(r.Policy, "same") {
		return &api.Diff{From: someRevision(), Same: true, Checked: 9}, nil
	}
	return &api.Diff{From: someRevision(), Changes: someChanges(), Cut: 2, CutByTenant: map[string]int{"alpha": 2}, Checked: 9, Cuts: someSessions()[:1]}, nil
}

func (f *fake) Apply(_ context.Context, r api.ApplyRequest) (*api.Applied, error) {
	f.apply = r
	if f.refuse != nil {
		return nil, f.refuse
	}
	rev := someRevision()
	rev.Number++
	return &api.Applied{Revision: rev, Changes: someChanges(), Cut: 1, CutByTenant: map[string]int{"alpha": 1}, Took: 0.0123, Confirm: r.Confirm, Warnings: []string{`p.toml:12: group[1].nodes: "gw-bb" is no member of this cluster: did you mean "gw-b"?`}}, nil
}

func someRevision() api.Revision {
	return api.Revision{Number: 4, Digest: "sha256:" + strings.Repeat("ab", 32), Source: "/etc/demarc/policy.toml", Name: "autumn", AppliedAt: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
}

func someChanges() []api.Change {
	return []api.Change{{Path: `tenant "alpha": rates.out.bits`, Was: "20M", Now: "50M"}, {Path: `tenant "beta": rule "new" (in, 1)`, Now: "allow tcp/443"}, {Path: `tenant "gone"`, Was: "1 rule"},
		{Path: `tenant "beta": rule "x" moved`}}
}

func somePorts() []api.Port {
	return []api.Port{{Name: "wan", Device: "eth0", State: "open", MAC: "02:00:00:00:00:01", MTU: 1500, Driver: "virtio_net", Up: true, Carrier: true, Asked: "auto", Attach: "native", XDPToHost: 5, XDPDropped: 7,
		Queues: []api.Queue{{Queue: 0, Mode: "zerocopy", Asked: "auto", Rx: api.Counter{Packets: 1000, Bytes: 64000}, Tx: api.Counter{Packets: 900}},
			{Queue: 1, Worker: 1, Mode: "zerocopy", Asked: "auto", Rings: api.RingStats{RxRingFull: 4}, TxFull: 2}}},
		{Name: "trunk", Device: "veth1", State: "open", MAC: "02:00:00:00:00:02", MTU: 1500, Driver: "veth", Up: true, Asked: "auto", Attach: "native", Problem: "no carrier: is the cable in?",
			Queues: []api.Queue{{Queue: 0, Mode: "copy", Asked: "auto", WhyNotBetter: "veth has no zero-copy"}}},
		{Name: "spare", Device: "eth9", State: "open", MAC: "02:00:00:00:00:09", MTU: 1500, Driver: "e1000", Asked: "generic", Attach: "generic", Problem: "link is down",
			Changed:  []api.Setting{{Name: "gro", Was: "on", Now: "off"}, {Name: "queues", Was: "combined 8", Now: "combined 2"}},
			Warnings: []string{"the driver strips VLAN tags, so a tagged frame counts as untagged: ethtool -K eth9 rxvlan off"}},
		{Name: "usb", Device: "eth7", State: "gone", MAC: "02:00:00:00:00:07", MTU: 1500, Driver: "r8152", Asked: "auto", Attach: "none", Problem: "device eth7 is gone",
			Queues: []api.Queue{{Queue: 0, Mode: "none", Asked: "auto", Rx: api.Counter{Packets: 5}}}}}
}

func someSessions() []api.Session {
	return []api.Session{
		{Worker: 0, Slot: 3, Gen: 1, Tenant: "alpha", From: "tenant", Proto: "tcp", State: "established", Src: "198.18.10.11:40000", Dst: "203.0.113.11:80", XlatSrc: "192.0.2.17:50000",
			XlatDst: "203.0.113.11:80", NAT: true, Rule: -1, Orig: api.Counter{Packets: 10, Bytes: 1000}, Reply: api.Counter{Packets: 20, Bytes: 30000}, Idle: 0.25, Expires: 7440},
		{Worker: 1, Slot: 2, Gen: 5, Tenant: "alpha", From: "backbone", Proto: "tcp", State: "syn_sent", Src: "203.0.113.11:1234", Dst: "192.0.2.16:8080", XlatSrc: "203.0.113.11:1234",
			XlatDst: "198.18.10.11:80", NAT: true, Rule: 0, RuleName: "web-from-trusted", Idle: 3, Expires: 240},
		{Worker: 1, Slot: 9, Gen: 2, Tenant: "beta", From: "tenant", Proto: "udp", State: "open", Src: "[2001:db8:b::1]:5353", Dst: "[2001:db8:ff::2]:53", XlatSrc: "[2001:db8:b::1]:5353",
			XlatDst: "[2001:db8:ff::2]:53", Rule: 2, Idle: 61, Expires: 100_000, Copy: true},
	}
}

func someStatus() *api.Status {
	return &api.Status{Node: "edge1", Version: "v0.1", Started: time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC), Uptime: 3725, Ready: true, Revision: someRevision(), Cluster: api.Cluster{ID: "c1", State: api.ClusterCurrent, Leader: "edge1", Leads: true, Revision: 4, Confirmed: 4,
		Members: []api.Member{{ID: "m1", Name: "edge1", Role: "gateway", Version: "v0.1", Self: true}}},
		Workers: []api.Worker{{ID: 0, CPU: 2, Sessions: 12, SessionsCap: 65536, Mappings: 8, MappingsCap: 65536, Frames: 8192, FramesFree: 4000, FramesHeld: 3, FragmentsWaiting: 2, FragmentsCap: 4096, FragmentedKnown: 17, Busy: 0.42, HandedOut: 5},
			{ID: 1, CPU: -1, SessionsCap: 65536, MappingsCap: 65536, Frames: 8192, FramesFree: 4096, HandedIn: 5}},
		Ports: somePorts(),
		Tenants: []api.Tenant{{ID: 1, Name: "alpha", Sessions: 12, Out: api.Counter{Packets: 1000, Bytes: 1_234_567}, In: api.Counter{Packets: 2000, Bytes: 999_999},
			Limits: api.TenantRates{OutBits: 20e6, InBits: 1.5e9, InPackets: 100_000, VoiceOut: 15e6, Overhead: 38}, Voice: api.TenantVoice{Out: api.VoiceCounts{Within: api.Counter{Packets: 400, Bytes: 80_000}, Above: api.Counter{Packets: 7, Bytes: 1400}, Lost: api.Counter{Packets: 2, Bytes: 400}}}, Drops: map[string]uint64{"acl_deny": 3}, Pool: &api.Pool{Addresses: 16, Ports: 16 * 64512, InUse: 8}},
			{ID: 2, Name: "beta", Drops: map[string]uint64{"ttl_exceeded": 2}}},
		Drops:    map[string]uint64{"acl_deny": 3, "ttl_exceeded": 2, "no_route": 0, "xdp_foreign_mac": 7},
		SlowPath: api.SlowPath{Neighbours: 4, Pending: 1, Waiting: 1}, Conservation: api.Conservation{OK: true, Detail: "all 16384 frames accounted for"}}
}

// serve makes f answer on a socket until the test ends.
func serve(t *testing.T, f *fake) (socket string) {
	t.Helper()
	if f.status == nil {
		f.status = []*api.Status{someStatus()}
	}
	if f.sessions == nil {
		f.sessions = []*api.Sessions{{Total: 14, Matched: 3, Sessions: someSessions()}}
	}
	dir, err := os.MkdirTemp("", "cli") // t.TempDir may be longer than a socket's path may be
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	s, err := api.Listen(api.ServerConfig{Socket: socket, Backend: f, Handler: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		os.RemoveAll(dir)
	})
	return socket
}

// result is what one command line did.
type result struct {
	code     int
	out, err string
}

func (r result) String() string { return r.out + "--- stderr\n" + r.err }

func call(t *testing.T, ctx context.Context, stdin string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	root := New("v0.1")
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errs)
	code := Execute(ctx, root)
	return result{code, out.String(), errs.String()}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
