package main

import (
	"fmt"
	"log"
	"os"
	"strings"
	"time"
)

// chapter is a set of figures beside the table of works: what only Galley
// does, or what is not a ratio. Each is in a file of its own. To add one, write
// the file and list the chapter in chapters; it appears in the document by
// itself.
type chapter struct {
	// name is what -only is matched against.
	name string
	// title heads its table; about is a sentence or two below it.
	title, about func(s scale) string
	// rootOnly: it is not measured as an ordinary user.
	rootOnly bool
	// measure takes the figures as one user. What it makes goes below dir,
	// the user's home on a fresh disk, which is removed afterwards; a galley
	// program is at b.galley, and $GALLEY_HOME, which b.command, b.must and
	// b.times set, is below dir too. What it mounts it unmounts. It may
	// return an error after some figures: those stay.
	measure func(b *bench, w who, dir string, add func(figure)) error
}

// chapters in the order of the document.
var chapters = []chapter{sessionChapter, memoryChapter, cloneChapter, historyChapter, toolsChapter, virtiofsChapter, machineChapter}

// figure is one line of a chapter.
type figure struct {
	name string
	got  string // with its unit
	// goal is what it should be, and reached whether it is; an empty goal
	// claims nothing.
	goal    string
	reached bool
}

// within is a figure that is to be no longer than a goal.
func within(name string, got, goal time.Duration, remark string) figure {
	f := figure{name: name, got: showTime(got) + remark, goal: "≤ " + showTime(goal), reached: got <= goal}
	return f
}

// showTime is a duration with three digits and the unit that suits it.
func showTime(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + showTime(-d)
	case d < time.Millisecond:
		return fmt.Sprintf("%.3g µs", float64(d)/float64(time.Microsecond))
	case d < 10*time.Second:
		return fmt.Sprintf("%.3g ms", ms(d))
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}

// written is a figure as one user measured it.
type written struct {
	chapter, user string
	figure
}

// chapterRows measures the chapters, as root and as the ordinary user.
func (b *bench) chapterRows() error {
	if _, err := os.Stat(b.galley); err != nil {
		log.Printf("no %s: the chapters beside the table are left out", b.options.galley)
		return nil
	}
	for _, c := range chapters {
		if !b.only.MatchString(c.name) {
			continue
		}
		for _, w := range b.users() {
			if c.rootOnly && w.uid != 0 {
				continue
			}
			if err := b.chapterAs(c, w); err != nil {
				log.Printf("%s as %s: %v", c.name, w.name, err)
			}
		}
	}
	return nil
}

func (b *bench) chapterAs(c chapter, w who) error {
	name := strings.ReplaceAll(c.name, " ", "-") + "-" + w.name
	d, err := b.newDisk(name, 4*b.scale.bigSize+8<<30)
	if err != nil {
		return err
	}
	defer func() {
		if err := d.remove(); err != nil {
			log.Print(err)
		}
	}()
	w.home = d.dir + "/home"
	if err := b.must(w, "/", "mkdir "+w.home); err != nil {
		return err
	}
	return c.measure(b, w, w.home, func(f figure) {
		b.figures = append(b.figures, written{c.name, w.name, f})
		log.Printf("%-14s %s: %s (goal %s)", w.name, f.name, f.got, f.goal)
	})
}

// chapterTables writes what the chapters measured.
func (b *bench) chapterTables(out *strings.Builder) {
	for _, c := range chapters {
		head := false
		for _, f := range b.figures {
			if f.chapter != c.name {
				continue
			}
			if !head {
				fmt.Fprintf(out, "## %s\n\n", c.title(b.scale))
				if c.about != nil {
					fmt.Fprintf(out, "%s\n\n", c.about(b.scale))
				}
				out.WriteString("| | as | measured | goal | reached |\n|---|---|---:|---:|---|\n")
				head = true
			}
			word := "no"
			switch {
			case f.goal == "":
				word = ""
			case f.reached:
				word = "yes"
			}
			user := "root"
			if f.user != b.root.name {
				user = "user"
			}
			fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", f.name, user, f.got, f.goal, word)
		}
		if head {
			out.WriteString("\n")
		}
	}
}

// fixed is a title that is the same at every scale.
func fixed(s string) func(scale) string { return func(scale) string { return s } }

// makeFiles makes n small files below dir, a hundred in a directory, whose
// names are d<i>/f<j>.
func (b *bench) makeFiles(w who, dir string, n int) error {
	return b.must(w, "/", fmt.Sprintf(`mkdir -p %s && cd %s && awk -v n=%d 'BEGIN {
		for (i = 0; i < n; i++) {
			d = "d" int(i / 100)
			if (i %% 100 == 0) system("mkdir " d)
			f = d "/f" (i %% 100)
			print "file", i > f
			close(f)
		}
	}'`, dir, dir, n))
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
