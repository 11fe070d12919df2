package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/bench/report"
	"demarc/gateway/trio"
)

// keepalived is a pair of kernels with nftables in the places of our gateways: keepalived says who has the addresses, conntrackd copies the connections.
type keepalived struct {
	*trio.Pair
	dir     string
	version int     // of VRRP
	every   float64 // seconds between two advertisements
	gated   bool    // who has the addresses lets nothing through before the copy is in its kernel

	procs map[string][]*exec.Cmd // by gateway
}

// peerDir of a gateway.
func (k *keepalived) node(n *trio.Node) string { return filepath.Join(k.dir, n.Name) }

const (
	peerMaster = "master" // file that says that a node has the addresses and has done what it does then
	peerGate   = "table inet gate {\n\tchain pre {\n\t\ttype filter hook prerouting priority -310;\n\t\tiifname { \"alpha0\", \"beta0\", \"wan0\", \"vrrp*\" } meta l4proto { tcp, udp } drop\n\t}\n}\n"
)

// peerRules is what both kernels translate and let through: what our policy says, as far as it can be said. tcp and udp to their own addresses are dropped: a packet that
// comes before its connection is there would else make one of its own, and what was translated is lost for good.
const peerRules = `table inet edge {
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname { "alpha0", "beta0", "vrrp*" } ip saddr { 198.18.10.0/24, 198.18.20.0/24 } accept
		iifname { "alpha0", "beta0", "vrrp*" } ip6 saddr { 2001:db8:a::/64, 2001:db8:b::/64 } accept
	}
	chain input {
		type filter hook input priority 0; policy accept;
		iifname { "alpha0", "beta0", "wan0", "vrrp*" } meta l4proto { tcp, udp } drop
	}
}
table ip nat {
	chain post {
		type nat hook postrouting priority 100;
		ip saddr 198.18.10.0/24 ip daddr 203.0.113.0/24 snat to 198.51.100.16-198.51.100.19 persistent
		ip saddr 198.18.20.0/24 ip daddr 203.0.113.0/24 snat to 198.51.100.32-198.51.100.35 persistent
	}
}
`

// vrrp is keepalived's configuration. Addresses have virtual MACs on every side, so that no host need hear an announcement.
func (k *keepalived) vrrp(n *trio.Node, priority int) string {
	own := ""
	if k.version == 3 {
		own = "\tversion 3\n"
	}
	return fmt.Sprintf(`global_defs {
	router_id %s
	script_user root
	enable_script_security
	vrrp_version %d
}
vrrp_instance east {
	state BACKUP
	nopreempt
%s	interface wan0
	virtual_router_id %d
	priority %d
	advert_int %s
	use_vmac
	use_vmac_addr
	virtual_ipaddress {
		203.0.113.1/24
	}
	virtual_ipaddress_excluded {
		2001:db8:ff::1/64 dev wan0
		198.18.10.1/24 dev alpha0
		2001:db8:a::1/64 dev alpha0
		198.18.20.1/24 dev beta0
		2001:db8:b::1/64 dev beta0
	}
	notify_master %q
	notify_backup %q
	notify_fault %q
}
`, n.Name, k.version, own, trio.PairGroupID, priority, strconv.FormatFloat(k.every, 'f', -1, 64), k.script(n, "master"), k.script(n, "backup"), k.script(n, "backup"))
}

func (k *keepalived) script(n *trio.Node, name string) string {
	return filepath.Join(k.node(n), name+".sh")
}

