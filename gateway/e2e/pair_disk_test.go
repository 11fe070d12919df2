package e2e

import (
	"encoding/base64"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// TestPairHeirsDiskIsFull: the other gateway's disk takes no entry of the log any more, so it would not hear that a group is its own: that is said where the group is served, and nobody hands it over to there, by hand or by a drain.
// With room on that disk the pair is as before, by itself.
func TestPairHeirsDiskIsFull(t *testing.T) {
	mostlyWaits(t)
	pairJudged(t, heirsDiskIsFull)
}

func heirsDiskIsFull(t *testing.T, l *quiet.Limits) {
	data := ""
	p := newPairOf(t, nodes.Options{Lab: labName(t, "pairdisk")}, "", func(p *pairLab) {
		data = p.GW2.Data
		check(t, os.MkdirAll(data, 0o755))
		check(t, unix.Mount("dm-e2e", data, "tmpfs", 0, "size=12m,mode=755"))
		t.Cleanup(func() { check(t, unix.Unmount(data, unix.MNT_DETACH)) })
	})
	p.limits = l
	const count = 5
	p.owned(p.GW1, "first", "")
	conns, outside := p.hold(count)
	p.protected(p.GW1)

	room := fill(t, data)
	dice := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(dice)
	large := filepath.Join(t.TempDir(), "large.toml")
	check(t, os.WriteFile(large, []byte(nodes.PairPolicy("")+"# "+base64.StdEncoding.EncodeToString(dice)+"\n"), 0o644))
	out, err := p.GW1.Run(t.Context(), "apply", large, "--except", "gw2")
	check(t, err)
	t.Logf("%s", out)
	const words = "the log of gw2 takes no entries (its disk refuses them, or it is stopped: `demarc status` there)"
	if !until(5*time.Second, func() bool {
		g, err := p.says(p.GW1)
		return err == nil && strings.Contains(strings.Join(g.Why, "; "), words+": it could not take over")
	}) {
		g, err := p.says(p.GW1)
		t.Errorf("gw1 does not say that gw2 could not take over: %+v, %v", g, err)
	}
	if out, err := p.GW1.Run(t.Context(), "group", "move", nodes.PairGroup, "gw2"); err == nil || !strings.Contains(err.Error(), words+": it would not hear that the group is its own") {
		t.Errorf("a move there: %v, %s", err, out)
	}
	if out, err := p.GW1.Run(t.Context(), "node", "drain", "gw1"); err == nil || !strings.Contains(out, "gw1 is drained and still serves east") {
		t.Errorf("a drain: %v, %s", err, out)
	}
	_, err = p.GW1.Run(t.Context(), "node", "undrain", "gw1")
	check(t, err)
	room()
	p.protected(p.GW1)
	_, err = p.GW1.Run(t.Context(), "group", "move", nodes.PairGroup, "gw2")
	check(t, err)
	p.owned(p.GW2, "move", "gw1")
	p.protected(p.GW2)
	p.release(count, conns, outside)
}
