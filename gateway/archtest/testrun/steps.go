package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// step is the arguments of one run of go test.
type step []string

// split takes arguments apart: "--" is between steps.
func split(args []string) (steps []step) {
	for _, words := range cut(args, "--") {
		steps = append(steps, words)
	}
	return steps
}

func cut(args []string, at string) (lists [][]string) {
	for {
		i := slices.Index(args, at)
		if i < 0 {
			return append(lists, args)
		}
		lists, args = append(lists, args[:i]), args[i+1:]
	}
}

// ahead compiles the tests of steps while the one before them runs, in the time that it leaves: then nothing is compiled beside tests that measure. Whether they
// compile is for their own run to say.
func ahead(steps []step) (wait func()) {
	args := []string{"-n", "19", "go", "test", "-run=^$", "-exec=true", "-p=1", "-vet=off"}
	for _, s := range steps {
		args = append(args, s.packages()...)
	}
	cmd := exec.Command("nice", args...)
	if len(steps) == 0 || cmd.Start() != nil {
		return func() {}
	}
	return func() { _ = cmd.Wait() }
}

// packages are what comes behind the flags, which are one word each.
func (s step) packages() []string {
	i := 0
	for i < len(s) && strings.HasPrefix(s[i], "-") {
		i++
	}
	return s[i:]
}

func (s step) run(r *record) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, s...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return errors.Join(r.read(pipe), cmd.Wait())
}
