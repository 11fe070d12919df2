package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/hostnet"
)

// fake is a machine on which all is well, and a node that fits it.
type fake struct {
	files    map[string]string
	links    map[string]hostnet.Link
	offloads map[string]hostnet.Offloads
	features hostnet.XDPFeatures
	xdp      struct {
		name, mode string
		id         uint32
		ours       bool
		err        error
	}
	zerocopy  bool
	probes    int
	memlock   uint64
	cpus      map[int]bool
	lo, hi    uint16
	socketErr error
	bpfErr    error
	xdpErr    error
	keysErr   error
	node      configs.Node
	places    map[netip.Addr]place
}

func healthy() *fake {
	f := &fake{
		files: map[string]string{
			"/proc/self/status":                   "Name:\tdemarc\nCapEff:\t000001ffffffffff\n",
			"/proc/sys/kernel/osrelease":          "6.18.1\n",
			"/sys/kernel/btf/vmlinux":             "x",
			"/proc/meminfo":                       "MemTotal: 8000000 kB\nMemAvailable:    6000000 kB\nHugePages_Total:     400\nHugePages_Free:      400\nHugepagesize:       2048 kB\n",
			"/proc/cpuinfo":                       "processor : 0\nflags\t\t: fpu sse2\n",
			"/sys/devices/system/cpu/online":      "0-3\n",
			clocksource + "current_clocksource":   "tsc\n",
			clocksource + "available_clocksource": "tsc hpet acpi_pm\n",
		},
		links: map[string]hostnet.Link{
			"eth0": {Index: 2, Name: "eth0", Kind: "device", MTU: 1500, Up: true, Carrier: true, RxQueues: 2, TxQueues: 2, Driver: "mlx5_core", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		},
		offloads: map[string]hostnet.Offloads{},
		features: hostnet.XDPBasic | hostnet.XDPRedirect | hostnet.XDPZeroCopy,
		zerocopy: true, memlock: 8 << 20, cpus: map[int]bool{0: true, 1: true, 2: true, 3: true}, lo: 60000, hi: 60999,
	}
	f.node = configs.Node{
		Workers: configs.Workers{Count: 2, CPUs: []int{1, 2}},
		Tables:  configs.Tables{Sessions: 1 << 20, Frames: 16384},
		Ports:   []configs.Port{{Name: "wan", Device: "eth0", Mode: "auto"}},
		Interfaces: []configs.Interface{
			{Name: "wan0", Port: "wan", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}},
		},
	}
	return f
}

func (f *fake) doctor() *Doctor {
	return &Doctor{
		Probe: func(ifindex, queue int) (bool, string) {
			f.probes++
			if f.zerocopy {
				return true, ""
			}
			return false, "operation not supported"
		},
		Attached: func(int) (string, uint32, string, bool, error) {
			return f.xdp.name, f.xdp.id, f.xdp.mode, f.xdp.ours, f.xdp.err
		},
		sys: system{
			file: func(n string) ([]byte, error) {
				if s, ok := f.files[n]; ok {
					return []byte(s), nil
				}
				return nil, fs.ErrNotExist
			},
			executable: func() (string, error) { return "/usr/bin/demarc", nil },
			xdpSocket:  func() error { return f.socketErr },
			bpf:        func() error { return f.bpfErr },
			memlock:    func() (uint64, error) { return f.memlock, nil },
			affinity:   func() (map[int]bool, error) { return f.cpus, nil },
			link: func(n string) (hostnet.Link, error) {
				l, ok := f.links[n]
				if !ok {
					return l, fmt.Errorf("link %q: %w", n, hostnet.ErrNotFound)
				}
				return l, nil
			},
			offloads:  func(n string) (hostnet.Offloads, error) { return f.offloads[n], nil },
			xdp:       func(int) (hostnet.XDPFeatures, error) { return f.features, f.xdpErr },
			ephemeral: func() (uint16, uint16, error) { return f.lo, f.hi, nil },
			keys:      func(string) error { return f.keysErr },
		},
	}
}

