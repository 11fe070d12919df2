# What each target needs: build and demo: Go, git, make (demo as root). test: root; it installs the clients that it lacks.
# generate: clang, libbpf headers.

SHELL := /bin/bash
.DEFAULT_GOAL := build

VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
export CGO_ENABLED = 0
# Whatever builds here builds the same way, the tests' own go build too: each package is compiled once, and once for every clone.
# The compiler is shown where the pipeline's time goes (default.pgo, which go build takes by itself; make pgo); tests are told of it, so that they test what is shipped and compile it once.
export GOFLAGS := $(shell go env GOFLAGS) -trimpath '-pgo=$(CURDIR)/default.pgo'

# Pure packages do no I/O and need no root; the rest is tested in namespaces of its own.
# Those that take longest come first, so that none is left alone with a processor at the end.
PURE := ./gateway/pipeline/... ./cluster/... ./acl/... ./configs/... ./gateway/packet/... ./gateway/flow/... ./gateway/verdict/... ./gateway/conntrack/... ./gateway/nat/... \
        ./gateway/police/... ./gateway/replica/... ./gateway/fib/... ./gateway/meter/... ./gateway/snapshot/... ./gateway/api/... ./gateway/archtest/...

# The others: everything else there is, so none can be forgotten.
ROOT = $(shell comm -23 <(go list ./... | sort) <(go list $(PURE) $(GUESTS) | sort))

# Those of the others whose guests need a processor and nothing else, and have all the time that they need.
GUESTS := ./gateway/zerocopy/...

# Root tests share two CPUs and measure rates and gaps, so they run one after the other, and alone; behind those of a package come the ones that say that they mostly wait
# (roottest.MostlyWaits), three at a time. Before all of them come the guests and the pure packages, which only have to be right, two packages at a time. testrun is go test, and a
# record of what ran: with CI set it refuses skips; for a run of everything it holds docs/rfc.md against the record.
TESTRUN := CI=1 go run ./gateway/archtest/testrun -record build/tests.txt
GOTEST := -count=1
BOTH = $(GOTEST) -timeout=20m -p=2 $(GUESTS) $(PURE)
ROOTS = $(GOTEST) -timeout=60m -p=1 -parallel=3 $(ROOT)

PREFIX := /usr/local

.PHONY: build install install-pages uninstall demo demo-cluster demo-pair test test-pure test-root check generate clean bench bench-table bench-full bench-sample bench-quick bench-cluster bench-failover zerocopy faults faults-found test-always profile profile-worker pgo

build:
	go build -ldflags '-s -w -X main.version=$(VERSION)' -o demarc .

# The program, its units and its pages. Nothing is enabled or started, and the configuration is left alone.
install: build install-pages
	install -D -m 0755 demarc $(DESTDIR)$(PREFIX)/sbin/demarc
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for u in demarc demarc-witness; do sed 's|/usr/local/|$(PREFIX)/|g' packaging/$$u.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$u.service || exit 1; done

# The pages in the tree that they stand in here, with what they link to, so that their links lead somewhere.
PAGES = $(shell find * -type f \( -name '*.md' -o -path 'docs/*' -o -path 'configs/examples/*.toml' \)) LICENSE configs/schema.go configs/cluster.go gateway/xsk/doc.go cluster/doc.go
install-pages:
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/demarc
	for f in $(PAGES); do install -D -m 0644 $$f $(DESTDIR)$(PREFIX)/share/doc/demarc/$$f || exit 1; done
	for f in alerts.rules.yml alerts.test.yml; do sed 's|/usr/local/|$(PREFIX)/|g' docs/$$f >$(DESTDIR)$(PREFIX)/share/doc/demarc/docs/$$f || exit 1; done

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/demarc $(DESTDIR)$(PREFIX)/lib/systemd/system/demarc.service $(DESTDIR)$(PREFIX)/lib/systemd/system/demarc-witness.service
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/demarc

demo: build
	@./demarc lab

demo-cluster: build
	@./demarc lab --cluster

demo-pair: build
	@./demarc lab --pair

# Packages with files that are left out without the tag plant are looked at with it too.
check:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt -w these:" $$bad; exit 1; fi
	go vet ./...
	go vet -tags plant $$(go list -f '{{if .IgnoredGoFiles}}{{.ImportPath}}{{end}}' ./...)

test-pure: check
	go test -count=1 $(PURE)

# check has looked at everything with all of vet: go test need not look again with a part of it.
test: GOTEST += -vet=off
test: build
	@.ci/setup.sh
	@$(MAKE) --no-print-directory check
	@if $(TESTRUN) -matrix docs/rfc.md -- $(BOTH) -- $(ROOTS); then echo; echo "make test: every package passed"; else echo; echo "make test: FAILED, see the lines with FAIL and testrun above"; exit 1; fi

