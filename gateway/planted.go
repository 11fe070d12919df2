//go:build plant

package gateway

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"demarc/cluster/failover"
	"demarc/gateway/lease"
	"demarc/gateway/replica"
	"demarc/gateway/worker"
)

// A program that is built with the tag plant does what its environment says: it has a fault, so that it is seen whether a judge finds it, and clocks that are off. What is
// shipped is built without the tag, and has none of this in it.
//
//	DEMARC_PLANT       a fault: see Plant in the rooms, and standby-announces
//	DEMARC_CLOCK_RATE  how fast the clock goes, from DEMARC_CLOCK_BASE on (ns of CLOCK_BOOTTIME)
//	DEMARC_WALL        by how much the wall clock is ahead: 26h
const (
	plantEnv = "DEMARC_PLANT"
	rateEnv  = "DEMARC_CLOCK_RATE"
	baseEnv  = "DEMARC_CLOCK_BASE"
	wallEnv  = "DEMARC_WALL"
)

var (
	wallAhead time.Duration
	announces bool            // also who does not serve
	pacedTime bool            // the clock is not the kernel's
	ownTable  lease.Deadlines // by this process's clock, where that is so: the programs go by the kernel's
)

func init() {
	fail := func(name string, err error) {
		fmt.Fprintf(os.Stderr, "%s=%q: %v\n", name, os.Getenv(name), err)
		os.Exit(2)
	}
	if fault := os.Getenv(plantEnv); fault != "" {
		known := failover.Plant(fault)
		known = replica.AddPlant(fault) || known
		known = worker.Plant(fault) || known
		announces = fault == "standby-announces"
		if !known && !announces {
			fail(plantEnv, fmt.Errorf("no such fault"))
		}
	}
	if text := os.Getenv(rateEnv); text != "" {
		rate, err := strconv.ParseFloat(text, 64)
		if err != nil || rate <= 0 {
			fail(rateEnv, fmt.Errorf("want a number above 0 (%v)", err))
		}
		base, err := strconv.ParseUint(os.Getenv(baseEnv), 10, 64)
		if err != nil {
			fail(baseEnv, err)
		}
		worker.Pace(base, rate)
		pacedTime = rate != 1
	}
	if text := os.Getenv(wallEnv); text != "" {
		var err error
		if wallAhead, err = time.ParseDuration(text); err != nil {
			fail(wallEnv, err)
		}
	}
}

// Wall is the one wall clock.
func Wall() time.Time { return time.Now().Add(wallAhead) }

// table is the deadlines that this process goes by.
func (g *Gateway) table() *lease.Deadlines {
	if announces {
		g.announceAlways()
	}
	if pacedTime {
		return &ownTable
	}
	return g.deadlines.Table()
}

func (g *Gateway) writeTable(group uint8, epoch, until uint64) {
	if pacedTime {
		ownTable.Write(group, epoch, until)
		until = worker.TrueTime(until)
	}
	g.deadlines.Table().Write(group, epoch, until)
}

// keepFor has what comes for a group behind its deadline kept until then; 0 = not at all.
func (g *Gateway) keepFor(group uint8, until uint64) {
	if pacedTime {
		ownTable.Keep(group, until)
		until = worker.TrueTime(until)
	}
	g.deadlines.Table().Keep(group, until)
}

// mayWord reports whether this node may say where a group's addresses are.
func (g *Gateway) mayWord(group uint8, now uint64) bool {
	return announces || g.table().May(group, now)
}

// wordOf is the group that a frame of our own making leaves as.
func wordOf(group uint8, _ []byte) uint8 {
	if announces {
		return 0
	}
	return group
}

var announcing sync.Once

// announceAlways has this node say where its groups' addresses are, ten times a second, whoever serves them.
func (g *Gateway) announceAlways() {
	announcing.Do(func() {
		go func() {
			for range time.Tick(100 * time.Millisecond) {
				if v, s := g.view.Load(), g.slow; v != nil && s != nil {
					for _, x := range v.Groups() {
						s.Announce(x.ID)
					}
				}
			}
		}()
	})
}
