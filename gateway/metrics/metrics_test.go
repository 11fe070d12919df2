package metrics

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"demarc/gateway/api"
	"demarc/gateway/verdict"
)

// fake answers with fixed structs.
type fake struct {
	status      *api.Status
	drops       *api.Drops
	err, dropsE error
}

func (f *fake) Status(context.Context, bool) (*api.Status, error) { return f.status, f.err }
func (f *fake) Drops(context.Context) (*api.Drops, error)         { return f.drops, f.dropsE }

func (f *fake) Members(context.Context) (*api.Members, error) { return someMembers(), nil }

func (f *fake) Groups(context.Context) (*api.Groups, error) { return someGroups(), nil }

func someGroups() *api.Groups {
	gap := 0.187
	return &api.Groups{Clock: api.GroupClock{Gaps: 2, Longest: 0.031, Lost: 3, Realtime: true}, Dropped: map[string]uint64{"forged": 4}, Drained: []string{"gw2"},
		Paths: []api.GroupPath{{Member: "gw1", Remote: "192.0.2.2:7400", Heard: 0.012, RoundTrip: 0.0005, Loss: 0.25}, {Member: "wit", Heard: -1, Problem: "no keys yet"}}, Groups: []api.Group{{Name: "east", Nodes: []string{"gw1", "gw2"}, Owner: "gw2", Epoch: 7, Serving: true, Lease: 0.1, Ports: &api.GroupPorts{Rest: 118, Reserve: true, Waiting: 3},
			Copies:     []api.GroupCopy{{Node: "gw1", Connected: true, Lag: 0.25, Done: 0.63, Records: 900, Missing: 7, Waiting: 4096, Sent: 1 << 20, Dials: 3}},
			Conditions: map[string]int{"port": 2, "uplink": 0}, Expected: 0.155, Last: &api.GroupMove{Cause: "lease", Gap: &gap, Time: time.Unix(4000, 0)}}, {Name: "west", Nodes: []string{"gw1"}, Why: []string{"nobody has owned it yet"}, Here: &api.CopyHere{Whole: true, Age: 0.4}},
			{Name: "log", Nodes: []string{}, Owner: "gw1", Why: []string{"this node knows the group from the log alone"}}},
		Standby: &api.Standby{Peers: []api.StandbyPeer{{Node: "gw1", Connected: true}, {Node: "gw3"}}, Records: 1, Copies: 2, Mismatches: 3, Odd: 4, Refused: 9, Failed: 5, Steps: 6, Held: 7.5, Longest: 0.0002}}
}

