package review

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/galleyfs/galley/review/termsafe"
)

// statWidth is the width of a line of WriteStat, git's when not on a terminal.
const statWidth = 80

// statLine is what WriteStat says of one file.
type statLine struct {
	name           string
	added, deleted int // lines; bytes of new and old for a binary
	binary         bool
}

// WriteStat writes the number of changed lines of each file with a graph, and
// their sum, in the form of `git diff --stat`. No file is left out.
func WriteStat(ctx context.Context, w io.Writer, cs *ChangeSet) error {
	bw := bufio.NewWriter(w)
	for _, t := range cs.trees {
		files, _, err := filesOf(ctx, t, cs.Changes)
		if err != nil {
			return fmt.Errorf("list the files of the tree %s: %w", t.name, err)
		}
		if len(cs.trees) > 1 && len(files) > 0 {
			fmt.Fprintf(bw, "tree %s:\n", termsafe.Quote(t.name))
		}
		lines := make([]statLine, 0, len(files))
		for _, f := range files {
			line, err := statOf(ctx, f)
			if err != nil && !vanished(err) {
				return fmt.Errorf("compare %q: %w", f.path(), err)
			}
			lines = append(lines, line)
		}
		if len(lines) > 0 {
			writeStatLines(bw, lines)
		}
	}
	return bw.Flush()
}

func statOf(ctx context.Context, f *fileDiff) (statLine, error) {
	line := statLine{name: statName(f)}
	if f.same {
		return line, nil
	}
	o, err := openDiff(ctx, f)
	if err != nil {
		return line, err
	}
	defer o.close()
	if line.binary = o.binary(); line.binary {
		if o.ob.oid != o.nb.oid {
			line.added, line.deleted = int(o.nb.size), int(o.ob.size)
		}
		return line, nil
	}
	line.added, line.deleted, err = o.text(ctx).count()
	return line, err
}

// statName is the name of a file, or for a rename both, with what they share
// written once: dir/{old => new}/file.
func statName(f *fileDiff) string {
	if !f.rename() {
		return termsafe.Quote(f.path())
	}
	a, b := f.old.path, f.new.path
	if qa, qb := termsafe.Quote(a), termsafe.Quote(b); qa != a || qb != b {
		return qa + " => " + qb
	}
	prefix := 0
	for i := 0; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if a[i] == '/' {
			prefix = i + 1
		}
	}
	// The slash at which the prefix ends may also begin the suffix.
	floor := max(0, prefix-1)
	suffix := 0
	for i := 1; len(a)-i >= floor && len(b)-i >= floor && a[len(a)-i] == b[len(b)-i]; i++ {
		if a[len(a)-i] == '/' {
			suffix = i
		}
	}
	midA, midB := mid(a, prefix, suffix), mid(b, prefix, suffix)
	if prefix+suffix == 0 {
		return midA + " => " + midB
	}
	return a[:prefix] + "{" + midA + " => " + midB + "}" + a[len(a)-suffix:]
}

func mid(s string, prefix, suffix int) string {
	return s[prefix:max(prefix, len(s)-suffix)]
}

