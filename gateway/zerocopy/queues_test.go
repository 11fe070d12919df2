package zerocopy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/api"
)

// What the guest of TestQueuesOfARealDriver reports, in this order.
var queuePlan = plan{cases: []string{"queues"}, checks: []string{"found", "all queues", "another number", "released", "trunk", "two queues", "zero-copy", "after kill -9", "put back",
	"uneven table", "auto"}}

// guestGateway is where the gateway is in the guest.
const guestGateway = "/usr/local/sbin/demarc"

// taps makes, in a network namespace that ends with QEMU, a tap of four queues for each port, one for each far end, and a bridge between them.
// The bridges say nothing of their own.
const taps = `set -e
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
for i in 0 1; do
	ip link add br$i type bridge mcast_snooping 0
	ip tuntap add port$i mode tap multi_queue
	ip tuntap add far$i mode tap
	for d in port$i far$i; do ip link set $d master br$i up; done
	ip link set br$i up
done
exec "$@"`

// A driver with queues, an RSS table and offloads of its own is prepared, said to be, spreads what arrives over exactly the queues that are bound,
// and is put back: virtio_net in a guest, on cards with four queues, in zero-copy mode.
func TestQueuesOfARealDriver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), guestLimit+4*time.Minute)
	defer cancel()
	o, qemu, dir := tools(t, ctx)
	r := newTree(t, dir, "/usr/sbin/ethtool") // another opinion on what the driver does
	m := &machine{word: queuesWord, memory: 768, plan: &queuePlan, limit: guestLimit, files: r.list, within: []string{"unshare", "-n", "sh", "-c", taps, "taps"}}
	for i, n := range nics {
		name, more, queues := fmt.Sprintf("port%d", n.hub), ",mq=on,vectors=10,rss=on,hash=on", ",queues=4"
		if i >= 2 {
			name, more, queues = fmt.Sprintf("far%d", n.hub), "", ""
		}
		m.devices = append(m.devices, "-netdev", fmt.Sprintf("tap,id=n%d,ifname=%s,script=no,downscript=no,vhost=off%s", i, name, queues),
			"-device", fmt.Sprintf("%s,netdev=n%d,mac=%s%s", virtioCard, i, n.mac, more))
	}
	m.shown(t, ctx, o, qemu, dir)
}

// queued is the guest's side of it: one node after the other on the same two cards.
type queued struct {
	*bench
	node *configs.Node
	cmd  *exec.Cmd
	done chan error
	log  *printed
}

func queuesGuest(out io.Writer) error {
	devs, fars, err := setUp(out)
	if err != nil {
		return err
	}
	q := &queued{bench: &bench{name: "queues", patience: slow / 4, devs: devs, far: fars, out: out}}
	for i := range fars {
		if err := q.hear(i); err != nil { // no verdict: it boots again
			fmt.Fprintln(out, err)
			return nil
		}
	}
	q.steps()
	(&record{Case: q.name, End: true}).write(out)
	return nil
}

// hear demands that a port and its far end hear each other before a gateway comes, so that a guest whose cards do not work is told from a gateway
// that does not.
func (q *queued) hear(side int) error {
	d, f := q.devs[side], q.far[side]
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(etherTest)))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(etherTest), Ifindex: d.Index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})); err != nil {
		return err
	}
	port, got := mac(d.HardwareAddr), make([]byte, 128)
	in, out := false, false
	for range 10 {
		if !in {
			if err := f.send(testFrame(port, f.mac)); err != nil {
				return err
			}
			_, err := unix.Read(fd, got)
			in = err == nil
		}
		if !out {
			if _, err := unix.Write(fd, testFrame(f.mac, port)); err != nil {
				return err
			}
			out = f.next(time.Second) != nil
		}
	}
	if !in || !out {
		return fmt.Errorf("without a gateway %s hears its far end: %v, and is heard: %v", d.Name, in, out)
	}
	for f.next(100*time.Millisecond) != nil { // sent twice
	}
	return nil
}

// etherTest is a type for experiments (IEEE 802).
const etherTest = 0x88b5

