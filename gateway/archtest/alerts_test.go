package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// alertFile is a rule file as Prometheus reads it, without what ours does not use.
type alertFile struct {
	Groups []struct {
		Name  string
		Rules []alertRule
	}
}

type alertRule struct {
	Alert       string
	Expr        string
	For         string `yaml:",omitempty"`
	Labels      struct{ Severity string }
	Annotations struct {
		Summary string
		Runbook string `yaml:"runbook_url"`
	}
}

// TestAlerts holds rules, page and code together: each alert has its section and each section its alert; rules ask for series, labels and values that there are; the page shows
// commands that there are.
func TestAlerts(t *testing.T) {
	for _, f := range alertFaults(project.text(t, "docs/alerts.rules.yml"), project.text(t, "docs/alarms.md"), theAlertWords(t)) {
		t.Error(f)
	}
}

// alertWords is what alerts may speak of.
type alertWords struct {
	series map[string][]string // series -> its labels
	values map[string]bool     // what labels may be: the strings of the rooms that give them
	verbs  map[string]bool     // commands
}

func theAlertWords(t *testing.T) alertWords {
	w := alertWords{series: map[string][]string{"up": nil}, values: map[string]bool{}, verbs: map[string]bool{}} // up is Prometheus's own
	for _, m := range regexp.MustCompile("(?m)^\\| `(demarc_\\w+)` \\| ([^|]*) \\|").FindAllStringSubmatch(project.text(t, "docs/metrics.md"), -1) {
		w.series[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })
	}
	for _, s := range project.files {
		if s.test || !slices.Contains([]string{"cluster/beat", "gateway/metrics", "gateway/verdict"}, s.pkg) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if x, ok := n.(*ast.BasicLit); ok && x.Kind == token.STRING {
				if v, err := strconv.Unquote(x.Value); err == nil {
					w.values[v] = true
				}
			}
			return true
		})
	}
	for line := range strings.Lines(project.text(t, "gateway/cli/testdata/help.golden")) {
		if verb, ok := strings.CutPrefix(strings.TrimSpace(line), "==== "); ok {
			w.verbs[verb] = true
		}
	}
	if len(w.series) < 2 || len(w.values) == 0 || len(w.verbs) == 0 {
		t.Fatalf("cannot read what there is: %d series, %d values, %d commands", len(w.series), len(w.values), len(w.verbs))
	}
	return w
}

var (
	alertName    = regexp.MustCompile(`^Demarc[A-Z][A-Za-z]*$`)
	alertSection = regexp.MustCompile(`(?m)^## (.+)$`)
	alertParts   = regexp.MustCompile(`(?ms)\A\n\*Means:\* .+^\*Look:\* .+^\*Do:\* .+`)
	alertMention = regexp.MustCompile(`\bDemarc[A-Z]\w*`)
	alertSeries  = regexp.MustCompile("`(demarc_[a-z_]+)")
	alertCommand = regexp.MustCompile("`demarc ([a-z][^`]*)`")
	alertUsed    = regexp.MustCompile(`\$labels\.(\w+)`)
	alertTime    = regexp.MustCompile(`^[1-9][0-9]*[smhd]$`)
	alertWord    = regexp.MustCompile(`^[a-z]+$`)
	alertBy      = regexp.MustCompile(`^\w+ by \(([^)]*)\)`)
)

const runbooks = "file:///usr/local/share/doc/demarc/docs/alarms.md#"