// writeStatLines lays the lines out as git does: the name column and the graph
// share the width, the graph giving way down to six columns, then the names.
func writeStatLines(w io.Writer, lines []statLine) {
	nameWidth, maxChange, binWidth, numberWidth := 0, 0, 0, 0
	for _, l := range lines {
		nameWidth = max(nameWidth, len(l.name))
		if l.binary {
			binWidth = max(binWidth, 14+digits(l.added)+digits(l.deleted))
			numberWidth = 3
			continue
		}
		maxChange = max(maxChange, l.added+l.deleted)
	}
	numberWidth = max(numberWidth, digits(maxChange))
	graphWidth := max(maxChange, binWidth-4)
	if maxChange+4 > binWidth {
		graphWidth = maxChange
	}
	if nameWidth+numberWidth+6+graphWidth > statWidth {
		graphWidth = min(graphWidth, max(6, statWidth*3/8-numberWidth-6))
		if nameWidth > statWidth-numberWidth-6-graphWidth {
			nameWidth = statWidth - numberWidth - 6 - graphWidth
		} else {
			graphWidth = statWidth - numberWidth - 6 - nameWidth
		}
	}
	insertions, deletions := 0, 0
	for _, l := range lines {
		name := shorten(l.name, nameWidth)
		if l.binary {
			fmt.Fprintf(w, " %-*s | %*s", nameWidth, name, numberWidth, "Bin")
			if l.added != 0 || l.deleted != 0 {
				fmt.Fprintf(w, " %d -> %d bytes", l.deleted, l.added)
			}
			fmt.Fprintln(w)
			continue
		}
		insertions += l.added
		deletions += l.deleted
		space := ""
		if l.added+l.deleted > 0 {
			space = " "
		}
		plus, minus := graph(l.added, l.deleted, graphWidth, maxChange)
		fmt.Fprintf(w, " %-*s | %*d%s%s%s\n", nameWidth, name, numberWidth, l.added+l.deleted, space,
			strings.Repeat("+", plus), strings.Repeat("-", minus))
	}
	fmt.Fprintf(w, " %d file%s changed", len(lines), plural(len(lines)))
	if insertions > 0 || deletions == 0 {
		fmt.Fprintf(w, ", %d insertion%s(+)", insertions, plural(insertions))
	}
	if deletions > 0 || insertions == 0 {
		fmt.Fprintf(w, ", %d deletion%s(-)", deletions, plural(deletions))
	}
	fmt.Fprintln(w)
}

// shorten cuts a name at its front, at a slash where there is one. Names are
// ASCII after quoting.
func shorten(name string, width int) string {
	if len(name) <= width {
		return name
	}
	name = name[len(name)-max(0, width-3):]
	if i := strings.IndexByte(name, '/'); i >= 0 {
		name = name[i:]
	}
	return "..." + name
}

// graph scales the two bars to the width.
func graph(added, deleted, width, maxChange int) (plus, minus int) {
	if width > maxChange {
		return added, deleted
	}
	scale := func(n int) int {
		if n == 0 {
			return 0
		}
		return 1 + n*(width-1)/maxChange
	}
	total := scale(added + deleted)
	if total < 2 && added > 0 && deleted > 0 {
		total = 2
	}
	if added < deleted {
		plus = scale(added)
		return plus, total - plus
	}
	minus = scale(deleted)
	return total - minus, minus
}

func digits(n int) int { return len(fmt.Sprint(n)) }

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// WriteNameStatus writes one line for each file: a letter (A, D, M, T, or R with
// the similarity in percent), a tab and the path, or for a rename both paths,
// in the form of `git diff --name-status`. A path whose difference git does not
// know (a directory, a special file, mere metadata) is not in it.
func WriteNameStatus(ctx context.Context, w io.Writer, cs *ChangeSet) error {
	bw := bufio.NewWriter(w)
	for _, t := range cs.trees {
		files, _, err := filesOf(ctx, t, cs.Changes)
		if err != nil {
			return fmt.Errorf("list the files of the tree %s: %w", t.name, err)
		}
		if len(cs.trees) > 1 && len(files) > 0 {
			fmt.Fprintf(bw, "tree %s:\n", termsafe.Quote(t.name))
		}
		for i := 0; i < len(files); i++ {
			f := files[i]
			name := termsafe.Quote(f.path())
			switch {
			case f.new == nil && i+1 < len(files) && files[i+1].old == nil && files[i+1].path() == f.path():
				fmt.Fprintf(bw, "T\t%s\n", name)
				i++
			case f.new == nil:
				fmt.Fprintf(bw, "D\t%s\n", name)
			case f.old == nil:
				fmt.Fprintf(bw, "A\t%s\n", name)
			case f.rename():
				score, err := scoreOf(f)
				if err != nil && !vanished(err) {
					return fmt.Errorf("compare %q: %w", f.path(), err)
				}
				fmt.Fprintf(bw, "R%03d\t%s\t%s\n", score, termsafe.Quote(f.old.path), name)
			default:
				fmt.Fprintf(bw, "M\t%s\n", name)
			}
		}
	}
	return bw.Flush()
}

// scoreOf is the similarity of a rename's two files.
func scoreOf(f *fileDiff) (int, error) {
	if f.same {
		return 100, nil
	}
	a, err := f.old.open()
	if err != nil {
		return 0, err
	}
	defer a.Close()
	b, err := f.new.open()
	if err != nil {
		return 0, err
	}
	defer b.Close()
	return contentSimilarity(a, b)
}
