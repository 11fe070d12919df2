package archtest

// A room is a package of ours, or a tree of packages that stand together (packet, packet/csum, packet/build). Inside gateway imports go
// downward only: a room may import rooms of a lower number, and packages of its own tree.
var levels = map[string]int{
	"gateway/verdict": 0, "gateway/flow": 0, "gateway/lease": 0, "gateway/prefetch": 0, "gateway/undo": 0,
	"gateway/packet":    1,
	"gateway/conntrack": 2, "gateway/frag": 2, "gateway/nat": 2, "gateway/police": 2, "gateway/fib": 2, "gateway/meter": 2, "gateway/replica": 2, "gateway/trace": 2,
	"gateway/block": 3, "gateway/snapshot": 3,
	"gateway/pipeline": 4, "gateway/handed": 5,
	"gateway/api": 5, "gateway/confine": 5, "gateway/cruise": 5, "gateway/hostnet": 5, "gateway/revisions": 5, "gateway/slowpath": 5, "gateway/standby": 5, "gateway/stream": 5, "gateway/xsk": 5,
	"gateway/doctor": 6, "gateway/metrics": 6, "gateway/portprep": 6, "gateway/worker": 6,
	"gateway/guard":    6,
	"gateway":          7,
	"gateway/copyload": 8, "gateway/pureload": 8, "gateway/zerocopy": 8,
	"gateway/cli": 9,
}

// only lists what a package or tree may import of ours, where its place in levels does not say enough.
var only = map[string][]string{
	".":                   {"bench", "gateway/cli", "gateway/zerocopy"},
	"acl":                 {},
	"configs":             {},
	"cluster":             {"cluster/beat", "cluster/command", "cluster/failover", "cluster/store", "cluster/transport"},
	"cluster/beat":        {"cluster/failover", "cluster/transport"},
	"cluster/command":     {"cluster/failover"},
	"cluster/failover":    {},
	"cluster/store":       {"cluster/command"},
	"cluster/transport":   {"cluster/store"},
	"cluster/clustertest": {"cluster/store"},
	"gateway/archtest":    {"gateway/netlab/roottest"},
	"gateway/verdict":     {},
	"gateway/flow":        {},
	"gateway/hostnet":     {},
	"gateway/portprep":    {"gateway/hostnet"},
	"gateway/confine":     {},
	"gateway/netlab":      {},                                 // what the hosts measure is measured without the gateway
	"gateway/metrics":     {"gateway/api", "gateway/verdict"}, // a scrape and the CLI cannot disagree
	// The demo knows the gateway by its command line and its status interface, like anybody.
	"gateway/lab":   {"configs/examples", "gateway/api", "gateway/netlab", "gateway/trio", "gateway/verdict"},
	"gateway/trio":  {"cluster/transport", "gateway/api", "gateway/netlab"}, // its authority's certificates end when the lab says
	"bench":         {"acl", "configs", "gateway/api", "gateway/copyload", "gateway/hostnet", "gateway/netlab", "gateway/pureload", "gateway/trio", "gateway/xsk"},
	"bench/peers":   {"acl"},
	"bench/pktgen":  {},
	"bench/report":  {},
	"gateway/e2e":   {}, // its tests import what they drive; the package itself is empty
	"gateway/cli":   {"cluster", "cluster/command", "cluster/transport", "configs", "gateway", "gateway/api", "gateway/confine", "gateway/doctor", "gateway/guard", "gateway/hostnet", "gateway/lab", "gateway/netlab", "gateway/revisions", "gateway/snapshot", "gateway/trace", "gateway/xsk", "gateway/zerocopy"},
	"acl/aclref":    {},
	"acl/aclgen":    {},
	"gateway/xsk":   {"gateway/lease", "gateway/verdict"},
	"gateway/lease": {},
	"gateway/api":   {},
	"gateway/fib":   {"gateway/flow"},
	"gateway/undo":  {},
	"gateway/frag":  {"gateway/flow", "gateway/verdict"},
	// It reads what the pipeline goes by, and does not know the pipeline, but in its test.
	"gateway/cruise": {"gateway/conntrack", "gateway/flow", "gateway/lease", "gateway/meter", "gateway/nat", "gateway/police", "gateway/snapshot"},
	"gateway/meter":  {"gateway/flow", "gateway/verdict"},

	"gateway/replica": {"gateway/flow"},
	"gateway/stream":  {"gateway/replica"},
	"gateway/guard":   {"cluster/beat", "gateway/confine", "gateway/xsk"},
}

// importedBy lists the only non-test importers of a package or tree of ours.
var importedBy = map[string][]string{
	"bench":                     {"."},
	"gateway":                   {"gateway/cli", "gateway/zerocopy"},
	"gateway/cli":               {"."},
	"gateway/lab":               {"gateway/cli"},
	"gateway/trio":              {"bench", "gateway/lab"},
	"gateway/copyload":          {"bench"},
	"gateway/pureload":          {"bench"},
	"gateway/zerocopy":          {".", "gateway/cli"},
	"gateway/e2e":               {},
	"gateway/archtest":          {},
	"gateway/packet/badpackets": {},
	"gateway/netlab/roottest":   {"gateway/archtest/regen"},
	"gateway/netlab/quiet":      {},
	// Schema structs stop at snapshot, wire structs at api.
	"configs":     {"bench", "gateway", "gateway/cli", "gateway/copyload", "gateway/doctor", "gateway/lab", "gateway/pureload", "gateway/snapshot", "gateway/zerocopy"},
	"gateway/api": {"bench", "gateway", "gateway/cli", "gateway/lab", "gateway/metrics", "gateway/trio", "gateway/zerocopy"},
}

