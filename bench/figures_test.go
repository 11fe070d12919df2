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
		t.Error("README.md differs from its results: go generate ./bench")
	}
}

// Figures are written from the file, an edit by hand is found, and what cannot be written leaves the document alone.
func TestFiguresAreWrittenIntoADocument(t *testing.T) {
	file := resultsFileOf(t, "a", 2, func(o *report.Output) { o.Results[0].HoldRatio("kernel", 1.5) })
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
	for _, want := range []string{"before\n<!-- bench:figures results.json -->\nEPYC, 2 CPUs", "| throughput 64B, rate, Mpps | demarc | 2.01 (1.98–2.04) | 4 | promised ratio to kernel at least 1.5: MISSED |\n|  | kernel | 2.01 (1.98–2.04) | 4 | 1.00 (0.97–1.03) unresolved |\n<!-- /bench:figures -->\nafter\n"} {
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
	for text, want := range map[string]string{
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
