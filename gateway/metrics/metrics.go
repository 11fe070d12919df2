package metrics

import (
	"context"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"demarc/gateway/api"
	"demarc/gateway/verdict"
)

// Source is who knows the figures.
type Source interface {
	Status(ctx context.Context, rules bool) (*api.Status, error)
	Drops(ctx context.Context) (*api.Drops, error)
}

// scrapeTimeout bounds one reading of the source: Prometheus itself gives up after 10 s unless it is told otherwise.
const scrapeTimeout = 10 * time.Second

// Handler serves the figures of src, and the Go runtime's and the process's own. A source that does not answer makes the scrape fail
// with status 500: zeroes would look like a gateway without traffic.
func Handler(src Source) http.Handler {
	return handler(func(ctx context.Context) prometheus.Collector { return &collector{ctx, src} })
}

// handler serves what a scrape collects, and the process's own figures.
func handler(scrape func(context.Context) prometheus.Collector) http.Handler {
	own := processRegistry()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), scrapeTimeout)
		defer cancel()
		// A registry per scrape, because a collector gets no context and the scraper's is what ends a reading nobody waits for.
		reg := prometheus.NewRegistry()
		reg.MustRegister(scrape(ctx))
		promhttp.HandlerFor(prometheus.Gatherers{own, reg}, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	})
}

// processRegistry has the Go runtime's and the process's own figures.
func processRegistry() *prometheus.Registry {
	own := prometheus.NewRegistry()
	own.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return own
}

// family is all series of one name.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

var families []*family

func gauge(name, help string, labels ...string) *family {
	return add(&family{prometheus.NewDesc("demarc_"+name, help, labels, nil), prometheus.GaugeValue})
}

func counter(name, help string, labels ...string) *family {
	return add(&family{prometheus.NewDesc("demarc_"+name+"_total", help, labels, nil), prometheus.CounterValue})
}

func add(f *family) *family {
	families = append(families, f)
	return f
}