func (q *queued) steps() {
	found := map[string]string{}
	for _, step := range []struct {
		name string
		fn   func() (string, error)
	}{
		{"found", func() (string, error) {
			for _, d := range q.devs[:2] {
				if _, err := ethtool("-L", d.Name, "combined", "4"); err != nil {
					return "", err
				}
				found[d.Name] = settings(d.Name)
			}
			return "4 queues, " + q.table(), q.covers(4, 4)
		}},
		{"all queues", func() (string, error) { return q.serves(0, 4, 4, "") }},
		{"another number", func() (string, error) {
			// virtio_net changes its queues only while it has no program, and the one before is still there: the table keeps packets off two.
			if err := q.end(unix.SIGTERM); err != nil {
				return "", err
			}
			return q.serves(2, 2, 4, "rss even over 4 queues -> even over 2 queues")
		}},
		{"released", func() (string, error) {
			if err := q.end(unix.SIGTERM); err != nil {
				return "", err
			}
			return q.released(found)
		}},
		{"trunk", func() (string, error) {
			detail, err := q.trunk()
			if err != nil {
				return "", err
			}
			_, err = q.released(found)
			return detail, err
		}},
		{"two queues", func() (string, error) {
			// With a program virtio_net has a queue more for each CPU, and spreads packets over that as well, but for the table.
			return q.serves(2, 2, 3, "queues combined 4 -> combined 2, rss even over 3 queues -> even over 2 queues")
		}},
		{"zero-copy", q.zeroCopy},
		{"after kill -9", func() (string, error) {
			if err := q.end(unix.SIGKILL); err != nil {
				return "", err
			}
			return q.serves(2, 2, 3, "queues combined 4 -> combined 2, rss even over 3 queues -> even over 2 queues")
		}},
		{"put back", func() (string, error) {
			if err := q.end(unix.SIGTERM); err != nil {
				return "", err
			}
			// What can be is put back at once, the rest when the program is off.
			for _, d := range q.devs[:2] {
				now := settings(d.Name)
				if text := q.log.String(); strings.Contains(now, "generic-receive-offload: off") || !strings.Contains(text, "port is not wholly as it was found: demarc release tries again") ||
					!strings.Contains(text, "put rx-gro-hw back to on") || !strings.Contains(text, "put queues back to combined 4") {
					return "", fmt.Errorf("after the end the log says\n%s\nand there is\n%s", text, now)
				}
			}
			return q.released(found)
		}},
		{"uneven table", func() (string, error) {
			if _, err := ethtool("-X", q.devs[0].Name, "weight", "1", "0", "0", "3"); err != nil {
				return "", err
			}
			found[q.devs[0].Name] = settings(q.devs[0].Name)
			if _, err := q.serves(3, 3, 4, "rss 2 of 4 queues, unevenly -> even over 3 queues"); err != nil {
				return "", err
			}
			if err := q.covers(3, 4); err != nil {
				return "", err
			}
			if err := q.end(unix.SIGTERM); err != nil {
				return "", err
			}
			return q.released(found)
		}},
		{"auto", func() (string, error) {
			detail, err := q.auto()
			if err != nil {
				return "", err
			}
			_, err = q.released(found)
			return detail, err
		}},
	} {
		start := time.Now()
		detail, err := step.fn()
		detail = fmt.Sprintf("%s (%s)", detail, time.Since(start).Round(time.Second/10))
		if err != nil && q.log != nil {
			q.dump()
		}
		if !q.check(step.name, detail, err) {
			return
		}
	}
}

// dump writes to the console what the reader of a failure wants to know: where frames ended, of the gateway's sockets, the driver's queues, the emulated cards and the far ends.
func (q *queued) dump() {
	fmt.Fprintln(q.out, q.log.String())
	for _, what := range []string{"status", "status --json", "ports", "neighbours", "drops --last 5"} {
		b, _ := exec.Command(guestGateway, append([]string{"--socket", q.node.API.Socket}, strings.Fields(what)...)...).CombinedOutput()
		fmt.Fprintf(q.out, "demarc %s\n%s\n", what, b)
	}
	count := func() {
		for _, d := range q.devs {
			text, _ := ethtool("-S", d.Name)
			fmt.Fprintf(q.out, "%s %s\n", d.Name, text)
		}
		for _, name := range []string{"/proc/interrupts", "/proc/softirqs"} {
			text, _ := os.ReadFile(name)
			fmt.Fprintf(q.out, "%s\n%s\n", name, text)
		}
		for i, f := range q.far {
			fmt.Fprintf(q.out, "far end %d: asked for %d neighbours, %d frames wait for the judge, %d were too many\n", i, f.asked.Load(), len(f.frames), f.lost.Load())
		}
	}
	count()
	// Does a far end hear what the kernel itself sends by the same card? That uses a queue of the driver's too, and tells it that there is something to send.
	for i := range q.far {
		fmt.Fprintf(q.out, "the far end of %s hears the kernel: %v\n", q.devs[i].Name, q.heard(i) == nil)
	}
	count()
}

