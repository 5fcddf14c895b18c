#!/bin/bash
# The tour: installs what is missing, builds Galley, and shows on a copy of
# Galley's own source what a session is, printing every command it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
export PATH="$PATH:/usr/local/go/bin:/usr/sbin:/sbin"

need_go
need_packages git gcc
ready_fuse
say "building bin/galley"
go build -trimpath -o bin/galley ./cmd/galley
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/galley-guest ./cmd/galley-guest
PATH="$PWD/bin:$PATH"

work=$(mktemp -d "${TMPDIR:-/tmp}/galley-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
export GALLEY_HOME="$work/state"
mkdir "$work/project"
# A copy of this source, so that the tour works on a real tree.
tar --exclude=./bin --exclude=./.git -cf - . | tar -xf - -C "$work/project"
cd "$work/project"
git init -q -b main .
git add -A
git -c user.name=demo -c user.email=demo@example.com commit -q -m 'as it was'

# show prints a command as one would type it, and runs it. Its status does not
# end the tour: some of what is shown refuses, as it should.
show() {
	printf '\n$ %s\n' "$*"
	bash -c "$*" || printf '(exit status %d)\n' "$?"
}

step() { printf '\n\n-- %s\n' "$*"; }

step "A program works on what looks like the project: it edits, builds, removes, renames."
show "galley run -- sh -c 'sed -i s/plain/simple/ README.md && go vet ./overlay/hostfs && rm -r .ci && mv scripts tools'"

step "The project itself has not changed."
show "git status --short"
show "ls -d .ci scripts"

step "The proof: what the session changed."
show "galley status"
show "galley diff --stat"
show "galley diff --name-status"
show "galley diff README.md"

step "The same session goes on, and sees its own changes."
show "galley run -- sh -c 'ls -d scripts tools; echo note > NOTES; echo one more line >> SECURITY.md'"

step "Throw a part away. It goes to a trash first."
show "galley discard --yes .ci"

step "Keep a part: one file is written to the project, the rest stays in the session."
show "galley commit --dry-run README.md"
show "galley commit --yes README.md"
show "git status --short"

step "Somebody edits the project meanwhile, where the session changed it too: that is drift, and refuses the commit."
show "echo edited on the host >> SECURITY.md"
show "galley commit --yes"
show "git checkout -q SECURITY.md"

step "Without drift the rest is committed, all or nothing."
show "galley commit --yes"
show "git status --short"

step "A program that goes wrong harms nothing."
show "galley run -- sh -c 'rm -rf ./* && ls'"
show "ls | head -3"
show "galley discard --yes"

step "Sessions, and what this machine can do."
show "galley sessions"
show "galley doctor"

say "the tour is over; the copy and its session are removed"
