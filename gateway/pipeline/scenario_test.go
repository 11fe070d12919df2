package pipeline

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/configs"
	"demarc/gateway/verdict"
)

// A scenario is a file of sections, "-- name --" before each (the form of txtar): policy.toml, and steps, one a line:
//
//	in PORT[.VLAN] PACKET     a frame comes in; the next line says what becomes of it:
//	out PORT[.VLAN] PACKET    it leaves like this; what is not written is not compared. $x is whatever it is, and the same from then on
//	drop REASON
//	queued
//	wait DURATION
//	serve GROUP DURATION      this node serves the group for so long from now; without a duration not any more
//	sessions N                so many are there
//
// PACKET is PROTO SRC > DST with words after it: ttl=, len= (payload bytes), tos=, df, flags= (of SAFR), ack=, mss=, id= (echo),
// type=TYPE/CODE and mtu= (ICMP errors), to= (came in to the virtual MAC of that group), from= (left from it; 0: the port's own), and last "quote"
// with the packet quoted. Each scenario runs with one worker and with three.
type scenarioPacket struct {
	port              string
	vlan              int
	proto             string
	src, dst          string // address
	sport, dport      string
	ttl, size, tos    int
	mss, id, mtu, typ int
	to, from          int // groups
	df                bool
	flags             string
	ack               int
	quote             *scenarioPacket
}

const unsaid = -1

func parseScenarioPacket(line string) (p *scenarioPacket, err error) {
	p = &scenarioPacket{ttl: unsaid, size: unsaid, tos: unsaid, mss: unsaid, id: unsaid, mtu: unsaid, typ: unsaid, to: unsaid, from: unsaid}
	body, quote, quoted := strings.Cut(line, " quote ")
	w := strings.Fields(body)
	if len(w) < 4 || w[2] != ">" {
		return nil, fmt.Errorf("%q: want PROTO SRC > DST", line)
	}
	p.proto = w[0]
	p.src, p.sport = splitPort(w[1])
	p.dst, p.dport = splitPort(w[3])
	for _, o := range w[4:] {
		k, v, _ := strings.Cut(o, "=")
		to := map[string]*int{"ttl": &p.ttl, "len": &p.size, "tos": &p.tos, "mss": &p.mss, "id": &p.id, "mtu": &p.mtu, "ack": &p.ack, "to": &p.to, "from": &p.from}[k]
		switch {
		case to != nil:
			if *to, err = strconv.Atoi(v); err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
		case k == "df":
			p.df = true
		case k == "flags":
			p.flags = v
		case k == "type":
			var t, c int
			if _, err := fmt.Sscanf(v, "%d/%d", &t, &c); err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			p.typ = t<<8 | c
		default:
			return nil, fmt.Errorf("%q: no such word %q", line, o)
		}
	}
	if quoted {
		p.quote, err = parseScenarioPacket(quote)
	}
	return p, err
}

// splitPort takes "a:p", "[a]:p" and "a" apart; p may be a variable.
func splitPort(s string) (addr, port string) {
	if i := strings.LastIndex(s, "]:"); i > 0 {
		return s[1:i], s[i+2:]
	}
	if strings.Count(s, ":") == 1 {
		addr, port, _ = strings.Cut(s, ":")
		return addr, port
	}
	return s, ""
}

