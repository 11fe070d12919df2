#!/bin/sh
# Regenerates the committed objects and their Go files from cruise.c and transmit.c, in this folder or in the one named by the first argument.
# Needs clang and llvm-strip; a build of demarc does not. The same compiler version gives the same bytes wherever it runs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
cd "$here"
make() {
	GOPACKAGE=bpf go run github.com/cilium/ebpf/cmd/bpf2go \
		-output-dir "$out" -target bpfel -cc "${CLANG:-clang}" -strip "${LLVM_STRIP:-llvm-strip}" \
		-cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -nostdinc -fdebug-prefix-map=$here=. -ffile-prefix-map=$here=. -fno-ident" \
		-no-global-types "$1" "$2"
}
make Cruise cruise.c
make Transmit transmit.c
