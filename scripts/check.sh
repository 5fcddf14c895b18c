#!/bin/bash
# Format, vet, lint and the rules of the house that a program can check.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
need_go

say "gofmt"
unformatted=$(find . -name '*.go' -not -path './bin/*' -print0 | xargs -0 gofmt -s -l)
[ -z "$unformatted" ] || die "not formatted (gofmt -s -w):
$unformatted"

say "go vet"
go vet ./...

say "staticcheck"
# A tool of its own, not a requirement of the module: pinned here.
go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -checks inherit,-U1000 ./...

say "builds without cgo, and for arm64"
CGO_ENABLED=0 go build ./...
GOARCH=arm64 CGO_ENABLED=0 go build ./...

say "import direction and the rules of the house"
go test -count=1 ./integration/rules

say "shell scripts"
for f in scripts/*.sh .ci/run; do bash -n "$f"; done
echo ok
