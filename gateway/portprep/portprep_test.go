package portprep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/hostnet"
)

// card is a driver with its rules, as the ones in the kernel have them.
type card struct {
	offloads hostnet.Offloads
	channels hostnet.Channels
	table    []uint32 // nil = the driver has no RSS
	own      bool     // the table is the driver's and follows the number of queues
	stuck    map[string]bool
	lies     map[string]bool // says yes and does nothing
	gone     bool
	calls    []string
	before   func(call string) // what a test looks at before the driver does it
}

func newCard() *card {
	c := &card{channels: hostnet.Channels{Combined: 8, MaxCombined: 8}, table: spread(128, 8), own: true, stuck: map[string]bool{}, lies: map[string]bool{}}
	c.offloads[hostnet.RxVLAN].On = true
	c.offloads[hostnet.RxFilter].On = true
	c.offloads[hostnet.GRO].On = true
	c.offloads[hostnet.TxChecksum].On = true
	return c
}

func (c *card) do(what, call string) error {
	if c.before != nil {
		c.before(call)
	}
	c.calls = append(c.calls, call)
	switch {
	case c.gone:
		return hostnet.ErrNotFound
	case c.stuck[what]:
		return fmt.Errorf("%s: %w", what, hostnet.ErrNotSupported)
	}
	return nil
}

func (c *card) Offloads(string) (hostnet.Offloads, error) {
	if c.gone {
		return hostnet.Offloads{}, hostnet.ErrNotFound
	}
	return c.offloads, nil
}

func (c *card) SetOffload(_ string, o hostnet.Offload, on bool) error {
	word := map[bool]string{true: "on", false: "off"}[on]
	if err := c.do(o.String(), o.String()+" "+word); err != nil || c.lies[o.String()] {
		return err
	}
	c.offloads[o].On = on
	return nil
}

func (c *card) Channels(string) (hostnet.Channels, error) {
	if c.channels.Most() == 0 {
		return hostnet.Channels{}, hostnet.ErrNotSupported
	}
	return c.channels, nil
}

func (c *card) SetChannels(_ string, n hostnet.Channels) error {
	if err := c.do(queues, n.String()); err != nil {
		return err
	}
	if n.Combined > c.channels.MaxCombined {
		return errors.New("more than there are")
	}
	if !c.own && c.table != nil && int(slices.Max(c.table)) >= n.Combined {
		return errors.New("the table names a queue beyond") // ethtool_check_max_channel
	}
	c.channels.Combined = n.Combined
	if c.own && c.table != nil {
		c.table = spread(len(c.table), n.Combined)
	}
	return nil
}

func (c *card) RSS(string) ([]uint32, error) {
	if c.table == nil {
		return nil, hostnet.ErrNotSupported
	}
	return slices.Clone(c.table), nil
}

func (c *card) SetRSS(_ string, t []uint32) error {
	if err := c.do(rss, fmt.Sprintf("rss %d", len(t))); err != nil {
		return err
	}
	if c.own = len(t) == 0; c.own {
		t = spread(len(c.table), c.channels.Combined)
	}
	if int(slices.Max(t)) >= c.channels.Combined {
		return errors.New("no such queue")
	}
	c.table = slices.Clone(t)
	return nil
}

// state is all that can be changed.
func (c *card) state() string {
	on := ""
	for o := range hostnet.NumOffloads {
		if c.offloads[o].On {
			on += o.String() + " "
		}
	}
	return fmt.Sprintf("%s%v %v own %v", on, c.channels, c.table, c.own)
}

func names(list []Change) (out []string) {
	for _, c := range list {
		out = append(out, c.String())
	}
	return out
}