var (
	buildInfo = gauge("build_info", "Always 1; the labels say what runs.", "version", "goversion")
	ready     = gauge("gateway_ready", "1 when every queue is bound and every worker serves the policy.")
	broken    = gauge("gateway_stage_off", "1 when a stage was switched off on purpose for a lab; 0 in any real gateway.")
	started   = gauge("gateway_start_time_seconds", "When the process started, Unix time.")
	revision  = gauge("gateway_policy_revision", "Number of the policy revision that is served.")
	appliedAt = gauge("gateway_policy_applied_timestamp_seconds", "When the served policy was applied, Unix time.")
	conserved = gauge("gateway_frames_conserved", "1 when every frame of packet memory is in exactly one place.")
	dropped   = counter("meter_dropped_packets", "Packets dropped, by reason, the XDP program's included.", "reason")

	clusterCurrent     = gauge("cluster_current", "1 when this node knows what was agreed on, so that changes can be made.")
	clusterLeads       = gauge("cluster_leader", "1 on the node that leads the cluster.")
	clusterLed         = gauge("cluster_led", "1 when this node knows who leads.")
	clusterMembers     = gauge("cluster_members", "Nodes of the cluster.")
	clusterRevision    = gauge("cluster_revision", "Number of the policy revision that was agreed on; what this node serves is demarc_gateway_policy_revision.")
	clusterConfirmed   = gauge("cluster_confirmed_revision", "Number of the last confirmed revision; another than the one agreed on while that is provisional.")
	clusterProvisional = gauge("cluster_provisional", "1 while a revision waits for its confirmation.")
	clusterLeft        = gauge("cluster_provisional_seconds_left", "Time left to confirm it; 0 when none waits.")
	clusterProblem     = gauge("cluster_problem", "1 when something is wrong with this node's part in the cluster; status says what.")

	clusterFamilies = []*family{clusterCurrent, clusterLeads, clusterLed, clusterMembers, clusterRevision, clusterConfirmed, clusterProvisional, clusterLeft, clusterProblem}

	resumed     = gauge("gateway_resumed_sessions", "Sessions that the process before had left, by what became of them when this one started.", "result")
	resumedAway = gauge("gateway_resumed_away_seconds", "From when the process before had left its sessions to when this one had taken them up; 0 = it had left none.")
	resumedNot  = gauge("gateway_resumed_problem", "1 when what the process before had left could not be used; status says why.")

	blockEntries     = gauge("block_entries", "Addresses and prefixes that are blocked for a while; what they drop is counted under the reason blocked.")
	workerBusy       = gauge("worker_busy_ratio", "Part of the last second with packets in hand.", "worker")
	workerFrames     = gauge("worker_frames", "Frames of packet memory by place; tx includes the completion ring.", "worker", "place")
	workerFramesAll  = gauge("worker_memory_frames", "All frames of the worker's packet memory.", "worker")
	workerView       = gauge("worker_view_generation", "Generation of the view that the worker serves.", "worker")
	workerOut        = counter("worker_handed_out_packets", "Packets copied to other workers.", "worker")
	workerIn         = counter("worker_handed_in_packets", "Packets copied from other workers.", "worker")
	workerPanics     = counter("worker_panics", "Contained panics.", "worker")
	workerBlocked    = gauge("worker_blocked_flows", "Flows and sources that are blocked because they have met a fault in the last minute.", "worker")
	workerBursts     = counter("worker_bursts", "Receive bursts that held at least one packet.", "worker")
	workerWakeups    = counter("worker_wakeups", "Times that the worker slept and was woken.", "worker")
	workerCrossings  = counter("worker_area_crossing_packets", "Packets copied between a zero-copy and another memory area.", "worker")
	workerOrders     = counter("worker_orders", "What control had the worker do between two bursts: reports, looks, changes.", "worker")
	workerHasty      = counter("worker_hasty_sessions", "Sessions handed down to the XDP program although not all of their packets were seen to have left: they never paused, or a worker of the node lost packets meanwhile.", "worker")
	workerGivenUp    = counter("worker_given_up_batches", "Batches of sessions to be handed down to the XDP program that were given up, since a packet in hand had not left within a second: a tx ring stands although its port is up. Their sessions are tried again.", "worker")
	workerCruising   = gauge("worker_cruising_sessions", "Sessions that are handed down to the XDP program.", "worker")
	workerHandedOn   = counter("worker_handed_on_frames", "Frames that came for a group just after it was handed over as planned, and were sent on to its next owner.", "worker")
	workerFenced     = counter("worker_fenced_sockets", "Sockets closed with frames of a group queued, because its deadline had passed.", "worker")
	workerOverruns   = counter("worker_fence_overruns", "System calls with frames of a group that took longer than the guard of the lease: what they sent may have left late.", "worker")
	workerLongest    = gauge("worker_longest_order_seconds", "How long one of these has kept packets waiting, at most, since start.", "worker")
	workerUMEM       = gauge("worker_umem_bytes", "Packet memory.", "worker")
	workerTables     = gauge("worker_table_bytes", "Memory of sessions, index, mappings and waiting fragments.", "worker")
	sessions         = gauge("conntrack_sessions", "Live sessions.", "worker")
	sessionsCapacity = gauge("conntrack_capacity_sessions", "Sessions that fit in the table.", "worker")
	mappings         = gauge("nat_mappings", "Live NAT mappings, held ports not counted.", "worker")
	mappingsCapacity = gauge("nat_capacity_mappings", "NAT mappings that fit in the table.", "worker")

	fragmentsWaiting = gauge("frag_waiting_fragments", "Fragments that came before the first of their datagram and wait for it.", "worker")
	fragmentsMost    = gauge("frag_capacity_fragments", "Fragments that may wait.", "worker")
	fragmentsKnown   = gauge("frag_known_datagrams", "Datagrams in fragments that are followed: their first fragment has come, others may.", "worker")

	tenantPackets  = counter("meter_tenant_packets", "Packets passed on; out = from the tenant to the backbone.", "tenant", "direction")
	tenantBytes    = counter("meter_tenant_bytes", "IP bytes passed on by this node; out = from the tenant to the backbone. It begins at 0 with each process. What is billed is the sum of all nodes: sum by (tenant, direction) (increase(demarc_meter_tenant_bytes_total[30d])).", "tenant", "direction")
	usagePackets   = counter("meter_tenant_usage_packets", "Packets passed on by all nodes that have served the tenant's group, one after the other, since the first of these processes began. Each of them shows it, so take the largest and not the sum; to bill, see meter_tenant_bytes.", "tenant", "direction")
	usageBytes     = counter("meter_tenant_usage_bytes", "IP bytes passed on by all nodes that have served the tenant's group, one after the other, since the first of these processes began. Each of them shows it, so take the largest and not the sum; to bill, see meter_tenant_bytes.", "tenant", "direction")
	offeredPackets = counter("meter_tenant_offered_packets", "Packets that came to the tenant's rate: what passed and what the rate dropped.", "tenant", "direction")
	offeredBytes   = counter("meter_tenant_offered_bytes", "IP bytes that came to the tenant's rate: what passed and what the rate dropped.", "tenant", "direction")
	voicePackets   = counter("meter_tenant_voice_packets", "Packets of the tenant that are voice, by a rule or by their mark: within = passed on within voice's own rate, before the rest; above = it had no room for them, so they were among the rest, passed on or dropped; lost = it had, and the tenant's rate had none.", "tenant", "direction", "rate")
	voiceBytes     = counter("meter_tenant_voice_bytes", "IP bytes of the tenant that are voice, as its packets.", "tenant", "direction", "rate")
	tenantDropped  = counter("meter_tenant_dropped_packets", "Packets of the tenant dropped, all reasons.", "tenant")
	tenantSessions = gauge("conntrack_tenant_sessions", "Live sessions of the tenant.", "tenant")
	tenantCap      = gauge("conntrack_tenant_limit_sessions", "Sessions that the tenant may hold; 0 = no limit of its own.", "tenant")
	tenantInbound  = gauge("conntrack_tenant_inbound_sessions", "Live sessions of the tenant that the backbone began.", "tenant")
	tenantWaiting  = gauge("conntrack_tenant_unanswered_sessions", "Live sessions of the tenant that are not answered yet; out = begun by the tenant.", "tenant", "direction")
	hostBytes      = gauge("police_host_limit_bytes_per_second", "The rate of each of the tenant's inside hosts in bytes (bits / 8); 0 = unlimited.", "tenant", "direction")
	hostPackets    = gauge("police_host_limit_packets_per_second", "The packet rate of each of the tenant's inside hosts; 0 = unlimited.", "tenant", "direction")
	tenantErrors   = counter("pipeline_tenant_icmp_errors", "Errors of the gateway's own towards the tenant, resets included: sent, and held back by the rate.", "tenant", "result")
	outerErrors    = counter("pipeline_backbone_icmp_errors", "Errors of the gateway's own towards the backbone: sent, and held back by the rate.", "result")
	tenantCreated  = counter("conntrack_tenant_created_sessions", "Sessions that the tenant has begun.", "tenant")
	limitBytes     = gauge("police_limit_bytes_per_second", "The tenant's rate in bytes (bits / 8) of the line: IP bytes, and police_overhead_bytes for each packet; 0 = unlimited.", "tenant", "direction")
	limitPackets   = gauge("police_limit_packets_per_second", "The tenant's packet rate; 0 = unlimited.", "tenant", "direction")
	overhead       = gauge("police_overhead_bytes", "What the tenant's rates count for each packet beside its IP bytes.", "tenant")
	voiceLimit     = gauge("police_voice_limit_bytes_per_second", "What of the tenant's rate voice may use before the rest, in bytes (bits / 8); 0 = unlimited.", "tenant", "direction")
	queued         = gauge("police_queued_packets", "Packets that wait in the tenant's shapers.", "tenant", "direction")
	poolAddresses  = gauge("nat_pool_addresses", "Public addresses of the tenant.", "tenant")
	poolPorts      = gauge("nat_pool_ports", "Usable ports of all of the tenant's addresses, per protocol class.", "tenant")
	poolUsed       = gauge("nat_pool_used_ports", "Ports with a live mapping, all protocol classes.", "tenant")
	poolHeld       = gauge("nat_pool_held_ports", "Freed ports within their hold time.", "tenant")
	poolBlocks     = gauge("nat_pool_free_blocks", "Blocks of 64 ports that no worker has opened.", "tenant")

	portInfo        = gauge("xsk_port_info", "Always 1; the labels say what the port is.", "port", "device", "driver", "attach")
	portUp          = gauge("xsk_port_up", "1 when the device is up and has carrier.", "port")
	portState       = gauge("xsk_port_state", "1 for what the port is: open; closed (the device is there, transit is dropped); gone (there is no such device).", "port", "state")
	portHost        = counter("xsk_port_host_packets", "Packets that the XDP program left to the host's stack.", "port")
	portHeld        = gauge("xsk_port_offload_held", "1 = it carries nothing for the moment: a policy, a cut, a trial or a takeover is under way (the log says why where it stays so), or a worker looks at every packet: for a trace or a capture, for blocked addresses, or since a flow has met a fault.", "port")
	portOffload     = gauge("xsk_port_offload", "1 = the XDP program carries established sessions of this port.", "port", "asked")
	portFrames      = counter("xsk_port_offload_frames", "What became of each frame that the XDP program was shown to carry: carried, dropped, or why it went up to a worker.", "port", "what")
	portSent        = counter("xsk_port_offload_sent_packets", "Frames that left by this port without a worker.", "port")
	portSentB       = counter("xsk_port_offload_sent_bytes", "Bytes of these.", "port")
	portLost        = counter("xsk_port_offload_device_dropped", "Frames that the port's device says it has dropped on their way out since it was made, whoever sent them; those of programs count as sent, and as their tenant's. Only where programs carry.", "port")
	portDropped     = counter("xsk_port_dropped_packets", "Packets that the XDP program dropped.", "port")
	queueMode       = gauge("xsk_queue_mode_info", "Always 1; mode is what the kernel says that the socket is, asked what the node file wants.", "port", "queue", "mode", "asked")
	queueRx         = counter("xsk_queue_received_packets", "Frames taken from the rx ring.", "port", "queue")
	queueRxB        = counter("xsk_queue_received_bytes", "Bytes of frames taken from the rx ring.", "port", "queue")
	queueTx         = counter("xsk_queue_sent_packets", "Frames put into the tx ring.", "port", "queue")
	queueTxB        = counter("xsk_queue_sent_bytes", "Bytes of frames put into the tx ring.", "port", "queue")
	queueFull       = counter("xsk_queue_tx_full_packets", "Frames dropped because the tx ring was full.", "port", "queue")
	queueErrors     = counter("xsk_queue_tx_errors", "Errors of the calls that ask the kernel to send.", "port", "queue")
	queueKicks      = counter("xsk_queue_kicks", "System calls that asked the kernel to send.", "port", "queue")
	queueRedirected = counter("xsk_queue_tx_redirected_frames", "Frames sent by the XDP program, many at a time, and not by the tx ring.", "port", "queue")
	queueLost       = counter("xsk_queue_kernel_lost_packets", "Packets that the kernel lost or refused at the socket, by cause.", "port", "queue", "cause")

	apiOpen      = gauge("api_connections", "Connections to the interface over TCP.")
	apiRefused   = counter("api_refused_connections", "Connections to the interface that were turned away, by kind.", "kind")
	apiForbidden = counter("api_forbidden_requests", "Requests that were refused because the role of who sent them is not enough.")
	apiUntil     = gauge("api_certificate_expiry_timestamp_seconds", "When the certificate that the interface over TCP shows ends, Unix time; 0 where there is none.")
	apiRevoked   = gauge("api_revoked_clients", "Clients whose certificates are refused before their end, as far as this node knows.")

	apiFamilies = []*family{apiOpen, apiRefused, apiForbidden, apiUntil, apiRevoked}

	neighbours   = gauge("slowpath_neighbours", "Neighbour entries in use.")
	neighPending = gauge("slowpath_pending_neighbours", "Next hops that are being asked for.")
	neighWaiting = gauge("slowpath_waiting_packets", "Packets that wait for a next hop's MAC address.")
	neighAsked   = gauge("slowpath_unanswered_neighbours", "Addresses that packets want and that are asked for or did not answer.")
	slowLimited  = counter("slowpath_rate_limited", "Questions and answers withheld by the rates of interfaces and tenants.")
	slowFull     = counter("slowpath_table_full", "Neighbours refused because all of the table is in use.")
	macChanges   = counter("slowpath_mac_changes", "Times that a known neighbour moved to another MAC address.")
	conflicts    = counter("slowpath_address_conflicts", "Times that another station spoke as one of the gateway's addresses.")
	defended     = counter("slowpath_addresses_defended", "Times that such a station was told before all whose the address is.")
	probed       = counter("slowpath_addresses_probed", "Times that another station asked whether one of the gateway's addresses is free.")
	hops         = gauge("fib_next_hops", "Next hops that routes name, by state.", "state")
	hopsDied     = counter("fib_next_hop_deaths", "Times that a next hop stopped to answer.")
	hopsReturned = counter("fib_next_hop_returns", "Times that a next hop answered again.")
	moved        = counter("fib_moved_sessions", "Sessions that went on by another next hop of their route because theirs had died, or stood in for one that is up again; per direction.")
	onBackup     = gauge("fib_routes_on_backup", "Routes whose conversations go by a next hop of backup, since none of via is up.")
	slowReceived = counter("slowpath_received_frames", "Frames handed to the slow path.")
	slowSent     = counter("slowpath_sent_frames", "Frames that the slow path sent.")
)

