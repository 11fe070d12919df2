package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// readExample decodes one pair of example files.
func readExample(t *testing.T, name string) (*Policy, *Node) {
	t.Helper()
	read := func(file string) []byte {
		data, err := os.ReadFile(filepath.Join("examples", file))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	p, err := DecodePolicy(name+".policy.toml", read(name+".policy.toml"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := DecodeNode(name+".node.toml", read(name+".node.toml"))
	if err != nil {
		t.Fatal(err)
	}
	return p, n
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.policy.toml")
	if err != nil || len(files) != 4 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".policy.toml")
		t.Run(name, func(t *testing.T) {
			p, n := readExample(t, name)
			if err := CheckTogether(p, n); err != nil {
				t.Fatal(err)
			}
			for i := range p.Tenants {
				tenant := &p.Tenants[i]
				if _, err := PoolAddrs(tenant.NAT.Pool); err != nil {
					t.Error(err)
				}
				for _, r := range tenant.Rules {
					if _, _, err := p.Hosts(tenant, append(r.From, r.To...)); err != nil {
						t.Error(err)
					}
					if _, err := p.Services(tenant, r.Service); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}