// TestGroups: who serves what, and how well the leases are kept, by a gateway and by a witness alike.
func TestGroups(t *testing.T) {
	w := httptest.NewRecorder()
	Witness(fresh()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, api.PathMetrics, nil))
	gateway, _ := scrape(t, fresh())
	for _, text := range []string{w.Body.String(), gateway} {
		if strings.Contains(text, `demarc_group_protected{group="log"}`) || !strings.Contains(text, `demarc_group_epoch{group="log"}`) {
			t.Error("a group that is known from the log alone is said to be protected, or not to be")
		}
		want(t, text, `demarc_group_serving{group="east"} 1`, `demarc_group_serving{group="west"} 0`, `demarc_group_owner{group="east",node="gw2"} 1`, `demarc_group_owner{group="east",node="gw1"} 0`,
			`demarc_group_owner{group="west",node="gw1"} 0`, `demarc_group_epoch{group="east"} 7`, `demarc_group_lease_seconds{group="east"} 0.1`, `demarc_group_protected{group="east"} 1`,
			`demarc_group_protected{group="west"} 0`, `demarc_group_expected_gap_seconds{group="east"} 0.155`, `demarc_group_conditions{cause="port",group="east"} 2`, `demarc_group_conditions{cause="uplink",group="east"} 0`, `demarc_group_last_failover_gap_seconds{group="east"} 0.187`,
			`demarc_group_last_failover_timestamp_seconds{group="east"} 4000`, `demarc_group_last_failover_timestamp_seconds{group="west"} 0`, `demarc_group_problem 0`, `demarc_group_clock_gaps_total 2`,
			`demarc_group_last_failover_cause{cause="lease",group="east"} 1`, `demarc_group_last_failover_cause{cause="port",group="east"} 0`, `demarc_group_last_failover_cause{cause="lease",group="west"} 0`,
			`demarc_group_clock_longest_gap_seconds 0.031`, `demarc_group_lost_messages_total 3`, `demarc_group_realtime 1`,
			`demarc_group_path_heard_seconds{member="gw1",remote="192.0.2.2:7400"} 0.012`, `demarc_group_path_heard_seconds{member="wit",remote=""} -1`,
			`demarc_group_path_round_trip_seconds{member="gw1",remote="192.0.2.2:7400"} 0.0005`, `demarc_group_path_loss_ratio{member="gw1",remote="192.0.2.2:7400"} 0.25`,
			`demarc_group_ports_rest_seconds{group="east"} 118`, `demarc_group_ports_rest_seconds{group="west"} 0`, `demarc_group_ports_reserve_open{group="east"} 1`, `demarc_group_ports_waiting{group="east"} 3`,
			`demarc_group_dropped_datagrams_total{why="forged"} 4`, `demarc_group_node_drained{node="gw1"} 0`, `demarc_group_node_drained{node="gw2"} 1`,
			`demarc_copy_lag_seconds{group="east",node="gw1"} 0.25`, `demarc_copy_whole{group="east",node="gw1"} 0`, `demarc_copy_done_ratio{group="east",node="gw1"} 0.63`, `demarc_copy_records{group="east",node="gw1"} 900`,
			`demarc_copy_missing_records{group="east",node="gw1"} 7`, `demarc_copy_connected{node="gw1"} 1`, `demarc_copy_waiting_bytes{node="gw1"} 4096`, `demarc_copy_sent_bytes_total{node="gw1"} 1.048576e+06`,
			`demarc_copy_dials_total{node="gw1"} 3`,
			`demarc_standby_whole{group="west"} 1`, `demarc_standby_age_seconds{group="west"} 0.4`, `demarc_standby_connected{node="gw1"} 1`, `demarc_standby_connected{node="gw3"} 0`, `demarc_standby_records_total 1`,
			`demarc_standby_full_copies_total 2`, `demarc_standby_mismatches_total 3`, `demarc_standby_odd_records_total 4`, `demarc_standby_refused_groups_total 9`, `demarc_standby_failed_batches_total 5`, `demarc_standby_steps_total 6`,
			`demarc_standby_held_seconds_total 7.5`, `demarc_standby_longest_step_seconds 0.0002`)
	}
}

func someMembers() *api.Members {
	ago, until := 0.2, time.Unix(5000, 0)
	return &api.Members{Tokens: 1, Election: api.Election{Term: 12, Led: 3, Stood: 2}, Log: api.LogWrites{Count: 40, Seconds: 0.5, Longest: 0.3}, Refused: map[string]uint64{"clock": 2}, Members: []api.MemberState{{Name: "gw1", Self: true, Votes: true, Applied: 9, Until: &until, Answered: new(float64)},
		{Name: "gw2", Problem: "no answer in time", Applied: 7, ClockOff: -60, Lacks: []string{"tenant.contact"}}, {Name: "wit", Votes: true, Answered: &ago, Stopped: "it cannot read an entry"}}}
}

