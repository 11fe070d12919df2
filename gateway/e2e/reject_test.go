package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
)

// rejectPolicy is the rig's policy with alpha refusing some of what goes out; keys go to the tenant.
func rejectPolicy(t testing.TB, keys string) string {
	policy := rigPolicy(rigNATRules+`
[[tenant.rule]]
name = "refused"
direction = "out"
action = "deny"
service = ["tcp/81", "udp/81", "udp/33434-33534"]
[[tenant.rule]]
name = "no-ping"
direction = "out"
action = "deny"
to = ["203.0.113.12", "2001:db8:ff::12"]
service = ["icmp", "icmpv6"]
[[tenant.rule]]
name = "told"
direction = "out"
action = "reject"
service = ["tcp/82"]
`, "")
	return replace(t, policy, `prefixes = ["198.18.10.0/24", "`+netlab.AlphaNet6+`"]`, `prefixes = ["198.18.10.0/24", "`+netlab.AlphaNet6+"\"]\n"+keys)
}

// What people see of a refusal: curl, ping and traceroute inside say so at once where the tenant wants that, and wait in vain where it does not. No
// route and a next hop that is off they are told in any case. Outside there is nothing to be heard, and nothing on the wire either.
func TestRejectRealClients(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "reject", rejectPolicy(t, ""))
	r.start()
	var unreachables, resets atomic.Int64
	if _, err := r.Capture(r.Public1.Name, netlab.HostDevice, 0, func(f []byte) bool {
		if len(f) > 54 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == 1 && f[34] == 3 || len(f) > 62 && f[12] == 0x86 && f[20] == 58 && f[54] == 1 {
			unreachables.Add(1)
		}
		if len(f) > 54 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == 6 && f[47]&4 != 0 {
			resets.Add(1)
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	dial := func(ns, network, dst string, wait time.Duration) (err error) {
		if e := r.Do(ns, func() error {
			c, e := net.DialTimeout(network, dst, wait)
			if err = e; c != nil {
				c.Close()
			}
			return nil
		}); e != nil {
			t.Fatal(e)
		}
		return err
	}
	// say is what a tool prints, errors included.
	say := func(ns string, args ...string) string {
		out, err := r.Exec(ns, args[0], args[1:]...)
		return fmt.Sprintf("%s %v", out, err)
	}
	told := func(what string, got error, want error) {
		t.Helper()
		if got == nil || !strings.Contains(got.Error(), want.Error()) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	silent := func(what string, got error) {
		t.Helper()
		var ne net.Error
		if e, ok := got.(net.Error); ok {
			ne = e
		}
		if ne == nil || !ne.Timeout() {
			t.Errorf("%s: %v, want nothing until the time is up", what, got)
		}
	}
	p1, p2 := r.Public1, r.Public2
	a := r.Alpha1.Name
	for _, c := range []struct {
		keys      string
		deny, rej error // of TCP; nil = silence
	}{
		{"", nil, unix.EHOSTUNREACH}, {`reject = "icmp"`, unix.EHOSTUNREACH, unix.EHOSTUNREACH}, {`reject = "reset"`, unix.ECONNREFUSED, unix.ECONNREFUSED},
	} {
		r.apply(rejectPolicy(t, c.keys))
		six := func(err error) error {
			if err == unix.EHOSTUNREACH {
				return unix.EACCES // what Linux makes of ICMPv6 type 1 code 1
			}
			return err
		}
		for _, x := range []struct {
			dst  string
			want error
		}{{addrPort(p1.V4, 81), c.deny}, {addrPort(p1.V6, 81), six(c.deny)}, {addrPort(p1.V4, 82), c.rej}, {addrPort(p1.V6, 82), six(c.rej)}} {
			if x.want == nil {
				silent(c.keys+" TCP to "+x.dst, dial(a, "tcp", x.dst, 300*time.Millisecond))
			} else {
				told(c.keys+" TCP to "+x.dst, dial(a, "tcp", x.dst, 5*time.Second), x.want)
			}
		}
		begun := time.Now()
		// Who is told waits for no time to be up. A SYN is answered within microseconds: curl may still have its socket, as when the machine is elsewhere just then, and Linux ends a connection only by the error to a
		// further SYN then, a second later.
		patience := "5"
		if c.deny == nil {
			patience = "1"
		}
		var curl, ping, ping6, trace string
		var wg sync.WaitGroup
		for out, args := range map[*string][]string{
			&curl: {"curl", "-sS", "--max-time", patience, "http://" + addrPort(p1.V4, 81)}, &ping: {"ping", "-n", "-c", "1", "-W", patience, p2.V4.String()},
			&ping6: {"ping", "-n", "-c", "1", "-W", patience, p2.V6.String()}, &trace: {"traceroute", "-n", "-q", "1", "-w", patience, "-m", "1", "-U", "-p", "33434", p1.V4.String()},
		} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				*out = say(a, args...)
			}()
		}
		wg.Wait()
		t.Logf("%q: %v\n%s\n%s\n%s\n%s", c.keys, time.Since(begun).Round(time.Millisecond), curl, ping, ping6, trace)
		if c.deny == nil {
			for tool, out := range map[string]string{"curl": curl, "ping": ping, "ping6": ping6, "traceroute": trace} {
				for _, word := range []string{"ilter", "rohibited", "!X", "refused", "No route"} {
					if strings.Contains(out, word) {
						t.Errorf("silent, and %s says %s", tool, out)
					}
				}
			}
			continue
		}
		want := "Couldn't connect" // curl's word for either
		if !strings.Contains(curl, want) && !strings.Contains(curl, "onnection refused") && !strings.Contains(curl, "No route") {
			t.Errorf("curl: %s", curl)
		}
		for tool, x := range map[string][2]string{"ping": {ping, "Packet filtered"}, "ping6": {ping6, "rohibited"}, "traceroute": {trace, "!X"}} {
			if !strings.Contains(x[0], x[1]) {
				t.Errorf("%s does not say %q: %s", tool, x[1], x[0])
			}
		}
	}
	// No route; and next hops that nobody has, three of them at once, since each takes three questions.
	r.apply(rejectPolicy(t, ""))
	told("no route", dial(a, "tcp", "198.51.100.9:80", 3*time.Second), unix.ENETUNREACH)
	told("no route", dial(a, "tcp", "[2001:db8:77::9]:80", 3*time.Second), unix.ENETUNREACH)
	var wg sync.WaitGroup
	begun := time.Now()
	for _, x := range []struct{ ns, dst string }{{a, "203.0.113.99:80"}, {a, "[2001:db8:ff::99]:80"}, {r.Beta1.Name, "203.0.113.98:80"}} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			told("nobody at "+x.dst, dial(x.ns, "tcp", x.dst, 8*time.Second), unix.EHOSTUNREACH)
		}()
	}
	wg.Wait()
	t.Logf("next hops that nobody has: %v", time.Since(begun).Round(time.Millisecond))
	if out := say(a, "ping", "-n", "-c", "1", "-W", "5", "203.0.113.99"); !strings.Contains(out, "From 198.18.10.1") || !strings.Contains(out, "Destination Host Unreachable") {
		t.Errorf("ping: %s", out)
	}
	// From outside, to whatever: rules, unused ports, no mapping, and an inside host that is off.
	r.apply(rejectPolicy(t, `reject = "reset"`))
	unreachables.Store(0)
	resets.Store(0)
	out := []string{"192.0.2.16:81", "192.0.2.17:22", "198.18.10.11:80", "198.51.100.9:80", "[2001:db8:a::11]:81"}
	for _, dst := range out {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := dial(p1.Name, "tcp", dst, time.Second)
			if dst == "198.51.100.9:80" || dst == "198.18.10.11:80" { // the host itself has no route there
				return
			}
			silent("from outside to "+dst, err)
		}()
	}
	wg.Wait()
	if u, n := unreachables.Load(), resets.Load(); u != 0 || n != 0 {
		t.Errorf("outside came %d unreachables and %d resets", u, n)
	}
	st := r.status()
	al := rigTenantOf(st, "alpha")
	if al.ICMPErrors.Sent == 0 || al.Drops["no_route"] == 0 || al.Drops["no_neighbor"] == 0 || al.Drops["acl_deny"] == 0 {
		t.Errorf("errors %+v, drops %v", al.ICMPErrors, al.Drops)
	}
	if st.Backbone.ICMPErrors.Sent != 0 {
		t.Errorf("%d errors towards the backbone", st.Backbone.ICMPErrors.Sent)
	}
}
