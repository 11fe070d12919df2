package verdict

// Verdict is what becomes of a packet. The zero value is Drop, so that a forgotten decision fails closed.
type Verdict uint8

// The verdicts.
const (
	Drop     Verdict = iota // free the frame, count the reason
	Next                    // go on to the next stage
	Send                    // transmit on Packet.Out
	Queue                   // held by the shaper, which owns the frame now
	Hand                    // copy to the worker Packet.Home and free
	Loop                    // translated towards one of our own public addresses: enters again from the backbone side
	Punt                    // copy to the slow path (ARP, neighbour discovery) and free
	Neighbor                // rewritten, but its next hop has no MAC yet: copy to the slow path and free
	Taken                   // to the gateway itself, and somebody waited for it: noted already, free the frame
	Keep                    // a later fragment: the pipeline has a copy until the first one comes: free
	Cut                     // translated, but too large for its next hop: cut, send the pieces, free
	numVerdicts
)

var verdictText = [numVerdicts]string{"drop", "next", "send", "queue", "hand", "loop", "punt", "neighbor", "taken", "keep", "cut"}

// String returns the verdict's lower-case name.
func (v Verdict) String() string {
	if int(v) < len(verdictText) {
		return verdictText[v]
	}
	return "invalid"
}

// Reason says why a packet was dropped. The zero value is Unset and an alarm: a stage dropped without saying why.
type Reason uint8

// Pass is not a drop: a check found nothing wrong.
const (
	Unset Reason = iota
	Pass

	// What the XDP program decided; counted there, shown here.
	XDPNoSocket    // no socket bound to this queue: closed
	XDPForeignMAC  // for neither the port's nor a group's MAC
	XDPNotOwner    // the group's lease is over
	XDPHostInvalid // host traffic too short to tell

	// Link layer and parsing.
	Truncated
	BadEtherType
	BadVLAN
	UnknownVLAN
	ForeignMAC
	BadVersion
	BadHeaderLength
	BadTotalLength
	BadHeaderChecksum
	BadL4Length
	BadL4Header
	BadExtensionHeader
	IPOptions
	SourceRoute
	OptionRefused // a sound IPv4 option that the tenant's policy keeps out
	HeaderRefused // the same of an IPv6 extension header
	Fragment
	FragmentOverlap
	FragmentDuplicate
	FragmentTableFull
	FragmentTimeout
	FragmentNoID // every identification that it could have outside may still be in use
	UnsupportedProtocol
	FrameTooLarge
	UnfinishedChecksum

	// Network layer.
	Martian
	Multicast
	LinkLocal
	Land
	SpoofedSource
	TTLExceeded
	TooBig
	NoRoute
	NoNeighbor
	NeighborQueueFull
	NotForUs
	LocalUnhandled
	TenantToTenant
	LoopTwice
	InterfaceDown

	// Sessions, ACL, NAT.
	ACLDeny
	ACLDefault
	SessionTableFull
	SessionCollision
	TCPNotSyn
	TCPInvalidFlags
	TCPOutOfWindow
	ICMPNoSession
	ICMPBadInner
	ICMPRateLimited
	NATNoPort
	NATNoPool
	NATNoMapping
	NATUnusedAddress
	NATFiltered // mapped port, but not a far end that the inside host has spoken to
	NATMappingTableFull
	SessionCut
	Blocked // an operator has blocked one of its addresses for a while

	// Limits.
	TenantRateBits
	TenantRatePackets
	TenantVoiceRate
	TenantQueueFull
	TenantSessions
	TenantSessionRate
	TenantInbound    // sessions begun outside fill their part of the tenant's
	TenantUnanswered // unanswered sessions fill their part of the tenant's, or of the table
	TableShare       // the tenant has its share of the session table
	HostSessions
	HostSessionRate
	HostRateBits
	HostRatePackets
	HostTableFull // no room to count for one more inside host
	ShaperFull

	// Between workers and ports.
	HandOverFull
	TxRingFull
	NoTxSocket
	TxError
	FrameExhausted
	SlowPathFull
	InternalError
	FlowBlocked
	NotOwner
	Shutdown

	NumReasons // how many there are; not a reason
)