// collector is one scrape.
type collector struct {
	ctx context.Context
	src Source
}

// Describe lists all families, so that two of one name are found at the first scrape.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect reads the source once and sends every series.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s, err := c.src.Status(c.ctx, false)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(ready.desc, err)
		return
	}
	d, err := c.src.Drops(c.ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(dropped.desc, err)
		return
	}
	o := out(ch)
	if src, ok := c.src.(MemberSource); ok {
		m, err := src.Members(c.ctx)
		if err != nil { // the replicated state is not open: what the node itself does goes on, and is told
			m = &api.Members{}
		}
		o.members(m)
	}
	o.groups(c.ctx, c.src)
	o.node(s)
	o.drops(d)
	o.workers(s)
	for i := range s.Tenants {
		o.tenant(&s.Tenants[i])
	}
	for i := range s.Ports {
		o.port(&s.Ports[i])
	}
}

// out is where series go.
type out chan<- prometheus.Metric

func (o out) put(f *family, v float64, labels ...string) {
	m, err := prometheus.NewConstMetric(f.desc, f.kind, v, labels...)
	if err != nil { // a label that is not UTF-8
		m = prometheus.NewInvalidMetric(f.desc, err)
	}
	o <- m
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// resumed puts what this process has of the one before it.
func (o out) resumed(r *api.Resumed) {
	if r == nil {
		r = &api.Resumed{}
	}
	o.put(resumed, float64(r.Taken), "taken")
	o.put(resumed, float64(r.Over), "over")
	for _, why := range api.ResumedRefusals {
		o.put(resumed, float64(r.Refused[why]), why)
	}
	o.put(resumedAway, r.Away+r.Took)
	o.put(resumedNot, truth(r.Problem != ""))
}

func (o out) node(s *api.Status) {
	o.put(buildInfo, 1, s.Version, runtime.Version())
	o.put(ready, truth(s.Ready))
	o.put(broken, truth(s.Broken != ""))
	o.put(started, float64(s.Started.UnixMilli())/1e3)
	o.put(revision, float64(s.Revision.Number))
	o.put(appliedAt, float64(s.Revision.AppliedAt.UnixMilli())/1e3)
	o.resumed(s.Resumed)
	o.cluster(&s.Cluster)
	o.put(blockEntries, float64(len(s.Blocks)))
	o.put(conserved, truth(s.Conservation.OK))
	o.put(outerErrors, float64(s.Backbone.ICMPErrors.Sent), "sent")
	o.put(outerErrors, float64(s.Backbone.ICMPErrors.Held), "held")
	o.api(&s.API)
	p := &s.SlowPath
	o.put(neighbours, float64(p.Neighbours))
	o.put(neighPending, float64(p.Pending))
	o.put(neighWaiting, float64(p.Waiting))
	o.put(neighAsked, float64(p.Unanswered))
	o.put(slowLimited, float64(p.Limited))
	o.put(slowFull, float64(p.TableFull))
	o.put(macChanges, float64(p.MACChanges))
	o.put(conflicts, float64(p.Duplicates))
	o.put(defended, float64(p.Defended))
	o.put(probed, float64(p.Probed))
	r := &p.Routers
	for _, x := range [...]struct {
		state string
		n     int
	}{{"up", r.Up}, {"asked", r.Asked}, {"no_answer", r.NoAnswer}, {"no_link", r.NoLink}} {
		o.put(hops, float64(x.n), x.state)
	}
	o.put(hopsDied, float64(r.Died))
	o.put(hopsReturned, float64(r.Returned))
	o.put(moved, float64(r.Moved))
	o.put(onBackup, float64(r.OnBackup))
	o.put(slowReceived, float64(p.Received))
	o.put(slowSent, float64(p.Sent))
}

// api is the interface itself.
func (o out) api(a *api.APIState) {
	o.put(apiOpen, float64(a.Connections))
	for kind, n := range a.Refused {
		o.put(apiRefused, float64(n), kind)
	}
	o.put(apiForbidden, float64(a.Forbidden))
	o.put(apiRevoked, float64(a.Revoked))
	until := 0.0
	if a.Until != nil {
		until = float64(a.Until.Unix())
	}
	o.put(apiUntil, until)
}

// drops goes by the list of reasons and not by the answer, so that no series appears only when its first packet dies.
func (o out) drops(d *api.Drops) {
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		if r != verdict.Pass {
			o.put(dropped, float64(d.ByReason[r.String()]), r.String())
		}
	}
}

