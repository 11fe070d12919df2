package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/judge"
	"demarc/gateway/netlab/roottest"
	nodes "demarc/gateway/trio"
)

// What the judge of the pair is given comes from the ports of real switches: frames that are sent from where the gateways' ports are, without any gateway, and with
// each offence among them. So a pair in which nothing is found was looked at.
func TestPairJudgeOnTheWire(t *testing.T) {
	roottest.Require(t)
	p, err := nodes.NewPair(nodes.Options{Lab: "pairjudge", Dir: t.TempDir(), Binary: program(t)}, 2)
	check(t, err)
	t.Cleanup(func() {
		check(t, p.Close())
		nothingLeft(t, p.Name())
	})
	s := &site{Topology: &netlab.Topology{Lab: p.Lab}, t: t}
	group := net.HardwareAddr{0, 0, 0x5e, 0, 1, nodes.PairGroupID}
	own := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	inside, outside := p.Inside("alpha", false), p.Outside(false)
	send := map[string]func([]byte) error{}
	for _, n := range p.Gateways() {
		for _, d := range p.Devices() {
			send[n.Name+d] = s.rawFrames(n.Name, d)
		}
	}
	// A flow's packet of port 20000+host, as the gateway sends it.
	frame := func(src net.HardwareAddr, h int, public uint16, reply bool) []byte {
		m := host.FlowMark{Tag: "alpha", Flow: h, Reply: reply, Inside: netipPort(inside, 20000+h)}
		udp := make([]byte, 8+64)
		m.Put(udp[8:])
		binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
		from, to := addr("198.51.100.16"), outside
		binary.BigEndian.PutUint16(udp, public)
		binary.BigEndian.PutUint16(udp[2:], nodes.PairFlowPort)
		if reply {
			from, to = outside, inside
			binary.BigEndian.PutUint16(udp, nodes.PairFlowPort)
			binary.BigEndian.PutUint16(udp[2:], public)
		}
		return raw4(net.HardwareAddr{255, 255, 255, 255, 255, 255}, src, from, to, 17, 63, false, udp, 6)
	}
	for _, c := range []struct {
		name string
		do   func()
		want []judge.Kind
	}{
		{"one after the other", func() {
			for range 3 {
				check(t, send["gw1wan0"](frame(group, 0, 1024, false)))
			}
			time.Sleep(120 * time.Millisecond)
			check(t, send["gw2wan0"](frame(group, 0, 1024, false)))
			check(t, send["gw2alpha0"](frame(group, 0, 20000, true)))
			check(t, send["gw1wan0"](frame(own, 0, 1024, false))) // with its own address: its own matter
		}, nil},
		{"both, by way of two switches", func() {
			check(t, send["gw2wan0"](frame(group, 0, 1024, false)))
			check(t, send["gw1alpha0"](frame(group, 0, 20000, true)))
			check(t, send["gw2wan0"](frame(group, 0, 1024, false)))
		}, []judge.Kind{judge.Both}},
		{"another's binding", func() { check(t, send["gw1alpha0"](frame(group, 1, 20000, true))) }, []judge.Kind{judge.Binding}},
		{"a port with two hosts", func() {
			check(t, send["gw1wan0"](frame(group, 0, 1024, false)))
			check(t, send["gw1wan0"](frame(group, 1, 1024, false)))
		}, []judge.Kind{judge.Port}},
	} {
		check(t, p.Watch())
		if err := p.Watch(); err == nil {
			t.Error("a pair that is watched is watched again")
		}
		c.do()
		v, err := p.Judge()
		check(t, err)
		var got []judge.Kind
		for _, o := range v.Offences {
			got = append(got, o.Kind)
		}
		if !slices.Equal(got, c.want) || v.Frames == 0 || v.Marked != v.Frames {
			t.Errorf("%s: found %v, want %v; %d frames, %d of flows", c.name, v.Offences, c.want, v.Frames, v.Marked)
		}
	}
}

func netipPort(a netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(a, uint16(port)) }