// alertFaults lists what is wrong with rules and page.
func alertFaults(rules, page string, w alertWords) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	var file alertFile
	d := yaml.NewDecoder(bytes.NewBufferString(rules))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		return []string{"docs/alerts.rules.yml: " + err.Error()}
	}
	alerts, groups := map[string]bool{}, map[string]bool{}
	for _, g := range file.Groups {
		if groups[g.Name] || g.Name == "" || len(g.Rules) == 0 {
			fault("group %q: empty, without a name, or there twice", g.Name)
		}
		groups[g.Name] = true
		for _, r := range g.Rules {
			if !alertName.MatchString(r.Alert) || alerts[r.Alert] {
				fault("alert %q: is called otherwise than the others, or there twice", r.Alert)
			}
			alerts[r.Alert] = true
			for _, f := range r.faults(w) {
				fault("%s: %s", r.Alert, f)
			}
		}
	}
	sections := map[string]bool{}
	at := alertSection.FindAllStringSubmatchIndex(page, -1)
	for i, m := range at {
		end := len(page)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		name := page[m[2]:m[3]]
		if sections[name] || !alerts[name] {
			fault("alarms.md: section %q is of no alert, or there twice", name)
		}
		sections[name] = true
		if !alertParts.MatchString(page[m[1]+1 : end]) {
			fault("alarms.md: %s does not say what it means, where to look and what to do, in this order", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(alerts)) {
		if !sections[name] {
			fault("alarms.md: no section for %s", name)
		}
	}
	for _, name := range alertMention.FindAllString(page, -1) {
		if !alerts[name] {
			fault("alarms.md: names %s, and there is no such alert", name)
		}
	}
	for _, m := range alertSeries.FindAllStringSubmatch(page, -1) {
		if _, ok := w.series[m[1]]; !ok {
			fault("alarms.md: there is no series %s", m[1])
		}
	}
	for _, m := range alertCommand.FindAllStringSubmatch(page, -1) {
		f := strings.Fields(m[1])
		if !w.verbs[f[0]] || len(f) > 1 && alertWord.MatchString(f[1]) && under(w.verbs, f[0]) && !w.verbs[f[0]+" "+f[1]] {
			fault("alarms.md: there is no command demarc %s", m[1])
		}
	}
	return faults
}

// under says whether a command has commands of its own.
func under(verbs map[string]bool, verb string) bool {
	for v := range verbs {
		if strings.HasPrefix(v, verb+" ") {
			return true
		}
	}
	return false
}

// faults of one rule.
func (r alertRule) faults(w alertWords) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	known, err := exprLabels(r.Expr, w)
	if err != nil {
		fault("%v", err)
	}
	if r.For != "" && !alertTime.MatchString(r.For) {
		fault("for: %q is no time", r.For)
	}
	if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels.Severity) {
		fault("severity %q is none of critical, warning, info", r.Labels.Severity)
	}
	if r.Annotations.Runbook != runbooks+strings.ToLower(r.Alert) {
		fault("runbook_url is %q, its section is %s", r.Annotations.Runbook, runbooks+strings.ToLower(r.Alert))
	}
	if m := alertBy.FindStringSubmatch(r.Expr); m != nil { // what is left of the labels
		known = strings.Split(m[1], ", ")
	}
	if r.Annotations.Summary == "" {
		fault("no summary")
	}
	for _, m := range alertUsed.FindAllStringSubmatch(r.Annotations.Summary, -1) {
		if !slices.Contains(known, m[1]) {
			fault("the summary names the label %s, which the alert does not have", m[1])
		}
	}
	return faults
}

