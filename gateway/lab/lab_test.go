package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

func TestMain(m *testing.M) {
	netlab.Init()
	if len(os.Args) > 2 && os.Args[1] == "run" {
		os.Exit(idleGateway(os.Args[2:]))
	}
	// The demos that are judged for one thing each wait most of their time, two processors or not. Another number that is asked for stays.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set("4") // a number
	}
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// idleGateway says that all is well and carries nothing. With --break nat it ends at once, with --break acl after a second.
func idleGateway(args []string) int {
	node := args[slices.Index(args, "--node")+1]
	if slices.Contains(args, "nat") {
		fmt.Println("no such port")
		return 3
	}
	if slices.Contains(args, "acl") {
		time.AfterFunc(time.Second, func() { os.Exit(4) })
	}
	ln, err := net.Listen("unix", filepath.Join(filepath.Dir(node), "demarc.sock"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	st := api.Status{Ready: true, Conservation: api.Conservation{OK: true}}
	http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { json.NewEncoder(w).Encode(st) }))
	return 0
}

// A gateway's word is worth nothing: one that only claims to be well breaks nearly every promise, in time, and nothing is left.
func TestIdleGatewayIsFoundOut(t *testing.T) {
	roottest.MostlyWaits(t)
	roottest.Require(t)
	var out bytes.Buffer
	r, err := Run(t.Context(), Options{Duration: 8 * time.Second, Out: &out})
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, name := range []string{"download", "ping", "udp", "dns", "nat", "tenant", "forward", "limit", "neighbour", "account", "afxdp"} {
		if !slices.Contains(r.Broken(), name) {
			t.Errorf("%s held with a gateway that carries nothing", name)
		}
	}
	if r.OK || r.Seconds > 55 || !strings.Contains(out.String(), "BROKEN: download, ping") {
		t.Errorf("verdict %v after %.0f s:\n%s", r.OK, r.Seconds, &out)
	}
	nothingLeft(t, os.Getpid())
}

func TestGatewayThatEnds(t *testing.T) {
	roottest.Require(t)
	if _, err := Run(t.Context(), Options{Break: "nat"}); err == nil || !strings.Contains(err.Error(), "no such port") {
		t.Errorf("a gateway that did not start: %v", err)
	}
	nothingLeft(t, os.Getpid())
	start := time.Now()
	r, err := Run(t.Context(), Options{Break: "acl"})
	if err != nil {
		t.Fatal(err)
	}
	if b := r.Broken(); !slices.Contains(b, "frames") || time.Since(start) > 12*time.Second {
		t.Errorf("a gateway that ended early: broken %v after %v", b, time.Since(start))
	}
	nothingLeft(t, os.Getpid())
}

func TestCancelledDemo(t *testing.T) {
	roottest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := Run(ctx, Options{}); err == nil {
		t.Error("a cancelled demo has a verdict")
	}
	nothingLeft(t, os.Getpid())
}

// nothingLeft looks for namespaces of labs that a process has made.
func nothingLeft(t *testing.T, pid int) {
	t.Helper()
	if left, _ := filepath.Glob(fmt.Sprintf("/run/netns/dmdemo-%d-*", pid)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