func (o out) workers(s *api.Status) {
	places := make(map[int]*[3]int, len(s.Workers))
	for i := range s.Workers {
		places[s.Workers[i].ID] = new([3]int)
	}
	for i := range s.Ports {
		for _, q := range s.Ports[i].Queues {
			if at := places[q.Worker]; at != nil {
				at[0] += q.InFill
				at[1] += q.InRx
				at[2] += q.InTx
			}
		}
	}
	for i := range s.Workers {
		w := &s.Workers[i]
		id := strconv.Itoa(w.ID)
		o.put(workerBusy, w.Busy, id)
		o.put(workerFrames, float64(w.FramesFree), id, "free")
		o.put(workerFrames, float64(w.FramesHeld), id, "shaper")
		for j, place := range [...]string{"fill", "rx", "tx"} {
			o.put(workerFrames, float64(places[w.ID][j]), id, place)
		}
		o.put(workerFramesAll, float64(w.Frames), id)
		o.put(workerView, float64(w.Generation), id)
		o.put(workerOut, float64(w.HandedOut), id)
		o.put(workerIn, float64(w.HandedIn), id)
		o.put(workerPanics, float64(w.Panics), id)
		o.put(workerBlocked, float64(w.BlockedFlows), id)
		o.put(workerBursts, float64(w.Bursts), id)
		o.put(workerWakeups, float64(w.Wakeups), id)
		o.put(workerCrossings, float64(w.Crossings), id)
		o.put(workerOrders, float64(w.Orders), id)
		o.put(workerLongest, w.LongestOrder, id)
		o.put(workerCruising, float64(w.Cruising), id)
		o.put(workerHasty, float64(w.Hasty), id)
		o.put(workerGivenUp, float64(w.GivenUp), id)
		o.put(workerHandedOn, float64(w.HandedOn), id)
		o.put(workerFenced, float64(w.Fenced), id)
		o.put(workerOverruns, float64(w.Overruns), id)
		o.put(workerUMEM, float64(w.UMEMBytes), id)
		o.put(workerTables, float64(w.TableBytes), id)
		o.put(sessions, float64(w.Sessions), id)
		o.put(sessionsCapacity, float64(w.SessionsCap), id)
		o.put(mappings, float64(w.Mappings), id)
		o.put(mappingsCapacity, float64(w.MappingsCap), id)
		o.put(fragmentsWaiting, float64(w.FragmentsWaiting), id)
		o.put(fragmentsMost, float64(w.FragmentsCap), id)
		o.put(fragmentsKnown, float64(w.FragmentedKnown), id)
	}
}

