package api

import (
	"maps"
	"time"
)

// Paths of the interface. All but PathApply and PathDiff are read with GET.
const (
	PathStatus     = "/v1/status"       // Status
	PathSessions   = "/v1/sessions"     // Sessions; query as in SessionFilter
	PathDrops      = "/v1/drops"        // Drops
	PathRoutes     = "/v1/routes"       // Routes
	PathNeighbours = "/v1/neighbours"   // Neighbours
	PathPorts      = "/v1/ports"        // Ports
	PathDiff       = "/v1/diff"         // POST DiffRequest -> Diff
	PathApply      = "/v1/apply"        // POST ApplyRequest -> Applied
	PathPolicy     = "/v1/policy"       // the text of the policy that is served, text/plain
	PathMetrics    = "/metrics"         // Prometheus text
	PathOpenAPI    = "/v1/openapi.json" // this interface as an OpenAPI document
)

// Counter is packets and bytes of one direction.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Status is the whole node at one moment.
type Status struct {
	Node         string            `json:"node"`           // name from the node file
	Role         string            `json:"role,omitempty"` // "witness"; empty = gateway. A witness has nothing of what has to do with packets
	Version      string            `json:"version"`        // of the binary
	Started      time.Time         `json:"started"`        // when the process started
	Uptime       float64           `json:"uptime_seconds"` // since then, by the monotonic clock
	Ready        bool              `json:"ready"`          // every queue is bound, every worker serves Revision
	WhyNotReady  string            `json:"why_not_ready,omitempty"`
	Broken       string            `json:"broken,omitempty"`           // the stage that was switched off on purpose for a lab; empty in any real gateway
	Damaged      []string          `json:"damaged_policies,omitempty"` // kept policies that were found torn at start and passed over: file and why
	Later        []string          `json:"later_policies,omitempty"`   // kept policies that this release does not know how to serve, passed over at start: which and why
	Revision     Revision          `json:"revision"`
	Cluster      Cluster           `json:"cluster"`
	Groups       *Groups           `json:"groups,omitempty"`  // missing = there is none
	Resumed      *Resumed          `json:"resumed,omitempty"` // what this process has of the one before it; missing = that has left nothing
	Workers      []Worker          `json:"workers"`
	Ports        []Port            `json:"ports"`
	Tenants      []Tenant          `json:"tenants"`
	Backbone     Zone              `json:"backbone"`
	Blocks       []Block           `json:"blocks"`    // addresses that are blocked for a while
	Drops        map[string]uint64 `json:"drops"`     // packets by reason, all tenants and ports, XDP's included; every reason is there
	SlowPath     SlowPath          `json:"slow_path"` // neighbour resolution
	Conservation Conservation      `json:"conservation"`
	API          APIState          `json:"api"`                   // the interface on TCP
	OnlyTenant   string            `json:"only_tenant,omitempty"` // who asks may see this tenant alone: all that is not the tenant's is left out here, whatever its value
}

// Resumed is what a process has of the one before it, which ended in order on this machine: sessions go on with their bindings, counters and what was left of their time.
type Resumed struct {
	Version string            `json:"version"`           // of the program before
	Away    float64           `json:"away_seconds"`      // from when that had written to when this one read
	Took    float64           `json:"took_seconds"`      // to take it up
	Taken   uint64            `json:"taken_sessions"`    // they go on
	Over    uint64            `json:"over_sessions"`     // their time ran out meanwhile
	Refused map[string]uint64 `json:"refused_sessions"`  // not taken up, by reason: "table_full", "no_tenant", "conflict", "newer_release", "malformed"
	Problem string            `json:"problem,omitempty"` // why nothing was taken up
}

// ResumedRefusals lists the reasons of Resumed.Refused: all but the first outcome of a record.
var ResumedRefusals = []string{"table_full", "no_tenant", "conflict", "newer_release", "malformed"}

