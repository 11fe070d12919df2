package gateway

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/cluster/failover"
	"demarc/gateway/api"
	"demarc/gateway/pipeline"
)

// TestReserveIsOpenWhenThatIsOnDisk: a node that takes over without knowing all opens its reserve when it is on disk that it is used, and not while the disk does not take that; ports that were asked for
// elsewhere do not wait for the disk.
func TestReserveIsOpenWhenThatIsOnDisk(t *testing.T) {
	g := copyGateway(t, 1)
	x := g.common
	x.file = filepath.Join(t.TempDir(), "later", "reserves")
	x.with(func(c *pipeline.Common, _ int64) {
		c.Reserve("test", map[string]pipeline.Reserve{"east": {Nodes: []string{"gw-b", "test"}, Clean: true}})
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- x.run(ctx) }()
	go func() { ended <- x.keep(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	g.serving(1, 5, true, failover.Known{}, func() {})
	time.Sleep(50 * time.Millisecond)
	if p := x.ports(1); p.Rest < 100 || p.Reserve {
		t.Errorf("before it is on disk: %+v", p)
	}
	told := 0
	for i := range g.view.Load().Ifaces { // what explain says to who gets no port: more addresses are no help
		f := &g.view.Load().Ifaces[i]
		help := g.portsHelp(f, "more addresses")
		if rests := f.Group != nil && f.Group.ID == 1; rests != strings.HasPrefix(help, "public ports of group ") || rests == (help == "more addresses") {
			t.Errorf("interface %s: %q", f.Name, help)
		} else if rests {
			told++
		}
	}
	if told == 0 {
		t.Error("no interface is of a group whose ports rest")
	}
	if err := os.Mkdir(filepath.Dir(x.file), 0o700); err != nil {
		t.Fatal(err)
	}
	var p *api.GroupPorts
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if p = x.ports(1); p.Reserve || time.Now().After(end) {
			break
		}
	}
	var kept map[string]pipeline.Reserve
	if err := readKept(x.file, reservesMagic, &kept); err != nil || !p.Reserve || kept["east"].Clean {
		t.Errorf("the disk takes it again: %+v, on it %+v (%v)", p, kept, err)
	}
}

// TestOldCopiesEndAtATakeover: where what a node knows of a group is older than the hold time, sessions with a public port end before they are its own, in steps; those without one go on.
func TestOldCopiesEndAtATakeover(t *testing.T) {
	g := copyGateway(t, 1)
	count := func() (mapped, all int) {
		if err := g.workers[0].Do(t.Context(), func(sh *pipeline.Shard) { mapped, all = sh.NAT.Len(), sh.Sessions.Len() }); err != nil {
			t.Fatal(err)
		}
		return mapped, all
	}
	first := failover.Known{All: true}
	g.serving(1, 5, true, first, func() {})
	const fresh = 300
	for n := range fresh {
		if err := g.workers[0].Do(t.Context(), func(sh *pipeline.Shard) {
			slots := make([]pipeline.Slot, 1)
			s := &slots[0]
			s.Buf, s.Off, s.Port = make([]byte, 2048), 256, 1
			s.Len = copy(s.Buf[s.Off:], conversation(t, uint16(2000+n)))
			sh.Process(slots, g.clock.Now())
		}); err != nil {
			t.Fatal(err)
		}
	}
	if mapped, all := count(); mapped != fresh || all != walkPer+fresh {
		t.Fatalf("%d mappings, %d sessions", mapped, all)
	}
	for _, k := range []struct {
		epoch uint64
		known failover.Known
		left  int
	}{{7, failover.Known{All: true}, fresh}, {9, failover.Known{Last: bootTime()}, fresh}, {11, failover.Known{Last: bootTime() - failover.Time(time.Hour)}, 0}} {
		g.serving(1, k.epoch-1, false, failover.Known{}, func() {})
		g.serving(1, k.epoch, true, k.known, func() {})
		ok := false
		var mapped, all int
		for end := time.Now().Add(10 * time.Second); !ok && time.Now().Before(end); time.Sleep(time.Millisecond) {
			mapped, all = count()
			ok = all == walkPer+k.left
		}
		if !ok {
			t.Errorf("epoch %d, %+v: %d mappings, %d sessions, want %d with a port", k.epoch, k.known, mapped, all, k.left)
		}
	}
}

// conversation is the first packet of one, from a host of alpha.
func conversation(t *testing.T, port uint16) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{198, 18, 10, 7}, DstIP: net.IP{203, 0, 113, 11}}
	udp := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: 53}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{DstMAC: net.HardwareAddr{2, 2, 0, 0, 0, 0}, SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload("once")); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBlocksWaitLongerThanAStandbyCounts: a standby takes itself for one that knows all for so long after a digest; blocks must wait for its word for longer, by clocks that are off by 5 % each way, and where the owner
// hears of the digest a second later.
func TestBlocksWaitLongerThanAStandbyCounts(t *testing.T) {
	if d := failover.Default; guardRest*100/(100+failover.Skew) <= d.Waits*100/(100-failover.Skew)+d.MaxLag {
		t.Errorf("blocks wait for %s, and a standby counts %s", guardRest, d.Waits)
	}
}
