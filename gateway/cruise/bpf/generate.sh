#!/bin/sh
# Regenerates the committed object and its Go file from cruise.c, in this folder or in the one named by the first argument.
# Needs clang and llvm-strip; a build of demarc does not. The same compiler version gives the same bytes wherever it runs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
cd "$here"
GOPACKAGE=bpf go run github.com/cilium/ebpf/cmd/bpf2go \
	-output-dir "$out" -target bpfel -cc "${CLANG:-clang}" -strip "${LLVM_STRIP:-llvm-strip}" \
	-cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -nostdinc -fdebug-prefix-map=$here=. -ffile-prefix-map=$here=. -fno-ident" \
	-no-global-types Cruise cruise.c
