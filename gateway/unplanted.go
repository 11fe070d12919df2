//go:build !plant

package gateway

import (
	"time"

	"demarc/gateway/lease"
)

// What tests change in programs of their own, see planted.go: nothing is, in all that is shipped.

// Wall is the one wall clock.
func Wall() time.Time { return time.Now() }

// table is the deadlines that this process goes by.
func (g *Gateway) table() *lease.Deadlines { return g.deadlines.Table() }

func (g *Gateway) writeTable(group uint8, epoch, until uint64) {
	g.deadlines.Table().Write(group, epoch, until)
}

// keepFor has what comes for a group behind its deadline kept until then; 0 = not at all.
func (g *Gateway) keepFor(group uint8, until uint64) { g.deadlines.Table().Keep(group, until) }

// mayWord reports whether this node may say where a group's addresses are.
func (g *Gateway) mayWord(group uint8, now uint64) bool { return g.table().May(group, now) }

// wordOf is the group that a frame of our own making leaves as.
func wordOf(group uint8, _ []byte) uint8 { return group }