func (o out) tenant(t *api.Tenant) {
	for _, d := range [...]struct {
		name          string
		left, came    api.Counter
		usage         api.Counter
		bits, packets uint64
		queued        int
		waiting       int
		host, hostPkt uint64
		voice         api.VoiceCounts
		voiceBits     uint64
	}{
		{"out", t.Out, t.Offered.Out, t.Usage.Out, t.Limits.OutBits, t.Limits.OutPackets, t.Queued.Out, t.Unanswered.Out, t.Limits.Host.OutBits, t.Limits.Host.OutPackets, t.Voice.Out, t.Limits.VoiceOut},
		{"in", t.In, t.Offered.In, t.Usage.In, t.Limits.InBits, t.Limits.InPackets, t.Queued.In, t.Unanswered.In, t.Limits.Host.InBits, t.Limits.Host.InPackets, t.Voice.In, t.Limits.VoiceIn},
	} {
		o.put(tenantPackets, float64(d.left.Packets), t.Name, d.name)
		o.put(tenantBytes, float64(d.left.Bytes), t.Name, d.name)
		o.put(usagePackets, float64(d.usage.Packets), t.Name, d.name)
		o.put(usageBytes, float64(d.usage.Bytes), t.Name, d.name)
		o.put(offeredPackets, float64(d.came.Packets), t.Name, d.name)
		o.put(offeredBytes, float64(d.came.Bytes), t.Name, d.name)
		o.put(limitBytes, float64(d.bits)/8, t.Name, d.name)
		o.put(limitPackets, float64(d.packets), t.Name, d.name)
		o.put(queued, float64(d.queued), t.Name, d.name)
		o.put(tenantWaiting, float64(d.waiting), t.Name, d.name)
		o.put(hostBytes, float64(d.host)/8, t.Name, d.name)
		o.put(hostPackets, float64(d.hostPkt), t.Name, d.name)
		o.put(voiceLimit, float64(d.voiceBits)/8, t.Name, d.name)
		o.put(voicePackets, float64(d.voice.Within.Packets), t.Name, d.name, "within")
		o.put(voiceBytes, float64(d.voice.Within.Bytes), t.Name, d.name, "within")
		o.put(voicePackets, float64(d.voice.Above.Packets), t.Name, d.name, "above")
		o.put(voiceBytes, float64(d.voice.Above.Bytes), t.Name, d.name, "above")
		o.put(voicePackets, float64(d.voice.Lost.Packets), t.Name, d.name, "lost")
		o.put(voiceBytes, float64(d.voice.Lost.Bytes), t.Name, d.name, "lost")
	}
	lost := uint64(0)
	for _, n := range t.Drops {
		lost += n
	}
	o.put(tenantDropped, float64(lost), t.Name)
	o.put(overhead, float64(t.Limits.Overhead), t.Name)
	o.put(tenantSessions, float64(t.Sessions), t.Name)
	o.put(tenantCap, float64(t.SessionsCap), t.Name)
	o.put(tenantInbound, float64(t.Inbound), t.Name)
	o.put(tenantErrors, float64(t.ICMPErrors.Sent), t.Name, "sent")
	o.put(tenantErrors, float64(t.ICMPErrors.Held), t.Name, "held")
	o.put(tenantCreated, float64(t.Created), t.Name)
	pool := t.Pool
	if pool == nil {
		pool = &api.Pool{}
	}
	o.put(poolAddresses, float64(pool.Addresses), t.Name)
	o.put(poolPorts, float64(pool.Ports), t.Name)
	o.put(poolUsed, float64(pool.InUse), t.Name)
	o.put(poolHeld, float64(pool.Held), t.Name)
	o.put(poolBlocks, float64(pool.FreeBlocks), t.Name)
}

