package cli

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/doctor"
	"demarc/gateway/hostnet"
	"demarc/gateway/revisions"
)

const (
	supportMember   = 16 << 20 // of the archive, at most; what is longer is cut
	supportSessions = 20_000   // that are counted
	supportListed   = 200      // of them that are listed
	defaultDataDir  = "/var/lib/demarc"
)

func (a *app) supportCmd() *cobra.Command {
	var file, node string
	c := command("support [-o FILE]", "write one archive for a ticket, secrets left out",
		"Write what somebody who is to help needs into one archive, mode 0600: version, status, ports, routes, neighbours, drops, blocks, sessions (counted,\n"+
			"the first listed), metrics, policy, node file, revisions, history, audit log, the last log lines, what doctor says, kernel and network devices. Values of keys\n"+
			"that are called like secrets, and what looks like one, are left out; addresses of hosts are in it. It works when the node is down\n"+
			"too, with what is on disk, and says what is missing. -o - writes to standard output.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return a.support(cmd, file, node)
		})
	c.Flags().StringVarP(&file, "output", "o", "", "`file` to write; without it demarc-support-NODE-TIME.tar.gz here")
	c.Flags().StringVar(&node, "node", "", "node `file`: for its socket, and for when the node is down")
	return a.data(c)
}

// bundle is an archive in the making.
type bundle struct {
	t       time.Time
	members []member
	missing []string
	secrets int
}

type member struct {
	name string
	data []byte
}

// supported is what support --json prints.
type supported struct {
	File    string   `json:"file"`
	Members []string `json:"members"`
	Missing []string `json:"missing"` // what is not in it, and why
	LeftOut int      `json:"left_out"`
}

// add puts a member in, without what is secret.
func (b *bundle) add(name string, data []byte) {
	cut := ""
	if len(data) > supportMember {
		data, cut = data[:supportMember], fmt.Sprintf("\n(cut after %d MiB)\n", supportMember>>20)
	}
	data, n := redact(data)
	b.secrets += n
	b.members = append(b.members, member{name, append(data, cut...)})
}

func (b *bundle) json(name string, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		b.lacks(name, err)
		return
	}
	b.add(name, append(data, '\n'))
}

func (b *bundle) lacks(name string, err error) {
	b.missing = append(b.missing, fmt.Sprintf("%s: %s", name, strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")))
}

func (a *app) support(cmd *cobra.Command, file, nodeFile string) error {
	b := &bundle{t: time.Now().UTC()}
	b.json("version.json", map[string]string{"version": a.version, "go": runtime.Version(), "arch": runtime.GOARCH})
	var n *configs.Node
	if nodeFile != "" {
		text, _, err := read(cmd, nodeFile)
		if n = b.node(nodeFile, text, err); n != nil {
			a.socket = a.socketOf(n)
		}
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	name := b.running(cmd, c)
	switch {
	case nodeFile != "":
	case name != "":
		text, err := c.Text(cmd.Context(), api.PathNode)
		n = b.node("node.toml", text, err)
	default:
		b.lacks("node.toml", errors.New("the node is down and --node names no file"))
	}
	if a.elsewhere() {
		b.missing = append(b.missing, "machine, doctor.txt, what is on disk: the node is not this machine: make an archive there")
	} else if name == "" {
		dir := defaultDataDir
		if n != nil {
			name, dir = n.Name, n.DataDir
		}
		b.onDisk(dir)
	}
	if !a.elsewhere() {
		b.machine(n)
	}

	b.readme(cmp.Or(name, "unknown"))
	if file == "" {
		host := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
				return r
			}
			return '_'
		}, cmp.Or(name, "unknown"))
		file = fmt.Sprintf("demarc-support-%s-%s.tar.gz", host, b.t.Format("20060102T150405Z"))
	}
	if file == "-" {
		return b.write(cmd.OutOrStdout())
	}
	if err := b.save(file); err != nil {
		return err
	}
	out := supported{File: file, Missing: b.missing, LeftOut: b.secrets}
	for _, m := range b.members {
		out.Members = append(out.Members, m.name)
	}
	return show(a, cmd, &out, func(w io.Writer, s *supported) {
		fmt.Fprintf(w, "%s: %s, %s left out; addresses of hosts are in it\n", s.File, plural(len(s.Members), "file"), plural(s.LeftOut, "secret"))
		for _, m := range s.Missing {
			fmt.Fprintf(w, "missing: %s\n", clean(m))
		}
	})
}