// TestMembers: what is told of the others, by a gateway and by a witness alike.
func TestMembers(t *testing.T) {
	w := httptest.NewRecorder()
	f := fresh()
	f.status.API = api.APIState{Connections: 3, Refused: map[string]uint64{"clock": 2}}
	f.status.Cluster = api.Cluster{State: api.ClusterCurrent, Leads: true, Leader: "wit", Members: make([]api.Member, 3), Revision: 9, Confirmed: 8, Provisional: &api.Provisional{Left: 12}, Problem: "its disk refuses"}
	Witness(f).ServeHTTP(w, httptest.NewRequest(http.MethodGet, api.PathMetrics, nil))
	gateway, _ := scrape(t, f)
	for _, text := range []string{w.Body.String(), gateway} {
		want(t, text, `demarc_cluster_member_answers{member="gw1"} 1`, `demarc_cluster_member_answers{member="gw2"} 0`, `demarc_cluster_member_answers{member="wit"} 1`,
			`demarc_cluster_member_votes{member="gw1"} 1`, `demarc_cluster_member_votes{member="gw2"} 0`, `demarc_cluster_member_applied_entries{member="gw2"} 7`,
			`demarc_cluster_member_certificate_expiry_timestamp_seconds{member="gw1"} 5000`, `demarc_cluster_member_certificate_expiry_timestamp_seconds{member="wit"} 0`,
			`demarc_cluster_member_behind{member="gw1"} 0`, `demarc_cluster_member_behind{member="gw2"} 1`, `demarc_cluster_member_stopped{member="gw1"} 0`, `demarc_cluster_member_stopped{member="wit"} 1`,
			`demarc_cluster_member_clock_off_seconds{member="gw2"} -60`, `demarc_cluster_tokens 1`, `demarc_cluster_term 12`, `demarc_cluster_lead_taken_total 3`, `demarc_cluster_stood_total 2`, `demarc_cluster_log_writes_total 40`, `demarc_cluster_log_write_seconds_total 0.5`, `demarc_cluster_longest_log_write_seconds 0.3`, `demarc_cluster_refused_connections_total{why="clock"} 2`,
			`demarc_cluster_current 1`, `demarc_cluster_leader 1`, `demarc_cluster_led 1`, `demarc_cluster_members 3`, `demarc_cluster_revision 9`, `demarc_cluster_confirmed_revision 8`, `demarc_cluster_provisional 1`, `demarc_cluster_provisional_seconds_left 12`, `demarc_cluster_problem 1`)
		if !strings.Contains(text, "demarc_build_info{") {
			t.Error("what runs is not said")
		}
	}
	want(t, w.Body.String(), `demarc_api_connections 3`, `demarc_api_refused_connections_total{kind="clock"} 2`, `demarc_api_forbidden_requests_total 0`, `demarc_api_certificate_expiry_timestamp_seconds 0`)
	if strings.Contains(w.Body.String(), "demarc_gateway_ready") || !strings.Contains(w.Body.String(), "process_resident_memory_bytes") {
		t.Error("a witness shows what it has not, or not its memory")
	}
}

// fresh is a node that has seen no packet.
func fresh() *fake {
	return &fake{
		status: &api.Status{Node: "n1", Version: "v1.2", Ready: true, Started: time.Unix(1000, 0), Revision: api.Revision{Number: 7, AppliedAt: time.Unix(900, 5e8)},
			Workers: []api.Worker{{ID: 0, Frames: 100, FramesFree: 60, SessionsCap: 64}, {ID: 1, Frames: 100, FramesFree: 100, SessionsCap: 64}},
			Tenants: []api.Tenant{{ID: 1, Name: "alpha"}, {ID: 2, Name: "be\"ta\n"}},
			Ports: []api.Port{{Name: "wan", Device: "eth0", Driver: "veth", Offload: api.Offload{Asked: "auto", Frames: map[string]uint64{"carried": 0}, DeviceDropped: new(uint64)}, Attach: "native", Up: true, Carrier: true,
				Queues: []api.Queue{{Queue: 0, Worker: 0, Mode: "copy", Asked: "auto", InFill: 30, InTx: 10}, {Queue: 1, Worker: 1, Mode: "zerocopy", Asked: "auto"}}}},
			API: api.APIState{Refused: map[string]uint64{"busy": 0}}, Conservation: api.Conservation{OK: true}},
		drops: &api.Drops{ByReason: map[string]uint64{}},
	}
}

