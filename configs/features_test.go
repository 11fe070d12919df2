package configs

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// later is a schema as a release to come may have it.
type later struct {
	Name    string `toml:"name"`
	Tenants []struct {
		Name    string `toml:"name"`
		Contact string `toml:"contact" added:"v1.2"`
		Quota   struct {
			Bytes int `toml:"bytes" added:"v1.3"`
			Days  int `toml:"days"`
		} `toml:"quota"`
	} `toml:"tenant"`
	Mirror *struct {
		To string `toml:"to"`
	} `toml:"mirror" added:"v1.4"`
}

// TestFeatures: a key that a release has added is found by its tag, and a text that uses it says so, whatever its value.
func TestFeatures(t *testing.T) {
	want := []string{"mirror", "schema-2", "schema-3", "tenant.contact", "tenant.quota.bytes"}
	if got := featuresOf(reflect.TypeFor[later](), 3); !reflect.DeepEqual(got, want) {
		t.Errorf("the schema has %v, want %v", got, want)
	}
	for text, want := range map[string][]string{
		"name = \"a\"\n[[tenant]]\nname = \"b\"\nquota.days = 3\n":                              nil,
		"[[tenant]]\nname = \"b\"\n[[tenant]]\ncontact = \"\"\n":                                {"tenant.contact"},
		"[[tenant]]\nquota.bytes = 3\ncontact = \"x\"\n[[tenant]]\ncontact = \"x\"\n[mirror]\n": {"mirror", "tenant.contact", "tenant.quota.bytes"},
	} {
		at, ok := decode("x", []byte(text), &later{})
		if err := at.c.done(); !ok || err != nil {
			t.Fatal(err)
		}
		if got := at.c.features(1); !reflect.DeepEqual(got, want) {
			t.Errorf("%q uses %v, want %v", text, got, want)
		}
	}
	if got := (&checker{}).features(2); !reflect.DeepEqual(got, []string{"schema-2"}) {
		t.Errorf("schema 2 uses %v", got)
	}
}

// TestUnknownFeature: what this build does not know is called by the name that a build has for it that does.
func TestUnknownFeature(t *testing.T) {
	_, err := DecodePolicy("p.toml", []byte("schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a b\"\ninterfaces = [\"in\"]\nprefixes = [\"198.18.1.0/24\"]\nrates.out.jitter = 3\n"))
	var list ErrorList
	if !errors.As(err, &list) || len(list) != 2 {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Feature())
	}
	if d := cmp.Diff([]string{"", "tenant.rates.out.jitter"}, got); d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	if u := Unknown([]string{"tenant.rates.out.jitter"}); len(u) != 1 {
		t.Errorf("unknown %v", u)
	}
}

// TestSchemaStays: the keys of schema 1, and what stands in those that a file leaves out, are what they were when they were written down: a policy that members of two
// releases serve must mean the same to both. A key that comes later says which release has added it (see features.go). Until the first release -update writes it anew.
func TestSchemaStays(t *testing.T) {
	p := &Policy{Schema: 1, Tenants: []Tenant{{Rules: []Rule{{}}, NAT: NAT{Forward: []PortForward{{Port: 80}}, Static: []StaticNAT{{}}}, Routes: []Route{{}}}}, Routes: []Route{{}}}
	p.Defaults()
	var lines []string
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			if name == "" || f.Tag.Get(addedTag) != "" {
				continue
			}
			at := strings.TrimPrefix(path+"."+name, ".")
			e := v.Field(i)
			if e.Kind() == reflect.Slice && e.Len() > 0 {
				e = e.Index(0)
			}
			if e.Kind() == reflect.Struct && e.Type() != addrType && e.Type() != prefixType && e.Type() != durationType {
				lines = append(lines, at)
				walk(e, at)
				continue
			}
			value := fmt.Sprintf("%v", v.Field(i))
			if v.Field(i).IsZero() {
				value = "-"
			}
			lines = append(lines, fmt.Sprintf("%s %s %s", at, f.Type, value))
		}
	}
	walk(reflect.ValueOf(p).Elem(), "")
	got := strings.Join(lines, "\n") + "\n"
	const file = "testdata/schema1.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("schema 1 is not what it was:\n%s", d)
	}
}