// APIState is the interface itself.
type APIState struct {
	Listen      string            `json:"listen,omitempty"` // TCP address; empty = only the unix socket
	Connections int               `json:"connections"`      // over TCP, now
	Refused     map[string]uint64 `json:"refused"`          // connections that were turned away, by kind; on the socket only those that were too many
	Forbidden   uint64            `json:"forbidden"`        // requests beyond the role of who sent them
	Revoked     int               `json:"revoked_clients"`  // clients whose certificates are refused before their end
	Until       *time.Time        `json:"certificate_until,omitempty"`
}

// Revision is the policy that is served.
type Revision struct {
	Number    uint64    `json:"number"` // counts up with each revision that the cluster agrees on, from 1
	Digest    string    `json:"digest"` // "sha256:" and 64 hex digits of the text
	Source    string    `json:"source"` // the file or "apply" that it came from; says so when a kept one is served instead of the file given
	Name      string    `json:"name"`   // free text from the policy
	Author    string    `json:"author,omitempty"`
	Comment   string    `json:"comment,omitempty"`
	AppliedAt time.Time `json:"applied_at"`
}

// Worker is one data-plane thread.
type Worker struct {
	ID           int     `json:"id"`
	CPU          int     `json:"cpu"` // pinned to; -1 = not pinned
	Sessions     int     `json:"sessions"`
	SessionsCap  int     `json:"sessions_cap"`
	Mappings     int     `json:"mappings"` // NAT mappings, held ports not counted
	MappingsCap  int     `json:"mappings_cap"`
	Frames       int     `json:"frames"`         // of all its memory areas
	FramesFree   int     `json:"frames_free"`    // on the free lists
	FramesHeld   int     `json:"frames_held"`    // in the shaper
	Generation   uint64  `json:"generation"`     // of the view it serves
	Busy         float64 `json:"busy"`           // part of the last second with packets in hand, 0..1
	HandedOut    uint64  `json:"handed_out"`     // packets copied to other workers
	HandedIn     uint64  `json:"handed_in"`      // packets copied from other workers
	Panics       uint64  `json:"panics"`         // contained ones
	BlockedFlows int     `json:"blocked_flows"`  // flows and sources that have met a fault in the last minute
	Bursts       uint64  `json:"bursts"`         // receive bursts that held at least one packet
	Wakeups      uint64  `json:"wakeups"`        // times it slept and was woken
	UMEMBytes    uint64  `json:"umem_bytes"`     // packet memory
	TableBytes   uint64  `json:"table_bytes"`    // sessions, index, mappings, waiting fragments
	Crossings    uint64  `json:"area_crossings"` // packets copied between a zero-copy and another memory area
	Orders       uint64  `json:"orders"`         // what control had it do between two bursts: reports, looks, changes
	LongestOrder float64 `json:"longest_order"`  // seconds that one of these has kept packets waiting, at most, since start
	HandedOn     uint64  `json:"handed_on"`      // frames that came for a group just after it was handed over as planned, and were sent on to its next owner
	Fenced       uint64  `json:"fenced"`         // sockets closed with frames of a group queued, because its deadline had passed
	Cruising     int     `json:"cruising"`       // sessions that are handed down to the XDP program
	Hasty        uint64  `json:"hasty"`          // sessions handed down although not all of their packets were seen to have left: some may have come out of order
	GivenUp      uint64  `json:"given_up"`       // batches of sessions to be handed down that waited too long for packets in hand: their sessions are tried again
	Overruns     uint64  `json:"fence_overruns"` // system calls with such frames that took longer than the guard of the lease

	FragmentsWaiting int `json:"fragments_waiting"` // that came before the first of their datagram
	FragmentsCap     int `json:"fragments_cap"`     // how many may
	FragmentedKnown  int `json:"fragmented_known"`  // datagrams in fragments that are followed beside those: their first one has come
}