func scrape(t *testing.T, f *fake) (string, int) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(f).ServeHTTP(w, httptest.NewRequest(http.MethodGet, api.PathMetrics, nil))
	return w.Body.String(), w.Code
}

func want(t *testing.T, text string, lines ...string) {
	t.Helper()
	have := map[string]bool{}
	for l := range strings.Lines(text) {
		have[strings.TrimSuffix(l, "\n")] = true
	}
	for _, l := range lines {
		if !have[l] {
			t.Errorf("no line %q", l)
		}
	}
}

func TestEverySeriesIsThereAtTheStart(t *testing.T) {
	text, code := scrape(t, fresh())
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, text)
	}
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		line := `demarc_meter_dropped_packets_total{reason="` + r.String() + `"} 0`
		if got := strings.Contains(text, line+"\n"); got != (r != verdict.Pass) {
			t.Errorf("%s: there = %v", line, got)
		}
	}
	names := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, f := range families {
		name := names.FindStringSubmatch(f.desc.String())[1]
		if !strings.Contains(text, "\n"+name+"{") && !strings.Contains(text, "\n"+name+" ") {
			t.Errorf("family %s has no series", name)
		}
	}
}

func TestValues(t *testing.T) {
	f := fresh()
	s := f.status
	s.Workers[0].Busy, s.Workers[0].Sessions, s.Workers[0].Mappings, s.Workers[0].HandedOut = 0.25, 3, 2, 9
	a := &s.Tenants[0]
	a.Out, a.In, a.Offered.Out = api.Counter{Packets: 5, Bytes: 500}, api.Counter{Packets: 6, Bytes: 600}, api.Counter{Packets: 8, Bytes: 800}
	a.Usage.Out = api.Counter{Packets: 55, Bytes: 6600}
	a.Drops = map[string]uint64{"acl_deny": 2, "ttl_exceeded": 1}
	a.Limits.OutBits, a.Limits.VoiceOut, a.Limits.Overhead = 20e6, 8e6, 38
	a.Voice.In = api.VoiceCounts{Within: api.Counter{Packets: 21, Bytes: 2100}, Above: api.Counter{Packets: 3, Bytes: 300}, Lost: api.Counter{Packets: 2, Bytes: 200}}
	a.Queued.In = 4
	a.Pool = &api.Pool{Addresses: 1, Ports: 64512, InUse: 12, Held: 3, FreeBlocks: 1007}
	s.Ports[0].Queues[0].Rings.FillEmpty = 11
	s.Ports[0].Carrier = false
	f.drops.ByReason["acl_deny"] = 2
	s.Cluster = api.Cluster{State: api.ClusterCurrent, Leader: "n1", Leads: true, Revision: 9, Confirmed: 8, Problem: "x", Members: make([]api.Member, 3),
		Provisional: &api.Provisional{Revision: 9, Left: 12.5}}
	text, _ := scrape(t, f)
	want(t, text,
		`demarc_gateway_ready 1`, `demarc_gateway_policy_revision 7`, `demarc_gateway_policy_applied_timestamp_seconds 900.5`, `demarc_gateway_frames_conserved 1`,
		`demarc_gateway_stage_off 0`,
		`demarc_cluster_current 1`, `demarc_cluster_leader 1`, `demarc_cluster_led 1`, `demarc_cluster_members 3`, `demarc_cluster_revision 9`, `demarc_cluster_confirmed_revision 8`,
		`demarc_cluster_provisional 1`, `demarc_cluster_provisional_seconds_left 12.5`, `demarc_cluster_problem 1`,
		`demarc_worker_busy_ratio{worker="0"} 0.25`, `demarc_worker_frames{place="free",worker="0"} 60`, `demarc_worker_frames{place="fill",worker="0"} 30`,
		`demarc_worker_frames{place="tx",worker="0"} 10`, `demarc_worker_frames{place="fill",worker="1"} 0`, `demarc_worker_memory_frames{worker="0"} 100`,
		`demarc_conntrack_sessions{worker="0"} 3`, `demarc_conntrack_capacity_sessions{worker="1"} 64`, `demarc_nat_mappings{worker="0"} 2`,
		`demarc_worker_handed_out_packets_total{worker="0"} 9`,
		`demarc_meter_tenant_packets_total{direction="out",tenant="alpha"} 5`, `demarc_meter_tenant_bytes_total{direction="in",tenant="alpha"} 600`,
		`demarc_meter_tenant_usage_packets_total{direction="out",tenant="alpha"} 55`, `demarc_meter_tenant_usage_bytes_total{direction="out",tenant="alpha"} 6600`,
		`demarc_meter_tenant_offered_packets_total{direction="out",tenant="alpha"} 8`, `demarc_meter_tenant_dropped_packets_total{tenant="alpha"} 3`,
		`demarc_meter_tenant_dropped_packets_total{tenant="be\"ta\n"} 0`,
		`demarc_meter_tenant_voice_packets_total{direction="in",rate="within",tenant="alpha"} 21`, `demarc_meter_tenant_voice_bytes_total{direction="in",rate="within",tenant="alpha"} 2100`,
		`demarc_meter_tenant_voice_packets_total{direction="in",rate="above",tenant="alpha"} 3`, `demarc_meter_tenant_voice_bytes_total{direction="in",rate="above",tenant="alpha"} 300`,
		`demarc_meter_tenant_voice_packets_total{direction="in",rate="lost",tenant="alpha"} 2`, `demarc_meter_tenant_voice_bytes_total{direction="in",rate="lost",tenant="alpha"} 200`,
		`demarc_police_overhead_bytes{tenant="alpha"} 38`,
		`demarc_meter_tenant_voice_packets_total{direction="out",rate="above",tenant="alpha"} 0`, `demarc_police_voice_limit_bytes_per_second{direction="out",tenant="alpha"} 1e+06`,
		`demarc_police_limit_bytes_per_second{direction="out",tenant="alpha"} 2.5e+06`, `demarc_police_queued_packets{direction="in",tenant="alpha"} 4`,
		`demarc_nat_pool_used_ports{tenant="alpha"} 12`, `demarc_nat_pool_free_blocks{tenant="alpha"} 1007`,
		`demarc_meter_dropped_packets_total{reason="acl_deny"} 2`,
		`demarc_xsk_queue_mode_info{asked="auto",mode="copy",port="wan",queue="0"} 1`, `demarc_xsk_queue_mode_info{asked="auto",mode="zerocopy",port="wan",queue="1"} 1`,
		`demarc_xsk_queue_kernel_lost_packets_total{cause="fill_empty",port="wan",queue="0"} 11`, `demarc_xsk_port_up{port="wan"} 0`,
	)
	if !strings.Contains(text, `demarc_build_info{goversion="go`) || !strings.Contains(text, `version="v1.2"} 1`) {
		t.Error("no build info")
	}
}

func TestLint(t *testing.T) {
	text, _ := scrape(t, fresh())
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "demarc_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestSilentSourceFailsTheScrape(t *testing.T) {
	for name, f := range map[string]*fake{"status": {err: errors.New("workers are busy")}, "drops": {status: fresh().status, dropsE: errors.New("workers are busy")}} {
		if text, code := scrape(t, f); code != http.StatusInternalServerError || !strings.Contains(text, "workers are busy") {
			t.Errorf("%s: status %d, body %q", name, code, text)
		}
	}
}

// An address must never become a label, whatever the structs hold.
func TestNoAddressBecomesALabel(t *testing.T) {
	f := fresh()
	f.status.Ports[0].MAC = "02:00:00:00:00:01"
	f.status.Conservation.Detail = "198.18.0.1"
	f.status.Revision.Source = "198.18.0.1"
	text, _ := scrape(t, f)
	for _, bad := range []string{"198.18.", "02:00:00"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q in the scrape", bad)
		}
	}
}