func (f *fake) link(change func(*hostnet.Link)) {
	l := f.links["eth0"]
	change(&l)
	f.links["eth0"] = l
}

func (f *fake) on(list ...hostnet.Offload) {
	o := f.offloads["eth0"]
	for _, x := range list {
		o[x].On = true
	}
	f.offloads["eth0"] = o
}

// asIs is on, and a node file that leaves it so.
func (f *fake) asIs(list ...hostnet.Offload) {
	f.on(list...)
	no := false
	f.node.Ports[0].Prepare = &no
}

// fixed is on and cannot be changed.
func (f *fake) fixed(x hostnet.Offload) {
	o := f.offloads["eth0"]
	o[x] = hostnet.OffloadState{On: true, Fixed: true}
	f.offloads["eth0"] = o
}

func TestHealthyMachine(t *testing.T) {
	f := healthy()
	seen := map[string]bool{}
	for _, x := range f.doctor().Check(&f.node) {
		if x.Level > Info {
			t.Errorf("%+v", x)
		}
		seen[x.Subject] = true
	}
	for _, s := range []string{"privileges", "kernel", "af_xdp", "bpf", "btf", "locked memory", "memory", "huge pages", "time source", "workers", "port wan"} {
		if !seen[s] {
			t.Errorf("nothing is said about %s", s)
		}
	}
	for _, x := range f.doctor().Check(nil) {
		if x.Level > Info || strings.HasPrefix(x.Subject, "port") {
			t.Errorf("without a node file: %+v", x)
		}
	}
}

