package main

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// requirementList is every requirement of RFC 4787, 5382, 5508 and 7857, written down from their texts: number, strength.
//
//go:embed requirements.txt
var requirementList string

// requirement is one that an RFC makes.
type requirement struct{ id, strength string }

// requirements reads the list that is built in.
func requirements() (all []requirement) {
	for l := range strings.Lines(requirementList) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		i := strings.LastIndexByte(l, ' ')
		all = append(all, requirement{strings.TrimSpace(l[:i]), l[i+1:]})
	}
	return all
}

// row is a line of the page.
type row struct {
	requirement
	does  string
	tests []string
}

// matrix is the page: what we do about each requirement.
type matrix struct{ rows []row }

var (
	idForm    = regexp.MustCompile("^(4787|5382|5508|7857) [A-Za-z0-9.-]+$")
	testForm  = regexp.MustCompile("`([a-z0-9]+\\.Test[^`]+)`")
	strengths = map[string]bool{"MUST": true, "SHOULD": true, "MAY": true}
	answers   = []string{"yes", "by choice (`", "not applicable: ", "not met: "}
)

// parseMatrix reads the tables of the page: requirement, strength, in short, what we do, tests.
func parseMatrix(page string) (m matrix, err error) {
	var bad []error
	for l := range strings.Lines(page) {
		cells := strings.Split(strings.TrimSpace(l), "|")
		if len(cells) != 7 || !idForm.MatchString(strings.TrimSpace(cells[1])) {
			if len(cells) > 2 && idForm.MatchString(strings.TrimSpace(cells[1])) {
				bad = append(bad, fmt.Errorf("%s: %d columns, want 5", strings.TrimSpace(cells[1]), len(cells)-2))
			}
			continue
		}
		r := row{requirement: requirement{strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])}, does: strings.TrimSpace(cells[4])}
		for _, t := range testForm.FindAllStringSubmatch(cells[5], -1) {
			r.tests = append(r.tests, t[1])
		}
		if e := r.check(strings.TrimSpace(cells[3]), strings.TrimSpace(cells[5])); e != nil {
			bad = append(bad, fmt.Errorf("%s: %w", r.id, e))
		}
		m.rows = append(m.rows, r)
	}
	return m, errors.Join(bad...)
}

func (r *row) check(short, tests string) error {
	kind := -1
	for i, a := range answers {
		if strings.HasPrefix(r.does, a) {
			kind = i
		}
	}
	switch {
	case !strengths[r.strength]:
		return fmt.Errorf("strength %q: want MUST, SHOULD or MAY", r.strength)
	case short == "":
		return errors.New("does not say what is asked")
	case kind < 0:
		return fmt.Errorf("answer %q: want one that begins with yes, by choice (`key`), not applicable: or not met:", r.does)
	case kind < 2 && len(r.tests) == 0:
		return errors.New("is claimed without a test")
	case len(r.tests) == 0 && tests != "":
		return fmt.Errorf("%q names no test: write `package.TestName`", tests)
	}
	return nil
}

// complete holds the page against the list: each requirement once, with its strength, and no other.
func (m matrix) complete(want []requirement) error {
	var bad []error
	have := map[string]string{}
	for _, r := range m.rows {
		if _, twice := have[r.id]; twice {
			bad = append(bad, fmt.Errorf("%s is there twice", r.id))
		}
		have[r.id] = r.strength
	}
	for _, w := range want {
		switch s, ok := have[w.id]; {
		case !ok:
			bad = append(bad, fmt.Errorf("%s (%s) is missing", w.id, w.strength))
		case s != w.strength:
			bad = append(bad, fmt.Errorf("%s is a %s, not a %s", w.id, w.strength, s))
		}
		delete(have, w.id)
	}
	for id := range have {
		bad = append(bad, fmt.Errorf("%s: there is no such requirement", id))
	}
	return errors.Join(bad...)
}

// ran holds the page against a run: each test that it names ran and passed.
func (m matrix) ran(r *record) error {
	var bad []error
	for _, row := range m.rows {
		for _, name := range row.tests {
			res, err := r.find(name)
			if err == nil && res.Action != "pass" {
				err = fmt.Errorf("%s ended as %s", name, res.Action)
			}
			if err != nil {
				bad = append(bad, fmt.Errorf("%s: %w", row.id, err))
			}
		}
	}
	return errors.Join(bad...)
}

// count says how the requirements are answered.
func (m matrix) count() string {
	n := map[string]int{}
	tests := map[string]bool{}
	for _, r := range m.rows {
		for _, a := range answers {
			if strings.HasPrefix(r.does, a) {
				n[a]++
			}
		}
		for _, t := range r.tests {
			tests[t] = true
		}
	}
	return fmt.Sprintf("%d requirements: %d met, %d by choice, %d not applicable, %d not met; %d tests", len(m.rows), n[answers[0]], n[answers[1]],
		n[answers[2]], n[answers[3]], len(tests))
}
