#!/bin/bash
# All checks and all tests. As root: every test as root, under the race
# detector, as an ordinary user, then the fuzz targets. As an ordinary user:
# the same without root's turn.
#
# With CI set, a test that is skipped for a reason which .ci/skips-* does not
# list fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
export PATH="$PATH:/usr/sbin:/sbin"

start=$SECONDS
need_packages skopeo umoci # which read what galley export writes
need_packages mmdebstrap busybox # of which guests are made
need_go
need_packages git gcc make sqlite3 npm node python3 rsync vim tmux fusermount3 setfattr setfacl \
	setpriv script fuse-overlayfs mkfs.ext4 mkfs.xfs qemu-system-x86_64 ip newuidmap
ready_fuse
ready_kernel
ready_ts_client
ready_libkrun
ready_debian

# Tests print their names (-v within -json), so that what ran can be counted.
flags=(-count=1 -json -timeout=20m)

# report prints what a lane's tests said and judges it.
report() {
	local lane=$1 skips=$2
	bin/testreport -lane "$lane" ${CI:+-allow "$skips"}
}

mkdir -p bin
go build -o bin/testreport ./integration/testreport

say "checks"
scripts/check.sh

lane() {
	local name=$1 skips=$2
	shift 2
	say "$name"
	go test "${flags[@]}" "$@" ./... | report "$name" "$skips"
	say "$name: done at $((SECONDS - start)) s"
}

if [ "$(id -u)" = 0 ]; then
	lane "tests as root" .ci/skips-root
	lane "race detector, as root" .ci/skips-root -race -short
	ready_user
	say "tests as $test_user"
	scripts/user-tests.sh "${flags[@]}" | report "tests as $test_user" .ci/skips-user
	say "tests as $test_user: done at $((SECONDS - start)) s"
else
	lane "tests as $(id -un)" .ci/skips-user
	lane "race detector, as $(id -un)" .ci/skips-user -race -short
fi

say "fuzz targets"
scripts/fuzz.sh

say "all passed in $((SECONDS - start)) s"
