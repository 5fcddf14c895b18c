package main

import "fmt"

// work is one row of the table.
type work struct {
	name  string
	group string  // rows of one group share a goal
	goal  float64 // ratio of CPU time to native; 0: none, see wallGoal
	// wallGoal, in milliseconds, is for rows of which the time itself counts.
	wallGoal float64
	// cold: the file system is mounted afresh and all caches are dropped.
	cold bool
	// prepare and run are shell texts, in the root of the tree. $BENCH is
	// this program, $IN holds what they take from outside, $TOKEN is of this
	// measurement alone.
	prepare, run string
}

// works lists the rows in the order in which they are measured: what destroys
// comes after what looks, and what removes files after what makes many.
func works(s scale) []work {
	op := func(name string, n int, path string) string {
		return fmt.Sprintf("$BENCH op %s %d %s", name, n, path)
	}
	it, mib := s.iterations, int(s.bigSize>>20)
	const warm, cold = "warm look", "cold look"
	return []work{
		{name: "git status, first", group: cold, goal: 4, cold: true, run: "git -C repo status --porcelain"},
		{name: "find, cold", group: cold, goal: 4, cold: true, run: "find repo -type f | wc -l"},
		{name: "stat of all, cold", group: cold, goal: 4, cold: true, run: "find repo -printf '%s\\n' | wc -l"},
		{name: "full read, cold", group: cold, goal: 4, cold: true, run: "grep -rc no-such-text repo | wc -l"},

		{name: "git status, warm (5 times)", group: warm, goal: 1.3, prepare: "git -C repo status --porcelain",
			run: "for i in 1 2 3 4 5; do git -C repo status --porcelain; done"},
		{name: "find, warm (5 times)", group: warm, goal: 1.3, prepare: "find repo -type f | wc -l",
			run: "for i in 1 2 3 4 5; do find repo -type f; done | wc -l"},
		{name: "stat of all, warm (5 times)", group: warm, goal: 1.3, prepare: "find repo -printf '%s\\n' | wc -l",
			run: "for i in 1 2 3 4 5; do find repo -printf '%s\\n'; done | wc -l"},
		{name: "stat of one file", group: warm, goal: 1.3, run: op("stat", 2*it, "repo/d0/f0")},
		{name: "stat of what is not there", group: warm, goal: 1.3, run: op("stat-missing", 2*it, "repo/d0/f0")},
		{name: "readdir", group: warm, goal: 1.3, prepare: "ls repo/d0 | wc -l", run: op("readdir", it/20, "repo/d0")},
		// The kernel asks once more for the attributes of a file that it has
		// read (its access time): warm is what has been read twice.
		{name: "full read, warm (3 times)", group: "warm read", goal: 1.3, prepare: "for i in 1 2; do grep -rc no-such-text repo || :; done | wc -l",
			run: "for i in 1 2 3; do grep -rc no-such-text repo || :; done | wc -l"},
		{name: "open, read, close", group: "open", goal: 2, run: op("open-read", it, "repo/d0/f0")},

		{name: "create small files", group: "create", goal: 5, run: op("create", s.newFiles, "created")},
		{name: "untar", group: "create", goal: 5, prepare: "mkdir untar", run: "tar -xf $IN/files.tar -C untar"},

		{name: "go build after an edit", group: "go build", goal: 1.1, prepare: "cd module && go build ./... && echo \"// $TOKEN\" >> overlay/overlay.go",
			run: "cd module && go build ./..."},
		{name: "go build, nothing to do (3 times)", group: "no-op build", goal: 1.2, prepare: "cd module && go build ./...",
			run: "cd module && for i in 1 2 3; do go build ./...; done"},
		{name: "npm install", group: "npm", run: "cd app && npm install --silent --offline --ignore-scripts"},

		{name: "SQLite, one insert a transaction", group: "data", goal: 1.3, run: "sqlite3 -batch one.db < $IN/one.sql"},
		{name: "SQLite, all in one transaction", group: "data", goal: 1.3, run: "sqlite3 -batch bulk.db < $IN/bulk.sql"},
		{name: "sequential write", group: "data", goal: 1.3, run: op("seq-write", mib, "data")},
		{name: "sequential read, warm (3 times)", group: "data", goal: 1.3, prepare: op("seq-read", 1, "data"), run: op("seq-read", 3, "data")},
		{name: "random 4 KiB reads", group: "data", goal: 1.3, run: op("rand-read", it, "data")},
		{name: "random 4 KiB writes", group: "data", goal: 1.3, run: op("rand-write", it/2, "data")},
		{name: "random writes through mmap", group: "mmap", goal: 1.5, run: op("mmap", it/10, "data")},

		{name: "rename of a directory of the base", group: "rename", wallGoal: 10, run: op("rename-dir", 1, "five")},
		{name: "append of one byte to a large base file", group: "append", wallGoal: 0, cold: true, run: op("append-byte", 1, "big")},

		// From here on files are removed; see disk.
		{name: "eight workers", group: "parallel", goal: 4, run: op("parallel", s.newFiles/20, "workers")},
		{name: "git add and commit of 200", group: "git", goal: 2.5,
			prepare: "for i in $(seq 0 199); do echo $TOKEN >> repo/d$((i % 20))/f$((i / 20)); done",
			run:     "cd repo && git add -A && git commit -q -m more"},
		{name: "git checkout of a branch", group: "git", goal: 2.5, run: "git -C repo checkout -q other"},
		{name: "git checkout back", group: "git", goal: 2.5, run: "git -C repo checkout -q main"},
		{name: "unlink them", group: "remove", goal: 8, run: op("unlink", s.newFiles, "created")},
		{name: "remove node_modules", group: "remove", goal: 8, run: "rm -r app/node_modules"},
		{name: "rm -r of base files", group: "remove", goal: 8, run: "rm -r six"},
	}
}
