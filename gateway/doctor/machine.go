package doctor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/hostnet"
)

// capability is one that the gateway needs.
type capability struct {
	bit  uint
	name string
	why  string
}

var capabilities = []capability{
	{unix.CAP_NET_ADMIN, "cap_net_admin", "attach the XDP program"},
	{unix.CAP_NET_RAW, "cap_net_raw", "open AF_XDP sockets"},
	{unix.CAP_BPF, "cap_bpf", "load the XDP program"},
	{unix.CAP_PERFMON, "cap_perfmon", "have its pointers accepted"},
	{unix.CAP_SYS_ADMIN, "cap_sys_admin", "take over the program that an earlier process left, and make a network namespace for offload (given up once traffic is forwarded)"},
	{unix.CAP_IPC_LOCK, "cap_ipc_lock", "lock packet memory beyond RLIMIT_MEMLOCK"},
}

func (d *Doctor) has(bit uint) bool {
	set, err := strconv.ParseUint(d.sys.field("/proc/self/status", "CapEff"), 16, 64)
	return err == nil && (set>>bit&1 == 1 || (bit == unix.CAP_BPF || bit == unix.CAP_PERFMON) && set>>unix.CAP_SYS_ADMIN&1 == 1)
}

func (d *Doctor) privileges() {
	var names, whys []string
	for _, c := range capabilities {
		if !d.has(c.bit) && c.bit != unix.CAP_IPC_LOCK { // the last one is judged with the memory that it is for
			names, whys = append(names, c.name), append(whys, c.why)
		}
	}
	if len(names) == 0 {
		d.say(OK, "privileges", "all that is needed", "", "")
		return
	}
	exe, err := d.sys.executable()
	if err != nil {
		exe = "demarc"
	}
	all := make([]string, 0, len(capabilities))
	for _, c := range capabilities {
		all = append(all, c.name)
	}
	d.say(Bad, "privileges", "missing "+strings.Join(names, ", "), "needed to "+strings.Join(whys, ", ")+"; root has them, unless a container took them away",
		"setcap "+strings.Join(all, ",")+"+ep "+exe)
}

// Kernel versions that matter.
const (
	leastMajor, leastMinor = 5, 11 // sockets of several devices on one UMEM (5.10), preferred busy poll and memory of BPF maps outside RLIMIT_MEMLOCK (5.11)
)

func (d *Doctor) kernel() {
	rel := d.sys.text("/proc/sys/kernel/osrelease")
	var major, minor int
	if _, err := fmt.Sscanf(rel, "%d.%d", &major, &minor); err != nil {
		d.say(Warn, "kernel", fmt.Sprintf("version %q cannot be read", rel), "", "")
	} else if major < leastMajor || major == leastMajor && minor < leastMinor {
		d.say(Bad, "kernel", "version "+rel, fmt.Sprintf("at least %d.%d is needed for sockets of several ports on one packet memory", leastMajor, leastMinor), "")
	} else {
		d.say(OK, "kernel", "version "+rel, "", "")
	}
	switch err := d.sys.xdpSocket(); {
	case err == nil:
		d.say(OK, "af_xdp", "a socket can be made", "", "")
	case errors.Is(err, unix.EAFNOSUPPORT):
		d.say(Bad, "af_xdp", "the kernel has no AF_XDP", "it was built without CONFIG_XDP_SOCKETS", "grep XDP_SOCKETS /boot/config-$(uname -r)")
	case errors.Is(err, unix.EPERM):
		d.say(Bad, "af_xdp", "a socket may not be made: "+err.Error(), "CAP_NET_RAW is missing, or a seccomp filter of the container is in the way", "")
	default:
		d.say(Bad, "af_xdp", "a socket cannot be made: "+err.Error(), "", "")
	}
	switch err := d.sys.bpf(); {
	case err == nil:
		d.say(OK, "bpf", "XDP programs may be loaded", "", "")
	case errors.Is(err, ebpf.ErrNotSupported):
		d.say(Bad, "bpf", "the kernel has no XDP programs", err.Error(), "grep -E 'BPF_SYSCALL|XDP' /boot/config-$(uname -r)")
	case errors.Is(err, unix.EPERM):
		d.say(Bad, "bpf", "programs may not be loaded: "+err.Error(), "CAP_BPF and CAP_NET_ADMIN are missing, or the kernel is locked down", "cat /sys/kernel/security/lockdown")
	default:
		d.say(Bad, "bpf", "programs cannot be loaded: "+err.Error(), "", "")
	}
	if _, err := d.sys.file("/sys/kernel/btf/vmlinux"); err == nil {
		d.say(OK, "btf", "the kernel describes its types", "", "")
	} else {
		d.say(Info, "btf", "the kernel does not describe its types", "the gateway's own programs do not need it; tools that look into them do", "")
	}
}

