package main

import (
	"fmt"
	"log"
	"os"
	"time"
)

// sessionRows measures what only Galley does: opening a session, a diff, a
// commit, and the memory of a server that has looked at everything.
func (b *bench) sessionRows() error {
	if _, err := os.Stat(b.galley); err != nil {
		log.Printf("no %s: the session rows are left out", b.options.galley)
		return nil
	}
	if !b.only.MatchString("session") {
		return nil
	}
	for _, w := range []who{b.root, b.plain} {
		if err := b.sessionRowsAs(w); err != nil {
			log.Printf("session rows as %s: %v", w.name, err)
		}
	}
	return nil
}

func (b *bench) sessionRowsAs(w who) error {
	dir := w.home + "/project"
	err := b.must(w, "/", fmt.Sprintf(`mkdir %s && cd %s && awk -v n=%d 'BEGIN {
		for (i = 0; i < n; i++) {
			d = "d" int(i / 100)
			if (i %% 100 == 0) system("mkdir " d)
			f = d "/f" (i %% 100)
			print "file", i > f
			close(f)
		}
	}'`, dir, dir, b.scale.manyFiles))
	if err != nil {
		return err
	}
	add := func(name, got, goal string, reached bool) {
		b.session = append(b.session, sessionRow{w.name, name, got, goal, reached})
		log.Printf("%s as %s: %s (goal %s)", name, w.name, got, goal)
	}
	galley := b.galley

	bare, err := b.times(w, dir, 20, "", "exec true")
	if err != nil {
		return err
	}
	first, err := b.times(w, dir, 1, "", "exec "+galley+" run -- true")
	if err != nil {
		return err
	}
	again, err := b.times(w, dir, 20, "", "exec "+galley+" run -- true")
	if err != nil {
		return err
	}
	add("first galley run, makes the session", fmt.Sprintf("%.1f ms more than bare", ms(first-bare)), "60 ms", ms(first-bare) <= 60)
	add("galley run -- true", fmt.Sprintf("%.1f ms more than bare", ms(again-bare)), "60 ms", ms(again-bare) <= 60)

	edit := galley + ` run -- sh -c 'for i in $(seq 0 99); do echo changed >> d$((i % 20))/f$i; done'`
	if err := b.must(w, dir, edit); err != nil {
		return err
	}
	diff, err := b.times(w, dir, 10, "", galley+" diff > /dev/null")
	if err != nil {
		return err
	}
	add("galley diff of 100 changes", fmt.Sprintf("%.1f ms", ms(diff)), "50 ms", ms(diff) <= 50)
	if err := b.must(w, dir, galley+" commit --yes"); err != nil {
		return err
	}

	// The same new files, committed crash-safely, and by cp and sync.
	fill := `rm -rf $HOME/out && mkdir $HOME/out && for i in $(seq 1 1000); do echo "file $i of the commit" > $HOME/out/c$i; done`
	copied, err := b.times(w, dir, 3, fill+"; rm -rf $HOME/copy; sync", "cp -r $HOME/out $HOME/copy && sync -f $HOME/copy")
	if err != nil {
		return err
	}
	n := 0
	committed := make([]time.Duration, 3)
	for i := range committed {
		n++
		prep := fmt.Sprintf(`%s run -- cp -r $HOME/out new%d && sync`, galley, n)
		if committed[i], err = b.times(w, dir, 1, prep, galley+" commit --yes"); err != nil {
			return err
		}
	}
	c := median(committed)
	add("commit of 1,000 small files", fmt.Sprintf("%.0f ms, %.2f × cp and sync", ms(c), float64(c)/float64(copied)), "2 ×", c <= 2*copied)
	return b.memory(w, dir, add)
}

// memory mounts a session over the tree and looks at every file.
func (b *bench) memory(w who, dir string, add func(name, got, goal string, reached bool)) error {
	t := &target{who: w, dir: w.home + "/mnt", mark: "GALLEY_BENCH_MARK=memory-" + w.name,
		kind: kind{name: "galley mount", mount: func(b *bench, t *target) []string {
			return []string{b.galley, "mount", "--base", dir, "bench-memory", t.dir}
		}}}
	if err := b.must(w, "/", "mkdir "+t.dir); err != nil {
		return err
	}
	b.mu.Lock()
	b.targets = append(b.targets, t)
	b.mu.Unlock()
	b.mount(t)
	if t.err != nil {
		return t.err
	}
	defer b.unmount(t)
	if err := b.must(w, t.dir, "find . -printf '%s\\n' | wc -l"); err != nil {
		return err
	}
	size := float64(resident(marked(t.mark))) / (1 << 20)
	add(fmt.Sprintf("resident memory after looking up %d files", b.scale.manyFiles), fmt.Sprintf("%.0f MB", size), "150 MB", size > 0 && size <= 150)
	return nil
}

// times gives the median wall time of n runs of a shell text, each after
// prepare.
func (b *bench) times(w who, dir string, n int, prepare, script string) (time.Duration, error) {
	var all []time.Duration
	for range n {
		if err := b.must(w, dir, prepare); err != nil {
			return 0, err
		}
		s, err := b.measure(w, dir, script, nil)
		if err != nil {
			return 0, err
		}
		all = append(all, s.wall)
	}
	return median(all), nil
}