func number(t testing.TB, s string, vars map[string]string) uint16 {
	t.Helper()
	if v, ok := vars[s]; ok {
		s = v
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil && s != "" {
		t.Fatalf("port %q: %v", s, err)
	}
	return uint16(n)
}

// groupMAC is the virtual MAC of a group for a family.
func groupMAC(id int, v6 bool) [6]byte {
	v4mac, v6mac := (&configs.Group{ID: id}).MACs()
	if v6 {
		return v6mac
	}
	return v4mac
}

// build makes the frame, or with mac nil the IP packet alone.
func (p *scenarioPacket) build(t testing.TB, vars map[string]string, port int) []byte {
	t.Helper()
	ttl, tos := 64, 0
	if p.ttl != unsaid {
		ttl = p.ttl
	}
	if p.tos != unsaid {
		tos = p.tos
	}
	src, err := netip.ParseAddr(p.src)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := netip.ParseAddr(p.dst)
	if err != nil {
		t.Fatal(err)
	}
	v6 := src.Is6()
	proto := map[string]layers.IPProtocol{"udp": layers.IPProtocolUDP, "tcp": layers.IPProtocolTCP, "gre": layers.IPProtocolGRE, "icmp": layers.IPProtocolICMPv4, "echo": layers.IPProtocolICMPv4,
		"reply": layers.IPProtocolICMPv4}[p.proto]
	if v6 && proto == layers.IPProtocolICMPv4 {
		proto = layers.IPProtocolICMPv6
	}
	mac := macs[port]
	if p.to != unsaid {
		mac = groupMAC(p.to, v6)
	}
	var ls []gopacket.SerializableLayer
	if v6 {
		ls = append(ls, eth(mac, layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: uint8(ttl), TrafficClass: uint8(tos), NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()})
	} else {
		ip := &layers.IPv4{Version: 4, TTL: uint8(ttl), TOS: uint8(tos), SrcIP: src.AsSlice(), DstIP: dst.AsSlice(), Protocol: proto}
		if p.df {
			ip.Flags = layers.IPv4DontFragment
		}
		ls = append(ls, eth(mac, layers.EthernetTypeIPv4), ip)
	}
	payload := make([]byte, max(p.size, 4))
	if p.size != unsaid {
		payload = payload[:p.size]
	}
	switch p.proto {
	case "udp":
		ls = append(ls, udp(number(t, p.sport, vars), number(t, p.dport, vars)))
	case "tcp":
		tc := &layers.TCP{SrcPort: layers.TCPPort(number(t, p.sport, vars)), DstPort: layers.TCPPort(number(t, p.dport, vars)), Window: 65535, Seq: 1000, Ack: uint32(p.ack),
			SYN: strings.Contains(p.flags, "S"), ACK: strings.Contains(p.flags, "A"), FIN: strings.Contains(p.flags, "F"), RST: strings.Contains(p.flags, "R")}
		if p.mss != unsaid {
			tc.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{byte(p.mss >> 8), byte(p.mss)}}}
		}
		if ls, payload = append(ls, tc), payload[:max(p.size, 0)]; p.size == unsaid {
			payload = nil
		}
	case "echo", "reply", "icmp":
		typ := max(p.typ, 0)
		switch {
		case p.proto == "icmp":
		case v6:
			typ = map[string]int{"echo": 128, "reply": 129}[p.proto] << 8
		default:
			typ = map[string]int{"echo": 8, "reply": 0}[p.proto] << 8
		}
		var quoted []byte
		if p.quote != nil {
			quoted = p.quote.build(t, vars, 0)[14:]
		}
		rest := []byte{byte(max(p.id, 0) >> 8), byte(max(p.id, 0)), 0, 1}
		if p.proto == "icmp" {
			rest = []byte{0, 0, byte(max(p.mtu, 0) >> 8), byte(max(p.mtu, 0))}
		}
		payload = append(append(rest, quoted...), payload...)
		if p.quote != nil {
			payload = payload[:4+len(quoted)]
		}
		if v6 {
			ls = append(ls, &layers.ICMPv6{TypeCode: layers.ICMPv6TypeCode(typ)})
		} else {
			ls = append(ls, &layers.ICMPv4{TypeCode: layers.ICMPv4TypeCode(typ), Id: binary.BigEndian.Uint16(payload), Seq: binary.BigEndian.Uint16(payload[2:])})
			payload = payload[4:]
		}
	}
	return frame(t, append(ls, gopacket.Payload(payload))...)
}

