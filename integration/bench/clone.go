package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// cloneChapter appends one byte to a large base file on a file system that
// clones, which the bench makes in a file. The table of works has the same on
// the disk under measurement.
var cloneChapter = chapter{
	name:     "append on a file system that clones",
	title:    fixed("Append of one byte to a large base file, on a file system that clones"),
	about:    fixed("XFS with reflinks in a file on the same disk; base and session are both on it. Wall time of open, write, close; median of 5 files."),
	rootOnly: true,
	measure:  cloneRow,
}

func cloneRow(b *bench, w who, dir string, add func(figure)) (err error) {
	const files = 5
	mib := b.scale.bigSize >> 20
	mnt := dir + "/xfs"
	// Enough for the file, clones of it and the log, which takes 300 MB at least.
	err = b.must(w, dir, fmt.Sprintf(`mkdir xfs view && truncate -s %dM image && mkfs.xfs -q -m reflink=1 image && mount -o loop image xfs &&
		mkdir xfs/base xfs/state && $BENCH op seq-write %d xfs/base/big0 &&
		for i in $(seq 1 %d); do cp --reflink=always xfs/base/big0 xfs/base/big$i; done && sync`, 2*mib+1024, mib, files-1))
	if err != nil {
		return errors.Join(err, unmountIf(mnt))
	}
	defer func() { err = errors.Join(err, unmountIf(mnt)) }()
	t := &target{who: w, place: dir, dir: dir + "/view",
		kind: kind{name: "galley mount", mount: func(b *bench, t *target) []string {
			return []string{"env", "GALLEY_HOME=" + mnt + "/state", b.galley, "mount", "--base", mnt + "/base", "bench-clone", t.dir}
		}}}
	b.mu.Lock()
	b.targets = append(b.targets, t)
	b.mu.Unlock()
	b.mount(t)
	if t.err != nil {
		return t.err
	}
	defer b.unmount(t)
	var all []time.Duration
	for i := range files {
		s, err := b.measure(w, t.dir, fmt.Sprintf("$BENCH op append-byte 1 big%d", i), nil)
		if err != nil {
			return err
		}
		all = append(all, s.wall)
	}
	add(within(fmt.Sprintf("a file of %d MiB", mib), median(all), 10*time.Millisecond, ""))
	return nil
}

// unmountIf unmounts dir if something is mounted there.
func unmountIf(dir string) error {
	if !isMounted(dir) {
		return nil
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}