// sync is conntrackd's configuration: Debian's example for a reliable stream, with room for what the bench opens.
func (k *keepalived) sync(n *trio.Node, from, to string) string {
	return fmt.Sprintf(`Sync {
	Mode FTFW {
		ResendQueueSize 131072
		PurgeTimeout 60
		ACKWindowSize 300
		DisableExternalCache no
		StartupResync yes
	}
	UDP {
		IPv4_address %s
		IPv4_Destination_Address %s
		Port 3780
		Interface mgmt
		SndSocketBuffer 16777216
		RcvSocketBuffer 16777216
		Checksum on
	}
	Options {
		TCPWindowTracking no
	}
}
General {
	HashSize 32768
	HashLimit 524288
	LogFile no
	Syslog no
	LockFile %s
	UNIX {
		Path %s
	}
	NetlinkBufferSize 16777216
	NetlinkBufferSizeMaxGrowth 67108864
	NetlinkEventsReliable yes
	Filter From Userspace {
		Protocol Accept {
			TCP
			UDP
		}
		Address Ignore {
			IPv4_address 127.0.0.1
			IPv6_address ::1
		}
	}
}
`, from, to, filepath.Join(k.node(n), "lock"), filepath.Join(k.node(n), "ctl"))
}

// scripts are what is done when a node gets and loses the addresses: Debian's primary-backup.sh, with the gate opened once the copy is committed.
func (k *keepalived) scripts(n *trio.Node) map[string]string {
	ctl := "conntrackd -C " + filepath.Join(k.node(n), "conntrackd.conf")
	open, shut := "", ""
	if k.gated {
		open, shut = "nft delete table inet gate\n", "nft delete table inet gate 2>/dev/null\nnft -f "+filepath.Join(k.node(n), "gate.nft")+"\n"
	}
	state := filepath.Join(k.node(n), peerMaster)
	return map[string]string{
		"master": "#!/bin/sh\n" + ctl + " -c\n" + open + "touch " + state + "\n" + ctl + " -f\n" + ctl + " -R\n" + ctl + " -B\n",
		"backup": "#!/bin/sh\nrm -f " + state + "\n" + shut + ctl + " -t\n" + ctl + " -n\n",
	}
}

// open has both begin, and returns when the first one has the addresses.
func (k *keepalived) open(ctx context.Context) error {
	for i, n := range k.Gateways() {
		if err := os.MkdirAll(k.node(n), 0o755); err != nil {
			return err
		}
		from, to := fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("192.0.2.%d", 2-i)
		files := map[string]string{"keepalived.conf": k.vrrp(n, 200-50*i), "conntrackd.conf": k.sync(n, from, to), "rules.nft": peerRules}
		if k.gated {
			files["gate.nft"] = peerGate
		}
		for name, text := range k.scripts(n) {
			files[name+".sh"] = text
		}
		for name, text := range files {
			mode := os.FileMode(0o644)
			if strings.HasSuffix(name, ".sh") {
				mode = 0o755
			}
			if err := os.WriteFile(filepath.Join(k.node(n), name), []byte(text), mode); err != nil {
				return err
			}
		}
		for key, value := range map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.netfilter.nf_conntrack_tcp_be_liberal": "1", "net.ipv4.conf.all.arp_ignore": "1"} {
			if err := k.Sysctl(n.Name, key, value); err != nil {
				return err
			}
		}
		// What advertisements are sent from; networks are those of the virtual addresses.
		if err := k.AddAddr(n.Name, "wan0", netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/32", i+2))); err != nil {
			return err
		}
		for _, f := range []string{"rules.nft", "gate.nft"} {
			if _, ok := files[f]; !ok {
				continue
			}
			if _, err := k.Exec(n.Name, "nft", "-f", filepath.Join(k.node(n), f)); err != nil {
				return err
			}
		}
		if err := k.begin(n, "conntrackd", "-C", filepath.Join(k.node(n), "conntrackd.conf")); err != nil {
			return err
		}
	}
	for i, n := range k.Gateways() {
		if err := k.begin(n, "keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", filepath.Join(k.node(n), "keepalived.conf"),
			"--pid", filepath.Join(k.node(n), "pid"), "--vrrp_pid", filepath.Join(k.node(n), "vrrp.pid")); err != nil {
			return err
		}
		if i > 0 {
			break
		}
		if err := k.serves(ctx, n); err != nil {
			return err
		}
	}
	// It begins as a standby: until it has heard the first one.
	return rest(ctx, time.Duration(4*k.every*float64(time.Second))+500*time.Millisecond)
}