// TestFindings makes one thing wrong at a time: that, and nothing else, must be told.
func TestFindings(t *testing.T) {
	noCaps := "CapEff:\t0000000000000000\n"
	for name, c := range map[string]struct {
		change  func(*fake)
		level   Level
		subject string
		what    string
		mend    string // "" = there is no line that mends it
	}{
		"no privileges": {func(f *fake) { f.files["/proc/self/status"] = noCaps; f.memlock = unix.RLIM_INFINITY }, Bad, "privileges", "missing cap_net_admin, cap_net_raw, cap_bpf, cap_perfmon, cap_sys_admin", "setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_sys_admin,cap_ipc_lock+ep /usr/bin/demarc"},
		"sys_admin is bpf too": {func(f *fake) {
			f.files["/proc/self/status"] = fmt.Sprintf("CapEff: %x\n", uint64(1)<<unix.CAP_SYS_ADMIN|1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_IPC_LOCK)
		}, OK, "privileges", "all", ""},
		"old kernel":        {func(f *fake) { f.files["/proc/sys/kernel/osrelease"] = "5.10.0-9-amd64" }, Bad, "kernel", "5.10.0-9-amd64", ""},
		"least kernel":      {func(f *fake) { f.files["/proc/sys/kernel/osrelease"] = "5.11.0" }, OK, "kernel", "5.11.0", ""},
		"unreadable kernel": {func(f *fake) { f.files["/proc/sys/kernel/osrelease"] = "?" }, Warn, "kernel", "cannot be read", ""},
		"no AF_XDP":         {func(f *fake) { f.socketErr = unix.EAFNOSUPPORT }, Bad, "af_xdp", "no AF_XDP", "grep XDP_SOCKETS /boot/config-$(uname -r)"},
		"AF_XDP refused":    {func(f *fake) { f.socketErr = unix.EPERM }, Bad, "af_xdp", "may not", ""},
		"AF_XDP fails":      {func(f *fake) { f.socketErr = unix.ENFILE }, Bad, "af_xdp", "cannot be made", ""},
		"no BPF":            {func(f *fake) { f.bpfErr = ebpf.ErrNotSupported }, Bad, "bpf", "no XDP programs", "grep -E 'BPF_SYSCALL|XDP' /boot/config-$(uname -r)"},
		"BPF refused":       {func(f *fake) { f.bpfErr = fmt.Errorf("x: %w", unix.EPERM) }, Bad, "bpf", "may not", "cat /sys/kernel/security/lockdown"},
		"BPF fails":         {func(f *fake) { f.bpfErr = errors.New("x") }, Bad, "bpf", "cannot", ""},
		"no BTF":            {func(f *fake) { delete(f.files, "/sys/kernel/btf/vmlinux") }, Info, "btf", "does not", ""},
		"lock limit": {func(f *fake) {
			f.files["/proc/self/status"] = fmt.Sprintf("CapEff: %x", uint64(1)<<unix.CAP_SYS_ADMIN|1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW)
		}, Bad, "locked memory", "8 MiB, packet memory takes 64 MiB", "ulimit -l 65536"},
		"little memory": {func(f *fake) {
			f.files["/proc/meminfo"] = strings.Replace(f.files["/proc/meminfo"], "6000000", "200000", 1)
		}, Bad, "memory", "196 MiB available, packet memory and session tables take 256 MiB", ""},
		"few huge pages": {func(f *fake) {
			f.files["/proc/meminfo"] = strings.Replace(f.files["/proc/meminfo"], "HugePages_Free:      400", "HugePages_Free: 100", 1)
		}, Info, "huge pages", "100 free", "sysctl -w vm.nr_hugepages=428"},
		"no huge pages": {func(f *fake) { f.files["/proc/meminfo"] = "MemAvailable: 6000000 kB" }, Info, "huge pages", "none", ""},
		"slow clock":    {func(f *fake) { f.files[clocksource+"current_clocksource"] = "hpet" }, Warn, "time source", "hpet", "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"},
		"slow clock, no other": {func(f *fake) {
			f.files[clocksource+"current_clocksource"] = "hpet"
			f.files[clocksource+"available_clocksource"] = "hpet acpi_pm"
		}, Warn, "time source", "hpet", ""},
		"hypervisor":  {func(f *fake) { f.files["/proc/cpuinfo"] = "flags : fpu hypervisor\n" }, Info, "machine", "hypervisor", ""},
		"cpu missing": {func(f *fake) { f.node.Workers.CPUs[1] = 7 }, Bad, "worker 1", "cpu 7 is not there", ""},
		"cpu closed":  {func(f *fake) { delete(f.cpus, 2) }, Bad, "worker 1", "cpu 2 is closed", ""},
		"workers share cpus": {func(f *fake) {
			f.cpus = map[int]bool{1: true, 2: true}
			f.node.Workers.Count = 3
			f.link(func(l *hostnet.Link) { l.RxQueues, l.TxQueues = 4, 4 })
		}, Warn, "workers", "3 workers on 2 cpus", ""},
		"no device":          {func(f *fake) { f.node.Ports[0].Device = "eth9" }, Bad, "port wan", "no device eth9", "ip -br link"},
		"down":               {func(f *fake) { f.link(func(l *hostnet.Link) { l.Up = false }) }, Bad, "port wan", "eth0 is down", "ip link set eth0 up"},
		"no carrier":         {func(f *fake) { f.link(func(l *hostnet.Link) { l.Carrier = false }) }, Warn, "port wan", "no carrier", ""},
		"in a bridge":        {func(f *fake) { f.link(func(l *hostnet.Link) { l.Master = 9 }) }, Bad, "port wan", "bridge or bond", "ip link set eth0 nomaster"},
		"jumbo":              {func(f *fake) { f.link(func(l *hostnet.Link) { l.MTU = 9000 }) }, Bad, "port wan", "mtu 9000 is more than 3400", "ip link set eth0 mtu 3400"},
		"large buffers":      {func(f *fake) { f.link(func(l *hostnet.Link) { l.MTU = 3400 }) }, Info, "port wan", "buffers of 4096", ""},
		"interface mtu":      {func(f *fake) { f.node.Interfaces[0].MTU = 1600 }, Bad, "interface wan0", "mtu 1600 is more than the device's 1500", "ip link set eth0 mtu 1600"},
		"few tx queues":      {func(f *fake) { f.link(func(l *hostnet.Link) { l.TxQueues = 1 }) }, Warn, "port wan", "1 transmit queues for 2", "ethtool -L eth0 rx 1 tx 1"},
		"rxvlan, prepared":   {func(f *fake) { f.on(hostnet.RxVLAN, hostnet.GRO); f.node.Interfaces[0].VLAN = 7 }, Info, "port wan", "gro, rxvlan on: run switches off", ""},
		"filter for ever":    {func(f *fake) { f.fixed(hostnet.RxFilter); f.node.Interfaces[0].VLAN = 7 }, Info, "port wan", "rx-vlan-filter is on for ever", ""},
		"filter":             {func(f *fake) { f.asIs(hostnet.RxFilter); f.node.Interfaces[0].VLAN = 7 }, Warn, "port wan", "rx-vlan-filter is on, and tenants", "ethtool -K eth0 rx-vlan-filter off"},
		"lro for ever":       {func(f *fake) { f.fixed(hostnet.LRO) }, Bad, "port wan", "lro is on", ""},
		"queues to change":   {func(f *fake) { f.node.Ports[0].Queues = 4 }, Info, "port wan", "2 queues: run makes it 4", ""},
		"queues as they are": {func(f *fake) { f.asIs(); f.node.Ports[0].Queues = 4 }, Bad, "port wan", "the node file wants 4 with prepare = false", "ethtool -L eth0 combined 4"},
		"rxvlan":             {func(f *fake) { f.asIs(hostnet.RxVLAN) }, Warn, "port wan", "rxvlan is on", "ethtool -K eth0 rxvlan off"},
		"rxvlan on a trunk":  {func(f *fake) { f.asIs(hostnet.RxVLAN); f.node.Interfaces[0].VLAN = 7 }, Bad, "port wan", "tenants are told apart by tag", "ethtool -K eth0 rxvlan off"},
		"rxvlan for ever": {func(f *fake) {
			f.offloads["eth0"] = hostnet.Offloads{hostnet.RxVLAN: {On: true, Fixed: true}}
			f.node.Interfaces[0].VLAN = 7
		}, Bad, "port wan", "tenants are told apart by tag", ""},
		"service tags on a trunk": {func(f *fake) { f.asIs(hostnet.RxSTag); f.node.Interfaces[0].VLAN = 7 }, Bad, "port wan", "rx-vlan-stag-hw-parse is on", "ethtool -K eth0 rx-vlan-stag-hw-parse off"},
		"lro":                     {func(f *fake) { f.asIs(hostnet.LRO) }, Bad, "port wan", "lro is on", "ethtool -K eth0 lro off"},
		"gro in generic mode":     {func(f *fake) { f.asIs(hostnet.GRO); f.node.Ports[0].Mode = "generic" }, Warn, "port wan", "gro is on", "ethtool -K eth0 gro off"},
		"gro":                     {func(f *fake) { f.on(hostnet.GRO) }, OK, "port wan", "is up", ""},
		"veth":                    {func(f *fake) { f.link(func(l *hostnet.Link) { l.Kind = "veth" }) }, Info, "port wan", "other end cannot be seen", "ethtool -K PEER tx off tso off gso off gro on txvlan off rxvlan off rx-vlan-stag-hw-parse off tx-vlan-stag-hw-insert off   # at the other end, with its name"},
		"veth, never": {func(f *fake) {
			f.link(func(l *hostnet.Link) { l.Kind = "veth" })
			f.node.Ports[0].Offload = "never"
		}, Info, "port wan", "other end cannot be seen", "ethtool -K PEER tx off tso off gso off gro off txvlan off rxvlan off rx-vlan-stag-hw-parse off tx-vlan-stag-hw-insert off   # at the other end, with its name"},
		"veth, always": {func(f *fake) {
			f.link(func(l *hostnet.Link) { l.Kind = "veth" })
			f.node.Ports[0].Offload, f.features = "always", f.features|hostnet.XDPTarget
		}, Info, "port wan", "other end cannot be seen", "ethtool -K PEER tx off tso off gso off gro on txvlan off rxvlan off rx-vlan-stag-hw-parse off tx-vlan-stag-hw-insert off   # at the other end, with its name"},
		"veth, always, no gro there": {func(f *fake) {
			f.link(func(l *hostnet.Link) { l.Kind = "veth" })
			f.node.Ports[0].Offload = "always"
		}, Bad, "port wan", "offload always is asked for and cannot be had", "ethtool -K PEER gro on   # at the other end, with its name"},
		"foreign program":     {func(f *fake) { f.xdp.name, f.xdp.id, f.xdp.mode = "lb", 7, "native" }, Bad, "port wan", "another XDP program is attached (lb, id 7, native)", "ip link set dev eth0 xdpdrv off"},
		"foreign, generic":    {func(f *fake) { f.xdp.name, f.xdp.id, f.xdp.mode = "lb", 7, "generic" }, Bad, "port wan", "another XDP program", "ip link set dev eth0 xdpgeneric off"},
		"our program":         {func(f *fake) { f.xdp.name, f.xdp.id, f.xdp.mode, f.xdp.ours = "demarc", 7, "native", true }, Info, "port wan", "demarc's program is attached (native)", "demarc release eth0   # only to give the port back to the kernel"},
		"program unreadable":  {func(f *fake) { f.xdp.err = unix.EPERM }, Warn, "port wan", "cannot be read", "ip -d link show eth0"},
		"auto is zerocopy":    {func(*fake) {}, OK, "port wan", "mode auto gives zerocopy", ""},
		"auto is copy":        {func(f *fake) { f.zerocopy = false }, OK, "port wan", "mode auto gives copy", ""},
		"auto is generic":     {func(f *fake) { f.features = 0 }, Warn, "port wan", "mode auto gives generic", ""},
		"old kernel, no list": {func(f *fake) { f.features, f.xdpErr = 0, hostnet.ErrNotSupported }, OK, "port wan", "mode auto gives zerocopy", ""},
		"no zerocopy":         {func(f *fake) { f.zerocopy = false; f.node.Ports[0].Mode = "zerocopy" }, Bad, "port wan", "mode zerocopy is asked for", ""},
		"no copy":             {func(f *fake) { f.features = 0; f.node.Ports[0].Mode = "copy" }, Bad, "port wan", "mode copy is asked for", ""},
		"generic as asked":    {func(f *fake) { f.node.Ports[0].Mode = "generic" }, Info, "port wan", "mode generic as asked for", ""},
		"as asked":            {func(f *fake) { f.node.Ports[0].Mode = "copy" }, OK, "port wan", "mode copy as asked for", ""},
		"address twice":       {func(f *fake) { f.node.Interfaces[0].Addresses[0] = netip.MustParsePrefix("192.0.2.1/24") }, Bad, "interface wan0", "192.0.2.1 is also the kernel's", "ip address del 192.0.2.1/24 dev eth0"},
		"shared":              {func(f *fake) { f.share("192.0.2.1") }, Info, "port wan", "the host keeps tcp 22, 8443, udp none and its own ports 60000-60999; NAT has 63511 of 64512", ""},
		"shared, wide range":  {func(f *fake) { f.share("192.0.2.1"); f.lo, f.hi = 32768, 60999 }, Info, "port wan", "NAT has 36279 of 64512", `sysctl -w net.ipv4.ip_local_port_range="60000 64999"`},
		"shared, not there":   {func(f *fake) { f.share("192.0.2.5") }, Warn, "port wan", "192.0.2.5 is not the kernel's", "ip address add 192.0.2.5/32 dev eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			c.change(f)
			found := false
			for _, x := range f.doctor().Check(&f.node) {
				if x.Subject == c.subject && strings.Contains(x.What, c.what) {
					found = true
					if x.Level != c.level || x.Mend != c.mend {
						t.Errorf("%+v", x)
					}
				} else if x.Level > Info {
					t.Errorf("also: %+v", x)
				}
			}
			if !found {
				t.Errorf("not told: %+v", f.doctor().Check(&f.node))
			}
		})
	}
}