// pure packages do no I/O, start no goroutine, take no lock, read no clock and roll no dice of their own, so that all of them are
// fuzzed and benchmarked without root.
var pure = []string{"acl", "cluster/command", "cluster/failover", "configs", "gateway/block", "gateway/conntrack", "gateway/fib", "gateway/flow", "gateway/frag", "gateway/lease", "gateway/meter", "gateway/nat", "gateway/packet",
	"gateway/pipeline", "gateway/police", "gateway/prefetch", "gateway/replica", "gateway/snapshot", "gateway/trace", "gateway/undo", "gateway/verdict"}

// pureImports is all that a pure package may import beside what is ours. What is not here either does I/O, or nobody needed it yet.
var pureImports = []string{"cmp", "embed", "encoding/binary", "errors", "fmt", "maps", "math", "math/bits", "net/netip", "path", "reflect", "slices",
	"sort", "strconv", "strings", "sync/atomic", "time", "unicode"}

// pureExtra is what single ones may import besides. A seeded generator is an argument, not a die.
var pureExtra = map[string][]string{
	"acl/aclgen":                {"math/rand/v2"},
	"cluster/command":           {"bytes", "compress/flate", "crypto/sha256", "encoding/hex", "encoding/json", "io"},
	"configs":                   {"github.com/BurntSushi/toml"},
	"gateway/conntrack":         {"unsafe"},
	"gateway/fib":               {"github.com/gaissmai/bart"},
	"gateway/nat":               {"unsafe"},
	"gateway/packet/badpackets": {"math/rand/v2"},
	"gateway/prefetch":          {"unsafe"},
}

// impureCalls are functions of packages that are pure otherwise.
var impureCalls = map[string][]string{
	"time": {"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"},
	"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	"math/rand/v2": {"ExpFloat64", "Float32", "Float64", "Int", "Int32", "Int32N", "Int64", "Int64N", "IntN", "N", "NormFloat64", "Perm", "Shuffle",
		"Uint", "Uint32", "Uint32N", "Uint64", "Uint64N", "UintN"},
}

// A fence keeps a dependency, or a kind of power, in the rooms that are there for it. It ends trees: "gateway/xsk" covers gateway/xsk/bpf.
type fence struct {
	name    string
	path    string   // an import path, or with a final slash all below it
	rooms   []string // where it may be used
	inTests bool     // tests anywhere may use it too
}

var fences = []fence{
	{"unsafe", "unsafe", []string{"gateway/confine", "gateway/conntrack", "gateway/cruise", "gateway/hostnet", "gateway/nat", "gateway/prefetch", "gateway/worker", "gateway/xsk"}, true},
	{"cgo", "C", nil, false},
	{"eBPF", "github.com/cilium/ebpf/", []string{"bench/pktgen", "gateway/archtest/regen", "gateway/cruise", "gateway/doctor", "gateway/netlab", "gateway/xsk", "gateway/zerocopy"}, true},
	{"netlink", "github.com/vishvananda/", []string{"bench", "gateway/hostnet", "gateway/netlab", "gateway/xsk", "gateway/zerocopy"}, true},
	{"routes' tries", "github.com/gaissmai/bart/", []string{"gateway/fib"}, false},
	{"TOML", "github.com/BurntSushi/toml/", []string{"configs"}, false},
	{"cobra", "github.com/spf13/", []string{"bench", "gateway/cli", "gateway/zerocopy"}, true},
	{"Prometheus", "github.com/prometheus/", []string{"gateway/metrics"}, false},
	// Convenient and slow: never on the way of a packet.
	{"gopacket", "github.com/google/gopacket/", []string{"bench", "gateway/netlab", "gateway/zerocopy"}, true},
	{"raft", "github.com/hashicorp/", []string{"cluster/clustertest", "cluster/store", "cluster/transport"}, false},
	{"go-cmp", "github.com/google/go-cmp/", nil, true},
	{"rapid", "pgregory.net/rapid/", nil, true},
	{"testing", "testing/", []string{"gateway/archtest/cputime", "gateway/archtest/instructions", "gateway/archtest/regen", "gateway/netlab/quiet", "gateway/netlab/roottest"}, true},
	{"global randomness", "math/rand/", nil, false}, // the old package: v2 has no global seed to be forgotten
}

// rawCalls of the system are for rooms that say why the wrapper does not do. In worker a raw one would hold up the garbage collector.
var rawCalls = []string{"RawSyscall", "RawSyscall6", "Syscall", "Syscall6"}

// skips end a test that has shown nothing; roottest.Missing does so at home and fails under CI, and is the only way.
var skips = []string{"Skip", "SkipNow", "Skipf"}

var rawCallRooms = []string{"gateway/cruise", "gateway/hostnet", "gateway/xsk"}

// root is what may stand at the top: directories, and files.
var (
	rootDirs  = []string{".ci", ".git", "acl", "bench", "build", "cluster", "configs", "docs", "gateway", "packaging"}
	rootFiles = []string{".git", ".gitattributes", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "default.pgo", "demarc", "go.mod", "go.sum", "main.go"}
)

// mainLines is what main.go stays under: argv goes to cli, and that is all.
const mainLines = 40