func files(t *testing.T, dir string) int {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestPrepareAndPutBack(t *testing.T) {
	c, dir := newCard(), filepath.Join(t.TempDir(), "ports")
	was := c.state()
	p, err := prepare(c, dir, "eth0", "id", Want{Trunk: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"gro on -> off", "rxvlan on -> off", "rx-vlan-filter on -> off"}, names(p.Changes())); d != "" {
		t.Error(d)
	}
	if o := c.offloads; o[hostnet.GRO].On || o[hostnet.RxVLAN].On || o[hostnet.RxFilter].On || !o[hostnet.TxChecksum].On {
		t.Errorf("the driver has %+v", o)
	}
	if len(p.Warnings) > 0 || p.Promiscuous != "" || files(t, dir) != 1 {
		t.Errorf("%v, promiscuous %q, %d files", p.Warnings, p.Promiscuous, files(t, dir))
	}
	c.calls = nil
	done, err := p.Restore()
	if err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, %d files, the driver has\n%s\nwas\n%s", err, files(t, dir), c.state(), was)
	}
	if d := cmp.Diff([]string{"rx-vlan-filter on", "rxvlan on", "gro on"}, c.calls); d != "" {
		t.Error("not from the end:", d)
	}
	if d := cmp.Diff([]string{"rx-vlan-filter off -> on", "rxvlan off -> on", "gro off -> on"}, names(done)); d != "" {
		t.Error(d)
	}
	c.calls = nil
	if done, err := p.Restore(); len(done) > 0 || err != nil || len(c.calls) > 0 {
		t.Errorf("a second time: %v %v %v", done, err, c.calls)
	}
}

// What a start finds that comes after kill -9 is not what is put back.
func TestKilledThenPutBack(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	was := c.state()
	// What is to be changed is on disk before the driver is told.
	c.before = func(call string) {
		what, _, _ := strings.Cut(call, " ")
		b, err := os.ReadFile(file(dir, "eth0"))
		if err != nil || !strings.Contains(string(b), `"`+what+`"`) {
			t.Errorf("%s: not on record: %v %s", call, err, b)
		}
	}
	if _, err := prepare(c, dir, "eth0", "id", Want{}); err != nil {
		t.Fatal(err)
	}
	c.before, c.calls = nil, nil
	for range 3 { // each of them killed; no card takes its link down for what is as it should be
		p, err := prepare(c, dir, "eth0", "id", Want{})
		if err != nil {
			t.Fatal(err)
		}
		if got := names(p.Changes()); len(got) != 3 || got[0] != "gro on -> off" {
			t.Errorf("a later start tells %v", got)
		}
	}
	if len(c.calls) > 0 {
		t.Errorf("later starts told the driver %v", c.calls)
	}
	r, err := load(dir, "eth0", "id")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore(c, dir, r); err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, the driver has\n%s\nwas\n%s", err, c.state(), was)
	}
}

// A setting that two starts changed, the first of them killed, goes back to what it was before both.
func TestKilledThenChangedAgain(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	was := c.state()
	if _, err := prepare(c, dir, "eth0", "id", Want{Queues: 2}); err != nil {
		t.Fatal(err)
	}
	p, err := prepare(c, dir, "eth0", "id", Want{Queues: 4})
	if err != nil || c.channels.Combined != 4 || !slices.Contains(names(p.Changes()), "queues combined 8 -> combined 4") {
		t.Fatal(err, c.state(), p.Changes())
	}
	if _, err := p.Restore(); err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, the driver has\n%s\nwas\n%s", err, c.state(), was)
	}
}

// A start that fails puts back what it found itself: after kill -9 the prepared port, and the record of what the first one found.
func TestFailedStart(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	c.offloads[hostnet.LRO].On = true
	c.stuck["lro"] = true
	was := c.state()
	_, err := prepare(c, dir, "eth0", "id", Want{})
	if err == nil || !strings.Contains(err.Error(), "ethtool -K eth0 lro off") || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, %d files, the driver has\n%s\nwas\n%s", err, files(t, dir), c.state(), was)
	}
	c.offloads[hostnet.LRO].On = false
	if _, err := prepare(c, dir, "eth0", "id", Want{}); err != nil {
		t.Fatal(err)
	}
	c.offloads[hostnet.RxSTag].On = true // somebody else, meanwhile
	second := c.state()
	p, err := prepare(c, dir, "eth0", "id", Want{Queues: 2})
	if err != nil || len(p.Changes()) != 5 {
		t.Fatal(err, p.Changes())
	}
	if err := p.Abandon(); err != nil || c.state() != second {
		t.Errorf("%v, the driver has\n%s\nwant\n%s", err, c.state(), second)
	}
	if r, err := load(dir, "eth0", "id"); err != nil || len(r.Steps) != 3 {
		t.Errorf("on record: %+v, %v", r, err)
	}
}