// heard sends a frame by the kernel from a port, and says whether its far end gets it.
func (q *queued) heard(side int) error {
	d, f := q.devs[side], q.far[side]
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: d.Index}); err != nil {
		return err
	}
	if _, err := unix.Write(fd, testFrame(f.mac, mac(d.HardwareAddr))); err != nil {
		return err
	}
	for {
		got := f.next(5 * time.Second)
		if got == nil {
			return errors.New("nothing in 5 s")
		}
		if got[12] == etherTest>>8 && got[13] == etherTest&0xff {
			return nil
		}
	}
}

// testFrame is one that only this test knows.
func testFrame(to, from mac) []byte {
	return append(slices.Concat(to[:], from[:], []byte{etherTest >> 8, etherTest & 0xff}), make([]byte, 46)...)
}

// printed keeps what a program prints.
type printed struct{ strings.Builder }

func (t *printed) last() string { return tail([]byte(t.String())) }

// run starts a node and waits until it is ready.
func (q *queued) run(text, policy string) error {
	node, err := configs.DecodeNode("node.toml", []byte(text))
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"/run/node.toml": text, "/run/policy.toml": policy} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	// What the far ends have seen before is not this node's.
	q.wants, q.pubs, q.idents = map[uint64]want{}, map[pub]*flow{}, map[ident]bool{}
	q.gw = [2]mac{mac(q.devs[0].HardwareAddr), mac(q.devs[1].HardwareAddr)}
	q.node, q.log, q.done = node, &printed{}, make(chan error, 1)
	q.cmd = exec.Command(guestGateway, "run", "--node", "/run/node.toml", "--policy", "/run/policy.toml")
	q.cmd.Stdout, q.cmd.Stderr = q.log, q.log
	if err := q.cmd.Start(); err != nil {
		return err
	}
	go func(c *exec.Cmd, done chan<- error) { done <- c.Wait() }(q.cmd, q.done)
	q.api = api.Dial(node.API.Socket)
	for deadline := time.Now().Add(slow); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-q.done:
			return fmt.Errorf("%s (%v)", q.log.last(), err)
		default:
		}
		var s api.Status
		if q.api.Get(context.Background(), api.PathStatus, &s) == nil && s.Ready {
			return nil
		}
	}
	return fmt.Errorf("not ready after %s", slow)
}

func (q *queued) nodeFile() string {
	return strings.Replace(nodeFile(caseZeroCopy, "/run/node", q.devs), "[tables]", "[workers]\ncount = 2\n[tables]", 1)
}

