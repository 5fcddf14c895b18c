#!/bin/bash
# Runs every fuzz target of the module for FUZZTIME (default 10s).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
need_go

time=${FUZZTIME:-10s}
found=0
for pkg in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	dir=$(go list -f '{{.Dir}}' "$pkg")
	grep -qs '^func Fuzz' "$dir"/*_test.go || continue
	for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/func //'); do
		say "$pkg $target for $time"
		# Without an end to making inputs smaller, a target that opens files does
		# nothing else: what it covers varies from run to run.
		go test -run='^$' -fuzz="^$target\$" -fuzztime="$time" -fuzzminimizetime=0x "$pkg"
		found=$((found + 1))
	done
done
say "$found fuzz targets, no failure"