// running asks the node. The name is "" when there is none.
func (b *bundle) running(cmd *cobra.Command, c *api.Client) (name string) {
	ctx := cmd.Context()
	var st api.Status
	if err := c.Get(ctx, api.PathStatus+"?rules=1", &st); err != nil {
		b.lacks("everything of the running node", err)
		return ""
	}
	b.json("status.json", &st)
	get := func(name, path string, v any) {
		if err := c.Get(ctx, path, v); err != nil {
			b.lacks(name, err)
			return
		}
		b.json(name, v)
	}
	get("ports.json", api.PathPorts, new(api.Ports))
	get("routes.json", api.PathRoutes, new(api.Routes))
	get("neighbours.json", api.PathNeighbours, new(api.Neighbours))
	get("drops.json", api.PathDrops, new(api.Drops))
	get("blocks.json", api.PathBlocks, new(api.Blocks))
	get("revisions.json", api.PathRevisions, new(api.Revisions))
	get("history.json", api.PathHistory, new(api.History))
	get("audit.json", api.PathAudit, new(api.Audit))
	get("members.json", api.PathMembers, new(memberList))
	get("kept.json", api.PathKept, new(api.Kept))
	get("groups.json", api.PathGroups, new(api.Groups))
	get("group-events.json", api.PathGroupEvents, new(api.GroupEvents))
	for file, path := range map[string]string{"metrics.txt": api.PathMetrics, "policy.toml": api.PathPolicy, "log.txt": api.PathLog} {
		if text, err := c.Text(ctx, path); err != nil {
			b.lacks(file, err)
		} else {
			b.add(file, text)
		}
	}
	var s api.Sessions
	if err := c.Get(ctx, sessionsPath(api.SessionFilter{Limit: supportSessions}), &s); err != nil {
		b.lacks("sessions.json", err)
	} else {
		b.json("sessions.json", summary(&s))
	}
	return st.Node
}

// memberList is members.json: without how many tokens there are, which is no secret and is called like one.
type memberList struct{ api.Members }

// MarshalJSON is the list without that.
func (m *memberList) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		*api.Members
		Tokens *int `json:"tokens,omitempty"`
	}{Members: &m.Members})
}

// sessionSummary is sessions.json.
type sessionSummary struct {
	Total   int            `json:"total"`
	Counted int            `json:"counted"`
	By      map[string]int `json:"by"` // tenant, who began it, protocol, state
	First   []api.Session  `json:"first"`
}

func summary(s *api.Sessions) *sessionSummary {
	out := &sessionSummary{Total: s.Total, Counted: len(s.Sessions), By: map[string]int{}, First: s.Sessions[:min(len(s.Sessions), supportListed)]}
	for i := range s.Sessions {
		x := &s.Sessions[i]
		out.By[strings.Join([]string{x.Tenant, x.From, x.Proto, x.State}, " ")]++
	}
	return out
}

// node puts the node file in and decodes it; nil when that cannot be.
func (b *bundle) node(name string, text []byte, err error) *configs.Node {
	if err != nil {
		b.lacks("node.toml", err)
		return nil
	}
	b.add("node.toml", text)
	if len(text) == 0 {
		return nil
	}
	n, err := configs.DecodeNode(name, text)
	if err != nil {
		b.lacks("ports, doctor (the node file is not sound)", err)
		return nil
	}
	return n
}

// onDisk is what a node that is down has left: its policies and block list. Opening the store would make its directory, so it must be there.
func (b *bundle) onDisk(dir string) {
	policies := filepath.Join(dir, "policies")
	if _, err := os.Stat(policies); err != nil {
		b.lacks("policy.toml, revisions.json", err)
	} else if store, err := revisions.Open(policies); err != nil {
		b.lacks("policy.toml, revisions.json", err)
	} else {
		if list, damaged, err := store.List(); err != nil {
			b.lacks("revisions.json", err)
		} else {
			out := api.Revisions{Revisions: []api.Revision{}, Damaged: []string{}}
			for _, r := range list {
				out.Revisions = append(out.Revisions, api.Revision{Number: r.Number, Digest: "sha256:" + r.Digest, Source: r.Meta.Source, AppliedAt: r.Meta.Time})
			}
			for _, d := range damaged {
				out.Damaged = append(out.Damaged, d.String())
			}
			b.json("revisions.json", &out)
		}
		if r, _, err := store.Latest(); err != nil {
			b.lacks("policy.toml", err)
		} else {
			b.add("policy.toml", r.Text)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "blocks")); err == nil {
		b.add("blocks.txt", text)
	} else if !errors.Is(err, fs.ErrNotExist) {
		b.lacks("blocks.txt", err)
	}
	b.missing = append(b.missing, "log.txt: the log of a node that is down is where its standard error went (journalctl -u demarc)")
}

