package metrics

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

const page = "../../docs/metrics.md"

// TestPage holds the operators' list of series to the code. A Desc tells its name, help and labels only by its String.
func TestPage(t *testing.T) {
	desc := regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: "([^"]+)", .*variableLabels: \{([^}]*)\}\}$`)
	var b strings.Builder
	b.WriteString("# Metrics\n\nWhat `/metrics` shows besides the Go runtime's and the process's own series. Written by `go test ./gateway/metrics -run TestPage -update`.\n\n" +
		"A witness shows `demarc_build_info`, `demarc_cluster_*`, `demarc_group_*`, `demarc_copy_*`, `demarc_standby_*` and `demarc_api_*` of them, and no others.\n\n" +
		"| series | labels | kind | |\n|---|---|---|---|\n")
	for _, f := range families {
		m := desc.FindStringSubmatch(f.desc.String())
		if m == nil {
			t.Fatalf("cannot read %s", f.desc)
		}
		kind := "gauge"
		if f.kind == prometheus.CounterValue {
			kind = "counter"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m[1], strings.ReplaceAll(m[3], ",", ", "), kind, m[2])
	}
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.String(), string(have)); d != "" {
		t.Errorf("docs/metrics.md is not what the code shows; -update writes it anew (-code +page):\n%s", d)
	}
}

// A witness shows what the page says: every family of these names, and no other.
func TestPageOfAWitness(t *testing.T) {
	shown := map[*family]bool{}
	for _, f := range witnessFamilies() {
		shown[f] = true
	}
	its := regexp.MustCompile(`fqName: "demarc_(build_info"|cluster_|group_|copy_|standby_|api_)`)
	for _, f := range families {
		if its.MatchString(f.desc.String()) != shown[f] {
			t.Errorf("%s: a witness shows it: %v", f.desc, shown[f])
		}
	}
}
