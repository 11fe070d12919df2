package configs

import (
	"path"
	"time"
)

// What stands in a field that was left out. Writing zero is the same as leaving it out.
const (
	DefaultTCPEstablished = 2*time.Hour + 4*time.Minute // RFC 5382 REQ-5: not less
	DefaultTCPTransitory  = 4 * time.Minute             // RFC 5382 REQ-5: not less
	DefaultTCPClosing     = 4 * time.Minute             // RFC 5382 REQ-5, RFC 7857 section 2.2: not less
	DefaultTCPClosed      = 10 * time.Second            // long enough for a lost last ACK to be sent again
	DefaultUDP            = 5 * time.Minute             // RFC 4787 REQ-5 recommends it
	DefaultUDPUnanswered  = 2 * time.Minute             // RFC 4787 REQ-5: the least that it allows
	DefaultICMP           = 60 * time.Second            // RFC 5508 REQ-2: not less
	DefaultOther          = 5 * time.Minute             // as UDP: nothing says more about it
	DefaultNATHold        = 120 * time.Second           // RFC 6888 REQ-8
	DefaultBurst          = 20 * time.Millisecond       // what a bucket takes at once
	DefaultHostBurst      = 50 * time.Millisecond       // policed: TCP needs more room than before a queue
	DefaultQueue          = 30 * time.Millisecond       // what a shaper may hold back: TCP with BBR needs it, a call does not notice
	DefaultVoicePercent   = 75                          // of the tenant's rate

	DefaultICMPErrors        = 1000 // a second
	DefaultICMPErrorsPerSide = 200

	DefaultDataDir   = "/var/lib/demarc"
	DefaultSpin      = 50 * time.Microsecond // about one wake-up through the kernel
	DefaultBatch     = 64                    // frames a burst
	DefaultSessions  = 1 << 20               // about 150 MB
	DefaultNeighbors = 4096
	DefaultTenants   = 1024
	DefaultFrames    = 16384 // per worker: 32 MiB of 2 KiB frames
	DefaultFragments = 4096  // over all workers: 8 MiB, touched only when so many wait
)

func defaultTo[T comparable](field *T, v T) {
	var zero T
	if *field == zero {
		*field = v
	}
}

// Defaults fills in what was left out. It is idempotent; decoders have called it already.
func (p *Policy) Defaults() {
	t := &p.Timeouts
	for _, d := range []struct {
		field *Duration
		v     time.Duration
	}{
		{&t.TCPEstablished, DefaultTCPEstablished}, {&t.TCPTransitory, DefaultTCPTransitory}, {&t.TCPClosing, DefaultTCPClosing}, {&t.TCPClosed, DefaultTCPClosed},
		{&t.UDP, DefaultUDP}, {&t.UDPUnanswered, DefaultUDPUnanswered}, {&t.ICMP, DefaultICMP}, {&t.Other, DefaultOther},
		{&t.NATHold, DefaultNATHold},
	} {
		defaultTo(d.field, Duration{d.v})
	}
	defaultTo(&p.ICMPErrors.Total, DefaultICMPErrors)
	defaultTo(&p.ICMPErrors.PerSide, DefaultICMPErrorsPerSide)
	for i := range p.Tenants {
		p.Tenants[i].defaults()
	}
	for i := range p.Groups { // alone goes by whether there is a witness, which no policy knows
		defaultTo(&p.Groups[i].Stale, "serve")
		defaultTo(&p.Groups[i].MAC, "virtual")
	}
}

func (t *Tenant) defaults() {
	defaultTo(&t.DefaultOut, "allow")
	defaultTo(&t.Reject, "silent")
	if t.IPv6Headers == nil { // an empty list is a choice
		t.IPv6Headers = []string{"hop-by-hop", "destination-options"}
	}
	defaultTo(&t.NAT.Mapping, "endpoint-independent")
	defaultTo(&t.NAT.Filtering, "address-and-port-dependent")
	defaultTo(&t.NAT.Pooling, "paired")
	defaultTo(&t.NAT.Ports, "dynamic")
	for i := range t.NAT.Forward {
		defaultTo(&t.NAT.Forward[i].InsidePort, t.NAT.Forward[i].Port)
		defaultTo(&t.NAT.Forward[i].LastPort, t.NAT.Forward[i].Port)
	}
	for _, d := range []*RateDir{&t.Rates.Out, &t.Rates.In} {
		defaultTo(&d.Burst, Duration{DefaultBurst})
		defaultTo(&d.Queue, Duration{DefaultQueue})
		defaultTo(&d.Mode, "shape")
	}
	defaultTo(&t.Rates.Host.Out.Burst, Duration{DefaultHostBurst})
	defaultTo(&t.Rates.Host.In.Burst, Duration{DefaultHostBurst})
}

// VoiceBits is what voice may use of direction d of this tenant's line: what the policy says, but never more than the line, or
// three quarters of it. 0 (no limit of its own) when the line itself has none.
func (t *Tenant) VoiceBits(d *RateDir) Rate {
	switch {
	case d.Bits == 0:
		return 0
	case t.Rates.Voice.Bits == 0:
		return d.Bits / 100 * DefaultVoicePercent
	}
	return min(t.Rates.Voice.Bits, d.Bits)
}

// Defaults fills in what was left out. It is idempotent; decoders have called it already. An interface's MTU of 0 stays: the
// device's, which this package does not know.
func (n *Node) Defaults() {
	defaultTo(&n.DataDir, DefaultDataDir)
	defaultTo(&n.Workers.Count, 1)
	defaultTo(&n.Workers.Spin, Duration{DefaultSpin})
	defaultTo(&n.Workers.Batch, DefaultBatch)
	if n.Workers.NeedWakeup == nil {
		yes := true
		n.Workers.NeedWakeup = &yes
	}
	defaultTo(&n.Tables.Sessions, DefaultSessions)
	defaultTo(&n.Tables.Mappings, n.Tables.Sessions)
	defaultTo(&n.Tables.Neighbors, DefaultNeighbors)
	defaultTo(&n.Tables.Tenants, DefaultTenants)
	defaultTo(&n.Tables.Frames, DefaultFrames)
	defaultTo(&n.Tables.Fragments, DefaultFragments)
	defaultTo(&n.API.Socket, path.Join(n.DataDir, "demarc.sock"))
	if n.Cluster != nil {
		n.Cluster.defaults()
	}
	if n.API.Listen != "" {
		keys := DefaultKeys
		if n.Cluster != nil {
			keys = n.Cluster.Keys
		}
		defaultTo(&n.API.Keys, keys)
	}
	defaultTo(&n.Log.Level, "info")
	defaultTo(&n.Log.Format, "text")
	for i := range n.Interfaces {
		if n.Interfaces[i].ICMPErrors == nil {
			yes := true
			n.Interfaces[i].ICMPErrors = &yes
		}
	}
	for i := range n.Ports {
		p := &n.Ports[i]
		defaultTo(&p.Name, p.Device)
		defaultTo(&p.Mode, "auto")
		if len(p.Host.Shared) > 0 && p.Host.TCPPorts == nil { // an empty list is a choice: no port at all
			p.Host.TCPPorts = []int{22}
		}
	}
}