// trunk makes the inside port one with two VLANs, whose tenants have the same inside addresses. The driver filters tags and cannot be told not to, so the
// port receives everything, that one alone; and each tenant's frames come through under its own address.
func (q *queued) trunk() (string, error) {
	if k, err := ethtool("-k", q.devs[0].Name); err != nil || !strings.Contains(k, "rx-vlan-filter: on [fixed]") {
		return "", fmt.Errorf("the driver does not filter tags for ever: %w\n%s", err, k)
	}
	node := strings.Replace(q.nodeFile(), "/run/node", "/run/trunk", 1) // it has served no other policy
	from, to := strings.Index(node, "name = \"lan\""), strings.Index(node, "[[interface]]\nname = \"wan\"")
	node = node[:from] + "name = \"a\"\nport = \"inside\"\nvlan = 101\naddresses = [\"198.18.10.1/24\"]\n[[interface]]\nname = \"b\"\nport = \"inside\"\nvlan = 102\naddresses = [\"198.18.10.1/24\"]\n" + node[to:]
	pools := []string{"198.51.100.1", "198.51.100.2"}
	policy := "schema = 1\nname = \"trunk\"\n[backbone]\ninterfaces = [\"wan\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"192.0.2.100\"\n"
	for i, name := range []string{"a", "b"} {
		policy += fmt.Sprintf("[[tenant]]\nname = %q\ninterfaces = [%q]\nprefixes = [\"198.18.10.0/24\"]\n[tenant.nat]\npool = [%q]\n", name, name, pools[i])
	}
	if err := q.run(node, policy); err != nil {
		return "", err
	}
	if a, b := promiscuous(q.devs[0].Name), promiscuous(q.devs[1].Name); !a || b {
		return "", fmt.Errorf("promiscuous: the trunk %v, the other port %v", a, b)
	}
	said, err := exec.Command(guestGateway, "--socket", q.node.API.Socket, "ports").CombinedOutput()
	line, _, _ := strings.Cut(after(string(said), "changed on inside until the gateway ends: "), "\n")
	if err != nil || !strings.Contains(line, "promiscuous off -> on (the driver filters tags and cannot be told not to)") {
		return "", fmt.Errorf("demarc ports: %w\n%s", err, said)
	}
	untagged, exact := q.far[0], q.exact
	defer func() { q.far[0] = untagged }()
	for i, vlan := range []uint16{101, 102} {
		if q.far[0], err = openFar(q.devs[2].Index, q.far[0].mac, vlan, "198.18.10.0/24"); err != nil {
			return "", err
		}
		clear(q.pubs) // another pool
		var flows []*flow
		for p := range 8 {
			f := q.newFlow(protoUDP, "198.18.10.20", "203.0.113.1", uint16(5000+p), 2000)
			f.public = netip.MustParseAddr(pools[i])
			flows = append(flows, f)
		}
		if err := errors.Join(q.talk(flows[:1], 1, 0), q.talk(flows, 2, 1472)); err != nil {
			return "", fmt.Errorf("vlan %d: %w; %s", vlan, err, q.counted(context.Background()))
		}
	}
	if got := untagged.next(0); got != nil {
		return "", fmt.Errorf("a frame without a tag came out of the trunk: % x", got[:min(len(got), 80)])
	}
	if err := q.end(unix.SIGTERM); err != nil {
		return "", err
	}
	if promiscuous(q.devs[0].Name) {
		return "", errors.New("the port is still promiscuous")
	}
	return fmt.Sprintf("%d frames of two tenants; %s", q.exact-exact, line), nil
}

func promiscuous(dev string) bool {
	b, _ := os.ReadFile("/sys/class/net/" + dev + "/flags")
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 32)
	return n&unix.IFF_PROMISC != 0
}

// end ends the node by a signal.
func (q *queued) end(s unix.Signal) error {
	q.api.Close()
	if err := q.cmd.Process.Signal(s); err != nil {
		return err
	}
	select {
	case err := <-q.done:
		if err != nil && s != unix.SIGKILL {
			return fmt.Errorf("the gateway ended with %w: %s", err, q.log.last())
		}
		return nil
	case <-time.After(slow):
		return fmt.Errorf("the gateway is there %s after signal %d", slow, s)
	}
}

// serves starts a node that asks for some queues (0: as there are) and demands that n of those that are there are bound, that the node says so,
// and that every frame of many flows comes through, some on each of these queues and none elsewhere.
func (q *queued) serves(ask, n, there int, says string) (string, error) {
	node := q.nodeFile()
	if ask > 0 {
		node = strings.ReplaceAll(node, "mode = ", fmt.Sprintf("queues = %d\nmode = ", ask))
	}
	// Two workers take turns on one emulated CPU; what a rate makes of that is no matter here.
	limited := policyFile(ratePackets)
	from, to := strings.Index(limited, "[tenant.rates.out]"), strings.Index(limited, "[[tenant.rule]]")
	if err := q.run(node, limited[:from]+limited[to:]); err != nil {
		return "", err
	}
	if err := q.covers(n, there); err != nil {
		return "", err
	}
	said, err := exec.Command(guestGateway, "--socket", q.node.API.Socket, "ports").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("demarc ports: %w: %s", err, said)
	}
	for _, d := range []string{"inside", "outside"} {
		line, _, _ := strings.Cut(after(string(said), "changed on "+d+" until the gateway ends: "), "\n")
		if !strings.Contains(line, "gro on -> off") || !strings.Contains(line, "rx-gro-hw on -> off") || d == "inside" && !strings.Contains(line, says) || strings.Count(q.log.String(), line) == 0 {
			return "", fmt.Errorf("demarc ports: %s\nlog: %s", said, q.log)
		}
	}
	before, err := q.queues(n)
	if err != nil {
		return "", err
	}
	var flows []*flow
	for h := range 8 {
		for p := range 8 {
			flows = append(flows, q.newFlow(protoUDP, fmt.Sprintf("198.18.10.%d", 20+h), fmt.Sprintf("203.0.113.%d", 1+p), uint16(5000+p), uint16(2000+h)))
		}
	}
	elsewhere, err := q.received(n)
	if err != nil {
		return "", err
	}
	exact := q.exact
	if err := errors.Join(q.talk(flows[:1], 1, 0), q.talk(flows, 3, 1472)); err != nil {
		return "", fmt.Errorf("%w; %s", err, q.counted(context.Background()))
	}
	now, err := q.queues(n)
	if err != nil {
		return "", err
	}
	var detail []string
	for i := range now {
		sum, each := 0, []string(nil)
		for k := range now[i] {
			grown := now[i][k] - before[i][k]
			if grown == 0 {
				return "", fmt.Errorf("nothing of %d flows arrived on queue %d of %s", len(flows), k, q.devs[i].Name)
			}
			sum, each = sum+grown, append(each, strconv.Itoa(grown))
		}
		if want := (q.exact - exact) / 2; sum < want {
			return "", fmt.Errorf("%d of %d frames arrived on the queues of %s", sum, want, q.devs[i].Name)
		}
		detail = append(detail, fmt.Sprintf("%s %s", q.devs[i].Name, strings.Join(each, "+")))
	}
	if now, err := q.received(n); err != nil || now != elsewhere {
		return "", fmt.Errorf("the driver counts %d frames on queues that nobody has bound, before it were %d: %v", now, elsewhere, err)
	}
	return "frames by queue: " + strings.Join(detail, ", "), nil
}