// Port is one network device.
type Port struct {
	Name       string  `json:"name"`
	Device     string  `json:"device"`
	State      string  `json:"state"`   // open; closed: the device is there, transit is dropped; gone: there is no such device
	Ifindex    int     `json:"ifindex"` // 0 while the device is gone
	MAC        string  `json:"mac"`
	MTU        int     `json:"mtu"` // IP bytes
	Driver     string  `json:"driver"`
	Up         bool    `json:"up"`
	Carrier    bool    `json:"carrier"`
	Asked      string  `json:"asked"`  // mode in the node file: auto, zerocopy, copy, generic
	Attach     string  `json:"attach"` // of the XDP program: "native" or "generic"; "none" when somebody took it off, or the device is gone
	Queues     []Queue `json:"queues"`
	XDPToHost  uint64  `json:"xdp_to_host"`       // packets that the XDP program left to the host's stack
	XDPDropped uint64  `json:"xdp_dropped"`       // packets that it dropped
	Problem    string  `json:"problem,omitempty"` // what doctor would say first, one line

	Offload  Offload   `json:"offload"`
	Changed  []Setting `json:"changed,omitempty"`  // of the device, by demarc; put back when it ends
	Warnings []string  `json:"warnings,omitempty"` // settings of the device that are not good and can be lived with
}

// Offload is what the XDP program of a port does with established sessions.
type Offload struct {
	Asked string `json:"asked"`         // offload in the node file: auto, always, never
	On    bool   `json:"on"`            // it carries them, in and out
	Why   string `json:"why,omitempty"` // why not
	Held  bool   `json:"held"`          // it carries nothing for the moment: a policy, a cut, a trial or a takeover is under way, and the log says why where it stays so; or workers look at every packet

	Watched bool `json:"watched,omitempty"` // a worker looks at every packet: for a trace or a capture, for blocked addresses, or since a flow has met a fault

	Carried uint64            `json:"carried"` // packets that came in here and left, by whatever port, without a worker
	Sent    Counter           `json:"sent"`    // frames that left here without a worker
	Frames  map[string]uint64 `json:"frames"`  // what became of each frame that it was shown: carried, drop_…, or why it went up to a worker

	DeviceDropped *uint64 `json:"device_dropped,omitempty"` // frames that this port's device says it has dropped on their way out since it was made, whoever sent them. What a program sent of those counts in Sent, and for its session and tenant: it is not told what becomes of them. Left out where no port carries
}

// Setting is one setting of a device that demarc has changed, in the words of ethtool.
type Setting struct {
	Name string `json:"name"`
	Was  string `json:"was"`
	Now  string `json:"now"`
}

// Queue is one receive/transmit queue pair with its AF_XDP socket.
type Queue struct {
	Queue        int       `json:"queue"`
	Worker       int       `json:"worker"`
	Mode         string    `json:"mode"`                     // what the kernel says it is: zerocopy, copy, generic; none while the port is not open
	Asked        string    `json:"asked"`                    // what was asked for
	WhyNotBetter string    `json:"why_not_better,omitempty"` // why it is not zerocopy
	NeedWakeup   bool      `json:"need_wakeup"`
	Rx           Counter   `json:"rx"` // frames taken from the rx ring
	Tx           Counter   `json:"tx"` // frames put into the tx ring
	Rings        RingStats `json:"rings"`
	InFill       int       `json:"in_fill"` // frames that the kernel holds or has not consumed, by our count
	InTx         int       `json:"in_tx"`   // given to the kernel to send and not yet taken back, the completion ring included
	InRx         int       `json:"in_rx"`   // frames that the kernel has written and we have not taken
	TxFull       uint64    `json:"tx_full"` // frames dropped because the tx ring was full
	TxErrors     uint64    `json:"tx_errors"`
	Kicks        uint64    `json:"kicks"`         // system calls that asked the kernel to send
	TxRedirected uint64    `json:"tx_redirected"` // frames of tx that left by the XDP program, many at a time, and not by the tx ring
}

