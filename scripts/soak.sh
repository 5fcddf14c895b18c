#!/bin/bash
# The long tests: the random model tests again and again, with other seeds,
# for SOAK (a number of seconds, default 3600).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
need_go
ready_fuse

end=$((SECONDS + ${SOAK:-3600}))
round=0
while [ "$SECONDS" -lt "$end" ]; do
	round=$((round + 1))
	say "round $round"
	go test -count=1 -timeout=2h -run='Model|Random' ./overlay/... ./fs/... ./integration/...
done
say "$round rounds, no failure"
