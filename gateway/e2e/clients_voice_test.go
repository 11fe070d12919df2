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

// SIP with RTP through the translation, without anything that knows SIP: calls of sipp from a host of each tenant to one answering outside.
// Every call completes, and every RTP packet that was played comes back to the port that it was played from.
func TestClientsSIP(t *testing.T) {
	const calls, packets = 60, 25
	s := standard(t, netlab.Options{})
	s.start()
	s.daemon(s.Public1.Name, "sipp", "-sn", "uas", "-rtp_echo", "-nostdin", "-i", s.Public1.V4.String(), "-p", "5060", "-mi", s.Public1.V4.String(), "-mp", "6000")
	s.listens(s.Public1.Name, "udp", "5060")
	s.listens(s.Public1.Name, "udp", "6000")
	media := filepath.Join(s.dir, "media.pcap")
	rtpFile(t, media, packets)
	scenario := filepath.Join(s.dir, "caller.xml")
	check(t, os.WriteFile(scenario, fmt.Appendf(nil, sipCaller, media, packets*20+300), 0o644))
	s.each(func(h netlab.Host) {
		var out, back atomic.Int64
		ports := map[uint16]int{} // of the inside host; the capture's goroutine alone
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
		stat := filepath.Join(s.dir, h.Name+".csv")
		said, err := s.Exec(h.Name, "sipp", "-sf", scenario, "-nostdin", "-i", h.V4.String(), "-p", "5060", "-mi", h.V4.String(), "-mp", "10000", "-r", "40", "-m", fmt.Sprint(calls),
			"-timeout", "30s", "-timeout_error", "-trace_stat", "-stf", stat, "-s", "echo", s.Public1.V4.String()+":5060")
		if err != nil {
			t.Errorf("sipp in %s: %v\n%s", h.Name, err, said[max(0, len(said)-1500):])
			return
		}
		ok, failed, again := sippFigures(t, stat)
		until(2*time.Second, func() bool { return back.Load() >= calls*packets })
		t.Logf("%s: %s calls, %s failed, %s retransmissions; RTP out %d, back %d", h.Name, ok, failed, again, out.Load(), back.Load())
		if ok != fmt.Sprint(calls) || failed != "0" || out.Load() != calls*packets || back.Load() != out.Load() {
			t.Errorf("%s: want %d calls and %d RTP packets each way", h.Name, calls, calls*packets)
		}
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
