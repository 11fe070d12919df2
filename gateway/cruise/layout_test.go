package cruise

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/lease"
)

// The structs of both sides are the same: size, and each field's place and size.
func TestLayoutIsTheProgram(t *testing.T) {
	spec, err := bpf.LoadCruise()
	if err != nil {
		t.Fatal(err)
	}
	for name, mine := range map[string]any{"worker": worker{}, "mark": mark{}, "hop": hop{}, "iface": iface{}, "tenant": tenant{}, "settings": settings{}, "volume": volume{}, "counter": counter{},
		"rate": tenant{}.rates[0][0], "deadline": lease.Deadline{}, "demarc_session": conntrack.Session{}} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		g := reflect.TypeOf(mine)
		if int(c.Size) != int(g.Size()) {
			t.Errorf("%s: %d bytes in C, %d in Go", name, c.Size, g.Size())
		}
		var places []uintptr
		for i := range g.NumField() {
			f := g.Field(i)
			if f.Name == "_" {
				continue
			}
			places = append(places, f.Offset)
		}
		for i, m := range c.Members {
			if i >= len(places) {
				if m.Name != "zero" {
					t.Errorf("%s: Go has no %s", name, m.Name)
				}
				continue
			}
			if uintptr(m.Offset.Bytes()) != places[i] {
				t.Errorf("%s.%s is at %d in C, %s at %d in Go", name, m.Name, m.Offset.Bytes(), g.Field(i).Name, places[i])
			}
		}
		if len(c.Members) < len(places) {
			t.Errorf("%s: %d fields in C, %d in Go", name, len(c.Members), len(places))
		}
	}
}

// What is counted has the same numbers and names on both sides.
func TestWhatIsTheProgram(t *testing.T) {
	source, err := os.ReadFile("bpf/cruise.c")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(source), "enum what {")
	body, _, _ = strings.Cut(body, "};")
	names := regexp.MustCompile(`(?m)^\t([A-Z_]+),`).FindAllStringSubmatch(body, -1)
	if len(names) != int(NumWhats)+1 {
		t.Fatalf("%d in C, want %d and WHATS", len(names), NumWhats)
	}
	for i, n := range names[:NumWhats] {
		if strings.ToLower(n[1]) != What(i).String() {
			t.Errorf("%d is %s in C and %s in Go", i, n[1], What(i))
		}
	}
}

// What cannot be is said before anything is made.
func TestOpenRefuses(t *testing.T) {
	fine := Config{Seeds: []uint64{1}, Sessions: SessionUnit, Ports: 1, Interfaces: 1, Tenants: 1, Hops: 1}
	for want, change := range map[string]func(*Config){
		"0 workers, want 1 to 16":                            func(c *Config) { c.Seeds = nil },
		"17 workers, want 1 to 16":                           func(c *Config) { c.Seeds = make([]uint64, 17) },
		"33 sessions for each of 1 workers, want a multiple": func(c *Config) { c.Sessions++ },
		"0 sessions for each of 1 workers, want a multiple":  func(c *Config) { c.Sessions = 0 },
		"no more than 1073741824 in all":                     func(c *Config) { c.Sessions, c.Seeds = conntrack.MaxCapacity, []uint64{1, 2} },
		"0 ports":                                            func(c *Config) { c.Ports = 0 },
		"65536 interfaces":                                   func(c *Config) { c.Interfaces = 1 << 16 },
		"0 tenants":                                          func(c *Config) { c.Tenants = 0 },
		"0 hops":                                             func(c *Config) { c.Hops = 0 },
	} {
		c := fine
		change(&c)
		tab, err := Open(c)
		if err == nil {
			_ = tab.Close()
			t.Errorf("opened, want %q", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
