// Bench measures real work on Galley side by side with a plain directory,
// kernel overlayfs and fuse-overlayfs, as root and as an ordinary user, in one
// run, and writes the result as docs/performance.md. Run it as root with `make
// bench`.
//
// What counts is the CPU time of the whole work (the program, its children and
// the file system's server) in ratio to the same work in a plain directory:
// wall times of a shared machine say little. Each round does every piece of
// work on every file system before the next piece begins, in an order that
// rotates, and the table shows medians over the rounds.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "op" {
		os.Exit(opMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(serveMain(os.Args[2:]))
	}
	log.SetFlags(log.Ltime)
	var o options
	flag.StringVar(&o.galley, "galley", "bin/galley", "the galley program to measure")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where to make the trees: a disk, with some 6 GB free at full scale")
	flag.StringVar(&o.out, "out", "", "the Markdown file to write (default: standard output)")
	flag.StringVar(&o.user, "user", "galleytest", "the ordinary user of the second half")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds; the table shows medians (default: 1 at small scale, 3 else)")
	flag.BoolVar(&o.direct, "direct", false, "measure the engine and its FUSE face alone, without the galley program")
	scale := flag.String("scale", "full", "small, medium or full")
	only := flag.String("only", "", "measure only the rows whose name matches this `regexp`")
	kinds := flag.String("kinds", "", "measure only the file systems whose name matches this `regexp` (native always is)")
	as := flag.String("as", "", "measure only as the users, root and the one of -user, that match this `regexp`")
	flag.Parse()

	var ok bool
	if o.scale, ok = scales[*scale]; !ok {
		log.Fatalf("no scale %q: small, medium or full", *scale)
	}
	if o.rounds == 0 {
		o.rounds = 3
		if o.scale.name == "small" {
			o.rounds = 1
		}
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		log.Fatal(err)
	}
	if o.kinds, err = regexp.Compile(*kinds); err != nil {
		log.Fatal(err)
	}
	if o.as, err = regexp.Compile(*as); err != nil {
		log.Fatal(err)
	}
	if os.Geteuid() != 0 {
		log.Fatal("run it as root: it mounts, drops caches, and takes the ordinary user's place for half of the rows")
	}
	if err := run(&o); err != nil {
		log.Fatal(err)
	}
}

type options struct {
	galley, dir, out, user string
	rounds                 int
	direct                 bool
	scale                  scale
	only, kinds, as        *regexp.Regexp
}

// scale is how large the trees are.
type scale struct {
	name       string
	repoFiles  int   // in the git repository
	dirFiles   int   // in the directories that are removed and renamed
	newFiles   int   // created, unlinked, unpacked
	bigSize    int64 // bytes of the large file
	manyFiles  int   // in the tree of the session rows
	iterations int   // of the latency rows
	snapshots  int   // in the session of the history rows
}

var scales = map[string]scale{
	"small":  {"small", 2000, 500, 1000, 64 << 20, 5000, 20000, 1000},
	"medium": {"medium", 20000, 5000, 10000, 256 << 20, 20000, 50000, 10000},
	"full":   {"full", 20000, 5000, 10000, 1 << 30, 100000, 100000, 10000},
}

func run(o *options) (err error) {
	b, err := newBench(o)
	if err != nil {
		return err
	}
	// An interrupted run unmounts as well.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		b.cleanUp()
		os.Exit(1)
	}()
	defer b.cleanUp()
	log.Printf("making the trees (%s) in %s", o.scale.name, b.dir)
	if err := b.makeTrees(); err != nil {
		return fmt.Errorf("make the trees: %w", err)
	}
	for round := 1; round <= o.rounds; round++ {
		log.Printf("round %d of %d", round, o.rounds)
		if err := b.round(round); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	if err := b.chapterRows(); err != nil {
		return fmt.Errorf("chapters: %w", err)
	}
	return b.report()
}