// RingStats is what XDP_STATISTICS says of a socket: packets lost or refused by the kernel.
type RingStats struct {
	RxDropped      uint64 `json:"rx_dropped"`       // for other reasons than a full ring
	RxInvalidDescs uint64 `json:"rx_invalid_descs"` // fill ring
	TxInvalidDescs uint64 `json:"tx_invalid_descs"`
	RxRingFull     uint64 `json:"rx_ring_full"`
	FillEmpty      uint64 `json:"fill_empty"`
	TxEmpty        uint64 `json:"tx_empty"` // the kernel wanted to send and found nothing: not a loss
}

// Zone is the counters of one side: the sums of what its tenants' counters say.
type Zone struct {
	In  Counter `json:"in"`  // passed on towards tenants
	Out Counter `json:"out"` // passed on from tenants

	ICMPErrors ICMPErrors `json:"icmp_errors"` // towards the backbone alone
}

// Tenant is one enterprise's live figures. out = from the tenant to the backbone, in = towards the tenant; both count packets that
// were passed on, those included that wait in a shaper or for a next hop; so what its limit cut is in Drops, and where it was voice in Voice.
type Tenant struct {
	ID          int               `json:"id"`
	Name        string            `json:"name"`
	Sessions    int               `json:"sessions"`
	SessionsCap int               `json:"sessions_cap"`     // its limit; 0 = none
	Inbound     int               `json:"sessions_inbound"` // of sessions, those that the backbone began
	Unanswered  TenantUnanswered  `json:"unanswered"`       // of sessions, those that are not answered yet, by who began them
	Created     uint64            `json:"sessions_created"`
	In          Counter           `json:"in"`
	Out         Counter           `json:"out"`
	Offered     TenantOffered     `json:"offered"`
	Voice       TenantVoice       `json:"voice"`
	Usage       TenantUsage       `json:"usage"`
	Limits      TenantRates       `json:"limits"`
	Queued      TenantQueued      `json:"queued"`
	ICMPErrors  ICMPErrors        `json:"icmp_errors"`
	Drops       map[string]uint64 `json:"drops"` // packets by reason; only reasons that happened
	Pool        *Pool             `json:"pool,omitempty"`
	Rules       []RuleHits        `json:"rules,omitempty"` // only when asked for (status?rules=1)
}

// ICMPErrors is how many errors of its own the gateway has sent towards one side, resets included, and how many its rate held back.
type ICMPErrors struct {
	Sent uint64 `json:"sent"`
	Held uint64 `json:"held"`
}

// TenantUsage is what was counted for the tenant by all nodes that have served its group, one after the other: it goes on where a group moves. A node that does not serve
// it shows what it was told last. The figures beside it are what this process has counted itself.
type TenantUsage struct {
	In      Counter `json:"in"`
	Out     Counter `json:"out"`
	Created uint64  `json:"sessions_created"`
}

// TenantOffered is what came to the tenant's rate in each direction: what passed and what the rate dropped, but not what ACL or NAT did.
type TenantOffered struct {
	In  Counter `json:"in"`
	Out Counter `json:"out"`
}

// TenantVoice is what of a direction's packets is voice: by a rule or by its mark.
type TenantVoice struct {
	Out VoiceCounts `json:"out"`
	In  VoiceCounts `json:"in"`
}

// VoiceCounts are of packets and IP bytes since the start.
type VoiceCounts struct {
	Within Counter `json:"within"` // passed on within voice's own rate, before the rest
	Above  Counter `json:"above"`  // it had no room for them there, so they were among the rest: passed on, or dropped
	Lost   Counter `json:"lost"`   // it had room for them, and the tenant's rate had none: dropped
}

// TenantUnanswered is how many sessions of a tenant are not answered (TCP: the handshake is not complete), by the side that began them.
type TenantUnanswered struct {
	Out int `json:"out"`
	In  int `json:"in"`
	Cap int `json:"cap"` // of each; 0 = only by its share of the table
}