func TestQueuesAndRSS(t *testing.T) {
	uneven := spread(128, 8)
	for i := range uneven {
		uneven[i] %= 2
	}
	odd := slices.Clone(spread(128, 8))
	odd[5] = 7
	for name, c := range map[string]struct {
		table  []uint32
		own    bool
		want   Want
		queues int
		change []string
	}{
		"as it is":                       {spread(128, 8), true, Want{}, 8, nil},
		"set by hand, and even":          {spread(128, 8), false, Want{}, 8, nil},
		"only two of the queues":         {uneven, false, Want{}, 8, []string{"rss even over 2 queues -> even over 8 queues"}},
		"one entry too many":             {odd, false, Want{}, 8, []string{"rss 8 of 8 queues, unevenly -> even over 8 queues"}},
		"fewer queues":                   {spread(128, 8), true, Want{Queues: 2}, 2, []string{"queues combined 8 -> combined 2"}},
		"fewer queues, a table in place": {odd, false, Want{Queues: 2}, 2, []string{"rss 8 of 8 queues, unevenly -> even over 2 queues", "queues combined 8 -> combined 2"}},
		"no rss at all":                  {nil, true, Want{Queues: 2}, 2, []string{"queues combined 8 -> combined 2"}},
		"as many as asked for":           {spread(128, 8), true, Want{Queues: 8}, 8, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := newCard()
			d.offloads = hostnet.Offloads{}
			d.table, d.own = slices.Clone(c.table), c.own
			was := d.state()
			p, err := prepare(d, t.TempDir(), "eth0", "id", c.want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.change, names(p.Changes())); diff != "" {
				t.Error(diff)
			}
			if d.channels.Combined != c.queues || d.table != nil && !even(d.table, c.queues) {
				t.Errorf("%d queues, table %v", d.channels.Combined, d.table)
			}
			if _, err := p.Restore(); err != nil {
				t.Error(err)
			}
			if now := d.state(); strings.TrimSuffix(now, "own true") != strings.TrimSuffix(was, "own true") && now != was {
				t.Errorf("put back:\n%s\nwas\n%s", now, was)
			}
		})
	}
	// More than there were, by a table that stays valid.
	d := newCard()
	d.offloads = hostnet.Offloads{}
	d.channels.Combined, d.table, d.own = 2, []uint32{0, 0, 0, 1}, false
	was := d.state()
	p, err := prepare(d, t.TempDir(), "eth0", "id", Want{Queues: 4})
	if err != nil || !even(d.table, 4) || d.channels.Combined != 4 {
		t.Fatal(err, d.state())
	}
	if _, err := p.Restore(); err != nil || d.state() != was {
		t.Errorf("%v, put back:\n%s\nwas\n%s", err, d.state(), was)
	}
}

