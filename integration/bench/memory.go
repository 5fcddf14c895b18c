package main

import "fmt"

// memoryChapter measures what the process that serves a session holds when a
// program has looked at everything.
var memoryChapter = chapter{
	name:    "memory",
	title:   fixed("Memory"),
	about:   fixed("Resident memory of the session's owner, after `find -printf '%s'` over the whole view, which the kernel still caches."),
	measure: memoryRow,
}

func memoryRow(b *bench, w who, dir string, add func(figure)) error {
	if err := b.makeFiles(w, dir+"/project", b.scale.manyFiles); err != nil {
		return err
	}
	t := &target{who: w, place: dir, dir: dir + "/mnt",
		kind: kind{name: "galley mount", mount: func(b *bench, t *target) []string {
			return []string{"env", "GALLEY_HOME=" + dir + "/state", b.galley, "mount", "--base", dir + "/project", "bench-memory", t.dir}
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
	size := float64(resident(t.servers())) / (1 << 20)
	add(figure{
		name: fmt.Sprintf("after looking up %d files", b.scale.manyFiles),
		got:  fmt.Sprintf("%.0f MB", size), goal: "≤ 150 MB", reached: size > 0 && size <= 150,
	})
	return nil
}
