#!/bin/sh
# Installs the clients that the root tests use, and only those that are missing. Does nothing when all are there.
# clang is for the tests that generate the eBPF objects again and compare, promtool for the one that evaluates the alert rules.
set -eu

missing=
need() { # PROGRAM PACKAGE
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need curl curl
need jq jq
need iperf3 iperf3
need ping iputils-ping
need traceroute traceroute
need dig dnsutils
need tracepath iputils-tracepath
need mtr mtr-tiny
need nmap nmap
need sipp sip-tester
need turnserver coturn
need tcpdump tcpdump
need ethtool ethtool
need nft nftables
need keepalived keepalived
need conntrackd conntrackd
need ssh openssh-client
need sshd openssh-server
need ip iproute2
need systemd-analyze systemd
need setpriv util-linux
need strace strace
need clang clang
need llvm-strip llvm
need promtool prometheus
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: missing, and no apt-get to install with:$missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: run as root, or install:$missing" >&2
	exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
# A daemon that its package starts would meet the machine's own; the tests start what they need in their namespaces.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq || echo "setup: apt-get update: not all indexes could be had" >&2
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null
