package review

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// list shows changes shortly: letter, path, and where it came from.
func list(cs *ChangeSet) []string {
	var out []string
	for i := range cs.Changes {
		c := &cs.Changes[i]
		s := fmt.Sprintf("%s %s", c.Kind, c.Path)
		if c.Kind == Renamed {
			s += " from " + c.From
		} else if c.Old != nil && c.Origin != c.Path {
			s += " (" + c.Origin + ")"
		}
		if c.Link != "" {
			s += " = " + c.Link
		}
		out = append(out, s)
	}
	return out
}

func TestChanges(t *testing.T) {
	base := map[string]string{
		"a": "alpha\n", "b": "beta\n", "c": "gamma\n", "link": "-> a", "d/x": "x\n", "d/y": "y\n", "d/e/z": "z\n", "empty/": "",
		"big": strings.Repeat("line of text\n", 100),
	}
	for _, tc := range []struct {
		name string
		do   func(s *session)
		want []string
	}{
		{"nothing", func(s *session) {}, nil},
		{"written and left identical", func(s *session) { s.write("a", "alpha\n"); s.chmod("b", 0o600); s.chmod("b", 0o644) }, nil},
		{"added and removed again", func(s *session) { s.write("n", "x"); s.remove("n") }, nil},
		{"added", func(s *session) { s.mkdir("n"); s.write("n/f", "1") }, []string{"added n", "added n/f"}},
		{"modified", func(s *session) { s.write("a", "other\n") }, []string{"modified a"}},
		{"mode", func(s *session) { s.chmod("a", 0o755) }, []string{"mode a"}},
		{"mode of a directory", func(s *session) { s.chmod("d", 0o700) }, []string{"mode d"}},
		{"xattr", func(s *session) { s.setxattr("a", "user.x", "1") }, []string{"mode a"}},
		{"link target", func(s *session) { s.remove("link"); s.symlink("b", "link") }, []string{"modified link"}},
		{"type", func(s *session) { s.remove("a"); s.symlink("b", "a") }, []string{"type a"}},
		{"deleted", func(s *session) { s.remove("a") }, []string{"deleted a"}},
		{"deleted directory", func(s *session) { s.remove("d") },
			[]string{"deleted d", "deleted d/e", "deleted d/e/z", "deleted d/x", "deleted d/y"}},
		{"directory made anew", func(s *session) { s.remove("d"); s.mkdir("d"); s.write("d/x", "x\n") },
			[]string{"deleted d/e", "deleted d/e/z", "deleted d/y"}},
		{"directory made anew with another file", func(s *session) { s.remove("d"); s.mkdir("d"); s.write("d/x", "2\n") },
			[]string{"deleted d/e", "deleted d/e/z", "modified d/x", "deleted d/y"}},
		{"directory to file", func(s *session) { s.remove("d"); s.write("d", "now a file") },
			[]string{"type d", "deleted d/e", "deleted d/e/z", "deleted d/x", "deleted d/y"}},
		{"file to directory", func(s *session) { s.remove("a"); s.mkdir("a"); s.write("a/f", "new") }, []string{"type a", "added a/f"}},
		{"renamed file", func(s *session) { s.rename("a", "n") }, []string{"renamed n from a"}},
		{"renamed and changed", func(s *session) { s.rename("a", "n"); s.write("n", "1\n") }, []string{"renamed n from a"}},
		{"renamed there and back", func(s *session) { s.rename("a", "n"); s.rename("n", "a") }, nil},
		{"renamed over another", func(s *session) { s.rename("a", "b") }, []string{"deleted a", "modified b"}},
		{"saved by rename", func(s *session) { s.write("tmp", "saved\n"); s.rename("tmp", "a") }, []string{"modified a"}},
		{"swapped", func(s *session) { s.exchange("a", "b") }, []string{"renamed a from b", "renamed b from a"}},
		{"turned", func(s *session) { s.rename("a", "t"); s.rename("b", "a"); s.rename("c", "b"); s.rename("t", "c") },
			[]string{"renamed a from b", "renamed b from c", "renamed c from a"}},
		{"chain over a deleted", func(s *session) { s.rename("b", "a"); s.rename("c", "b") }, []string{"modified a", "modified b", "deleted c"}},
		{"renamed directory", func(s *session) { s.rename("d", "n") }, []string{"renamed n from d"}},
		{"renamed directory, changed below", func(s *session) {
			s.rename("d", "n")
			s.write("n/x", "other\n")
			s.remove("n/y")
			s.write("n/new", "1")
			s.chmod("n/e", 0o700)
		}, []string{"deleted d/y", "renamed n from d", "mode n/e (d/e)", "added n/new", "modified n/x (d/x)"}},
		{"renamed directory, then a file out of it", func(s *session) { s.rename("d", "n"); s.rename("n/x", "x2") },
			[]string{"renamed n from d", "renamed x2 from d/x"}},
		{"moved out, then removed", func(s *session) { s.rename("d/e", "e2"); s.remove("d") },
			[]string{"deleted d", "deleted d/x", "deleted d/y", "renamed e2 from d/e"}},
		{"directory over an empty one", func(s *session) { s.rename("d", "empty") }, []string{"deleted empty", "renamed empty from d"}},
		{"directory over an emptied one", func(s *session) { s.remove("d/x"); s.remove("d/y"); s.remove("d/e"); s.rename("empty", "d") },
			[]string{"deleted d", "renamed d from empty", "deleted d/e", "deleted d/e/z", "deleted d/x", "deleted d/y"}},
		{"new in the place of a renamed", func(s *session) { s.rename("d", "n"); s.mkdir("d"); s.write("d/x", "fresh") },
			[]string{"added d", "added d/x", "renamed n from d"}},
		{"old file into the new place", func(s *session) { s.rename("d", "n"); s.mkdir("d"); s.rename("n/x", "d/x") },
			[]string{"added d", "renamed d/x from d/x", "renamed n from d"}},
		{"hard link to the base", func(s *session) { s.link("a", "a2") }, []string{"added a2 = a"}},
		{"hard links of a new file", func(s *session) { s.write("n", "1"); s.link("n", "m") }, []string{"added m", "added n = m"}},
		{"fifo", func(s *session) { s.mknod("p", unix.S_IFIFO|0o644) }, []string{"added p"}},
		{"exact copy is a rename", func(s *session) { s.write("copy", "alpha\n"); s.remove("a") }, []string{"renamed copy from a"}},
		{"similar copy is a rename", func(s *session) {
			s.write("copy", strings.Repeat("line of text\n", 90)+"and more\n")
			s.remove("big")
		}, []string{"renamed copy from big"}},
		{"unlike content is none", func(s *session) { s.write("copy", "nothing alike, at all\n"); s.remove("big") },
			[]string{"deleted big", "added copy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSession(t, files(t, base))
			tc.do(s)
			got := list(s.compute())
			if !slices.Equal(got, tc.want) {
				t.Errorf("changes\n got %q\nwant %q", got, tc.want)
			}
		})
	}
}
