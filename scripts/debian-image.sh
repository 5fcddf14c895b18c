#!/bin/bash
# Makes the root file system that tests boot and unpack: Debian as small as it
# goes, with git and sqlite3, from the apt sources of this machine, as a tar.
#
#	scripts/debian-image.sh FILE.tar
#
# It takes a minute, and root, or subordinate ids. What is there is kept.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FILE.tar" >&2; exit 2; }
out=$1
mkdir -p "$(dirname "$out")"
exec 9>"$out.lock"
flock 9
[ ! -s "$out" ] || exit 0
command -v mmdebstrap >/dev/null || { echo "$0: mmdebstrap is not installed" >&2; exit 1; }
. /etc/os-release
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
mmdebstrap --quiet --variant=minbase --include=git,sqlite3 "$VERSION_CODENAME" "$out.new.tar" "$sources" >&2
chmod 0644 "$out.new.tar"
mv "$out.new.tar" "$out"