const (
	smallChunk = 2048
	largeChunk = 4096
	headroom   = 256 // that XDP keeps before each frame
	linkHeader = 18  // Ethernet and one tag

	mostMTU = 3400 // what native XDP takes in one buffer of 4096 bytes on every driver that we know

	bytesPerSession = 192 // session, index, deadline, NAT mapping
	hugePage        = 2 << 20
)

// need is the memory that node will take.
type need struct {
	locked uint64 // packet memory
	tables uint64
}

// memoryNeeded assumes one memory area for each worker: two when a worker has ports of different modes is found out at start only.
func (d *Doctor) memoryNeeded(node *configs.Node) (n need) {
	if node == nil {
		return n
	}
	chunk := uint64(smallChunk)
	for i := range node.Ports {
		if l, err := d.sys.link(node.Ports[i].Device); err == nil && l.MTU+headroom+linkHeader > smallChunk {
			chunk = largeChunk
		}
	}
	n.locked = uint64(max(node.Workers.Count, 1)) * uint64(max(node.Tables.Frames, 0)) * chunk
	n.tables = uint64(max(node.Tables.Sessions, 0))*bytesPerSession + uint64(max(node.Tables.Fragments, 0))*chunk
	return n
}

func mib(n uint64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

func (d *Doctor) memory(n need) {
	limit, err := d.sys.memlock()
	switch {
	case err != nil:
		d.say(Warn, "locked memory", "the limit cannot be read: "+err.Error(), "", "")
	case d.has(unix.CAP_IPC_LOCK):
		d.say(OK, "locked memory", "no limit for this process", "", "")
	case limit == unix.RLIM_INFINITY:
		d.say(OK, "locked memory", "unlimited", "", "")
	case n.locked > limit:
		d.say(Bad, "locked memory", fmt.Sprintf("the limit is %s, packet memory takes %s", mib(limit), mib(n.locked)), "without CAP_IPC_LOCK, RLIMIT_MEMLOCK bounds packet memory",
			fmt.Sprintf("ulimit -l %d", n.locked>>10))
	default:
		d.say(OK, "locked memory", "the limit is "+mib(limit), "", "")
	}
	if free, ok := d.sys.kilobytes("MemAvailable"); ok && n.locked+n.tables > 0 {
		total := n.locked + n.tables
		what := fmt.Sprintf("%s available, packet memory and session tables take %s", mib(free), mib(total))
		if total > free {
			d.say(Bad, "memory", what, "lower tables.sessions or tables.frames in the node file", "")
		} else {
			d.say(OK, "memory", what, "", "")
		}
	}
	free, err := strconv.ParseUint(d.sys.field("/proc/meminfo", "HugePages_Free"), 10, 64)
	size, _ := d.sys.kilobytes("Hugepagesize")
	if pages := (n.locked + n.tables + hugePage - 1) / hugePage; err != nil || size != hugePage {
		d.say(Info, "huge pages", "none of 2 MiB on this machine", "", "")
	} else if free < max(pages, 1) {
		total, _ := strconv.ParseUint(d.sys.field("/proc/meminfo", "HugePages_Total"), 10, 64)
		d.say(Info, "huge pages", fmt.Sprintf("%d free", free), fmt.Sprintf("with %d of them the tables cost fewer TLB misses; without, ordinary pages serve", max(pages, 1)),
			fmt.Sprintf("sysctl -w vm.nr_hugepages=%d", total+max(pages, 1)-free))
	} else {
		d.say(OK, "huge pages", fmt.Sprintf("%d free", free), "", "")
	}
}

const clocksource = "/sys/devices/system/clocksource/clocksource0/"

// fastClocks are read without a system call.
var fastClocks = []string{"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "stp", "timebase", "riscv_clocksource"}

func (d *Doctor) clock() {
	now := d.sys.text(clocksource + "current_clocksource")
	switch {
	case now == "":
		d.say(Warn, "time source", "cannot be read", "", "")
	case slices.Contains(fastClocks, now):
		d.say(OK, "time source", now, "", "")
	default:
		mend := ""
		for _, c := range strings.Fields(d.sys.text(clocksource + "available_clocksource")) {
			if mend == "" && slices.Contains(fastClocks, c) {
				mend = "echo " + c + " > " + clocksource + "current_clocksource"
			}
		}
		d.say(Warn, "time source", now, "each look at it is a system call of a microsecond or so, and the gateway looks once a burst", mend)
	}
	if slices.Contains(strings.Fields(d.sys.field("/proc/cpuinfo", "flags")), "hypervisor") {
		d.say(Info, "machine", "runs under a hypervisor", "a machine that is suspended, paused or migrated may see no time pass: its sessions live longer, and it may believe for a moment that it still owns what its peer has taken over", "")
	}
}

func (d *Doctor) workers(node *configs.Node, queues int) {
	online := cpuList(d.sys.text("/sys/devices/system/cpu/online"))
	allowed, err := d.sys.affinity()
	if err != nil {
		allowed = online
	}
	count := max(node.Workers.Count, 1)
	bad := false
	for i, c := range node.Workers.CPUs {
		subject := fmt.Sprintf("worker %d", i)
		switch {
		case len(online) > 0 && !online[c]:
			bad = true
			d.say(Bad, subject, fmt.Sprintf("cpu %d is not there", c), fmt.Sprintf("online are %s: name one of them in workers.cpus", ranges(online)), "")
		case !allowed[c]:
			bad = true
			d.say(Bad, subject, fmt.Sprintf("cpu %d is closed to this process", c), fmt.Sprintf("a cpuset or taskset leaves it %s", ranges(allowed)), "")
		}
	}
	if queues > 0 && count > queues {
		bad = true
		d.say(Bad, "workers", fmt.Sprintf("%d workers, but no port has more than %d queues", count, queues), "a worker without a queue has nothing to do: lower workers.count, or give a port more queues", "")
	}
	if len(allowed) > 0 && count > len(allowed) {
		bad = true
		d.say(Warn, "workers", fmt.Sprintf("%d workers on %d cpus", count, len(allowed)), "workers that share a cpu wait for each other: lower workers.count", "")
	}
	if !bad {
		d.say(OK, "workers", fmt.Sprintf("%d on %d cpus", count, len(allowed)), "", "")
	}
}

// ranges writes a set of CPUs as sysfs does.
func ranges(set map[int]bool) string {
	list := slices.Sorted(maps.Keys(set))
	var out []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		s := strconv.Itoa(list[i])
		if j > i {
			s += "-" + strconv.Itoa(list[j])
		}
		out = append(out, s)
		i = j + 1
	}
	return strings.Join(out, ",")
}

// links looks every device up once; those that are not there are said here.
func (d *Doctor) links(node *configs.Node) map[string]hostnet.Link {
	out := map[string]hostnet.Link{}
	for i := range node.Ports {
		p := &node.Ports[i]
		l, err := d.sys.link(p.Device)
		switch {
		case err == nil:
			out[p.Device] = l
		case errors.Is(err, hostnet.ErrNotFound):
			d.say(Bad, portName(p), "there is no device "+p.Device, "the name is wrong, its driver is not loaded, or it is in another namespace", "ip -br link")
		default:
			d.say(Bad, portName(p), fmt.Sprintf("device %s cannot be read: %v", p.Device, err), "", "")
		}
	}
	return out
}