// TenantRates are the configured limits, bit/s and packet/s; 0 = unlimited.
type TenantRates struct {
	InBits     uint64 `json:"in_bits"`
	OutBits    uint64 `json:"out_bits"`
	InPackets  uint64 `json:"in_packets"`
	OutPackets uint64 `json:"out_packets"`

	VoiceIn  uint64 `json:"voice_in_bits"`  // what of it voice may use before the rest
	VoiceOut uint64 `json:"voice_out_bits"` // the same towards the backbone
	Overhead int    `json:"overhead"`       // bytes that these count for each packet beside its IP bytes

	Host HostRates `json:"host"` // of each inside host
}

// HostRates are what each inside host of a tenant may use, bit/s and packet/s; 0 = unlimited.
type HostRates struct {
	InBits     uint64 `json:"in_bits"`
	OutBits    uint64 `json:"out_bits"`
	InPackets  uint64 `json:"in_packets"`
	OutPackets uint64 `json:"out_packets"`
}

// TenantQueued is what waits in the tenant's shapers now, packets.
type TenantQueued struct {
	In  int `json:"in"`
	Out int `json:"out"`
}

// Pool is how much of a tenant's public ports is taken.
type Pool struct {
	Addresses  int `json:"addresses"`
	Ports      int `json:"ports"`       // usable ports of all of its addresses, per protocol class
	InUse      int `json:"in_use"`      // ports with a live mapping, all classes
	Held       int `json:"held"`        // freed ports within their hold time
	FreeBlocks int `json:"free_blocks"` // blocks of 64 that no worker has opened, of the protocol that has the fewest
}

// RuleHits is how often one rule decided about a new session.
type RuleHits struct {
	Tenant    string `json:"tenant,omitempty"` // whose rule it is, where rules of several stand together
	Rule      int    `json:"rule"`             // position among the tenant's rules of this direction, from 0; -1 = the default
	Name      string `json:"name"`
	Direction string `json:"direction"` // out, in
	Action    string `json:"action"`    // allow, deny, reject
	Hits      uint64 `json:"hits"`
}

// SlowPath is neighbour resolution.
type SlowPath struct {
	Neighbours int    `json:"neighbours"` // entries in use
	Pending    int    `json:"pending"`    // next hops that are being asked for
	Waiting    int    `json:"waiting"`    // packets that wait for one
	Received   uint64 `json:"received"`   // frames handed to it
	Sent       uint64 `json:"sent"`       // frames that it sent

	Routers    Routers    `json:"routers"`             // next hops that routes name
	Unanswered int        `json:"unanswered"`          // addresses that packets want and that are asked for or did not answer
	Limited    uint64     `json:"rate_limited"`        // questions and answers withheld by the rates of interfaces and tenants
	TableFull  uint64     `json:"table_full"`          // neighbours refused because all of the table is in use
	MACChanges uint64     `json:"mac_changes"`         // times that a known neighbour moved to another MAC
	Duplicates uint64     `json:"address_conflicts"`   // times that another station spoke as one of our addresses
	Defended   uint64     `json:"addresses_defended"`  // times that it was told before all whose the address is
	Probed     uint64     `json:"addresses_probed"`    // times that another station asked whether one of our addresses is free
	Conflicts  []Conflict `json:"conflicts,omitempty"` // the addresses of the last hour, the latest first
}

// Routers counts the next hops that routes name, by state.
type Routers struct {
	Up       int       `json:"up"`
	Asked    int       `json:"asked"`            // has not answered yet
	NoAnswer int       `json:"no_answer"`        // dead
	NoLink   int       `json:"no_link"`          // dead: the port has no link
	Died     uint64    `json:"died"`             // times that one stopped to answer
	Returned uint64    `json:"returned"`         // times that one answered again
	Moved    uint64    `json:"sessions_moved"`   // sessions that went on by another next hop of their route because theirs had died, or stood in for one that is up again; per direction
	OnBackup int       `json:"routes_on_backup"` // routes whose conversations go by a next hop of backup, since none of via is up
	Dead     []DeadHop `json:"dead,omitempty"`   // which; at most 64 are listed
}

