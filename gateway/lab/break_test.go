package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/netlab/quiet"
	"demarc/gateway/netlab/roottest"
)

var builtIn string // where program has built; TestMain removes it

// program is the real gateway, built once for all tests.
var program = sync.OnceValues(func() (binary string, err error) {
	if builtIn, err = os.MkdirTemp("", "demarc-lab-test-"); err != nil {
		return "", err
	}
	binary = filepath.Join(builtIn, "demarc")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "demarc")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return binary, nil
})

// demoHolds has a demo hold with real gateways, with these words on its screen. It measures.
func demoHolds(t *testing.T, run func(context.Context, Options) (Result, error), o Options, shows ...string) {
	t.Helper()
	roottest.Require(t)
	var err error
	if o.Binary, err = program(); err != nil {
		t.Fatal(err)
	}
	quiet.Judge(t, func(l *quiet.Limits) {
		var out bytes.Buffer
		o.Out = &out
		r, err := run(t.Context(), o)
		switch wrong := slices.ContainsFunc(r.Promises, func(p Promise) bool { return !p.OK && p.late < len(p.Why) }); {
		case err != nil || wrong:
			t.Errorf("broken: %v, %v\n%s", r.Broken(), err, &out)
		case !r.OK:
			l.Missed("broken: %v\n%s", r.Broken(), &out)
		}
		if r.Seconds > 59 {
			t.Errorf("it took %.0f s", r.Seconds)
		}
		for _, want := range shows {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the view does not show %q:\n%s", want, &out)
			}
		}
	})
	nothingLeft(t, os.Getpid())
}

func TestDemo(t *testing.T) { demoHolds(t, Run, Options{Duration: MinDuration}) }

// With one thing switched off each demo fails and names that, by the command line. Those are judged for one thing each, so they may run at the same time.
func TestDemosFindEachBrokenStage(t *testing.T) {
	roottest.MostlyWaits(t)
	roottest.Require(t)
	binary, err := program()
	if err != nil {
		t.Fatal(err)
	}
	for _, demo := range []struct {
		args   []string
		stages []string
	}{{[]string{"--pair"}, PairStages}, {[]string{"--cluster"}, ClusterStages}, {[]string{"--duration", MinDuration.String()}, Stages}} {
		for _, stage := range demo.stages {
			t.Run(strings.Join(append(demo.args, "--break", stage), " "), func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				c := exec.CommandContext(ctx, binary, append([]string{"lab", "--json", "--break", stage}, demo.args...)...)
				text, err := c.Output()
				var r Result
				if jerr := json.Unmarshal(text, &r); jerr != nil {
					t.Fatalf("%v, %v: %s", err, jerr, text)
				}
				if err == nil || r.OK || !slices.Contains(r.Broken(), stage) {
					t.Errorf("the demo says that these are broken: %v (%v)\n%s", r.Broken(), err, text)
				}
				if r.Seconds > 59 {
					t.Errorf("it took %.0f s", r.Seconds)
				}
				nothingLeft(t, c.Process.Pid)
			})
		}
	}
}