func (f *fake) share(a string) {
	f.node.Ports[0].Host = configs.Host{Shared: []netip.Addr{netip.MustParseAddr(a)}, TCPPorts: []int{22, 8443}}
	f.node.Interfaces[0].Addresses = append(f.node.Interfaces[0].Addresses, netip.MustParsePrefix(a+"/24"))
}

func TestTooManyWorkers(t *testing.T) {
	f := healthy()
	f.node.Workers.Count, f.node.Workers.CPUs = 3, nil
	var bad, info bool
	for _, x := range f.doctor().Check(&f.node) {
		bad = bad || x.Level == Bad && x.Subject == "workers" && strings.Contains(x.What, "no port has more than 2 queues")
		info = info || x.Level == Info && x.Subject == "port wan" && x.Mend == "ethtool -L eth0 combined 3"
	}
	if !bad || !info {
		t.Errorf("3 workers on 2 queues: %v %v", bad, info)
	}
	f = healthy()
	f.links["veth1"] = hostnet.Link{Index: 3, Name: "veth1", Kind: "veth", MTU: 1500, Up: true, Carrier: true, RxQueues: 1, TxQueues: 1, Driver: "veth"}
	f.node.Ports = append(f.node.Ports, configs.Port{Name: "b", Device: "veth1"})
	info = false
	for _, x := range f.doctor().Check(&f.node) {
		if x.Level > Info {
			t.Errorf("%+v", x)
		}
		info = info || x.Subject == "port b" && x.Mend == "ethtool -L veth1 rx 2 tx 2"
	}
	if !info {
		t.Error("one queue for two workers is not told")
	}
}

