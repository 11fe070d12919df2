package archtest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	pageLink    = regexp.MustCompile(`\]\(([^)#: ]*)(?:#([^)]*))?\)`)
	pageHeading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	pageFence   = regexp.MustCompile("(?ms)^```.*?^```")
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are those of a page's headings, as they are made where such pages are shown.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range pageHeading.FindAllStringSubmatch(pageFence.ReplaceAllString(text, ""), -1) {
		all[strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return all
}

// TestInstalledPages: what `make install` puts on a machine can be read there: each link of each page leads to a file that is installed too, and to a heading that it has.
func TestInstalledPages(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command("make", "-s", "install-pages", "DESTDIR="+dir)
	c.Dir = project.root
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("make install-pages: %v\n%s", err, out)
	}
	root := filepath.Join(dir, "usr/local/share/doc/demarc")
	links := 0
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(file) != ".md" {
			return err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, file)
		for _, m := range pageLink.FindAllStringSubmatch(pageFence.ReplaceAllString(string(b), ""), -1) {
			if m[1] == "" && m[2] == "" {
				continue
			}
			links++
			to := file
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(file), m[1])
			}
			there, err := os.ReadFile(to)
			switch {
			case err != nil:
				t.Errorf("%s: links to %s, which is not installed", name, m[1])
			case m[2] != "" && !anchors(string(there))[m[2]]:
				t.Errorf("%s: links to %s#%s, and there is no such heading", name, m[1], m[2])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if links < 100 {
		t.Errorf("%d links are found: the test sees too little", links)
	}
	for _, unit := range []string{"packaging/demarc.service", "packaging/demarc-witness.service"} {
		_, doc, _ := strings.Cut(project.text(t, unit), "Documentation=file://")
		doc, _, _ = strings.Cut(doc, "\n")
		if _, err := os.Stat(filepath.Join(dir, doc)); err != nil {
			t.Errorf("%s: names %s, which is not installed", unit, doc)
		}
	}
}
