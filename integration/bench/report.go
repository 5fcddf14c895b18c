package main

import (
	"fmt"
	"math"
	"os"
	"sort"
	"strings"
	"time"
)

func (b *bench) report() error {
	var w strings.Builder
	s := b.scale
	fmt.Fprintf(&w, `# Performance

Written by `+"`make bench`"+`; do not edit. %s, on %s, %d rounds, scale %q: a git repository of %d files,
directories of %d files, %d files created, a file of %d MiB.

CPU time of the whole work (program, children and the file system's server) in ratio to the same work in a plain
directory in the same run; medians of interleaved rounds. "ms" is native's own CPU time, in milliseconds. Rows of
which the time itself counts show milliseconds of wall time. A dash: not measured, the log says why.

`, time.Now().UTC().Format("2 January 2006"), host(), b.rounds, s.name, s.repoFiles, s.dirFiles, s.newFiles, s.bigSize>>20)
	for _, u := range b.users() {
		if u.uid == 0 {
			w.WriteString("## As root\n\n")
		} else {
			w.WriteString("## As an ordinary user\n\nGoals are 1.5 times those of root. Kernel overlayfs is not there for an ordinary user outside of a namespace.\n\n")
		}
		b.table(&w, u)
		w.WriteString("\n")
	}
	b.chapterTables(&w)
	if notes, err := os.ReadFile("docs/performance-notes.md"); err == nil {
		w.Write(notes)
	}
	if b.out == "" {
		fmt.Print(w.String())
		return nil
	}
	return os.WriteFile(b.out, []byte(w.String()), 0o644)
}

func (b *bench) table(w *strings.Builder, u who) {
	var cols []string
	for _, k := range kinds[1:] {
		if !k.rootOnly || u.uid == 0 {
			cols = append(cols, k.name)
		}
	}
	fmt.Fprintf(w, "| work | ms | %s | goal | reached |\n|---|---:|%s---:|---|\n", strings.Join(cols, " | "), strings.Repeat("---:|", len(cols)))
	for _, wk := range works(b.scale) {
		native := b.samples[rowKey{u.name, wk.name, "native"}]
		if len(native) == 0 {
			continue
		}
		if wk.goal == 0 && wk.group != "npm" {
			b.wallRow(w, u, wk, cols)
			continue
		}
		base := medianOf(native, func(s sample) time.Duration { return s.cpu })
		fmt.Fprintf(w, "| %s | %.1f |", wk.name, ms(base))
		ratios := make(map[string]float64)
		for _, k := range cols {
			got := b.samples[rowKey{u.name, wk.name, k}]
			if len(got) == 0 {
				w.WriteString(" – |")
				continue
			}
			ratios[k] = float64(medianOf(got, func(s sample) time.Duration { return s.cpu })) / float64(base)
			fmt.Fprintf(w, " %.2f |", ratios[k])
		}
		goal := wk.goal
		if u.uid != 0 {
			goal = math.Round(goal*150) / 100
		}
		w.WriteString(verdict(goal, ratios))
	}
}

// verdict closes a row: the goal, and whether Galley reached it. Where only
// another mode than the default reaches it, the row says so.
func verdict(goal float64, ratios map[string]float64) string {
	label := "≤ fuse-overlayfs"
	if goal > 0 {
		label = fmt.Sprintf("%g", goal)
	}
	judge := func(kind string) string {
		got, ok := ratios[kind]
		peer, hasPeer := ratios["fuse-overlayfs"]
		switch {
		case !ok:
			return "–"
		case goal > 0 && got > goal:
			return "no"
		// Two runs of the same work differ by some hundredths.
		case hasPeer && got > peer*1.05:
			return "no: above fuse-overlayfs"
		default:
			return "yes"
		}
	}
	word := judge("galley")
	if word != "yes" {
		for _, mode := range []string{"writeback", "io_uring"} {
			if judge("galley, "+mode) == "yes" {
				word = "with " + mode
				break
			}
		}
	}
	return fmt.Sprintf(" %s | %s |\n", label, word)
}

func (b *bench) wallRow(w *strings.Builder, u who, wk work, cols []string) {
	wall := func(k string) (time.Duration, string, bool) {
		got := b.samples[rowKey{u.name, wk.name, k}]
		if len(got) == 0 {
			return 0, "", false
		}
		return medianOf(got, func(s sample) time.Duration { return s.wall }), got[0].note, true
	}
	native, _, _ := wall("native")
	fmt.Fprintf(w, "| %s, ms of time | %.2f |", wk.name, ms(native))
	for _, k := range cols {
		d, note, ok := wall(k)
		switch {
		case !ok:
			w.WriteString(" – |")
		case note != "":
			fmt.Fprintf(w, " %.1f (%s) |", ms(d), note)
		default:
			fmt.Fprintf(w, " %.1f |", ms(d))
		}
	}
	got, _, ok := wall("galley")
	goal, label := wk.wallGoal, fmt.Sprintf("%g ms", wk.wallGoal)
	if goal == 0 {
		// No slower than kernel overlayfs, or fuse-overlayfs without it.
		label = "≤ overlayfs"
		peer, _, has := wall("overlayfs")
		if !has {
			peer, _, has = wall("fuse-overlayfs")
			label = "≤ fuse-overlayfs"
		}
		if !has {
			ok = false
		}
		goal = ms(peer)
	}
	switch {
	case !ok:
		fmt.Fprintf(w, " %s | – |\n", label)
	case ms(got) <= goal:
		fmt.Fprintf(w, " %s | yes |\n", label)
	default:
		fmt.Fprintf(w, " %s | no |\n", label)
	}
}

func medianOf(all []sample, of func(sample) time.Duration) time.Duration {
	var ds []time.Duration
	for _, s := range all {
		ds = append(ds, of(s))
	}
	return median(ds)
}

func median(ds []time.Duration) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = append([]time.Duration(nil), ds...)
	sort.Slice(ds, func(i, j int) bool { return ds[i] < ds[j] })
	return ds[len(ds)/2]
}
