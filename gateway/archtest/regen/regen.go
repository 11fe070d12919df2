package regen

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"demarc/gateway/netlab/roottest"
)

// compiler made the committed objects. Debian 12 has it; another version makes other instructions of the same source.
const compiler = "clang version 14."

// Current runs generate.sh of the test's own folder into another one and demands that what is committed as NAME_bpfel.go and NAME_bpfel.o is that, for each name. With the compiler that
// made the object each byte must be the same. With another one all must be the same but the instructions: programs, maps, and the Go file. Where there is no clang, CI fails.
func Current(t *testing.T, names ...string) {
	t.Helper()
	version, err := exec.Command("clang", "--version").Output()
	if err != nil {
		roottest.Missing(t, "clang, which .ci/setup.sh installs, to compare the committed object (%v)", err)
	}
	same := bytes.Contains(version, []byte(compiler))
	out := t.TempDir()
	if b, err := exec.Command("./generate.sh", out).CombinedOutput(); err != nil {
		t.Fatalf("generate.sh: %v\n%s", err, b)
	}
	var files []string
	for _, name := range names {
		files = append(files, name+"_bpfel.go", name+"_bpfel.o")
	}
	for _, file := range files {
		want, have := read(t, filepath.Join(out, file)), read(t, file)
		switch {
		case bytes.Contains(have, []byte("/main/")) || bytes.Contains(have, []byte("/tmp/")):
			t.Errorf("%s names a folder of the machine that made it", file)
		case same || filepath.Ext(file) == ".go":
			if !bytes.Equal(have, want) {
				t.Errorf("%s is not what generate.sh makes of the source: run go generate in this folder, with %s", file, compiler)
			}
		default:
			t.Logf("%s: without its instructions: this is %.30q, the committed one is of %s", file, version, compiler)
			if made, committed := shape(t, want), shape(t, have); !maps.Equal(made, committed) {
				t.Errorf("%s is not what generate.sh makes of the source: run go generate in this folder, with %s\nmade: %v\ncommitted: %v", file, compiler, made, committed)
			}
		}
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// a part is a program or a map of an object, as far as no compiler decides about it.
type part struct {
	Kind, Section                string
	KeySize, ValueSize, Elements uint32
	Flags                        uint32
}

// shape is what an object has but for its instructions.
func shape(t *testing.T, object []byte) map[string]part {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]part{}
	for n, p := range spec.Programs {
		parts[n] = part{Kind: p.Type.String(), Section: p.SectionName}
	}
	for n, m := range spec.Maps {
		if n[0] == '.' { // constants of the compiler's own choice
			continue
		}
		parts[n] = part{Kind: m.Type.String(), KeySize: m.KeySize, ValueSize: m.ValueSize, Elements: m.MaxEntries, Flags: m.Flags}
	}
	return parts
}