// DeadHop is a next hop to which nothing is sent.
type DeadHop struct {
	Interface string  `json:"interface"`
	Address   string  `json:"address"`
	Why       string  `json:"why"`           // "no answer", "no link"
	Since     float64 `json:"since_seconds"` // for how long
}

// Conflict is another station that uses one of the gateway's addresses.
type Conflict struct {
	Interface string  `json:"interface"`
	Address   string  `json:"address"`
	MAC       string  `json:"mac"` // of the other station, the last one
	Count     uint64  `json:"count"`
	Age       float64 `json:"age_seconds"` // since the last time
}

// Conservation is the frame account: every frame of packet memory is in exactly one place.
type Conservation struct {
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // the sum, or which worker's does not add up and by how many
}

// SessionFilter is the query of PathSessions. Empty fields match all.
type SessionFilter struct {
	Tenant  string `json:"tenant,omitempty"`
	Address string `json:"address,omitempty"` // address or prefix, matches any of the four addresses
	Port    int    `json:"port,omitempty"`    // any of the four ports
	Proto   string `json:"proto,omitempty"`   // tcp, udp, icmp, icmpv6 or a number
	Limit   int    `json:"limit,omitempty"`   // at most so many; 0 = 1000; more than the node lists at a time for the caller's role counts as that
}

// Sessions answers PathSessions.
type Sessions struct {
	Total     int       `json:"total"` // live sessions on the node
	Matched   int       `json:"matched"`
	Truncated bool      `json:"truncated"` // more matched than are listed
	Sessions  []Session `json:"sessions"`
}

// Session is one conversation: as it entered and as it leaves.
type Session struct {
	Worker   int     `json:"worker"`
	Slot     uint32  `json:"slot"`
	Gen      uint32  `json:"gen"` // (worker, slot, gen) names the session for as long as the process runs
	Tenant   string  `json:"tenant"`
	From     string  `json:"from"`  // "tenant" or "backbone": who sent the first packet
	Proto    string  `json:"proto"` // tcp, udp, icmp, icmpv6 or the number
	State    string  `json:"state"`
	Src      string  `json:"src"` // as the first packet entered, address:port
	Dst      string  `json:"dst"`
	XlatSrc  string  `json:"xlat_src"` // as the first packet left
	XlatDst  string  `json:"xlat_dst"`
	NAT      bool    `json:"nat"`
	Class    string  `json:"class,omitempty"` // voice
	Rule     int     `json:"rule"`            // position among the tenant's rules of the direction that it began in, from 0 ("out" where From is "tenant", else "in"); -1 = the default
	RuleName string  `json:"rule_name,omitempty"`
	Orig     Counter `json:"orig"`            // in the direction of the first packet
	Reply    Counter `json:"reply"`           // in the other
	Idle     float64 `json:"idle_seconds"`    // since the last packet of either direction
	Expires  float64 `json:"expires_seconds"` // until it ends if nothing more is seen

	Copy       bool `json:"copy"`       // of what the node has that serves its tenant's group: nothing but that node's word ends it here, or the loss of its tenant
	Cruising   bool `json:"cruising"`   // handed down: the XDP program carries its packets, but for what is unusual
	Unanswered bool `json:"unanswered"` // counts as unanswered for the tenant's limits: who began it has not shown that it hears the answers
}

// Drops answers PathDrops.
type Drops struct {
	Total    uint64                       `json:"total"`     // packets
	ByReason map[string]uint64            `json:"by_reason"` // every reason of the list
	ByTenant map[string]map[string]uint64 `json:"by_tenant"` // tenant -> reason -> packets, only what happened
	ByPort   map[string]map[string]uint64 `json:"by_port"`   // what the XDP program of a port dropped
	ByBlock  []Block                      `json:"by_block"`  // addresses that are blocked for a while
	ByRule   []RuleHits                   `json:"by_rule"`   // deny rules and defaults that decided
}

