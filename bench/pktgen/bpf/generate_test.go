package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The committed object is what the source says: generated again into another folder it has the same bytes. Only clang 14, which
// Debian 12 has, made it; another version makes another object.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("clang --version: %v: CI installs it by .ci/setup.sh", err)
	}
	if err != nil {
		t.Skip("clang is not installed; the committed object cannot be compared")
	}
	comparable := bytes.Contains(version, []byte("clang version 14."))
	out := t.TempDir()
	if b, err := exec.Command("./generate.sh", out).CombinedOutput(); err != nil {
		t.Fatalf("generate.sh: %v\n%s", err, b)
	}
	for _, name := range []string{"pktgen_bpfel.go", "pktgen_bpfel.o"} {
		want, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !comparable {
			t.Logf("%s: made, not compared: this is %.30q, the committed one is of clang 14", name, version)
		} else if !bytes.Equal(have, want) {
			t.Errorf("%s is not what generate.sh makes of pktgen.c: run go generate ./bench/pktgen/bpf", name)
		}
		if bytes.Contains(have, []byte("/main/")) || bytes.Contains(have, []byte("/tmp/")) {
			t.Errorf("%s names a folder of the machine that made it", name)
		}
	}
}
