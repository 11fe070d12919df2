package xsk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

func TestOpenErrors(t *testing.T) {
	l := makeLab(t, 1)
	check(t, l.Do("gw", func() error {
		dev, err := netlink.LinkByName("p0")
		if err != nil {
			return err
		}
		good := rigConfig(dev.Attrs().Index, 0, Copy, true, 0)
		u, err := NewUMEM(64, 2048)
		if err != nil {
			return err
		}
		defer u.Close()
		other, err := NewUMEM(64, 2048)
		if err != nil {
			return err
		}
		defer other.Close()
		first, err := Open(u, good)
		if err != nil {
			return err
		}
		defer first.Close()
		for _, c := range []struct {
			name   string
			u      *UMEM
			change func(*SocketConfig)
			want   error
			text   string
		}{
			{"busy", other, func(c *SocketConfig) {}, unix.EBUSY, "holds this queue"},
			{"no such queue", other, func(c *SocketConfig) { c.Queue = 7 }, unix.EINVAL, "no such queue"},
			{"no such device", other, func(c *SocketConfig) { c.Ifindex = 4321 }, unix.ENODEV, "no such device"},
			{"auto", other, func(c *SocketConfig) { c.Mode = Auto }, unix.EINVAL, "decided"},
			{"ring of 48", other, func(c *SocketConfig) { c.RxSize = 48 }, unix.EINVAL, "power of two"},
			{"second mode on one umem", u, func(c *SocketConfig) { c.Mode = ZeroCopy }, unix.EINVAL, "one mode"},
		} {
			cfg := good
			c.change(&cfg)
			s, err := Open(c.u, cfg)
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if err := first.Close(); err != nil {
			return err
		}
		if zc, why := Probe(good.Ifindex, 0); zc || !strings.Contains(why, "no zero-copy") {
			t.Errorf("probe of veth: %v, %q", zc, why)
		}
		return nil
	}))
}

func TestAttachRefusesForeignAndRestores(t *testing.T) {
	l := makeLab(t, 1)
	check(t, l.Do("gw", func() error {
		dev, err := netlink.LinkByName("p0")
		if err != nil {
			return err
		}
		ifi := dev.Attrs().Index
		cfg := ProgramConfig{Ifindex: ifi, Queues: 1}
		expect := func(step string, wantName, wantMode string) uint32 {
			t.Helper()
			name, id, mode, ours, err := Attached(ifi)
			if err != nil || name != wantName || mode != wantMode || ours != (wantName == programName) || (id == 0) != (wantName == "") {
				t.Errorf("%s: attached %q id %d mode %q ours %v, %v", step, name, id, mode, ours, err)
			}
			return id
		}
		load := func() *Program {
			p, err := LoadProgram(cfg, nil)
			check(t, err)
			t.Cleanup(func() { p.Close() })
			return p
		}
		expect("at first", "", "")
		if Release(ifi) == nil {
			t.Error("released a port that had nothing")
		}

		foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "somebody", Type: ebpf.XDP, License: "MIT",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}})
		if err != nil {
			return err
		}
		defer foreign.Close()
		if err := setXDP(ifi, foreign.FD(), -1, false); err != nil {
			return err
		}
		a := load()
		if _, err := a.Attach(false); err == nil || !strings.Contains(err.Error(), `"somebody"`) {
			t.Errorf("attach over a foreign program: %v", err)
		}
		if err := Release(ifi); err == nil || !strings.Contains(err.Error(), `"somebody"`) {
			t.Errorf("release of a foreign program: %v", err)
		}
		expect("foreign", "somebody", modeNative)
		if err := setXDP(ifi, -1, foreign.FD(), false); err != nil {
			return err
		}

		if native, err := a.Attach(false); err != nil || !native {
			return fmt.Errorf("attach: native %v, %w", native, err)
		}
		first := expect("attached", programName, modeNative)
		if err := a.Update(cfg); err != nil {
			return err
		}
		second := expect("updated", programName, modeNative)
		if first == second {
			t.Error("update did not replace the program")
		}
		b := load()
		if _, err := b.Attach(true); err == nil || !strings.Contains(err.Error(), "release") {
			t.Errorf("change of mode: %v", err)
		}
		if _, err := b.Attach(false); err != nil {
			return err
		}
		if expect("replaced", programName, modeNative) == second {
			t.Error("a second start did not replace the program")
		}
		if err := a.Update(cfg); err == nil {
			t.Error("the old owner updated a program that was replaced")
		}
		if err := b.Restore(); err != nil {
			return err
		}
		if expect("restored", programName, modeNative) != second {
			t.Error("restore brought another program back")
		}
		if err := a.Close(); err != nil {
			return err
		}
		expect("outlives its owner", programName, modeNative)
		if err := Release(ifi); err != nil {
			return err
		}
		expect("released", "", "")

		c := load()
		if native, err := c.Attach(true); err != nil || native {
			return fmt.Errorf("attach in generic mode: native %v, %w", native, err)
		}
		expect("generic", programName, modeGeneric)
		if err := c.Restore(); err != nil {
			return err
		}
		expect("restored to nothing", "", "")
		return nil
	}))
}