# The same tests without the pure packages.
test-root: build
	@.ci/setup.sh
	@$(TESTRUN) -- $(GOTEST) -timeout=20m $(GUESTS) -- $(ROOTS)

generate:
	go generate ./...

# A short plan of all scenarios, at most 12 minutes; each row of the tables of all of them, two hours and a half; and all cases of these, fifteen. As root. The last two may be done in bites:
# make bench-table WITHIN=20m, and then make bench-table RESUME=bench-results/TIME WITHIN=20m until nothing is missing (the soak alone is an hour); bench-full likewise.
bench: build
	@./demarc bench

bench-table: build
	@./demarc bench $(if $(RESUME),--resume $(RESUME),--table) $(if $(WITHIN),--within $(WITHIN))

bench-full: build
	@./demarc bench $(if $(RESUME),--resume $(RESUME),--full) $(if $(WITHIN),--within $(WITHIN))

# The results in RESULTS, the last ones by default, become the sample in docs/bench and the figures in README.
# NAME=table-rates: another report there, of some scenarios of the plan --table.
RESULTS ?= $(lastword $(sort $(wildcard bench-results/*)))
bench-sample: build
	@docs/bench/sample.sh $(RESULTS) $(NAME)

bench-quick: build
	@./demarc bench quick

bench-cluster: build
	@./demarc bench cluster

bench-failover: build
	@./demarc bench failover

zerocopy: build
	@./demarc zerocopy

# Random harm to a real pair for so many seconds, on clocks that differ; SEED=n repeats a round: docs/faults.md. As root.
SECONDS ?= 600
SEED ?= 0
faults: check
	go test -count=1 -timeout 24h -v ./gateway/e2e -run 'TestWireFaults$$|TestWireAuto$$' -faults.for $(SECONDS)s -faults.seed $(SEED) -faults.clocks

# Faults that are planted into real nodes, and must be found, as in every run of the tests; and the same harm without them, which must bring out nothing: docs/faults.md.
faults-found: check
	go test -count=1 -timeout 30m -v ./gateway/e2e -run 'TestWirePlants$$' -faults.controls

# The end-to-end tests once more, with gateways whose XDP programs carry established sessions (gateway/e2e/doc.go). As root.
test-always: check
	DEMARC_E2E_OFFLOAD=always go test -count=1 -timeout 30m -parallel=3 ./gateway/e2e

# Where a packet's time goes: instructions by function, counted one by one, and pprof of the same bursts by time (build/pipeline.pprof, for go tool pprof).
profile:
	@mkdir -p build
	go test -count=1 -v -run 'TestInstructionsOfAPacket$$' ./gateway/pipeline
	go test -count=1 -run '^$$' -bench 'BenchmarkHit$$' -benchtime 2s -cpuprofile build/pipeline.pprof -o build/pipeline.test ./gateway/pipeline
	go tool pprof -top -nodecount 40 build/pipeline.test build/pipeline.pprof

# Has the compiler know anew what the pipeline does most, from its benchmarks of established flows, first packets, and all kinds of packets: default.pgo, which is committed.
pgo:
	@mkdir -p build
	for b in Hit NewSession Kinds; do go test -pgo=off -count=1 -run '^$$' -bench "Benchmark$$b\$$" -benchtime 4s -cpuprofile build/pgo.$$b -o build/pipeline.test ./gateway/pipeline || exit 1; done
	go tool pprof -proto build/pgo.Hit build/pgo.NewSession build/pgo.Kinds >build/default.pgo
	mv build/default.pgo default.pgo

# The same of a gateway at work: perf looks at both CPUs while it carries 64k flows, and shows the worker's threads: its own functions and what the kernel does in its calls. As root, with Debian's linux-perf.
# build/worker.perf has the stacks: perf report -i build/worker.perf --comms exe (the gateway is started by the name exe).
profile-worker:
	@command -v perf >/dev/null || { echo "make profile-worker: perf is missing: apt-get install linux-perf" >&2; exit 1; }
	@mkdir -p build
	go build -o build/demarc.profile .
	perf record -q -a -e cpu-clock -F 997 -g -o build/worker.perf -- ./build/demarc.profile bench throughput --sizes 64 --flows 64k --offload never --peers kernel --trials 1 --seconds 8
	perf report -i build/worker.perf --stdio --no-children -g none --comms exe --percentage relative --percent-limit 1 2>/dev/null | grep -v '^#' | head -60

clean:
	rm -f demarc