// Routes answers PathRoutes.
type Routes struct {
	Routes []Route `json:"routes"`
}

// Route is one line of a table.
type Route struct {
	Zone      string `json:"zone"` // "backbone" or the tenant
	Prefix    string `json:"prefix"`
	Kind      string `json:"kind"`          // connected, static, discard, local (an address of the gateway's own), nat (public addresses of pools, forwards and 1:1), tenant (a tenant's own prefix, routed to it)
	Via       string `json:"via,omitempty"` // of static the first router, of tenant its name
	Interface string `json:"interface,omitempty"`
	Resolved  bool   `json:"resolved"` // a next hop has a MAC now (or needs none)

	Hops []RouteHop `json:"hops,omitempty"` // the routers of a static route; Via and Interface are the first one's
}

// RouteHop is one of the routers of a route.
type RouteHop struct {
	Via       string  `json:"via"`
	Interface string  `json:"interface"`
	State     string  `json:"state"`         // "up", "asked", "no answer", "no link"
	Since     float64 `json:"since_seconds"` // for how long; 0 when it never changed
	Resolved  bool    `json:"resolved"`      // it has a MAC now
	Backup    bool    `json:"backup"`        // it stands in for the others
	Takes     bool    `json:"takes"`         // new conversations go there now
}

// Neighbours answers PathNeighbours.
type Neighbours struct {
	Neighbours []Neighbour `json:"neighbours"`
}

// Neighbour is one resolved or pending next hop.
type Neighbour struct {
	Interface string  `json:"interface"`
	Address   string  `json:"address"`
	MAC       string  `json:"mac,omitempty"`
	State     string  `json:"state"`       // incomplete, reachable, stale, delay, probe, permanent, unreachable
	Age       float64 `json:"age_seconds"` // since it was last confirmed
	Used      bool    `json:"used"`        // by a worker since the last look
	Waiting   int     `json:"waiting"`     // packets
}

// Ports answers PathPorts.
type Ports struct {
	Ports      []Port      `json:"ports"`
	Interfaces []Interface `json:"interfaces"`
}

// Interface is a port with or without a VLAN tag.
type Interface struct {
	Name      string   `json:"name"`
	Port      string   `json:"port"`
	VLAN      int      `json:"vlan"`      // 0 = untagged
	Faces     string   `json:"faces"`     // "backbone", a tenant's name, or "" when no policy names it
	Addresses []string `json:"addresses"` // prefixes
	MTU       int      `json:"mtu"`
}

// DiffRequest asks what a policy would change. ApplyRequest carries it out.
type DiffRequest struct {
	Policy string `json:"policy"`         // the text
	Source string `json:"source"`         // where it came from, for error messages
	To     uint64 `json:"to,omitempty"`   // a kept revision, instead of Policy and Source
	From   uint64 `json:"from,omitempty"` // changes are told against this kept revision; 0 = against what is served
}

// Diff is what a policy would change, and cut.
type Diff struct {
	From    Revision  `json:"from"`
	Digest  string    `json:"digest"` // of the new text
	Changes []Change  `json:"changes"`
	Cut     int       `json:"cut"`          // live sessions that the new policy would end
	Cuts    []Session `json:"cuts"`         // the first 100 of them
	Checked int       `json:"checked"`      // live sessions that were judged
	Same    bool      `json:"same"`         // nothing would change
	To      *Revision `json:"to,omitempty"` // when it was asked about a kept revision

	CutByTenant map[string]int `json:"cut_by_tenant"` // of Cut; tenants that lose none are left out

	Nodes []Elsewhere `json:"nodes,omitempty"` // the other gateways of the cluster; what stands above is of the node that is asked

	Warnings []string `json:"warnings,omitempty"` // what is hardly meant, a line each
}

