package main

import (
	"fmt"
	"time"
)

// sessionChapter measures the commands around a session on a large tree.
var sessionChapter = chapter{
	name:  "session",
	title: func(s scale) string { return fmt.Sprintf("Sessions on a tree of %d files", s.manyFiles) },
	about: fixed(`Wall time, median of many runs. "More than bare" compares ` + "`galley run -- true` with `true`" + ` from the same shell.
` + "`cp` and `sync`" + ` are of the same files to the same file system.`),
	measure: sessionRows,
}

func sessionRows(b *bench, w who, dir string, add func(figure)) error {
	project := dir + "/project"
	if err := b.makeFiles(w, project, b.scale.manyFiles); err != nil {
		return err
	}
	galley := b.galley
	bare, err := b.times(w, project, 20, "", "exec true")
	if err != nil {
		return err
	}
	first, err := b.times(w, project, 1, "", "exec "+galley+" run -- true")
	if err != nil {
		return err
	}
	again, err := b.times(w, project, 20, "", "exec "+galley+" run -- true")
	if err != nil {
		return err
	}
	const more = " more than bare"
	add(within("the first `galley run -- true`, which makes the session", first-bare, 60*time.Millisecond, more))
	add(within("`galley run -- true` again", again-bare, 60*time.Millisecond, more))

	const edit = ` run -- sh -c 'for i in $(seq 0 99); do echo changed >> d$((i % 20))/f$i; done'`
	if err := b.must(w, project, galley+edit); err != nil {
		return err
	}
	diff, err := b.times(w, project, 10, "", galley+" diff > /dev/null")
	if err != nil {
		return err
	}
	add(within("`galley diff` of 100 changes", diff, 50*time.Millisecond, ""))
	if err := b.must(w, project, galley+" commit --yes"); err != nil {
		return err
	}
	return commitRow(b, w, dir, project, add)
}

// commitRow compares a commit of 1,000 new files with cp and sync of the same.
func commitRow(b *bench, w who, dir, project string, add func(figure)) error {
	const files, rounds = 1000, 5
	const fill = `mkdir %s && for i in $(seq 1 %d); do echo "file $i of the commit" > %[1]s/c$i; done`
	if err := b.must(w, dir, fmt.Sprintf(fill, "out", files)); err != nil {
		return err
	}
	var copied, committed []time.Duration
	// One after the other in each round: the disk's mood is then the same.
	for i := range rounds {
		c, err := b.times(w, dir, 1, "rm -rf copy; sync", "cp -r out copy && sync -f copy")
		if err != nil {
			return err
		}
		copied = append(copied, c)
		prep := fmt.Sprintf(`%s run -- sh -c '%s' && sync`, b.galley, fmt.Sprintf(fill, fmt.Sprintf("new%d", i), files))
		if c, err = b.times(w, project, 1, prep, b.galley+" commit --yes"); err != nil {
			return err
		}
		committed = append(committed, c)
	}
	cp, c := median(copied), median(committed)
	f := within(fmt.Sprintf("`galley commit` of %d new small files, crash-safe", files), c, 2*cp,
		fmt.Sprintf(", %.2f × cp and sync", float64(c)/float64(cp)))
	f.goal = "≤ 2 × cp and sync"
	add(f)
	return nil
}
