package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"demarc/configs"
	"demarc/gateway/hostnet"
	"demarc/gateway/xsk"
)

// port looks at one port whose device is there.
func (d *Doctor) port(node *configs.Node, p *configs.Port, l *hostnet.Link) {
	before := len(d.out)
	d.link(node, p, l)
	d.queues(node, p, l)
	d.portOffloads(node, p, l)
	d.program(p, l)
	if !slices.ContainsFunc(d.out[before:], func(f Finding) bool { return f.Level >= Warn }) {
		d.say(OK, portName(p), fmt.Sprintf("%s is up, mtu %d, %d queues, driver %s", l.Name, l.MTU, l.RxQueues, orUnknown(l.Driver)), "", "")
	}
	d.mode(p, l)
	d.redirects(p, l)
	d.addresses(node, p, l)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func (d *Doctor) link(node *configs.Node, p *configs.Port, l *hostnet.Link) {
	name := portName(p)
	switch {
	case !l.Up:
		d.say(Bad, name, l.Name+" is down", "", "ip link set "+l.Name+" up")
	case !l.Carrier:
		d.say(Warn, name, l.Name+" has no carrier", "the cable, or the other end, is missing", "")
	}
	if l.Master != 0 {
		d.say(Bad, name, l.Name+" belongs to a bridge or bond", "that would get its frames before or after the gateway: a port is a device of its own", "ip link set "+l.Name+" nomaster")
	}
	switch {
	case l.MTU > mostMTU:
		d.say(Bad, name, fmt.Sprintf("mtu %d is more than %d", l.MTU, mostMTU), "a frame must fit into one buffer of 4096 bytes together with what XDP keeps for itself",
			fmt.Sprintf("ip link set %s mtu %d", l.Name, mostMTU))
	case l.MTU+headroom+linkHeader > smallChunk:
		d.say(Info, name, fmt.Sprintf("mtu %d takes buffers of %d bytes", l.MTU, largeChunk), fmt.Sprintf("up to %d, half of the packet memory would do", smallChunk-headroom-linkHeader), "")
	}
	for i := range node.Interfaces {
		if f := &node.Interfaces[i]; f.Port == p.Name && f.MTU > l.MTU {
			d.say(Bad, "interface "+f.Name, fmt.Sprintf("mtu %d is more than the device's %d", f.MTU, l.MTU), "packets between the two would be lost", fmt.Sprintf("ip link set %s mtu %d", l.Name, f.MTU))
		}
	}
}

func (d *Doctor) queues(node *configs.Node, p *configs.Port, l *hostnet.Link) {
	count := max(node.Workers.Count, 1)
	if p.Queues > 0 && p.Prepared() {
		if p.Queues != l.RxQueues {
			d.say(Info, portName(p), fmt.Sprintf("%d queues: run makes it %d, and puts them back when it ends", l.RxQueues, p.Queues), "many cards take the link down while the number changes", "")
		}
		l = &hostnet.Link{Name: l.Name, Kind: l.Kind, RxQueues: p.Queues, TxQueues: p.Queues}
	} else if p.Queues > 0 && p.Queues != l.RxQueues {
		d.say(Bad, portName(p), fmt.Sprintf("%d queues, and the node file wants %d with prepare = false", l.RxQueues, p.Queues), "", fmt.Sprintf("ethtool -L %s combined %d", l.Name, p.Queues))
	}
	more := fmt.Sprintf("ethtool -L %s combined %d", l.Name, count)
	if l.Kind == "veth" {
		more = fmt.Sprintf("ethtool -L %s rx %d tx %d", l.Name, count, count)
	}
	if l.RxQueues < count {
		d.say(Info, portName(p), fmt.Sprintf("%d queues for %d workers", l.RxQueues, count), "workers without a queue here get and send its frames through the others, which costs a copy each", more)
	}
	if l.TxQueues > 0 && l.TxQueues < l.RxQueues {
		d.say(Warn, portName(p), fmt.Sprintf("%d transmit queues for %d receive queues", l.TxQueues, l.RxQueues), "a socket needs both of its number", fmt.Sprintf("ethtool -L %s rx %d tx %d", l.Name, l.TxQueues, l.TxQueues))
	}
}

// trunk reports whether interfaces with a tag are on the port.
func trunk(node *configs.Node, p *configs.Port) bool {
	return slices.ContainsFunc(node.Interfaces, func(f configs.Interface) bool { return f.Port == p.Name && f.VLAN != 0 })
}

// allOff is what both ends of a veth want.
const allOff = "tx off tso off gso off gro off txvlan off rxvlan off rx-vlan-stag-hw-parse off tx-vlan-stag-hw-insert off"

func (d *Doctor) portOffloads(node *configs.Node, p *configs.Port, l *hostnet.Link) {
	name := portName(p)
	o, err := d.sys.offloads(l.Name)
	if err != nil {
		d.say(Warn, name, "offloads cannot be read: "+err.Error(), "", "ethtool -k "+l.Name)
	}
	off := func(list ...hostnet.Offload) (on []string) {
		for _, x := range list {
			if o[x].On {
				on = append(on, x.String())
			}
		}
		return on
	}
	for _, x := range []hostnet.Offload{hostnet.RxVLAN, hostnet.RxSTag} {
		if !o[x].On {
			continue
		}
		tags := "VLAN tags"
		if x == hostnet.RxSTag {
			tags = "service tags"
		}
		mend, why := "ethtool -K "+l.Name+" "+x.String()+" off", "the driver takes "+tags+" off before the gateway sees them"
		switch {
		case o[x].Fixed:
			mend, why = "", why+" and cannot be told not to: use another device"
		case p.Prepared():
			continue
		}
		if trunk(node, p) {
			d.say(Bad, name, x.String()+" is on, and tenants are told apart by tag here", why+": what they told apart would fall together", mend)
		} else {
			d.say(Warn, name, x.String()+" is on", why+": a tagged frame would count as untagged", mend)
		}
	}
	if run := off(hostnet.LRO, hostnet.HWGRO, hostnet.GRO, hostnet.RxVLAN, hostnet.RxSTag, hostnet.RxFilter, hostnet.RxSTagFilter); p.Prepared() && len(run) > 0 {
		d.say(Info, name, strings.Join(run, ", ")+" on: run switches off what can be, and puts it back when it ends", "prepare = false in the node file would leave the device as it is", "")
	}
	if trunk(node, p) && o[hostnet.RxFilter].On && (o[hostnet.RxFilter].Fixed || !p.Prepared()) {
		what, mend := "the card may hold back tags that the kernel has no device for", "ethtool -K "+l.Name+" rx-vlan-filter off"
		if p.Prepared() {
			d.say(Info, name, "rx-vlan-filter is on for ever", what+": run makes it promiscuous", "")
		} else {
			d.say(Warn, name, "rx-vlan-filter is on, and tenants are told apart by tag here", what, mend)
		}
	}
	if o[hostnet.LRO].On && (o[hostnet.LRO].Fixed || !p.Prepared()) {
		mend := "ethtool -K " + l.Name + " lro off"
		if o[hostnet.LRO].Fixed {
			mend = ""
		}
		d.say(Bad, name, "lro is on", "the driver joins packets to ones that cannot be forwarded", mend)
	}
	if on := off(hostnet.GRO); len(on) > 0 && p.Mode == "generic" && l.Kind != "veth" && (o[hostnet.GRO].Fixed || !p.Prepared()) {
		d.say(Warn, name, "gro is on in generic mode", "packets are joined before the gateway sees them", "ethtool -K "+l.Name+" gro off")
	}
	if l.Kind == "veth" {
		on := off(hostnet.TxChecksum, hostnet.TSO, hostnet.GSO, hostnet.TxVLAN, hostnet.TxSTag)
		if !p.Prepared() {
			on = append(on, off(hostnet.GRO)...)
		}
		if len(on) > 0 {
			d.say(Warn, name, strings.Join(on, ", ")+" on at this end", "the other end gets packets with unfinished checksums, joined, or with the tag beside the frame", "ethtool -K "+l.Name+" "+allOff)
		}
		there, detail := allOff, "with tx on there, packets arrive with unfinished checksums and are dropped as unfinished_checksum; with txvlan on, tags are lost"
		if p.Offload != "never" { // the other end takes redirected frames as long as it has gro
			there = strings.Replace(there, "gro off", "gro on", 1)
			detail += "; with gro on, XDP programs may carry established sessions there"
		}
		d.say(Info, name, "a veth: the offloads of its other end cannot be seen from here", detail,
			"ethtool -K PEER "+there+"   # at the other end, with its name")
	}
}

func (d *Doctor) program(p *configs.Port, l *hostnet.Link) {
	prog, id, mode, ours, err := d.Attached(l.Index)
	switch {
	case err != nil:
		d.say(Warn, portName(p), "its XDP program cannot be read: "+err.Error(), "", "ip -d link show "+l.Name)
	case id == 0:
	case ours:
		d.say(Info, portName(p), "demarc's program is attached ("+mode+")", "a gateway runs, or ran here and left the port closed", "demarc release "+l.Name+"   # only to give the port back to the kernel")
	default:
		arg := map[string]string{"generic": "xdpgeneric", "offload": "xdpoffload", "native": "xdpdrv"}[mode]
		mend := "ip link set dev " + l.Name + " " + arg + " off"
		if mode == "several" {
			mend = fmt.Sprintf("ip link set dev %s xdpgeneric off; ip link set dev %s xdpdrv off", l.Name, l.Name)
		}
		if prog == "" {
			prog = "without a name"
		}
		d.say(Bad, portName(p), fmt.Sprintf("another XDP program is attached (%s, id %d, %s)", prog, id, mode), "the gateway takes no port away from somebody else", mend)
	}
}

// redirects says whether what established sessions send can leave by the port without a worker, where that is asked for. Of another driver than veth it is known once a program is attached.
func (d *Doctor) redirects(p *configs.Port, l *hostnet.Link) {
	if p.Offload != "always" || l.Kind != "veth" {
		return
	}
	if f, err := d.sys.xdp(l.Index); err == nil && f&hostnet.XDPTarget == 0 {
		d.say(Bad, portName(p), "offload always is asked for and cannot be had", "the far end of the veth takes no redirected frames", "ethtool -K PEER gro on   # at the other end, with its name")
	}
}

// mode says what the port's mode will come to.
func (d *Doctor) mode(p *configs.Port, l *hostnet.Link) {
	name := portName(p)
	f, err := d.sys.xdp(l.Index)
	native := err != nil || f&(hostnet.XDPBasic|hostnet.XDPRedirect) == hostnet.XDPBasic|hostnet.XDPRedirect
	nativeWhy := "driver " + orUnknown(l.Driver) + " has no native XDP"
	zc, why := false, "driver "+orUnknown(l.Driver)+" offers no zero-copy"
	asked := p.Mode
	if asked == "" {
		asked = "auto"
	}
	if (asked == "auto" || asked == "zerocopy") && (err != nil || f&hostnet.XDPZeroCopy != 0) {
		if _, id, _, _, aerr := d.Attached(l.Index); aerr == nil && id != 0 {
			// A probe would ask for a queue that is in use, and on some drivers disturb it.
			d.say(Info, name, "zero-copy was not tried, because an XDP program is attached", "status tells the mode of a running gateway", "demarc status")
			return
		}
		zc, why = d.Probe(l.Index, 0)
	}
	switch {
	case asked == "auto" && zc:
		d.say(OK, name, "mode auto gives zerocopy", "", "")
	case asked == "auto" && native:
		d.say(OK, name, "mode auto gives copy", "no zero-copy: "+why, "")
	case asked == "auto":
		d.say(Warn, name, "mode auto gives generic", nativeWhy+"; generic mode "+xsk.GenericCost, "")
	case asked == "zerocopy" && !zc:
		d.say(Bad, name, "mode zerocopy is asked for and cannot be had", why, "")
	case asked == "copy" && !native:
		d.say(Bad, name, "mode copy is asked for and cannot be had", nativeWhy+": mode = \"generic\" works", "")
	case asked == "generic":
		d.say(Info, name, "mode generic as asked for", "it "+xsk.GenericCost, "")
	default:
		d.say(OK, name, "mode "+asked+" as asked for", "", "")
	}
}

// addresses looks at what host and gateway both have.
func (d *Doctor) addresses(node *configs.Node, p *configs.Port, l *hostnet.Link) {
	name := portName(p)
	has := func(a netip.Addr) bool {
		return slices.ContainsFunc(l.Addrs, func(x netip.Prefix) bool { return x.Addr() == a })
	}
	for i := range node.Interfaces {
		f := &node.Interfaces[i]
		if f.Port != p.Name || f.VLAN != 0 {
			continue
		}
		for _, a := range f.Addresses {
			if has(a.Addr()) && !slices.Contains(p.Host.Shared, a.Addr()) {
				d.say(Bad, "interface "+f.Name, fmt.Sprintf("%s is also the kernel's on %s", a.Addr(), l.Name), "both would answer for it: take it from the kernel, or name it in host.shared of the port",
					fmt.Sprintf("ip address del %s dev %s", a, l.Name))
			}
		}
	}
	if len(p.Host.Shared) == 0 {
		return
	}
	lo, hi, err := d.sys.ephemeral()
	if err != nil {
		d.say(Warn, name, "the host's port range cannot be read: "+err.Error(), "", "sysctl net.ipv4.ip_local_port_range")
		return
	}
	// What both share of 1024-65535, where NAT takes its ports from.
	host := max(0, int(hi)-max(int(lo), 1024)+1)
	beside := func(list []int) (n int) {
		for _, x := range list {
			if x >= 1024 && (x < int(lo) || x > int(hi)) {
				n++
			}
		}
		return n
	}
	left := 64512 - host - max(beside(p.Host.TCPPorts), beside(p.Host.UDPPorts))
	for _, a := range p.Host.Shared {
		if !has(a) {
			d.say(Warn, name, fmt.Sprintf("shared address %s is not the kernel's on %s", a, l.Name), "the host cannot use what it does not have", fmt.Sprintf("ip address add %s/%d dev %s", a, a.BitLen(), l.Name))
			continue
		}
		what := fmt.Sprintf("%s is shared: the host keeps tcp %s, udp %s and its own ports %d-%d; NAT has %d of 64512", a, numbers(p.Host.TCPPorts, "22"), numbers(p.Host.UDPPorts, "none"), lo, hi, left)
		why, mend := "", ""
		if host > 64512/4 {
			why, mend = "the host's range is taken from what NAT could use; few hosts need so much", `sysctl -w net.ipv4.ip_local_port_range="60000 64999"`
		}
		d.say(Info, name, what, why, mend)
	}
}

func numbers(list []int, none string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ", "), "[]")
}