// Elsewhere is what a policy would do on another gateway.
type Elsewhere struct {
	Node        string         `json:"node"`
	Why         string         `json:"why,omitempty"` // it could not be asked, and why
	Cut         int            `json:"cut"`
	Checked     int            `json:"checked"`
	CutByTenant map[string]int `json:"cut_by_tenant,omitempty"`
	Problems    []string       `json:"problems,omitempty"` // why it could not serve the policy
}

// Change is one difference.
type Change struct {
	Path string `json:"path"` // as in the file: tenant[alpha].rates.out.bits
	Was  string `json:"was"`
	Now  string `json:"now"`
}

// ApplyRequest is a new policy.
type ApplyRequest struct {
	Policy   string `json:"policy"`
	Source   string `json:"source"`
	Expected uint64 `json:"expected,omitempty"` // refuse unless this is the served revision; 0 = do not compare
	Comment  string `json:"comment,omitempty"`  // why, for the history

	Except []string `json:"except,omitempty"` // gateways by name whose problems with the policy stop nothing: they go on with what they serve

	// Unless it is confirmed within so many seconds the revision before is served again; 0 = it stays.
	Confirm float64 `json:"confirm_seconds,omitempty"`
}

// Applied says that every worker serves the revision.
type Applied struct {
	Revision Revision `json:"revision"`
	Changes  []Change `json:"changes"`                   // null = the node that was asked cannot know them: a witness, or a gateway that is excepted and does not serve it
	Cut      int      `json:"cut"`                       // sessions that will end on their next packet
	Took     float64  `json:"seconds"`                   // from the request to the last worker's acknowledgement
	Confirm  float64  `json:"confirm_seconds,omitempty"` // it is provisional, and must be confirmed within so many seconds
	NotKept  string   `json:"not_kept,omitempty"`        // why it is not in this node's own copy yet: a start would serve an older one first

	CutByTenant map[string]int `json:"cut_by_tenant"` // of Cut; tenants that lose none are left out

	Nodes []Serves `json:"nodes,omitempty"` // every gateway of the cluster, this one too

	Warnings []string `json:"warnings,omitempty"` // what is hardly meant, a line each
}

// Serves is what one gateway of a cluster has come to.
type Serves struct {
	Node     string   `json:"node"`
	Why      string   `json:"why,omitempty"`      // why it does not serve the revision, as far as is known; empty = every worker of it does
	Later    bool     `json:"later,omitempty"`    // it could not be asked before: it compiles when it is back
	Cut      int      `json:"cut,omitempty"`      // sessions of it that end
	Problems []string `json:"problems,omitempty"` // that it had with the policy, where it was excepted
}

// Error is the body of every answer whose status is not 2xx.
type Error struct {
	Error    string    `json:"error"`              // one line
	Problems []Problem `json:"problems,omitempty"` // every error of a policy, not the first one
}

// Problem is one error of a configuration file.
type Problem struct {
	Node  string `json:"node,omitempty"` // that cannot serve it; empty: the file itself is wrong
	File  string `json:"file"`
	Line  int    `json:"line"`
	Path  string `json:"path"`
	Value string `json:"value"`
	Want  string `json:"want"` // what would be right
	Text  string `json:"text"` // all of it in one line
}

// AtQueues is what the kernel lost in front of the gateway's queues and what found no room behind them, by port and kind; only what is not 0.
func (s *Status) AtQueues() map[string]uint64 {
	m := map[string]uint64{}
	for _, p := range s.Ports {
		for _, q := range p.Queues {
			m[p.Name+" rx dropped"] += q.Rings.RxDropped
			m[p.Name+" rx ring full"] += q.Rings.RxRingFull
			m[p.Name+" fill ring empty"] += q.Rings.FillEmpty
			m[p.Name+" tx ring full"] += q.TxFull
		}
	}
	maps.DeleteFunc(m, func(_ string, n uint64) bool { return n == 0 })
	return m
}