func TestVethOffloadsAtThisEnd(t *testing.T) {
	for what, set := range map[string]func(*fake, ...hostnet.Offload){"tx, gro on at this end": (*fake).asIs, "tx on at this end": (*fake).on} { // run sees to gro
		f := healthy()
		f.link(func(l *hostnet.Link) { l.Kind = "veth" })
		set(f, hostnet.TxChecksum, hostnet.GRO)
		if !slices.ContainsFunc(f.doctor().Check(&f.node), func(x Finding) bool {
			return x.Level == Warn && x.What == what && x.Mend == "ethtool -K eth0 "+allOff
		}) {
			t.Errorf("%q is not told", what)
		}
	}
}

func TestProbeDisturbsNobody(t *testing.T) {
	for name, change := range map[string]func(*fake){
		"a gateway runs":             func(f *fake) { f.xdp.name, f.xdp.id, f.xdp.ours = "demarc", 7, true },
		"the driver has no zerocopy": func(f *fake) { f.features &^= hostnet.XDPZeroCopy },
		"copy is asked for":          func(f *fake) { f.node.Ports[0].Mode = "copy" },
	} {
		f := healthy()
		change(f)
		f.doctor().Check(&f.node)
		if f.probes != 0 {
			t.Errorf("%s: probed", name)
		}
	}
}

func TestCPUList(t *testing.T) {
	for in, want := range map[string]string{"0-3,5\n": "0-3,5", "0": "0", "": "", "x,2": "2", "7,1-2": "1-2,7", "3-1": "", "-1": "", "0-99999999": ""} {
		if got := ranges(cpuList(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestLevels(t *testing.T) {
	b, err := json.Marshal([]Level{OK, Info, Warn, Bad})
	if string(b) != `["ok","info","warn","bad"]` || err != nil {
		t.Errorf("%s %v", b, err)
	}
	if Level(9).String() != "invalid" {
		t.Error(Level(9))
	}
}