// What a driver refuses is judged.
func TestRefusals(t *testing.T) {
	trunk := Want{Trunk: true}
	for name, c := range map[string]struct {
		change func(*card)
		want   Want
		err    string // "" = it starts
		warns  string
	}{
		"strips tags, trunk":                   {func(c *card) { c.stuck["rxvlan"] = true }, trunk, "tenants on this trunk would fall together: ethtool -K eth0 rxvlan off", ""},
		"says yes and does nothing":            {func(c *card) { c.lies["rxvlan"] = true }, trunk, "tenants on this trunk would fall together", ""},
		"strips tags for ever, trunk":          {func(c *card) { c.stuck["rxvlan"], c.offloads[hostnet.RxVLAN].Fixed = true, true }, trunk, "cannot be told not to: use another device", ""},
		"strips tags, untagged":                {func(c *card) { c.stuck["rxvlan"] = true }, Want{}, "", "a tagged frame counts as untagged"},
		"strips service tags, trunk":           {func(c *card) { c.offloads[hostnet.RxSTag].On, c.stuck["rx-vlan-stag-hw-parse"] = true, true }, trunk, "would pass for a tenant's", ""},
		"gro stays, native":                    {func(c *card) { c.stuck["gro"] = true }, Want{}, "", ""},
		"gro stays, generic":                   {func(c *card) { c.stuck["gro"] = true }, Want{Generic: true}, "", "packets are joined before the gateway sees them"},
		"lro stays":                            {func(c *card) { c.offloads[hostnet.LRO].On, c.stuck["lro"] = true, true }, Want{}, "ethtool -K eth0 lro off", ""},
		"joins in hardware":                    {func(c *card) { c.offloads[hostnet.HWGRO].On, c.stuck["rx-gro-hw"] = true, true }, Want{}, "", "rx-gro-hw"},
		"too many queues":                      {func(*card) {}, Want{Queues: 9}, "queues = 9", ""},
		"queues cannot be changed":             {func(c *card) { c.stuck[queues], c.stuck[rss] = true, true }, Want{Queues: 2}, "queues = 2", ""},
		"nor can more be had":                  {func(c *card) { c.stuck[queues], c.channels.Combined, c.table = true, 4, spread(128, 4) }, Want{Queues: 6}, "queues = 6", ""},
		"no queues to change":                  {func(c *card) { c.channels = hostnet.Channels{} }, Want{Queues: 2}, "leave queues out", ""},
		"a table that cannot be changed":       {func(c *card) { c.table, c.stuck[rss] = []uint32{0, 0}, true }, Want{}, "", "not spread evenly over the 8 queues"},
		"filters tags and cannot stop, trunk":  {func(c *card) { c.stuck["rx-vlan-filter"] = true }, trunk, "", ""},
		"filters tags and cannot stop, untagg": {func(c *card) { c.stuck["rx-vlan-filter"] = true }, Want{}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d, dir := newCard(), t.TempDir()
			c.change(d)
			was := d.state()
			p, err := prepare(d, dir, "eth0", "id", c.want)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %q", err, c.err)
				}
				if d.state() != was || files(t, dir) != 0 {
					t.Errorf("%d files, the driver has\n%s\nwas\n%s", files(t, dir), d.state(), was)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(p.Warnings, "; "); !strings.Contains(got, c.warns) || c.warns == "" && got != "" {
				t.Errorf("warns %q, want %q", got, c.warns)
			}
			if promisc := strings.HasSuffix(name, "stop, trunk"); promisc != (p.Promiscuous != "") {
				t.Errorf("promiscuous: %q", p.Promiscuous)
			}
			if _, err := p.Restore(); err != nil || d.state() != was || files(t, dir) != 0 {
				t.Errorf("put back: %v, %d files\n%s\nwas\n%s", err, files(t, dir), d.state(), was)
			}
		})
	}
}

