package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/configs/examples"
	"demarc/gateway/netlab"
)

// clientPolicy is the lab's policy with a line more in the translation of each tenant.
func clientPolicy(t testing.TB, alphaNAT, betaNAT string) string {
	t.Helper()
	b, err := examples.FS.ReadFile("lab.policy.toml")
	check(t, err)
	p := replace(t, string(b), `pool = ["192.0.2.16/28"]`, "pool = [\"192.0.2.16/28\"]\n"+alphaNAT)
	return replace(t, p, `pool = ["192.0.2.32/28"]`, "pool = [\"192.0.2.32/28\"]\n"+betaNAT)
}

func clientNode(t testing.TB) string {
	t.Helper()
	b, err := examples.FS.ReadFile("lab.node.toml")
	check(t, err)
	return string(b)
}

// Debian's STUN server with two addresses classifies the translation as RFC 5780 does: mapping endpoint-independent for both tenants, filtering
// as each tenant chose.
func TestClientsSTUN(t *testing.T) {
	mostlyWaits(t)
	const independent, address, both = "NAT with Endpoint Independent %s!", "NAT with Address Dependent %s!", "NAT with Address and Port Dependent %s!"
	type behaviour struct{ key, mapping, filtering string }
	for name, c := range map[string][2]behaviour{
		"defaults and open filtering": {{"", independent, both}, {`filtering = "endpoint-independent"`, independent, independent}},
		"by address, by everything":   {{`filtering = "address-dependent"`, independent, address}, {`mapping = "address-and-port-dependent"`, both, both}},
	} {
		t.Run(name, func(t *testing.T) {
			s := standard(t, netlab.Options{})
			s.write(clientNode(t), clientPolicy(t, c[0].key, c[1].key))
			s.start()
			second := "203.0.113.13"
			check(t, s.AddAddr(s.Public1.Name, netlab.HostDevice, prefix(second+"/24")))
			s.daemon(s.Public1.Name, "turnserver", "-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp", "--log-file", "stdout", "--simple-log",
				"--pidfile", filepath.Join(s.dir, "turn.pid"), "--db", filepath.Join(s.dir, "turndb"), "-L", s.Public1.V4.String(), "-L", second)
			s.listens(s.Public1.Name, "udp", "3478")
			var wg sync.WaitGroup
			for i, h := range s.clientHosts() {
				wg.Go(func() {
					out, err := s.Exec(h.Name, "turnutils_natdiscovery", "-m", "-f", s.Public1.V4.String())
					for _, want := range []string{fmt.Sprintf(c[i].mapping, "Mapping"), fmt.Sprintf(c[i].filtering, "Filtering")} {
						if err != nil || !strings.Contains(string(out), want) {
							t.Errorf("from %s: want %q: %v\n%s", h.Name, want, err, out)
						}
					}
				})
			}
			wg.Wait()
			s.stop()
		})
	}
}

// rtpFile is a capture of n RTP packets, 20 ms of G.711 each, for sipp to play.
func rtpFile(t testing.TB, file string, n int) {
	var b bytes.Buffer
	le := binary.LittleEndian
	b.Write(le.AppendUint32(le.AppendUint32(le.AppendUint32(le.AppendUint32([]byte{0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0}, 0), 0), 65535), 1))
	for i := range n {
		rtp := append([]byte{0x80, 8, 0, byte(i)}, make([]byte, 168)...)
		binary.BigEndian.PutUint32(rtp[4:], uint32(i*160))
		f := raw4([]byte{2, 0, 0, 0, 0, 1}, []byte{2, 0, 0, 0, 0, 2}, addr("198.18.0.1"), addr("198.18.0.2"), 17, 64, false, udp(6000, 6000, rtp), 6)
		for _, v := range []uint32{0, uint32(i * 20000), uint32(len(f)), uint32(len(f))} {
			b.Write(le.AppendUint32(nil, v))
		}
		b.Write(f)
	}
	check(t, os.WriteFile(file, b.Bytes(), 0o644))
}

