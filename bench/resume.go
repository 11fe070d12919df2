package bench

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"demarc/bench/report"
)

// The plans but the short one take hours, and machines are lent for less. What each of its parts has measured is kept beside the results, whole parts only, and a later run puts them together with what it
// measures itself.

// partsDir is where they are, in the directory of the results.
const partsDir = "parts"

func (q *suite) partFile(key string) string { return filepath.Join(q.Dir, partsDir, key+".json") }

// keep writes down a part that is whole: what its bench printed, and as which part.
func (q *suite) keep(key string, t taken) error {
	of := *t.of
	of.Scenarios = []report.Part{t.part}
	var b bytes.Buffer
	if err := errors.Join(of.JSON(&b), os.MkdirAll(filepath.Join(q.Dir, partsDir), 0o755)); err != nil {
		return err
	}
	return writeWhole(q.partFile(key), b.Bytes())
}

// kept reads a part; false = it was not measured, or not to its end.
func (q *suite) kept(s *scenario) (t taken, ok bool, err error) {
	name := q.partFile(s.key())
	text, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return t, false, nil
	}
	of := new(report.Output)
	if err = cmp.Or(err, json.Unmarshal(text, of)); err != nil {
		return t, false, fmt.Errorf("%s: %w", name, err)
	}
	want := append([]string{s.name}, q.stint(s).args...)
	if of.Schema != report.Schema || len(of.Scenarios) != 1 || !slices.Equal(of.Scenarios[0].Args, want) {
		return t, false, fmt.Errorf("%s is not of the part %q of this plan", name, strings.Join(want, " "))
	}
	t = taken{of.Scenarios[0], of}
	of.Scenarios = nil
	return t, true, nil
}

// keyWords lists parts: "generator, throughput-1 to 40, acl".
func keyWords(keys []string) string {
	var list []string
	for i := 0; i < len(keys); {
		name, first, _ := strings.Cut(keys[i], "-")
		n, _ := strconv.Atoi(first) // 0 = it is not in parts
		j := i + 1
		for n > 0 && j < len(keys) && keys[j] == fmt.Sprintf("%s-%d", name, n+j-i) {
			j++
		}
		if j-i > 1 {
			list = append(list, fmt.Sprintf("%s to %d", keys[i], n+j-i-1))
		} else {
			list = append(list, keys[i])
		}
		i = j
	}
	return strings.Join(list, ", ")
}

// planOf is that of a run which is to go on; where it cannot be told resume says why.
func planOf(dir string) planName {
	var was report.Output
	b, err := os.ReadFile(filepath.Join(dir, resultsFile))
	if err == nil && json.Unmarshal(b, &was) == nil && planName(was.Plan) == planTable {
		return planTable
	}
	return planFull
}

// resume takes what a run before has measured, and leaves what is missing to be run.
func (q *suite) resume() error {
	b, err := os.ReadFile(filepath.Join(q.Dir, resultsFile))
	if err != nil {
		return fmt.Errorf("--resume: there is no run to go on with: %w", err)
	}
	var was report.Output
	if err := json.Unmarshal(b, &was); err != nil {
		return fmt.Errorf("--resume: %s: %w", filepath.Join(q.Dir, resultsFile), err)
	}
	now := q.head()
	if now.Machine.Nft, err = nftVersion(); err != nil && was.Machine.Nft != "" {
		return err
	}
	if why := strangers(&was, &now); why != nil {
		return fmt.Errorf("--resume: figures of that run and of this one are not of the same: %s", strings.Join(why, "; "))
	}
	q.before, q.taken, q.header = was.Machine.Seconds, map[string]taken{}, now
	q.header.Began = was.Began
	q.header.Machine.Nft = ""
	for i := range q.plans {
		t, ok, err := q.kept(&q.plans[i])
		if err != nil {
			return err
		}
		if ok {
			q.taken[q.plans[i].key()] = t
		}
	}
	q.list = slices.DeleteFunc(q.list, func(s scenario) bool { _, ok := q.taken[s.key()]; return ok })
	return nil
}

// strangers says why two runs cannot be one: another plan, another machine, or a program that is not the same or of which nobody knows.
func strangers(was, now *report.Output) (why []string) {
	differ := func(what, a, b string) {
		if a != b {
			why = append(why, fmt.Sprintf("%s: %s and %s", what, cmp.Or(a, "none"), cmp.Or(b, "none")))
		}
	}
	differ("schema", fmt.Sprint(was.Schema), fmt.Sprint(now.Schema))
	differ("plan", was.Plan, now.Plan)
	differ("commit", was.Commit, now.Commit)
	differ("version", was.Machine.Demarc, now.Machine.Demarc)
	differ("Go", was.Machine.Go, now.Machine.Go)
	if now.Commit == "" || now.Commit == "dev" || strings.HasSuffix(now.Commit, changedTree) || strings.HasSuffix(now.Commit, "-dirty") {
		why = append(why, fmt.Sprintf("this program does not know what it was built of (%s): build it of a commit, without changes", cmp.Or(now.Commit, "none")))
	}
	if was.Machine.Nft != "" {
		differ("nftables", was.Machine.Nft, now.Machine.Nft)
	}
	// What mode ports are in is found out by the parts themselves.
	a, b := *was, *now
	a.Machine.Asked, a.Machine.Mode, a.Scenarios = b.Machine.Asked, b.Machine.Mode, nil
	return append(why, report.Differ(&a, &b)...)
}