// auto starts a node that may choose, which takes no zero-copy of a driver that is a module and says why.
func (q *queued) auto() (string, error) {
	node := strings.ReplaceAll(q.nodeFile(), fmt.Sprintf("mode = %q", caseZeroCopy), "queues = 2\nmode = \"auto\"")
	if err := q.run(node, policyFile(ratePackets)); err != nil {
		return "", err
	}
	var s api.Status
	if err := q.api.Get(context.Background(), api.PathStatus, &s); err != nil {
		return "", err
	}
	why := ""
	for _, p := range s.Ports {
		if len(p.Queues) != 2 || p.Queues[0].Mode != "copy" || !strings.Contains(p.Queues[0].WhyNotBetter, "virtio_net as a module") || len(p.Warnings) != 0 {
			return "", fmt.Errorf("port %s: %+v, warnings %q", p.Name, p.Queues, p.Warnings)
		}
		why = p.Queues[0].WhyNotBetter
	}
	return why, q.end(unix.SIGTERM)
}

// queues is how many frames each queue of each port has taken. All are bound, in zero-copy mode, natively.
func (q *queued) queues(n int) (out [2][]int, err error) {
	var s api.Status
	if err := q.api.Get(context.Background(), api.PathStatus, &s); err != nil {
		return out, err
	}
	for i, p := range s.Ports {
		if len(p.Queues) != n || p.Attach != "native" {
			return out, fmt.Errorf("port %s: %d queues, %s, want %d", p.Name, len(p.Queues), p.Attach, n)
		}
		if !strings.Contains(strings.Join(p.Warnings, "; "), "virtio_net as a module") {
			return out, fmt.Errorf("port %s: warnings %q", p.Name, p.Warnings)
		}
		out[i] = make([]int, n)
		for _, u := range p.Queues {
			if u.Queue >= n || u.Mode != "zerocopy" || u.Worker != u.Queue%2 {
				return out, fmt.Errorf("port %s: queue %d of worker %d, %s", p.Name, u.Queue, u.Worker, u.Mode)
			}
			out[i][u.Queue] = int(u.Rx.Packets)
		}
	}
	return out, nil
}

