package cruise

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A stage has one name in both executors: who has read the one finds the other.
func TestStagesHaveThePipelinesNames(t *testing.T) {
	source, err := os.ReadFile("bpf/cruise.c")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../pipeline/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var pipeline []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pipeline = append(pipeline, b...)
	}
	for _, stage := range []string{"receive", "find", "track", "usable", "offer", "send", "carry"} {
		if !regexp.MustCompile(`(?m)^(INLINE|(static )?__attribute__\(\(noinline\)\)) \w+ ` + stage + `\(`).Match(source) {
			t.Errorf("cruise.c has no function %s", stage)
		}
		if !regexp.MustCompile(`(?m)^func \(sh \*Shard\) ` + stage + `\(`).Match(pipeline) {
			t.Errorf("the pipeline has no %s", stage)
		}
	}
}