// exprLabels reads an expression word by word: it has only what there is, and it gives the labels of its series.
func exprLabels(expr string, w alertWords) (labels []string, err error) {
	labels = []string{"job", "instance"} // Prometheus's own
	words := regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|\d+[smhdw]\b|[0-9.]+|=~|!~|==|!=|>=|<=|\S`).FindAllString(expr, -1)
	var series []string
	for _, x := range words {
		if own, ok := w.series[x]; ok {
			series = append(series, x)
			labels = append(labels, own...)
		} else if strings.HasPrefix(x, "demarc_") {
			return labels, fmt.Errorf("there is no series %s", x)
		}
	}
	if len(series) == 0 {
		return labels, fmt.Errorf("asks for no series")
	}
	var open []string   // brackets
	var of, list string // the series before, and what a list of labels belongs to: braces, by, on
	for i, x := range words {
		_, isSeries := w.series[x]
		switch {
		case isSeries:
			of = x
		case x == "{":
			open, list = append(open, "}"), of
		case x == "[":
			open = append(open, "]")
		case x == "(":
			open = append(open, ")")
			if i > 0 && (words[i-1] == "by" || words[i-1] == "on") {
				list = "*"
			}
		case x == "}" || x == "]" || x == ")":
			if len(open) == 0 || open[len(open)-1] != x {
				return labels, fmt.Errorf("%s closes nothing", x)
			}
			open, list = open[:len(open)-1], ""
		case list == "*" && x != ",":
			if !slices.Contains(labels, x) {
				return labels, fmt.Errorf("no series of it has the label %s", x)
			}
		case list != "" && x[0] == '"':
			v, err := strconv.Unquote(x)
			if err != nil {
				return labels, err
			}
			for one := range strings.SplitSeq(v, "|") {
				if !w.values[one] {
					return labels, fmt.Errorf("nothing gives the value %q to a label of %s", one, list)
				}
			}
		case list != "" && !slices.Contains([]string{"=", "!", ",", "=~", "!=", "!~"}, x):
			if !slices.Contains(w.series[list], x) {
				return labels, fmt.Errorf("%s has no label %s", list, x)
			}
		case list == "" && regexp.MustCompile(`^[A-Za-z_]`).MatchString(x) &&
			!slices.Contains([]string{"abs", "and", "by", "count", "increase", "last_over_time", "max", "min", "min_over_time", "on", "or", "rate", "sum", "time", "unless"}, x):
			return labels, fmt.Errorf("%s is no series, and no word that is known here", x)
		}
	}
	if len(open) > 0 {
		return labels, fmt.Errorf("%s is missing", open[len(open)-1])
	}
	return labels, nil
}

// TestAlertsNotice shows the test above rules and pages that are wrong.
func TestAlertsNotice(t *testing.T) {
	w := alertWords{series: map[string][]string{"up": nil, "demarc_a_total": {"why"}, "demarc_b": {"group"}}, values: map[string]bool{"forged": true}, verbs: map[string]bool{"group": true, "group move": true, "drops": true}}
	const rules = `groups:
  - name: g
    rules:
      - alert: DemarcA
        expr: sum by (job, why) (increase(demarc_a_total{why=~"forged"}[10m])) > 0 and on (job) up
        for: 1m
        labels: {severity: info}
        annotations: {summary: "{{ $labels.why }}", runbook_url: file:///usr/local/share/doc/demarc/docs/alarms.md#demarca}
`
	const page = "# Alarms\n\n## DemarcA\n\n*Means:* a.\n\n*Look:* `demarc group move G N`, `demarc drops`, `demarc_b`.\n\n*Do:* DemarcA.\n"
	if f := alertFaults(rules, page, w); len(f) > 0 {
		t.Fatalf("what is right: %q", f)
	}
	for _, c := range []struct{ in, from, to, want string }{
		{"rules", "demarc_a_total", "demarc_c_total", "no series demarc_c_total"},
		{"rules", "{why=~", "{how=~", "demarc_a_total has no label how"},
		{"rules", "(job, why)", "(job, group)", "no series of it has the label group"},
		{"rules", `"forged"`, `"forget"`, `the value "forget"`},
		{"rules", "[10m])) > 0", "[10m]) > 0", ") is missing"},
		{"rules", "[10m])) > 0", "[10m]))) > 0", ") closes nothing"},
		{"rules", "increase(", "increases(", "increases is no series"},
		{"rules", "$labels.why", "$labels.group", "the summary names the label group"},
		{"rules", "(job, why)", "(job)", "the summary names the label why"},
		{"rules", "#demarca", "#demarcb", "runbook_url"},
		{"rules", "severity: info", "severity: bad", "severity"},
		{"rules", "for: 1m", "for: soon", "is no time"},
		{"rules", "for: 1m", "four: 1m", "field four not found"},
		{"rules", "rules:", "rules", "alerts.rules.yml"},
		{"rules", "alert: DemarcA", "alert: DemarcB", "no section for DemarcB"},
		{"page", "## DemarcA", "## DemarcB", "section \"DemarcB\""},
		{"page", "*Look:*", "*Looks:*", "does not say"},
		{"page", "DemarcA.", "DemarcC.", "names DemarcC"},
		{"page", "demarc_b`", "demarc_c`", "no series demarc_c"},
		{"page", "group move", "group moves", "no command demarc group moves"},
		{"page", "demarc drops", "demarc dropped", "no command demarc dropped"},
	} {
		r, p := rules, page
		if c.in == "page" {
			p = strings.Replace(p, c.from, c.to, 1)
		} else {
			r = strings.Replace(r, c.from, c.to, 1)
		}
		if r == rules && p == page {
			t.Fatalf("%s: nothing to replace", c.from)
		}
		if f := strings.Join(alertFaults(r, p, w), "\n"); !strings.Contains(f, c.want) {
			t.Errorf("%s instead of %s: %q does not say %q", c.to, c.from, f, c.want)
		}
	}
}
