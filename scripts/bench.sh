#!/bin/bash
# Measures Galley side by side with a plain directory, kernel overlayfs and
# fuse-overlayfs and writes docs/performance.md. BENCH_SCALE is small, medium
# or full (default); BENCH_ROUNDS, BENCH_ONLY, BENCH_KINDS and BENCH_AS are
# the flags of integration/bench. A run that is not full prints its table and leaves the
# document alone, unless BENCH_OUT names a file.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
export PATH="$PATH:/usr/sbin:/sbin"
need_go
need_packages git sqlite3 npm rsync fuse-overlayfs fusermount3 setpriv mkfs.xfs rg qemu-system-x86_64 busybox
ready_fuse
ready_kernel
[ "$(id -u)" = 0 ] || die "needs root, to mount, to drop caches, and to work as an ordinary user for half of the rows"
ready_user

scale=${BENCH_SCALE:-full}
out=${BENCH_OUT:-}
[ -n "$out" ] || [ "$scale" != full ] || out=docs/performance.md
mkdir -p bin
go build -trimpath -o bin/galley ./cmd/galley
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/galley-guest ./cmd/galley-guest
go build -o bin/bench ./integration/bench
exec bin/bench -scale "$scale" -rounds "${BENCH_ROUNDS:-0}" -only "${BENCH_ONLY:-}" \
	-kinds "${BENCH_KINDS:-}" -as "${BENCH_AS:-}" -user "$test_user" -out "$out"