func (k *keepalived) begin(n *trio.Node, name string, args ...string) error {
	log, err := os.Create(filepath.Join(k.node(n), name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := k.Command(n.Name, name, args...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	k.procs[n.Name] = append(k.procs[n.Name], c)
	return nil
}

// serves waits until a node has the addresses and has done what it does then.
func (k *keepalived) serves(ctx context.Context, n *trio.Node) error {
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err := os.Stat(filepath.Join(k.node(n), peerMaster)); err == nil {
			return nil
		}
		if time.Now().After(end) {
			var logs []string
			for _, name := range []string{"keepalived", "conntrackd"} {
				b, _ := os.ReadFile(filepath.Join(k.node(n), name+".log")) // what there is of it
				logs = append(logs, string(b[max(0, len(b)-1500):]))
			}
			return fmt.Errorf("%s does not come to have the addresses:\n%s", n.Name, strings.Join(logs, "\n"))
		}
		if err := rest(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// die is the machine gone: keepalived's child first, since its parent would say goodbye, and that is no dead node.
func (k *keepalived) die(n *trio.Node) error {
	b, err := os.ReadFile(filepath.Join(k.node(n), "vrrp.pid"))
	if err != nil {
		return err
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || child < 2 {
		return fmt.Errorf("the pid of keepalived's child: %q", b)
	}
	errs := []error{unix.Kill(child, unix.SIGKILL), devices(k.Pair, n, false)}
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if unix.Kill(child, 0) != nil { // its parent has waited for it, so nobody else need
			break
		}
	}
	return errors.Join(append(errs, k.kill(n))...)
}

// kill ends the processes of a node, the last one first.
func (k *keepalived) kill(n *trio.Node) error {
	var errs []error
	for _, c := range slices.Backward(k.procs[n.Name]) {
		errs = append(errs, c.Process.Kill())
		_ = c.Wait() // killed
	}
	k.procs[n.Name] = nil
	return errors.Join(errs...)
}

// Close ends all and removes the lab.
func (k *keepalived) Close() error {
	for _, n := range k.Gateways() {
		_ = k.kill(n) // the lab looks for those that are left
	}
	return k.Pair.Close()
}

// text is its configuration, for whoever reads the figures.
func (k *keepalived) text() string {
	n := k.GW1
	var b strings.Builder
	p := func(name, text string) { fmt.Fprintf(&b, "# %s\n%s\n", name, text) }
	p("keepalived.conf of "+n.Name+"; the other one has priority 150", k.vrrp(n, 200))
	p("conntrackd.conf", k.sync(n, "192.0.2.1", "192.0.2.2"))
	p("nftables; sysctl net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.netfilter.nf_conntrack_tcp_be_liberal=1 net.ipv4.conf.all.arp_ignore=1", peerRules)
	if k.gated {
		p("the gate, shut until the copy is committed", peerGate)
	}
	scripts := k.scripts(n)
	p("notify_master", scripts["master"])
	p("notify_backup", scripts["backup"])
	return b.String()
}

// failoverPeers are those that are measured beside us.
var failoverPeers = map[string]keepalived{
	"keepalived/gated":  {version: 3, every: 0.05, gated: true},
	"keepalived/as-run": {version: 2, every: 1},
}

// peerTools are programs of peers, by Debian's package.
var peerTools = map[string]string{"keepalived": "keepalived", "conntrackd": "conntrackd", "nft": "nftables"}

// peerLacks says what a peer needs and is not there.
func peerLacks() error {
	var list []string
	for tool, pkg := range peerTools {
		if _, err := exec.LookPath(tool); err != nil {
			list = append(list, pkg)
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.Sort(list)
	return fmt.Errorf("the rows of keepalived need Debian's packages %s: install them, or name other rows with --rows", strings.Join(list, ", "))
}

// peerRow measures a peer, in a lab of its own each time: what one run leaves behind in a kernel makes the next one worse.
func (q *failoverBench) peerRow(ctx context.Context, r *failoverRow) error {
	runs := r.runs
	if q.Full {
		runs = r.full
	}
	if q.Runs > 0 {
		runs = q.Runs
	}
	var list []run
	one := func() (o run, err error) {
		q.number++
		k := failoverPeers[r.name]
		k.procs = map[string][]*exec.Cmd{}
		k.dir = filepath.Join(dirRun, strconv.Itoa(q.number))
		if k.Pair, err = trio.NewPair(trio.Options{Lab: labName, Dir: k.dir, Binary: q.Binary, Apart: true}, addresses); err != nil {
			return o, err
		}
		defer func() { err = errors.Join(err, k.Close()) }()
		if err := k.open(ctx); err != nil {
			return o, err
		}
		q.configs[r.name] = k.text()
		a := act{prepare: func(*trio.Node) error { return rest(ctx, 500*time.Millisecond) }, do: k.die, moves: true, wait: 10 * time.Second}
		return q.once(ctx, k.Pair, r, a)
	}
	rounds := pacer{due: q.due}
	for i := range runs {
		if !rounds.fits(time.Now()) {
			q.fewer(r.name, i, runs, "runs")
			break
		}
		o, err := one()
		if err != nil {
			return fmt.Errorf("%s: run %d: %w", r.name, i+1, err)
		}
		q.say("%-16s run %2d: %s", r.name, i+1, &o)
		list = append(list, o)
	}
	q.asPeer(r.name, list)
	return nil
}

// besidePeers is the row of ours that is the same event as those of the peers.
const besidePeers = "gone"

// asPeer notes what a peer has cost beside the row of ours that is the same event.
func (q *failoverBench) asPeer(name string, list []run) {
	const row = besidePeers
	note := func(metric, unit string, fn func(*run) []float64) {
		var values []float64
		for i := range list {
			values = append(values, fn(&list[i])...)
		}
		i := slices.IndexFunc(q.results, func(r report.Result) bool { return r.Case == row && r.Metric == metric })
		if i < 0 {
			q.results = append(q.results, report.Result{Scenario: q.scenario, Case: row, Metric: metric, Unit: unit, Peers: map[string]report.Peer{}})
			i = len(q.results) - 1
		}
		r := &q.results[i]
		p := report.Peer{Stat: report.OfMany(values).Round(3)}
		if metric == "gap" {
			p.Ratio = report.Ratio(r.Demarc, p.Stat)
		}
		r.Peers[name] = p
		q.say("%-28s %-20s %s %s", name, metric, stat(p.Stat), unit)
		if failoverPeers[name].gated && p.Ratio != nil { // ours must beat its better self; what is inside the spread says neither that it does nor that it does not
			how := ""
			if c := report.Compare(r.Demarc, p.Stat, report.Lower); c.Verdict != report.Unresolved {
				how = "max"
			}
			q.add(row, "gap-to-keepalived", "ratio", []float64{*p.Ratio}, how, 1)
		}
	}
	one := func(fn func(*run) float64) func(*run) []float64 {
		return func(o *run) []float64 { return []float64{fn(o)} }
	}
	note("gap", "ms", one(func(o *run) float64 { return o.gap.Seconds() * 1e3 }))
	note("flows-not-back", "flows", one(func(o *run) float64 { return float64(o.away) }))
	note("flows-on-another-session", "flows", one(func(o *run) float64 { return float64(o.moved) }))
	note("wrong-packets", "packets", one(func(o *run) float64 { return float64(o.wrong) }))
	note("offences", "", one(func(o *run) float64 { return float64(len(o.faults)) }))
	note("lost", "connections", one(func(o *run) float64 { return float64(o.data[0]) }))
	note("lost-of", "connections", one(func(o *run) float64 { return float64(o.data[1]) }))
	note("lost-idle", "connections", one(func(o *run) float64 { return float64(o.idle[0]) }))
	note("lost-idle-of", "connections", one(func(o *run) float64 { return float64(o.idle[1]) }))
	note("call-loss", "packets", func(o *run) []float64 { return o.calls })
	note("not-handed-over", "runs", func(o *run) []float64 {
		if o.handed() {
			return []float64{0}
		}
		return []float64{1}
	})
}