// reasonText is in the order of the constants; a test holds them together.
var reasonText = [NumReasons]string{
	Unset: "unset", Pass: "pass",
	XDPNoSocket: "xdp_no_socket", XDPForeignMAC: "xdp_foreign_mac", XDPNotOwner: "xdp_not_owner", XDPHostInvalid: "xdp_host_invalid",
	Truncated: "truncated", BadEtherType: "bad_ethertype", BadVLAN: "bad_vlan", UnknownVLAN: "unknown_vlan", ForeignMAC: "foreign_mac",
	BadVersion: "bad_version", BadHeaderLength: "bad_header_length", BadTotalLength: "bad_total_length",
	BadHeaderChecksum: "bad_header_checksum", BadL4Length: "bad_l4_length", BadL4Header: "bad_l4_header",
	BadExtensionHeader: "bad_extension_header", IPOptions: "ip_options", SourceRoute: "source_route", OptionRefused: "ip_option_refused", HeaderRefused: "extension_header_refused",
	Fragment: "fragment", FragmentOverlap: "fragment_overlap", FragmentDuplicate: "fragment_duplicate", FragmentTableFull: "fragment_table_full", FragmentTimeout: "fragment_timeout", FragmentNoID: "fragment_no_id",
	UnsupportedProtocol: "unsupported_protocol", FrameTooLarge: "frame_too_large", UnfinishedChecksum: "unfinished_checksum",
	Martian: "martian", Multicast: "multicast", LinkLocal: "link_local", Land: "land", SpoofedSource: "spoofed_source",
	TTLExceeded: "ttl_exceeded", TooBig: "too_big", NoRoute: "no_route", NoNeighbor: "no_neighbor",
	NeighborQueueFull: "neighbor_queue_full", NotForUs: "not_for_us", LocalUnhandled: "local_unhandled",
	TenantToTenant: "tenant_to_tenant", LoopTwice: "loop_twice", InterfaceDown: "interface_down",
	ACLDeny: "acl_deny", ACLDefault: "acl_default", SessionTableFull: "session_table_full", SessionCollision: "session_collision",
	TCPNotSyn: "tcp_not_syn", TCPInvalidFlags: "tcp_invalid_flags", TCPOutOfWindow: "tcp_out_of_window",
	ICMPNoSession: "icmp_no_session", ICMPBadInner: "icmp_bad_inner", ICMPRateLimited: "icmp_rate_limited",
	NATNoPort: "nat_no_port", NATNoPool: "nat_no_pool", NATNoMapping: "nat_no_mapping", NATUnusedAddress: "nat_unused_address", NATFiltered: "nat_filtered",
	NATMappingTableFull: "nat_mapping_table_full", SessionCut: "session_cut", Blocked: "blocked",
	TenantRateBits: "tenant_rate_bits", TenantRatePackets: "tenant_rate_packets", TenantVoiceRate: "tenant_voice_rate",
	TenantQueueFull: "tenant_queue_full", TenantSessions: "tenant_sessions", TenantSessionRate: "tenant_session_rate",
	TenantInbound: "tenant_inbound", TenantUnanswered: "tenant_unanswered", TableShare: "table_share",
	HostRateBits: "host_rate_bits", HostRatePackets: "host_rate_packets",
	HostSessions: "host_sessions", HostSessionRate: "host_session_rate", HostTableFull: "host_table_full", ShaperFull: "shaper_full",
	HandOverFull: "hand_over_full", TxRingFull: "tx_ring_full", NoTxSocket: "no_tx_socket", TxError: "tx_error",
	FrameExhausted: "frame_exhausted", SlowPathFull: "slow_path_full", InternalError: "internal_error", FlowBlocked: "flow_blocked",
	NotOwner: "not_owner", Shutdown: "shutdown",
}

// String returns the reason's name as counters and metrics print it.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonText[r]
	}
	return "invalid"
}

// ParseReason finds a reason by its name.
func ParseReason(s string) (Reason, bool) {
	for r, t := range reasonText {
		if t == s {
			return Reason(r), true
		}
	}
	return Unset, false
}
