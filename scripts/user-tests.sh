#!/bin/bash
# As root: copies the source and the modules it needs to a place that the
# ordinary test user can read, and runs `go test` there as that user. The
# arguments are flags for go test, PACKAGES what it tests (default ./...).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
[ "$(id -u)" = 0 ] || die "needs root, to become $test_user"
ready_user

work=$(mktemp -d /tmp/galley-user-tests.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work"
mkdir "$work/src" "$work/mod" "$work/cache" "$work/tmp"

# Tracked files and those about to be: what a fresh clone would have.
sources() {
	if git -c safe.directory='*' rev-parse --git-dir >/dev/null 2>&1; then
		git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
			while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done
	else
		find . -path ./bin -prune -o -type f -print0
	fi
}
sources |
	tar --null -T - -cf - | tar -xf - -C "$work/src" --no-same-owner

# The user's module cache is filled from root's, over no network: exactly the
# modules of go.mod, and readable by all.
go mod download >&2
from=$(go env GOMODCACHE)
GOMODCACHE="$work/mod" GOPROXY="file://$from/cache/download" \
	GONOSUMDB='*' GOFLAGS=-modcacherw go mod download >&2
chmod -R a+rX "$work/mod"
if [ -n "${GALLEY_TEST_LIBKRUN:-}" ]; then
	cp -r "$GALLEY_TEST_LIBKRUN" "$work/libkrun" # the checkout may be out of the user's reach
fi
chown -R "$test_user": "$work/src" "$work/cache" "$work/tmp"

cd "$work/src"
as_user env GOCACHE="$work/cache" GOMODCACHE="$work/mod" GOPROXY=off \
	GOFLAGS=-buildvcs=false TMPDIR="$work/tmp" GALLEY_TEST_LIBKRUN="${GALLEY_TEST_LIBKRUN:+$work/libkrun}" \
	go test "$@" ${PACKAGES:-./...}