// A driver that has more queues while a program is on it, and changes their number only without, as virtio_net.
func TestProgramChangesTheQueues(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	c.channels = hostnet.Channels{Combined: 4, MaxCombined: 4}
	c.table = spread(128, 4)
	was := c.state()
	forgot := false // the device, the table that was set
	c.before = func(call string) { forgot = forgot && call != "rss 128" }
	attach := func(more int) {
		forgot = !c.own
		c.stuck[queues] = more > 0
		if c.channels.Combined += more; c.own && c.table != nil {
			c.table = spread(128, c.channels.Combined)
		}
	}
	said := []string{"gro on -> off", "rxvlan on -> off", "rx-vlan-filter on -> off", "queues combined 4 -> combined 2", "rss even over 3 queues -> even over 2 queues"}
	for start := range 2 { // the second after kill -9
		p, err := prepare(c, dir, "eth0", "id", Want{Queues: 2})
		if err != nil || p.Queues != 2 {
			t.Fatalf("start %d: %d queues, %v", start, p.Queues, err)
		}
		attach(1 - start)
		c.stuck[queues] = true
		if err := p.Settle(); err != nil || p.Queues != 2 || !even(c.table, 2) || forgot || c.channels.Combined != 3 || len(p.Warnings) > 0 {
			t.Errorf("start %d: %d of %d queues, table %v, %v, %v", start, p.Queues, c.channels.Combined, c.table, p.Warnings, err)
		}
		if d := cmp.Diff(said, names(p.Changes())); d != "" {
			t.Errorf("start %d: %s", start, d)
		}
		forgot = true // another program
		if err := p.Exchanged(); err != nil || forgot {
			t.Errorf("start %d: the device works by another table, %v", start, err)
		}
		if start == 1 {
			if _, err := p.Restore(); err == nil || !strings.Contains(err.Error(), "put queues back to combined 4") || !even(c.table, 3) {
				t.Errorf("%v, table %v", err, c.table)
			}
		}
	}
	attach(-1)
	r, err := load(dir, "eth0", "id")
	if err != nil || len(r.Steps) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := release(c, dir, r); err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, the driver has\n%s\nwas\n%s", err, c.state(), was)
	}
	// Without a table nothing keeps packets off the queues that came with the program, so they are bound.
	c.table = nil
	p, err := prepare(c, dir, "eth0", "id", Want{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	attach(1)
	if err := p.Settle(); err != nil || p.Queues != 0 || !strings.Contains(strings.Join(p.Warnings, ""), "3 queues, not 2, and no table to leave some out: all are bound") {
		t.Errorf("%d queues, %v, %v", p.Queues, p.Warnings, err)
	}
}

// The queues that come with the program make up the number that was found: that is not the driver's having given them back. The table that was found
// names one of them, so it waits for the queues.
func TestProgramMakesUpTheNumber(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	c.channels = hostnet.Channels{Combined: 4, MaxCombined: 4}
	c.table, c.own = spread(128, 4), false
	for i := range c.table {
		c.table[i] = uint32(i / 32 % 2 * 3) // 0 and 3
	}
	was := c.state()
	p, err := prepare(c, dir, "eth0", "id", Want{Queues: 3})
	if err != nil || c.channels.Combined != 3 {
		t.Fatal(err, c.state())
	}
	c.stuck[queues], c.channels.Combined = true, 4 // the program is on
	if err := p.Settle(); err != nil || !even(c.table, 3) {
		t.Fatalf("%v, table %v", err, c.table)
	}
	_, err = p.Restore()
	if err == nil || !strings.Contains(err.Error(), "put queues back to combined 4: the program on the device makes it read so already") ||
		!strings.Contains(err.Error(), "put rss back to 2 of 4 queues, unevenly: it comes with the queues") || !even(c.table, 3) {
		t.Errorf("%v, table %v", err, c.table)
	}
	c.stuck[queues], c.channels.Combined = false, 3 // and off
	r, err := load(dir, "eth0", "id")
	if err != nil || len(r.Steps) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := release(c, dir, r); err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, the driver has\n%s\nwas\n%s", err, c.state(), was)
	}
}

// What cannot be put back stays on record, and is put back later.
func TestPutBackLater(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	c.offloads[hostnet.LRO].On = true
	was := c.state()
	p, err := prepare(c, dir, "eth0", "id", Want{})
	if err != nil {
		t.Fatal(err)
	}
	c.stuck["lro"] = true // as with an XDP program on the device
	done, err := p.Restore()
	if err == nil || !strings.Contains(err.Error(), "put lro back to on") || len(done) != 3 {
		t.Errorf("%v, %v", done, err)
	}
	delete(c.stuck, "lro")
	r, err := load(dir, "eth0", "id")
	if err != nil || len(r.Steps) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := restore(c, dir, r); err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, the driver has\n%s\nwas\n%s", err, c.state(), was)
	}
}