// child is this test binary again, in a namespace: the gateway that will be killed, a client, or a user without rights.
func child(args []string) int {
	fail := func(err error) int {
		fmt.Println(err)
		return 1
	}
	switch args[0] {
	case "forward":
		r, err := openRig(1, Copy, true, 0)
		if err != nil {
			return fail(err)
		}
		fmt.Println("ready")
		for ; ; time.Sleep(200 * time.Microsecond) {
			if err := r.turn(); err != nil {
				return fail(err)
			}
		}
	case "connect":
		c, err := net.DialTimeout("tcp", args[1], 5*time.Second)
		if err != nil {
			return fail(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		if err != nil {
			return fail(err)
		}
		fmt.Println(string(b))
	case "unprivileged":
		if err := syscall.Setuid(65534); err != nil {
			return fail(err)
		}
		u, err := NewUMEM(64, 2048)
		if err != nil {
			return fail(err)
		}
		_, err = Open(u, rigConfig(1, 0, Copy, true, 0))
		fmt.Println(err)
		_, err = LoadProgram(ProgramConfig{Ifindex: 1, Queues: 1}, nil)
		fmt.Println(err)
	}
	return 0
}

func TestWithoutRights(t *testing.T) {
	roottest.Require(t)
	self, err := os.Executable()
	check(t, err)
	out, err := exec.Command(self, "xsk-child", "unprivileged").Output()
	check(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "CAP_NET_RAW") || !strings.Contains(lines[1], "CAP_BPF") {
		t.Errorf("got:\n%s", out)
	}
}

// withSum fills in an IPv4 header's checksum.
func withSum(p []byte) []byte {
	var s uint32
	for i := 0; i < 20; i += 2 {
		s += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	s = s>>16 + s&0xffff
	s += s >> 16
	binary.BigEndian.PutUint16(p[10:], ^uint16(s))
	return p
}

// transit sends count frames from h0 to h1's address by way of the gateway's MAC and says how many h1's device sees: all as
// soon as they have come, else what has come when the time is over.
func transit(t *testing.T, l *netlab.Lab, count int, wait time.Duration) (seen int) {
	t.Helper()
	fds := rawSockets(t, l)
	hw, err := l.MAC("gw", "p0")
	check(t, err)
	for i := range count {
		body := cat(be(uint16(1000+i)), be(9), be(uint16(8+len(mark))), be(0), mark)
		if _, err := unix.Write(fds[0], ether([6]byte(hw), 0x800, withSum(ip4(17, "198.18.0.2", "198.18.1.2", body)))); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	for until := time.Now().Add(wait); seen < count && time.Now().Before(until); time.Sleep(time.Millisecond) {
		for next(fds[1], buf) != nil {
			seen++
		}
	}
	return seen
}

// With ip_forward on, the kernel would forward all that reaches it. A killed gateway lets nothing through, while the host's own TCP
// and ping go on, also with empty neighbour tables.
func TestClosedWhenKilled(t *testing.T) {
	l := makeLab(t, 1)
	check(t, l.Sysctl("gw", "net.ipv4.ip_forward", "1"))
	check(t, l.AddRoute("h0", netip.MustParsePrefix("198.18.1.0/24"), netip.MustParseAddr("198.18.0.1")))
	check(t, l.AddRoute("h1", netip.MustParsePrefix("198.18.0.0/24"), netip.MustParseAddr("198.18.1.1")))
	var ln net.Listener
	check(t, l.Do("gw", func() (err error) { ln, err = net.Listen("tcp", "198.18.0.1:2222"); return }))
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	self, err := os.Executable()
	check(t, err)
	host := func(when string) {
		t.Helper()
		if out, err := l.Exec("h0", self, "xsk-child", "connect", "198.18.0.1:2222"); err != nil || !bytes.Contains(out, []byte("hello")) {
			t.Errorf("%s: tcp to the host: %v %s", when, err, out)
		}
		if out, err := l.Exec("h0", "ping", "-c", "1", "-W", "3", "198.18.0.1"); err != nil {
			t.Errorf("%s: ping to the host: %v %s", when, err, out)
		}
	}
	const count = 50 // fewer than the kernel holds for a neighbour that it is still resolving
	host("before")
	if n := transit(t, l, count, 5*time.Second); n != count {
		t.Fatalf("without a gateway the kernel forwards %d of %d frames: nothing could be shown", n, count)
	}
	for round, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} { // the later ones replace what the earlier left
		when := fmt.Sprintf("round %d, %v", round, sig)
		cmd := l.Command("gw", self, "xsk-child", "forward")
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		if line == "ready\n" {
			host(when + ", alive")
			if n := transit(t, l, count, 5*time.Second); n != count {
				t.Errorf("%s: the gateway forwards %d of %d", when, n, count)
			}
		}
		cmd.Process.Signal(sig)
		cmd.Wait()
		if line != "ready\n" {
			t.Fatalf("%s: child: %q %v", when, line, err)
		}
		if n := transit(t, l, count, 300*time.Millisecond); n != 0 {
			t.Errorf("%s: %d transit frames leaked", when, n)
		}
		host(when + ", dead")
		check(t, l.FlushNeighbours("h0", "e"))
		check(t, l.FlushNeighbours("gw", "p0"))
		host(when + ", dead, neighbours flushed")
		if n := transit(t, l, count, 300*time.Millisecond); n != 0 {
			t.Errorf("%s: %d transit frames leaked after the flush", when, n)
		}
	}
	check(t, l.Do("gw", func() error {
		for _, name := range []string{"p0", "p1"} {
			dev, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := Release(dev.Attrs().Index); err != nil {
				return err
			}
		}
		return nil
	}))
	if n := transit(t, l, count, 5*time.Second); n != count {
		t.Errorf("after release the kernel forwards %d of %d", n, count)
	}
}