func (o out) port(p *api.Port) {
	o.put(portInfo, 1, p.Name, p.Device, p.Driver, p.Attach)
	o.put(portUp, truth(p.Up && p.Carrier), p.Name)
	for _, state := range [...]string{"open", "closed", "gone"} {
		o.put(portState, truth(p.State == state), p.Name, state)
	}
	o.put(portHost, float64(p.XDPToHost), p.Name)
	o.put(portDropped, float64(p.XDPDropped), p.Name)
	o.put(portHeld, truth(p.Offload.Held), p.Name)
	o.put(portOffload, truth(p.Offload.On), p.Name, p.Offload.Asked)
	for what, n := range p.Offload.Frames {
		o.put(portFrames, float64(n), p.Name, what)
	}
	o.put(portSent, float64(p.Offload.Sent.Packets), p.Name)
	o.put(portSentB, float64(p.Offload.Sent.Bytes), p.Name)
	if n := p.Offload.DeviceDropped; n != nil {
		o.put(portLost, float64(*n), p.Name)
	}
	for i := range p.Queues {
		q := &p.Queues[i]
		n := strconv.Itoa(q.Queue)
		o.put(queueMode, 1, p.Name, n, q.Mode, q.Asked)
		o.put(queueRx, float64(q.Rx.Packets), p.Name, n)
		o.put(queueRxB, float64(q.Rx.Bytes), p.Name, n)
		o.put(queueTx, float64(q.Tx.Packets), p.Name, n)
		o.put(queueTxB, float64(q.Tx.Bytes), p.Name, n)
		o.put(queueFull, float64(q.TxFull), p.Name, n)
		o.put(queueErrors, float64(q.TxErrors), p.Name, n)
		o.put(queueKicks, float64(q.Kicks), p.Name, n)
		o.put(queueRedirected, float64(q.TxRedirected), p.Name, n)
		for _, l := range [...]struct {
			cause string
			n     uint64
		}{
			{"rx_dropped", q.Rings.RxDropped}, {"rx_ring_full", q.Rings.RxRingFull}, {"fill_empty", q.Rings.FillEmpty},
			{"rx_invalid", q.Rings.RxInvalidDescs}, {"tx_invalid", q.Rings.TxInvalidDescs},
		} {
			o.put(queueLost, float64(l.n), p.Name, n, l.cause)
		}
	}
}
