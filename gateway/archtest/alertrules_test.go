package archtest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"demarc/gateway/netlab/roottest"
)

// TestAlertsFire has Prometheus's own tool evaluate the rules: by series each alert is raised, with what it says then, and by others it is not.
func TestAlertsFire(t *testing.T) {
	for _, f := range caseFaults(project.text(t, "docs/alerts.rules.yml"), project.text(t, "docs/alerts.test.yml")) {
		t.Error(f)
	}
	tool := findPromtool(t)
	for _, args := range [][]string{{"check", "rules", "docs/alerts.rules.yml"}, {"test", "rules", "docs/alerts.test.yml"}} {
		if out, err := tool.run(project.root, args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// promtool is where the program is.
type promtool string

func findPromtool(t *testing.T) promtool {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		roottest.Missing(t, "promtool, which .ci/setup.sh installs, to evaluate the alert rules (%v)", err)
	}
	return promtool(path)
}

func (p promtool) run(dir string, args ...string) (string, error) {
	c := exec.Command(string(p), args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	return string(out), err
}

// alertCases is a file for `promtool test rules`, as far as it is looked at here: promtool is strict about the rest.
type alertCases struct {
	Tests []struct {
		Cases []struct {
			Alert  string `yaml:"alertname"`
			Raised []any  `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	}
}

// caseFaults lists alerts that nothing shows to be raised, or not to be, and cases of alerts that are not there.
func caseFaults(rules, cases string) (faults []string) {
	var file alertFile
	if err := yaml.Unmarshal([]byte(rules), &file); err != nil {
		return []string{"docs/alerts.rules.yml: " + err.Error()}
	}
	var all alertCases
	if err := yaml.Unmarshal([]byte(cases), &all); err != nil {
		return []string{"docs/alerts.test.yml: " + err.Error()}
	}
	raised, not := map[string]bool{}, map[string]bool{}
	for _, x := range all.Tests {
		for _, c := range x.Cases {
			if len(c.Raised) > 0 {
				raised[c.Alert] = true
			} else {
				not[c.Alert] = true
			}
		}
	}
	alerts := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			alerts[r.Alert] = true
			if !raised[r.Alert] {
				faults = append(faults, fmt.Sprintf("alerts.test.yml: no case in which %s is raised", r.Alert))
			}
			if !not[r.Alert] {
				faults = append(faults, fmt.Sprintf("alerts.test.yml: no case in which %s is not raised", r.Alert))
			}
		}
	}
	for _, m := range []map[string]bool{raised, not} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			if !alerts[name] {
				faults = append(faults, fmt.Sprintf("alerts.test.yml: a case of %s, and there is no such alert", name))
			}
		}
	}
	return faults
}

// TestAlertsFireNotices shows the test above cases that are left out.
func TestAlertsFireNotices(t *testing.T) {
	const rules = "groups:\n  - name: g\n    rules:\n      - alert: DemarcA\n        expr: up == 0\n"
	const cases = `tests:
  - alert_rule_test:
      - {eval_time: 1m, alertname: DemarcA, exp_alerts: [{exp_labels: {job: a}}]}
      - {eval_time: 0m, alertname: DemarcA}
`
	for _, c := range []struct{ from, to, want string }{
		{"", "", ""},
		{"exp_alerts: [{exp_labels: {job: a}}]", "exp_alerts: []", "no case in which DemarcA is raised"},
		{"DemarcA}", "DemarcA, exp_alerts: [{exp_labels: {job: a}}]}", "no case in which DemarcA is not raised"},
		{"DemarcA}", "DemarcB}", "a case of DemarcB, and there is no such alert"},
		{"tests:", "tests", "docs/alerts.test.yml: "},
	} {
		f := strings.Join(caseFaults(rules, strings.Replace(cases, c.from, c.to, 1)), "\n")
		if !strings.Contains(f, c.want) || c.want == "" && f != "" {
			t.Errorf("%s instead of %s: %q does not say %q", c.to, c.from, f, c.want)
		}
	}
}

// TestAlertsFireByPromtool shows promtool rules that are a little different, with the tests that have a case of theirs.
func TestAlertsFireByPromtool(t *testing.T) {
	tool := findPromtool(t)
	rules, cases := project.text(t, "docs/alerts.rules.yml"), project.text(t, "docs/alerts.test.yml")
	for _, c := range []struct{ alert, from, to string }{
		{"DemarcSessionTableNearlyFull", "> 0.8", "> 0.99"},
		{"DemarcSessionTableNearlyFull", "> 0.8", ">= 0.8"},
		{"DemarcGroupNotServed", "for: 30s", "for: 45s"},
		{"DemarcMemberSilent", "min by", "max by"},
		{"DemarcNoRoom", "|table_share", ""},
		{"DemarcPathSilent", "hears nothing of", "hears little of"},
	} {
		before, after, ok := strings.Cut(rules, "alert: "+c.alert+"\n")
		changed := before + "alert: " + c.alert + "\n" + strings.Replace(after, c.from, c.to, 1)
		if !ok || changed == rules {
			t.Fatalf("%s: nothing to replace", c.from)
		}
		dir := t.TempDir()
		write(t, dir, "alerts.test.yml", casesOf(t, cases, c.alert))
		write(t, dir, "alerts.rules.yml", rules)
		if out, err := tool.run(dir, "test", "rules", "alerts.test.yml"); err != nil {
			t.Fatalf("%s as it is: %v\n%s", c.alert, err, out)
		}
		write(t, dir, "alerts.rules.yml", changed)
		if out, err := tool.run(dir, "test", "rules", "alerts.test.yml"); err == nil || !strings.Contains(out, "alertname: "+c.alert+",") {
			t.Errorf("%s, %s instead of %s: nothing is noticed (%v)\n%s", c.alert, c.to, c.from, err, out)
		}
	}
}

// casesOf are the tests that have a case of an alert: the others say nothing of it, and take long.
func casesOf(t *testing.T, cases, alert string) string {
	t.Helper()
	var all struct {
		Files    []string `yaml:"rule_files"`
		Interval string   `yaml:"evaluation_interval"`
		Tests    []any    `yaml:"tests"`
	}
	if err := yaml.Unmarshal([]byte(cases), &all); err != nil {
		t.Fatal(err)
	}
	all.Tests = slices.DeleteFunc(all.Tests, func(x any) bool {
		b, _ := yaml.Marshal(x) // it was read just now
		return !strings.Contains(string(b), "alertname: "+alert+"\n")
	})
	b, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
