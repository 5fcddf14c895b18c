#!/bin/bash
# Runs every fuzz target of the module for FUZZTIME (default 10s).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
need_go

time=${FUZZTIME:-10s}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# fuzz runs one target. `go test -fuzz` at times takes its own end of time, when
# an input is being tried at that moment, for a failure of the target: then it
# says only that, and has no input to show.
fuzz() {
	if go test -run='^$' -fuzz="^$2\$" -fuzztime="$time" -fuzzminimizetime=0x "$1" 2>&1 | tee "$out"; then
		return
	fi
	grep -q 'context deadline exceeded' "$out" && ! grep -q 'Failing input written' "$out" || exit 1
	say "$2: the time was over while an input was tried; no failure"
}

found=0
for pkg in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	dir=$(go list -f '{{.Dir}}' "$pkg")
	grep -qs '^func Fuzz' "$dir"/*_test.go || continue
	for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/func //'); do
		say "$pkg $target for $time"
		# Without an end to making inputs smaller, a target that opens files does
		# nothing else: what it covers varies from run to run.
		fuzz "$pkg" "$target"
		found=$((found + 1))
	done
done
say "$found fuzz targets, no failure"