// readScenarioPacket reads what left; gopacket must find no fault in it.
func readScenarioPacket(t testing.TB, b []byte, first gopacket.Decoder, whole bool) *scenarioPacket {
	t.Helper()
	g := gopacket.NewPacket(b, first, gopacket.Default)
	if e := g.ErrorLayer(); e != nil && whole {
		t.Fatalf("%v: %x", e.Error(), b)
	}
	p := &scenarioPacket{mss: unsaid, id: unsaid, mtu: unsaid, typ: unsaid, size: len(b)}
	for _, l := range g.Layers() {
		switch x := l.(type) {
		case *layers.Dot1Q:
			p.vlan = int(x.VLANIdentifier)
		case *layers.IPv4:
			p.src, p.dst, p.ttl, p.tos, p.df = x.SrcIP.String(), x.DstIP.String(), int(x.TTL), int(x.TOS), x.Flags&layers.IPv4DontFragment != 0
			p.proto = strings.ToLower(x.Protocol.String())
			if whole && x.Protocol != layers.IPProtocolGRE {
				readWire(t, b) // every checksum in full
			}
		case *layers.IPv6:
			p.src, p.dst, p.ttl, p.tos = x.SrcIP.String(), x.DstIP.String(), int(x.HopLimit), int(x.TrafficClass)
		case *layers.UDP:
			p.proto, p.sport, p.dport = "udp", strconv.Itoa(int(x.SrcPort)), strconv.Itoa(int(x.DstPort))
		case *layers.TCP:
			p.proto, p.sport, p.dport = "tcp", strconv.Itoa(int(x.SrcPort)), strconv.Itoa(int(x.DstPort))
			for _, o := range x.Options {
				if o.OptionType == layers.TCPOptionKindMSS {
					p.mss = int(binary.BigEndian.Uint16(o.OptionData))
				}
			}
		case *layers.ICMPv4:
			p.proto, p.typ, p.id, p.mtu = "icmp", int(x.TypeCode), int(x.Id), int(x.Seq)
			switch x.TypeCode.Type() {
			case 8:
				p.proto = "echo"
			case 0:
				p.proto = "reply"
			default:
				p.quote = readScenarioPacket(t, x.Payload, layers.LayerTypeIPv4, false)
			}
		case *layers.ICMPv6:
			p.proto, p.typ = "icmp", int(x.TypeCode)
			p.mtu = int(binary.BigEndian.Uint32(x.Payload))
			if x.TypeCode.Type() < 128 {
				p.quote = readScenarioPacket(t, x.Payload[4:], layers.LayerTypeIPv6, false)
			}
		}
	}
	if p.proto == "" && p.quote == nil && len(b) >= 28 { // a quote that ends in the transport header
		at := 20
		if b[0]>>4 == 6 {
			at = 40
		}
		p.proto, p.sport, p.dport = "", strconv.Itoa(int(binary.BigEndian.Uint16(b[at:]))), strconv.Itoa(int(binary.BigEndian.Uint16(b[at+2:])))
	}
	return p
}

// differs compares what p says with got, and binds variables.
func (p *scenarioPacket) differs(got *scenarioPacket, vars map[string]string) string {
	same := func(want, have string) bool {
		if strings.HasPrefix(want, "$") {
			if v, ok := vars[want]; ok {
				return v == have
			}
			vars[want] = have
			return true
		}
		return want == "" || want == have
	}
	num := func(want, have int) bool { return want == unsaid || want == have }
	addr := func(a string) string {
		if x, err := netip.ParseAddr(a); err == nil {
			return x.String()
		}
		return a
	}
	switch {
	case got.proto != "" && p.proto != got.proto:
		return "proto " + got.proto
	case addr(p.src) != got.src || !same(p.sport, got.sport):
		return "source " + got.src + " port " + got.sport
	case addr(p.dst) != got.dst || !same(p.dport, got.dport):
		return "destination " + got.dst + " port " + got.dport
	case !num(p.ttl, got.ttl) || !num(p.tos, got.tos) || !num(p.mss, got.mss) || !num(p.id, got.id) || !num(p.mtu, got.mtu) || !num(p.typ, got.typ):
		return fmt.Sprintf("ttl %d tos %d mss %d id %d mtu %d type %d/%d", got.ttl, got.tos, got.mss, got.id, got.mtu, got.typ>>8, got.typ&255)
	case p.quote != nil && got.quote == nil:
		return "no quote"
	case p.quote != nil:
		if d := p.quote.differs(got.quote, vars); d != "" {
			return "quotes " + d
		}
	}
	return ""
}

