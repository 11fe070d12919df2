package configs

import (
	"fmt"
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

// TestExamplesAreScraped: who begins with an example has metrics, and the scrape job that goes with the alert rules asks where the nodes of the pair answer.
func TestExamplesAreScraped(t *testing.T) {
	files, err := filepath.Glob("examples/*.node.toml")
	if err != nil || len(files) != 6 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	page, err := os.ReadFile("../docs/alarms.md")
	if err != nil {
		t.Fatal(err)
	}
	_, job, _ := strings.Cut(string(page), "\nscrape_configs:\n")
	job, _, _ = strings.Cut(job, "```")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, err := DecodeNode(file, data)
		if err != nil {
			t.Fatal(err)
		}
		if n.API.Metrics == "" && n.Name != "lab" {
			t.Errorf("%s: no api.metrics", file)
		}
		if n.Cluster != nil && !strings.Contains(job, fmt.Sprintf("{targets: [%q], labels: {instance: %s}}\n", n.API.Metrics, n.Name)) {
			t.Errorf("docs/alarms.md does not scrape %s at %s", n.Name, n.API.Metrics)
		}
	}
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
