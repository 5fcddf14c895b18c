#!/bin/bash
# The long tests: a directory of a million entries once, machines killed at 200
# moments, then the random tests again and again, the programs of the model test with seeds that nobody has
# seen yet, for SOAK (a number of seconds, default 3600). A failure prints the
# seed and the shortest program that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
need_go
ready_fuse

end=$((SECONDS + ${SOAK:-3600}))
round=0
say "a directory of a million entries"
SOAK=1 go test -count=1 -timeout=2h -run='^TestLargeDirectory$' ./overlay
say "machines, their parents and their owners killed at 200 moments"
need_packages qemu-system-x86_64 busybox
ready_kernel
GALLEY_KILLS=200 go test -count=1 -timeout=1h -run='^TestKilledMachines$' ./sandbox/owner
while [ "$SECONDS" -lt "$end" ]; do
	round=$((round + 1))
	say "round $round"
	GALLEY_MODEL_SEEDS=new go test -count=1 -timeout=2h -v -run='Model|Random|AgainstDirectory' \
		./overlay/... ./fs/... ./review/... ./integration/model
done
say "$round rounds, no failure"