// machine is the kernel and its network devices.
func (b *bundle) machine(n *configs.Node) {
	var found bytes.Buffer
	list := doctor.Check(n)
	writeFindings(&found, &list)
	b.add("doctor.txt", found.Bytes())
	links, err := hostnet.Links()
	if err != nil {
		b.lacks("machine/links.json", err)
	} else {
		b.json("machine/links.json", links)
	}
	features := map[string]map[string]string{}
	for i := range links {
		name := links[i].Name
		if n != nil && !slices.ContainsFunc(n.Ports, func(p configs.Port) bool { return p.Device == name }) {
			continue
		}
		o, err := hostnet.ReadOffloads(name)
		if err != nil {
			b.lacks("offloads of "+name, err)
			continue
		}
		features[name] = map[string]string{}
		for f := hostnet.Offload(0); f < hostnet.NumOffloads; f++ {
			s := map[bool]string{true: "on", false: "off"}[o[f].On]
			if o[f].Fixed {
				s += " [fixed]"
			}
			features[name][f.String()] = s
		}
		stats, _ := filepath.Glob("/sys/class/net/" + name + "/statistics/*")
		for _, s := range stats {
			if v, err := os.ReadFile(s); err == nil {
				features[name]["statistics "+filepath.Base(s)] = strings.TrimSpace(string(v))
			}
		}
	}
	b.json("machine/devices.json", features)
	for _, f := range []string{"/proc/version", "/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/cpuinfo", "/proc/meminfo", "/proc/interrupts", "/proc/softirqs", "/proc/net/softnet_stat", "/proc/net/dev",
		"/proc/sys/net/core/bpf_jit_enable", "/proc/sys/net/core/netdev_budget", "/proc/sys/net/core/busy_poll", "/proc/sys/vm/nr_hugepages", "/sys/devices/system/clocksource/clocksource0/current_clocksource"} {
		text, err := readSome(f)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(f, "/proc/sys/net/") {
			continue // of the first network namespace alone
		}
		if err != nil {
			b.lacks(f, err)
			continue
		}
		b.add("machine"+f+".txt", text)
	}
}

func readSome(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

func (b *bundle) readme(node string) {
	var w strings.Builder
	fmt.Fprintf(&w, "demarc support archive of node %s, made %s.\n\n", node, b.t.Format(time.RFC3339))
	fmt.Fprintf(&w, "Left out: %s, by the name of the key or by what they look like. Addresses and names of hosts and tenants are in it:\nread it before you send it on.\n\nFiles:\n", plural(b.secrets, "secret value"))
	for _, m := range b.members {
		fmt.Fprintf(&w, "  %s, %d bytes\n", m.name, len(m.data))
	}
	if len(b.missing) > 0 {
		fmt.Fprintln(&w, "\nMissing:")
		for _, m := range b.missing {
			fmt.Fprintf(&w, "  %s\n", m)
		}
	}
	b.members = append([]member{{"README.txt", []byte(w.String())}}, b.members...)
}

// write puts the archive out in the order of names, behind what is to be read first.
func (b *bundle) write(w io.Writer) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	byName := map[string][]byte{}
	for _, m := range b.members {
		byName[m.name] = m.data
	}
	names := slices.Sorted(maps.Keys(byName))
	for _, name := range names {
		h := &tar.Header{Name: "demarc-support/" + name, Mode: 0o600, Size: int64(len(byName[name])), ModTime: b.t, Typeflag: tar.TypeReg}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(byName[name]); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// save writes a file of its own: never over one that is there, and none that is half written stays.
func (b *bundle) save(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: name another file with -o", name)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(b.write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}
