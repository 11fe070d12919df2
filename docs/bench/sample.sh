#!/bin/sh
# Makes a run of `demarc bench` the sample that is shown: docs/bench/sample.sh RESULTS [NAME], from the top of the repository (make bench-sample). RESULTS is a directory with
# results.json. It writes docs/bench/sample.json and sample.html, and README's figures between its two lines; the tests of ./bench hold them to each other. With a NAME it writes
# NAME.json and NAME.html, of what was asked for with --scenarios, and leaves README alone.
set -eu
from=${1:?want a directory with results.json: make bench-sample RESULTS=bench-results/TIME}
[ -s "$from/results.json" ] || { echo "bench-sample: there is no $from/results.json: run make bench first" >&2; exit 1; }
name=${2:-sample}
case $name in *[!a-z0-9-]*) echo "bench-sample: $name: want a name of small letters, figures and -" >&2; exit 1 ;; esac
lacks='"partial":'
[ "$name" = sample ] || lacks='"partial":"[^"]*not measured'
if [ -z "${PARTIAL:-}" ] && grep -q "$lacks" "$from/results.json"; then
	sed -n 's/.*"partial":"\([^"]*\)".*/\1/p' "$from/results.json" >&2
	echo "bench-sample: these results are not of the whole plan: run it again, or say PARTIAL=1" >&2
	exit 1
fi
cp "$from/results.json" "docs/bench/$name.json"
./demarc bench page "docs/bench/$name.json" --out "docs/bench/$name.html"
if [ "$name" != sample ]; then
	go test -count=1 -run 'TestSamplesAreWhole$' ./bench
	ls -l "docs/bench/$name.json" "docs/bench/$name.html"
	exit
fi
if ! grep -q '^<!-- bench:figures docs/bench/sample.json ' README.md; then
	grep -q '^<!-- bench:sample -->$' README.md || { echo "bench-sample: README.md has no line <!-- bench:sample -->" >&2; exit 1; }
	awk '/^<!-- bench:sample -->$/ {
		print "`make bench`, the whole short plan in one run: the [report](docs/bench/sample.html) with all figures, and the [results](docs/bench/sample.json). A ratio is the gateway'"'"'s number over the peer'"'"'s, with"
		print "where it lies with 95 % confidence in that run; `demarc bench compare docs/bench/sample.json bench-results/TIME` holds yours against it."
		print ""
		print "<!-- bench:figures docs/bench/sample.json throughput/rate,throughput/rate-per-cpu,throughput/rate-0.1%-loss,sessions/establish-rate-0-loss,sessions/tear-down-rate,acl/new-flows,latency/p99,tcp/rate,tcp/p50,tcp/p99,tcp/connections,connections/rate,connections/p99,pipeline/packet,pipeline/new-flow,voip/mos-worst-call -->"
		print "<!-- /bench:figures -->"
		next
	} { print }' README.md >README.md.new
	mv README.md.new README.md
fi
./demarc bench figures --write README.md
go test -count=1 -run 'TestReadmeHasTheFiguresOfItsFiles$|TestSamplesAreWhole$' ./bench
ls -l docs/bench/sample.json docs/bench/sample.html