// zeroCopy asks the kernel what the node's sockets are, over the node's head.
func (q *queued) zeroCopy() (string, error) {
	pid, err := unix.PidfdOpen(q.cmd.Process.Pid, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(pid)
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", q.cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	sockets := 0
	for _, e := range list {
		n, _ := strconv.Atoi(e.Name())
		fd, err := unix.PidfdGetfd(pid, n, 0)
		if err != nil {
			continue // closed since
		}
		domain, derr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		o, oerr := unix.GetsockoptInt(fd, unix.SOL_XDP, unix.XDP_OPTIONS)
		unix.Close(fd)
		if derr != nil || domain != unix.AF_XDP {
			continue
		}
		if sockets++; oerr != nil || o&unix.XDP_OPTIONS_ZEROCOPY == 0 {
			return "", fmt.Errorf("XDP_OPTIONS of a socket is %#x, %v", o, oerr)
		}
	}
	if sockets != 4 {
		return "", fmt.Errorf("%d AF_XDP sockets, want two for each of two ports", sockets)
	}
	return "XDP_OPTIONS reads zerocopy on 4 of 4 sockets", nil
}

// received is the driver's own count of what came in on queues from the nth on.
func (q *queued) received(n int) (sum int, err error) {
	for _, d := range q.devs[:2] {
		text, err := ethtool("-S", d.Name)
		if err != nil {
			return 0, err
		}
		for k := range 4 {
			v, _, found := strings.Cut(after(text, fmt.Sprintf(" rx%d_xdp_packets: ", k)), "\n")
			if !found && k >= n { // the driver has it not now
				continue
			}
			c, err := strconv.Atoi(v)
			if err != nil {
				return 0, fmt.Errorf("ethtool -S: queue %d of %s: %q %v", k, d.Name, v, err)
			}
			if k >= n {
				sum += c
			}
		}
	}
	return sum, nil
}

// released gives both ports back and demands that they are as they were found.
func (q *queued) released(found map[string]string) (string, error) {
	var all []string
	for _, d := range q.devs[:2] {
		b, err := exec.Command(guestGateway, "release", d.Name, "--node", "/run/node.toml").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("release %s: %w: %s", d.Name, err, b)
		}
		if diff := cmp.Diff(strings.Split(found[d.Name], "\n"), strings.Split(settings(d.Name), "\n")); diff != "" {
			return "", fmt.Errorf("%s is not as it was found, release said %q:\n%s", d.Name, b, diff)
		}
		all = append(all, strings.TrimSpace(string(b)))
	}
	return strings.Join(all, "; "), nil
}

// covers demands that packets are spread over exactly the first n queues of both ports, of those that are there, evenly.
func (q *queued) covers(n, there int) error {
	for _, d := range q.devs[:2] {
		count, err := rssTable(d)
		if err != nil {
			return err
		}
		l, err := ethtool("-l", d.Name)
		if err != nil {
			return err
		}
		if is := strings.Fields(after(after(l, "Current hardware settings"), "Combined:")); len(count) != n || len(is) == 0 || is[0] != strconv.Itoa(there) {
			return fmt.Errorf("%s: %v queues, the table has %v, want %d of %d", d.Name, is, count, n, there)
		}
		for k := range n {
			if c := count[k] * n; c < 128-n || c > 128+n {
				return fmt.Errorf("%s: queue %d has %d of 128 entries of the table", d.Name, k, count[k])
			}
		}
	}
	return nil
}

// rssTable is how many of the table's entries name each queue, as ethtool reads it.
func rssTable(d net.Interface) (map[int]int, error) {
	text, err := ethtool("-x", d.Name)
	if err != nil {
		return nil, err
	}
	count, total := map[int]int{}, 0
	table, _, _ := strings.Cut(text, "RSS hash key")
	for line := range strings.Lines(table) {
		at, entries, found := strings.Cut(line, ":")
		if _, err := strconv.Atoi(strings.TrimSpace(at)); err != nil || !found {
			continue
		}
		for _, e := range strings.Fields(entries) {
			k, err := strconv.Atoi(e)
			if err != nil {
				return nil, fmt.Errorf("ethtool -x: %q", line)
			}
			count[k]++
			total++
		}
	}
	if total != 128 {
		return nil, fmt.Errorf("%s has a table of %d entries, virtio's has 128:\n%s", d.Name, total, text)
	}
	return count, nil
}

func (q *queued) table() string {
	c, err := rssTable(q.devs[0])
	return fmt.Sprintf("table %v %v", c, err)
}

func ethtool(args ...string) (string, error) {
	b, err := exec.Command("/usr/sbin/ethtool", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ethtool %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(b)))
	}
	return string(b), nil
}

// settings is all that preparing a device may change, and more.
func settings(dev string) string {
	var b strings.Builder
	for _, what := range []string{"-l", "-x", "-k"} {
		text, err := ethtool(what, dev)
		fmt.Fprintln(&b, text, err)
	}
	flags, err := os.ReadFile(filepath.Join("/sys/class/net", dev, "flags")) // promiscuous is one of them
	fmt.Fprintln(&b, string(flags), err)
	return b.String()
}

func after(s, mark string) string {
	_, s, _ = strings.Cut(s, mark)
	return s
}