func sections(text string) map[string]string {
	out, name := map[string]string{}, ""
	for line := range strings.Lines(text) {
		if s := strings.TrimSpace(line); strings.HasPrefix(s, "-- ") && strings.HasSuffix(s, " --") {
			name = s[3 : len(s)-3]
			continue
		}
		out[name] += line
	}
	return out
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			for _, workers := range []int{1, 3} {
				t.Run(strconv.Itoa(workers), func(t *testing.T) { runScenario(t, workers, sections(string(text))) })
			}
		})
	}
}

func runScenario(t *testing.T, workers int, s map[string]string) {
	policy := s["policy.toml"]
	if policy == "" {
		policy = testPolicy
	}
	w := newWorld(t, workers, policy)
	for id := range 256 {
		w.until.Write(uint8(id), 1, 0)
	}
	ports := map[string]int{"bb0": 0, "t0": 1, "u0": 2}
	vars := map[string]string{}
	var last *hop
	n := 0
	for line := range strings.Lines(s["steps"]) {
		n++
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("step %d, %q: %s", n, line, fmt.Sprintf(format, args...))
		}
		if line == "" || line[0] == '#' {
			continue
		}
		switch verb {
		case "in", "out":
			where, desc, _ := strings.Cut(rest, " ")
			name, tag, _ := strings.Cut(where, ".")
			port, ok := ports[name]
			p, err := parseScenarioPacket(desc)
			if err != nil || !ok {
				fail("%v", err)
			}
			if tag != "" {
				p.vlan = int(number(t, tag, nil))
			}
			if verb == "in" {
				if last != nil {
					fail("nothing was said of the packet before")
				}
				f := p.build(t, vars, port)
				if p.vlan != 0 {
					f = tagged(f, uint16(p.vlan))
				}
				hops := w.carry(n%workers, port, false, false, f)
				last = &hops[len(hops)-1]
				continue
			}
			if last == nil || last.verdict != verdict.Send {
				fail("%+v", last)
			}
			got := readScenarioPacket(t, last.frame, layers.LayerTypeEthernet, true)
			if int(last.port) != port || got.vlan != p.vlan {
				fail("left on port %d vlan %d", last.port, got.vlan)
			}
			if d := p.differs(got, vars); d != "" {
				fail("%s (variables %v)", d, maps.Clone(vars))
			}
			if from := [6]byte(last.frame[6:12]); p.from == 0 && from != macs[port] || p.from > 0 && from != groupMAC(p.from, strings.Contains(p.src, ":")) {
				fail("left from %x", from)
			}
			last = nil
		case "drop":
			if last == nil || last.verdict != verdict.Drop || last.reason.String() != rest {
				fail("%s (%s)", last.verdict, last.reason)
			}
			last = nil
		case "queued":
			if last == nil || last.verdict != verdict.Queue {
				fail("%s (%s)", last.verdict, last.reason)
			}
			last = nil
		case "serve":
			name, dur, _ := strings.Cut(rest, " ")
			until := uint64(0)
			if dur != "" {
				d, err := time.ParseDuration(dur)
				if err != nil {
					fail("%v", err)
				}
				until = w.now + uint64(d)
			}
			w.until.Write(uint8(number(t, name, nil)), 1, until)
		case "sessions":
			have := 0
			for _, sh := range w.shards {
				have += sh.Sessions.Len()
			}
			if strconv.Itoa(have) != rest {
				fail("there are %d", have)
			}
		case "wait":
			d, err := time.ParseDuration(rest)
			if err != nil {
				fail("%v", err)
			}
			for end := w.now + uint64(d); w.now < end; {
				w.now = min(end, w.now+uint64(time.Second))
				for _, sh := range w.shards {
					sh.Maintain(w.now, 1<<16)
				}
			}
		default:
			fail("no such step")
		}
	}
	if last != nil {
		t.Fatal("nothing was said of the last packet")
	}
	w.whole()
}
