package configs

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A route has one next hop or a list of them; what cannot be meant is refused with its line.
func TestNextHopsOfARoute(t *testing.T) {
	head := "schema = 1\n[backbone]\ninterfaces = [\"wan\", \"sat\"]\n[[route]]\n"
	for _, c := range []struct {
		name, route string
		want        []string // next hops
		bad         string   // part of the one error
	}{
		{"one", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"", []string{"203.0.113.2"}, ""},
		{"a list of one", "prefix = \"0.0.0.0/0\"\nvia = [\"203.0.113.2\"]", []string{"203.0.113.2"}, ""},
		{"two", "prefix = \"0.0.0.0/0\"\nvia = [\"203.0.113.2\", \"198.51.100.2\"]", []string{"203.0.113.2", "198.51.100.2"}, ""},
		{"IPv6", "prefix = \"::/0\"\nvia = [\"2001:db8::2\", \"fe80::1%wan\", \"fe80::1%sat\"]", []string{"2001:db8::2", "fe80::1%wan", "fe80::1%sat"}, ""},
		{"an empty list", "prefix = \"0.0.0.0/0\"\nvia = []", nil, `p.toml:6: route[1].via: is empty: the address of the next router, or a list of several`},
		{"twice", "prefix = \"0.0.0.0/0\"\nvia = [\n\"203.0.113.2\",\n\"203.0.113.2\"]", nil, `p.toml:8: route[1].via: "203.0.113.2" stands in the list twice`},
		{"other family", "prefix = \"0.0.0.0/0\"\nvia = [\"203.0.113.2\", \"2001:db8::2\"]", nil, `"2001:db8::2" is of the other family than 0.0.0.0/0`},
		{"not an address", "prefix = \"0.0.0.0/0\"\nvia = [\"203.0.113.2\", \"gw\"]", nil, `p.toml:6: route[1].via: "gw" is not an address`},
		{"a number", "prefix = \"0.0.0.0/0\"\nvia = 7", nil, `route[1].via: 7 is a number: write a list in brackets: [7]`},
		{"beside discard", "prefix = \"0.0.0.0/0\"\nvia = [\"203.0.113.2\"]\ndiscard = true", nil, `"203.0.113.2" stands beside discard = true`},
		{"a backup", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\nbackup = \"198.51.100.2\"", []string{"203.0.113.2"}, ""},
		{"backups", "prefix = \"::/0\"\nvia = \"2001:db8::2\"\nbackup = [\"fe80::1%sat\", \"fe80::2%sat\"]", []string{"2001:db8::2"}, ""},
		{"a backup of itself", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\nbackup = \"203.0.113.2\"", nil, `p.toml:7: route[1].backup: "203.0.113.2" is one of via too: a router that is used first, or one for when none of these is up`},
		{"a backup twice", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\nbackup = [\"203.0.113.3\",\n\"203.0.113.3\"]", nil, `p.toml:8: route[1].backup: "203.0.113.3" stands in the list twice`},
		{"a backup of nothing", "prefix = \"0.0.0.0/0\"\nbackup = \"203.0.113.2\"", nil, `route[1].via: is missing: the address of the next router that is used first`},
		{"a backup beside discard", "prefix = \"0.0.0.0/0\"\nbackup = \"203.0.113.2\"\ndiscard = true", nil, `route[1].backup: "203.0.113.2" stands beside discard = true`},
		{"an empty backup", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\nbackup = []", nil, `route[1].backup: is empty`},
		{"a backup of the other family", "prefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\nbackup = \"2001:db8::2\"", nil, `"2001:db8::2" is of the other family than 0.0.0.0/0`},
		{"zone of a global address", "prefix = \"::/0\"\nvia = \"2001:db8::2%wan\"", nil, `"2001:db8::2%wan" has a zone: only a link-local IPv6 address may name its interface`},
		{"unknown zone", "prefix = \"::/0\"\nvia = [\"fe80::1%want\"]", nil, `"fe80::1%want" names no interface of this side: did you mean "wan"?`},
		{"two zones", "prefix = \"::/0\"\nvia = [\"fe80::1%wan\"]\ninterface = \"sat\"", nil, `"fe80::1%wan" is on another interface than the route's "sat"`},
		{"link-local without", "prefix = \"::/0\"\nvia = [\"2001:db8::2\", \"fe80::1\"]", nil, `route[1].interface: is missing: a link-local next hop needs it`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := DecodePolicy("p.toml", []byte(head+c.route+"\n"))
			var list ErrorList
			if errors.As(err, &list) {
				if c.bad == "" || len(list) != 1 || !strings.Contains(list[0].Error(), c.bad) {
					t.Errorf("got %v, want %q", err, c.bad)
				}
				return
			}
			if err != nil || c.bad != "" {
				t.Fatalf("got %v, want %q", err, c.bad)
			}
			var got []string
			for _, a := range p.Routes[0].Via {
				got = append(got, a.String())
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMostNextHops(t *testing.T) {
	at := netip.MustParseAddr("203.0.113.2")
	list := make([]string, MaxVias+1)
	for i := range list {
		list[i] = `"` + at.String() + `"`
		at = at.Next()
	}
	text := func(n int) string {
		return "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = [" + strings.Join(list[:n], ", ") + "]\n"
	}
	if _, err := DecodePolicy("p.toml", []byte(text(MaxVias))); err != nil {
		t.Error(err)
	}
	if _, err := DecodePolicy("p.toml", []byte(text(MaxVias+1))); err == nil || !strings.Contains(err.Error(), "route[1].via: has 17 next hops: at most 16") {
		t.Error(err)
	}
}

// Each next hop of a list must be a neighbour, on the interface that it names if it names one.
func TestNextHopsAreNeighbours(t *testing.T) {
	node, err := DecodeNode("n.toml", []byte(`schema = 1
[[port]]
device = "e0"
[[port]]
device = "e1"
[[interface]]
name = "wan"
port = "e0"
addresses = ["203.0.113.1/24", "2001:db8::1/64"]
[[interface]]
name = "sat"
port = "e1"
addresses = ["198.51.100.1/24"]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ prefix, via, bad string }{
		{"0.0.0.0/0", `["203.0.113.2", "198.51.100.2"]`, ""},
		{"::/0", `["fe80::1%wan", "2001:db8::2"]`, ""},
		{"0.0.0.0/0", `["203.0.113.2", "192.0.2.2"]`, `p.toml:6: route[1].via: "192.0.2.2" is on no network of the backbone`},
		{"0.0.0.0/0", `["203.0.113.2", "198.51.100.1"]`, `"198.51.100.1" is the gateway itself`},
		{"::/0", `["fe80::1%wan", "fe80::1%sat"]`, `"fe80::1%sat" is on no network of the backbone`}, // no IPv6 there
	} {
		p, err := DecodePolicy("p.toml", []byte("schema = 1\n[backbone]\ninterfaces = [\"wan\", \"sat\"]\n[[route]]\nprefix = \""+c.prefix+"\"\nvia = "+c.via+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		err = CheckTogether(p, node)
		if c.bad == "" && err != nil || c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("via %s: got %v, want %q", c.via, err, c.bad)
		}
	}
}

// The order of the list says nothing, so a change of it is none.
func TestDiffOfNextHops(t *testing.T) {
	text := func(via string) *Policy {
		return decodePolicy(t, "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = "+via+"\n")
	}
	if d := Diff(text(`["203.0.113.2", "203.0.113.3"]`), text(`["203.0.113.3", "203.0.113.2"]`)); len(d) != 0 {
		t.Errorf("%v", d)
	}
	d := Diff(text(`"203.0.113.2"`), text(`["203.0.113.3", "203.0.113.2"]`))
	if len(d) != 1 || d[0].String() != "changed route 0.0.0.0/0: via 203.0.113.2 -> via 203.0.113.2,203.0.113.3" {
		t.Errorf("%v", d)
	}
}