// What somebody has set by hand while the gateway ran is theirs, and so is a device that went and came back.
func TestOthersSettingsStay(t *testing.T) {
	c, dir := newCard(), t.TempDir()
	p, err := prepare(c, dir, "eth0", "id", Want{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	c.channels.Combined = 4
	c.table = spread(128, 4)
	if _, err := p.Restore(); err != nil || c.channels.Combined != 4 {
		t.Errorf("%v, %d queues, want the 4 that somebody has set", err, c.channels.Combined)
	}
	if p, err = prepare(c, dir, "eth0", "id", Want{}); err != nil {
		t.Fatal(err)
	}
	c.gone = true
	if done, err := p.Restore(); err != nil || len(done) > 0 {
		t.Errorf("gone: %v %v", done, err)
	}
	c.gone = false
	c.offloads[hostnet.GRO].On = true
	if p, err = prepare(c, dir, "eth0", "id", Want{}); err != nil || files(t, dir) != 1 {
		t.Fatal(err)
	}
	c.offloads = hostnet.Offloads{} // another device of that name, which has nothing on
	next, err := prepare(c, dir, "eth0", "id of another", Want{})
	if err != nil || len(next.Changes()) > 0 {
		t.Errorf("%v: an earlier device's settings are told of the new one: %v", err, next.Changes())
	}
	if _, err := next.Restore(); err != nil || c.offloads[hostnet.GRO].On {
		t.Errorf("%v, gro %v", err, c.offloads[hostnet.GRO].On)
	}
}

// A directory that cannot be written, or a torn file, stops nothing and is said.
func TestRecordCannotBeKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCard()
	was := c.state()
	p, err := prepare(c, dir, "eth0", "id", Want{})
	if err != nil || !strings.Contains(strings.Join(p.Warnings, "; "), "a kill -9 would lose what was found") {
		t.Fatalf("%v, %v", p.Warnings, err)
	}
	if _, err := p.Restore(); c.state() != was {
		t.Errorf("%v, the driver has\n%s\nwas\n%s", err, c.state(), was)
	}
	dir = t.TempDir()
	if err := os.WriteFile(file(dir, "eth0"), []byte(`{"device": "eth`), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err = prepare(c, dir, "eth0", "id", Want{})
	if err != nil || !strings.Contains(strings.Join(p.Warnings, "; "), "cannot be read") {
		t.Fatalf("%v, %v", p.Warnings, err)
	}
	if _, err := p.Restore(); err != nil || c.state() != was || files(t, dir) != 0 {
		t.Errorf("%v, %d files", err, files(t, dir))
	}
}

// Before anything is touched it is known what will be refused; a device that nobody prepares is judged as it is.
func TestForeseeAndJudge(t *testing.T) {
	c := newCard()
	if err := foresee(c, "eth0", Want{Trunk: true, Queues: 8}); err != nil || len(c.calls) > 0 {
		t.Errorf("what can be switched off is refused: %v, %v", err, c.calls)
	}
	warn, err := judgeAsIs(c, "eth0", Want{Trunk: true})
	if err == nil || !strings.Contains(err.Error(), "ethtool -K eth0 rxvlan off") || len(warn) != 1 || !strings.Contains(warn[0], "rx-vlan-filter off") || len(c.calls) > 0 {
		t.Errorf("as it is: %v, %v, %v", warn, err, c.calls)
	}
	if _, err := judgeAsIs(c, "eth0", Want{Queues: 2}); err == nil || !strings.Contains(err.Error(), "ethtool -L eth0 combined 2") {
		t.Errorf("queues: %v", err)
	}
	c.table = make([]uint32, 128)
	if warn, err := judgeAsIs(c, "eth0", Want{}); err != nil || !slices.ContainsFunc(warn, func(s string) bool { return strings.Contains(s, "ethtool -X eth0 equal 8") }) {
		t.Errorf("rss: %v, %v", warn, err)
	}
	c.offloads[hostnet.RxVLAN].Fixed = true
	if err := foresee(c, "eth0", Want{Trunk: true, Queues: 9}); err == nil || !strings.Contains(err.Error(), "use another device") || !strings.Contains(err.Error(), "at most 8") {
		t.Errorf("%v", err)
	}
}