// sipCaller is a caller that offers media, plays packets into the call and hangs up. %s is the file that it plays, %d for how long, ms.
const sipCaller = `<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="caller">
<send retrans="500"><![CDATA[

INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];rport;branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[call_number]
To: [service] <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: sip:caller@[local_ip]:[local_port]
Max-Forwards: 70
Content-Type: application/sdp
Content-Length: [len]

v=0
o=caller 1 1 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[local_ip_type] [local_ip]
t=0 0
m=audio [auto_media_port] RTP/AVP 8
a=rtpmap:8 PCMA/8000

]]></send>
<recv response="100" optional="true"></recv>
<recv response="180" optional="true"></recv>
<recv response="200" rtd="true" rrs="true"></recv>
<send><![CDATA[

ACK sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];rport;branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[call_number]
To: [service] <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Contact: sip:caller@[local_ip]:[local_port]
Max-Forwards: 70
Content-Length: 0

]]></send>
<nop><action><exec play_pcap_audio="%s"/></action></nop>
<pause milliseconds="%d"/>
<send retrans="500"><![CDATA[

BYE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];rport;branch=[branch]
From: caller <sip:caller@[local_ip]:[local_port]>;tag=[call_number]
To: [service] <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Contact: sip:caller@[local_ip]:[local_port]
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200" crlf="true"></recv>
</scenario>
`

// sipAnswerer answers calls and offers the given address for media.
const sipAnswerer = `<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="answerer">
<recv request="INVITE" crlf="true"></recv>
<send retrans="500"><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:];tag=[pid]SIPpTag01[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:%[1]s:5060;transport=[transport]>
Content-Type: application/sdp
Content-Length: [len]

v=0
o=answerer 1 1 IN IP4 %[1]s
s=-
c=IN IP4 %[1]s
t=0 0
m=audio 6000 RTP/AVP 8
a=rtpmap:8 PCMA/8000

]]></send>
<recv request="ACK" crlf="true"></recv>
<recv request="BYE"></recv>
<send><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

]]></send>
</scenario>
`

// sipServer answers calls in a namespace and sends back what media it gets. shown is the address that it is known by.
func (s *site) sipServer(h netlab.Host, shown string) {
	s.t.Helper()
	scenario := filepath.Join(s.dir, h.Name+"-answerer.xml")
	check(s.t, os.WriteFile(scenario, fmt.Appendf(nil, sipAnswerer, shown), 0o644))
	s.daemon(h.Name, "sipp", "-sf", scenario, "-rtp_echo", "-nostdin", "-i", h.V4.String(), "-p", "5060", "-mi", h.V4.String(), "-mp", "6000")
	s.listens(h.Name, "udp", "5060")
	s.listens(h.Name, "udp", "6000")
}

