package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"demarc/bench/report"
)

// README's figures are those of the files that it names. After a new run: go generate ./bench
func TestReadmeHasTheFiguresOfItsFiles(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := withFigures("..", string(text))
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != want {
		t.Error("README.md differs from its results: demarc bench figures --write README.md")
	}
	files, _ := filepath.Glob("../docs/bench/*.json")
	shown := 0
	for _, file := range files {
		if name := "docs/bench/" + filepath.Base(file); !strings.HasSuffix(name, ".schema.json") {
			if shown++; !strings.Contains(string(text), "<!-- bench:figures "+name) {
				t.Errorf("README.md shows nothing of %s", name)
			}
		}
	}
	if shown == 0 {
		t.Error("there are no results to show")
	}
}

// samples says what is wrong with the results that lie in a directory: each must be as the schema says, have a page beside it that is its own, and neither more than 1 MiB.
func samples(t *testing.T, dir string) (wrong []string, found int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".schema.json") {
			continue
		}
		found++
		page := strings.TrimSuffix(file, ".json") + ".html"
		object, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		satisfies(t, object)
		r, err := readResults(file)
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		have, err := os.ReadFile(page)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		var want strings.Builder
		if err := r.HTML(&want); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(r.Partial, "not measured") || strings.Contains(r.Partial, "come to its end") {
			wrong = append(wrong, file+" is not whole: "+r.Partial)
		}
		if string(have) != want.String() {
			wrong = append(wrong, page+" is not the page of its results: demarc bench page "+file+" --out "+page)
		}
		if len(object) > 1<<20 || len(have) > 1<<20 {
			wrong = append(wrong, file+" or its page is larger than 1 MiB")
		}
	}
	return wrong, found
}

// The reports that are shown are whole; README's figures are held to them above.
func TestSamplesAreWhole(t *testing.T) {
	if wrong, _ := samples(t, "../docs/bench"); wrong != nil {
		t.Error(strings.Join(wrong, "\n"))
	}
	file := resultsFileOf(t, "a", 2, nil)
	dir := filepath.Dir(file)
	page := filepath.Join(dir, "results.html")
	if wrong, n := samples(t, dir); n != 1 || len(wrong) != 2 {
		t.Errorf("results without a page: %q, %d found", wrong, n)
	}
	if out, err := benchCommand(t, "page", file, "--out", page); err != nil {
		t.Fatal(err, out)
	}
	if wrong, n := samples(t, dir); n != 1 || wrong != nil {
		t.Errorf("whole results: %q, %d found", wrong, n)
	}
	part := resultsFileOf(t, "a", 2, func(o *report.Output) { o.Partial = "voip was not measured (no time left)" })
	if out, err := benchCommand(t, "page", part, "--out", strings.TrimSuffix(part, ".json")+".html"); err != nil {
		t.Fatal(err, out)
	}
	if wrong, _ := samples(t, filepath.Dir(part)); len(wrong) != 1 || !strings.Contains(wrong[0], "is not whole: voip") {
		t.Errorf("results of a part: %q", wrong)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(page, append(text, make([]byte, 1<<20)...), 0o644); err != nil {
		t.Fatal(err)
	}
	if wrong, _ := samples(t, dir); len(wrong) != 2 {
		t.Errorf("a page that is changed and too large: %q", wrong)
	}
}

// Figures are written from the file, an edit by hand is found, and what cannot be written leaves the document alone.
func TestFiguresAreWrittenIntoADocument(t *testing.T) {
	file := resultsFileOf(t, "a", 2, func(o *report.Output) { o.Results[0].AimRatio("kernel", 1.5) })
	doc := filepath.Join(filepath.Dir(file), "README.md")
	write := func(text string) {
		if err := os.WriteFile(doc, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write("before\n<!-- bench:figures results.json -->\nold\n<!-- /bench:figures -->\nafter\n")
	if out, err := benchCommand(t, "figures", "--write", doc); err != nil {
		t.Fatal(err, out)
	}
	got := read()
	for _, want := range []string{"before\n<!-- bench:figures results.json -->\nEPYC, 2 CPUs", "| throughput 64B, rate, Mpps | demarc | 2.01 (1.98–2.04) | 4 | aimed at ratio to kernel at least 1.5: MISSED |\n|  | kernel | 2.01 (1.98–2.04) | 4 | 1.00 (0.97–1.03) unresolved |\n<!-- /bench:figures -->\nafter\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
	if again, n, err := withFigures(filepath.Dir(doc), got); err != nil || n != 1 || again != got {
		t.Errorf("written twice it is another document: %v", err)
	}
	if again, _, _ := withFigures(filepath.Dir(doc), strings.Replace(got, "2.01", "3.01", 1)); again != got {
		t.Error("an edit by hand is not found")
	}
	if out, n, err := withFigures(filepath.Dir(doc), "<!-- bench:figures results.json throughput/rate -->\nold\n<!-- /bench:figures -->\n"); err != nil || n != 1 || !strings.Contains(out, "| throughput 64B, rate, Mpps | demarc |") {
		t.Errorf("named figures: %v\n%s", err, out)
	}
	for text, want := range map[string]string{
		"<!-- bench:figures results.json throughput/speed -->\nold\n<!-- /bench:figures -->\n": "no figure throughput/speed",
		"nothing\n": "no line <!-- bench:figures",
		"<!-- bench:figures results.json -->\nold\n":                                                        "want a line each",
		"<!-- bench:figures other.json -->\nold\n<!-- /bench:figures -->\n":                                 "other.json",
		"<!-- bench:figures results.json -->\n<!-- bench:figures results.json -->\n<!-- /bench:figures -->": "want a line each",
	} {
		write(text)
		if _, err := benchCommand(t, "figures", "--write", doc); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if read() != text {
			t.Errorf("%q was changed", text)
		}
	}
	if out, err := benchCommand(t, "figures", file); err != nil || !strings.Contains(out, "| kernel | 2.01") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, args := range [][]string{{"figures"}, {"figures", file, "--write", doc}} {
		if _, err := benchCommand(t, args...); err == nil {
			t.Errorf("%q is no error", args)
		}
	}
}