// sipCalls places calls from a host and holds what came of them: all complete, and every RTP packet that was played came back to the port
// that it was played from.
func (s *site) sipCalls(h netlab.Host, to string, calls, packets int, missed func(format string, args ...any)) {
	media, scenario, stat := filepath.Join(s.dir, h.Name+".pcap"), filepath.Join(s.dir, h.Name+".xml"), filepath.Join(s.dir, h.Name+".csv")
	rtpFile(s.t, media, packets)
	// An offer of many candidates makes an INVITE of two fragments, as people's telephones do.
	caller := strings.Replace(sipCaller, "a=rtpmap:8 PCMA/8000\n", "a=rtpmap:8 PCMA/8000\n"+strings.Repeat("a=candidate:1 1 UDP 2130706431 192.0.2.200 10000 typ host\n", 30), 1)
	if err := os.WriteFile(scenario, fmt.Appendf(nil, caller, media, packets*20+300), 0o644); err != nil {
		s.t.Error(err)
		return
	}
	var out, back atomic.Int64
	ports := map[uint16]int{} // of the caller; the capture's goroutine alone
	s.capture(h.Name, netlab.HostDevice, 1, func(f []byte) bool {
		if len(f) < 42+172 || f[12] != 8 || f[23] != 17 {
			return false
		}
		switch src, dst := binary.BigEndian.Uint16(f[34:]), binary.BigEndian.Uint16(f[36:]); {
		case dst == 6000 && bytes.Equal(f[26:30], h.V4.AsSlice()):
			ports[src]++
			out.Add(1)
		case src == 6000 && ports[dst] > 0:
			ports[dst]--
			back.Add(1)
		}
		return false
	})
	said, err := s.Exec(h.Name, "sipp", "-sf", scenario, "-nostdin", "-i", h.V4.String(), "-p", "5060", "-mi", h.V4.String(), "-mp", "10000", "-r", "40", "-m", fmt.Sprint(calls),
		"-timeout", "30s", "-timeout_error", "-trace_stat", "-stf", stat, "-s", "echo", to+":5060")
	if err != nil {
		s.t.Errorf("sipp in %s: %v\n%s", h.Name, err, said[max(0, len(said)-1500):])
		return
	}
	ok, failed, again := sippFigures(s.t, stat)
	until(2*time.Second, func() bool { return back.Load() >= int64(calls*packets) })
	s.t.Logf("%s: %s calls, %s failed, %s retransmissions; RTP out %d, back %d", h.Name, ok, failed, again, out.Load(), back.Load())
	if ok != fmt.Sprint(calls) || failed != "0" || out.Load() != int64(calls*packets) {
		s.t.Errorf("%s: want %d calls and %d RTP packets each way", h.Name, calls, calls*packets)
	} else if back.Load() != out.Load() {
		missed("%s: %d of %d RTP packets came back", h.Name, back.Load(), out.Load())
	}
}

// SIP with RTP through the translation, without anything that knows SIP, from a host of each tenant to one answering outside.
func TestClientsSIP(t *testing.T) {
	s := standard(t, netlab.Options{})
	s.start()
	s.sipServer(s.Public1, s.Public1.V4.String())
	s.judged(s.clientHosts(), func(h netlab.Host, missed func(format string, args ...any)) {
		s.sipCalls(h, s.Public1.V4.String(), 60, 25, missed)
	})
	s.stop()
}

// The other way: calls from outside, and from the other tenant, to an exchange behind forwarded ports that knows its public address.
func TestClientsSIPToAForward(t *testing.T) {
	s := standard(t, netlab.Options{})
	forwards, rule := "", ""
	for _, port := range []string{"5060", "6000"} {
		forwards += "\n[[tenant.nat.forward]]\npublic = \"192.0.2.17\"\nproto = \"udp\"\nport = " + port + "\ninside = \"198.18.10.11\"\n"
	}
	rule = "[[tenant.rule]]\nname = \"exchange\"\ndirection = \"in\"\naction = \"allow\"\nto = [\"198.18.10.11\"]\nservice = [\"udp/5060\", \"udp/6000\"]\n\n"
	policy := replace(t, clientPolicy(t, forwards, ""), "# ---- beta:", rule+"# ---- beta:")
	s.write(clientNode(t), policy)
	s.start()
	s.sipServer(s.Alpha1, "192.0.2.17")
	s.judged([]netlab.Host{s.Public1, s.Beta1}, func(h netlab.Host, missed func(format string, args ...any)) {
		s.sipCalls(h, "192.0.2.17", 40, 25, missed)
	})
	s.stop()
}

// sippFigures reads the last line of a statistics file.
func sippFigures(t testing.TB, file string) (ok, failed, again string) {
	t.Helper()
	f, err := os.Open(file)
	check(t, err)
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.FieldsPerRecord = ';', -1
	rows, err := r.ReadAll()
	check(t, err)
	last := map[string]string{}
	for i, name := range rows[0] {
		if i < len(rows[len(rows)-1]) {
			last[name] = rows[len(rows)-1][i]
		}
	}
	return last["SuccessfulCall(C)"], last["FailedCall(C)"], last["Retransmissions(C)"]
}
