// Package snapshotstest is the suite that every implementation of sessions with
// a history passes: what sealing, names, rollback, fork, prune and commit mean,
// in terms of nothing but files and their content.
package snapshotstest

import (
	"fmt"
	"maps"
	"testing"
)

// Files are the files of a view, with their content, by path.
type Files = map[string]string

// History is one session of the implementation under test.
type History interface {
	// Put makes or replaces a file, with the directories that lead to it, and
	// Remove removes one.
	Put(path, text string) error
	Remove(path string) error
	// Live is what the session shows now, and At what snapshot n does.
	Live() (Files, error)
	At(n int) (Files, error)
	// Seal makes a snapshot, named unless name is empty, and returns its
	// number. Find returns the number of a name.
	Seal(name string) (int, error)
	Find(name string) (int, error)
	// Numbers lists the snapshots that there are, in their order.
	Numbers() ([]int, error)
	Rollback(n int) error
	// Fork makes a session that begins as a snapshot.
	Fork(n int) (History, error)
	// Prune forgets all snapshots but the latest and those with a name.
	Prune() error
	// Commit writes all changes of the session to the base that it has in
	// common with its forks.
	Commit() error
	// Reopen ends the use of the session and takes it up again.
	Reopen() error
}

// Run runs the suite. Each case gets a session on a base with these files.
func Run(t *testing.T, open func(t *testing.T, base Files) History) {
	for _, c := range []struct {
		name string
		run  func(*suite)
	}{
		{"a snapshot stays what it was", (*suite).sealed},
		{"nothing changed is no snapshot", (*suite).nothing},
		{"numbers grow and names are found", (*suite).names},
		{"a rollback and back", (*suite).rollback},
		{"what a rollback sets aside stays", (*suite).aside},
		{"unsealed changes survive a rollback", (*suite).unsealed},
		{"a fork and its session go their own ways", (*suite).fork},
		{"a fork of a fork", (*suite).forkOfFork},
		{"a prune changes nothing that stays", (*suite).prune},
		{"a prune leaves forks alone", (*suite).pruneFork},
		{"a commit leaves older snapshots and forks", (*suite).commit},
		{"back before a commit", (*suite).beforeCommit},
		{"all of it after taking it up again", (*suite).reopen},
		{"an unknown snapshot is refused", (*suite).unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := Files{"a": "base a", "b": "base b", "d/e": "base e"}
			c.run(&suite{t, open(t, maps.Clone(base)), base})
		})
	}
}

type suite struct {
	*testing.T
	h    History
	base Files
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) put(h History, path, text string) { s.Helper(); s.ok(h.Put(path, text)) }

func (s *suite) seal(h History, name string) int {
	s.Helper()
	n, err := h.Seal(name)
	s.ok(err)
	return n
}

// with is the base with some files otherwise; "" is none.
func (s *suite) with(changes ...string) Files {
	out := maps.Clone(s.base)
	for i := 0; i < len(changes); i += 2 {
		out[changes[i]] = changes[i+1]
		if changes[i+1] == "" {
			delete(out, changes[i])
		}
	}
	return out
}

func (s *suite) same(what string, got Files, err error, want Files) {
	s.Helper()
	s.ok(err)
	if !maps.Equal(got, want) {
		s.Errorf("%s shows %v, want %v", what, got, want)
	}
}

func (s *suite) live(h History, want Files) {
	s.Helper()
	got, err := h.Live()
	s.same("the session", got, err, want)
}

func (s *suite) at(h History, n int, want Files) {
	s.Helper()
	got, err := h.At(n)
	s.same(fmt.Sprintf("snapshot %d", n), got, err, want)
}

func (s *suite) sealed() {
	s.put(s.h, "a", "one")
	one := s.seal(s.h, "")
	s.put(s.h, "a", "two")
	s.ok(s.h.Remove("b"))
	s.put(s.h, "n/m", "two")
	two := s.seal(s.h, "")
	s.put(s.h, "a", "three")
	s.at(s.h, one, s.with("a", "one"))
	s.at(s.h, two, s.with("a", "two", "b", "", "n/m", "two"))
	s.live(s.h, s.with("a", "three", "b", "", "n/m", "two"))
}

func (s *suite) nothing() {
	s.put(s.h, "a", "one")
	one := s.seal(s.h, "")
	if again := s.seal(s.h, ""); again != one {
		s.Errorf("nothing changed, and snapshot %d followed %d", again, one)
	}
}

func (s *suite) names() {
	last := 0
	for i, name := range []string{"x", "", "y", "x"} {
		s.put(s.h, "a", fmt.Sprint(i))
		n := s.seal(s.h, name)
		if n <= last {
			s.Errorf("snapshot %d follows %d", n, last)
		}
		last = n
		if name == "" {
			continue
		}
		if got, err := s.h.Find(name); err != nil || got != n {
			s.Errorf("%s is %d, %v, want %d", name, got, err, n)
		}
	}
}

func (s *suite) rollback() {
	s.put(s.h, "a", "one")
	s.ok(s.h.Remove("b"))
	one := s.seal(s.h, "")
	s.put(s.h, "a", "two")
	s.put(s.h, "b", "two")
	s.put(s.h, "d/n", "two")
	two := s.seal(s.h, "")
	s.ok(s.h.Rollback(one))
	s.live(s.h, s.with("a", "one", "b", ""))
	s.ok(s.h.Rollback(two))
	s.live(s.h, s.with("a", "two", "b", "two", "d/n", "two"))
	s.ok(s.h.Rollback(0))
	s.live(s.h, s.base)
}

func (s *suite) aside() {
	s.put(s.h, "a", "one")
	one := s.seal(s.h, "")
	s.put(s.h, "a", "two")
	two := s.seal(s.h, "")
	s.ok(s.h.Rollback(one))
	s.put(s.h, "b", "other")
	other := s.seal(s.h, "")
	s.at(s.h, two, s.with("a", "two"))
	s.at(s.h, other, s.with("a", "one", "b", "other"))
	s.ok(s.h.Rollback(two))
	s.live(s.h, s.with("a", "two"))
	s.at(s.h, other, s.with("a", "one", "b", "other"))
}

func (s *suite) unsealed() {
	one := s.seal(s.h, "start")
	s.put(s.h, "a", "not sealed")
	s.ok(s.h.Rollback(one))
	s.live(s.h, s.base)
	numbers, err := s.h.Numbers()
	s.ok(err)
	for _, n := range numbers {
		if got, err := s.h.At(n); err == nil && maps.Equal(got, s.with("a", "not sealed")) {
			return
		}
	}
	s.Error("no snapshot has what was changed before the rollback")
}

func (s *suite) fork() {
	s.put(s.h, "a", "one")
	one := s.seal(s.h, "")
	s.put(s.h, "a", "two")
	f, err := s.h.Fork(one)
	s.ok(err)
	s.live(f, s.with("a", "one"))
	s.put(f, "a", "fork")
	s.put(f, "f", "fork")
	s.put(s.h, "b", "session")
	mine := s.seal(f, "")
	two := s.seal(s.h, "")
	s.live(s.h, s.with("a", "two", "b", "session"))
	s.at(f, mine, s.with("a", "fork", "f", "fork"))
	s.at(s.h, two, s.with("a", "two", "b", "session"))
	s.at(s.h, one, s.with("a", "one"))
}

func (s *suite) forkOfFork() {
	s.put(s.h, "a", "one")
	f, err := s.h.Fork(s.seal(s.h, ""))
	s.ok(err)
	s.put(f, "b", "two")
	g, err := f.Fork(s.seal(f, ""))
	s.ok(err)
	s.put(g, "c", "three")
	n := s.seal(g, "")
	s.at(g, n, s.with("a", "one", "b", "two", "c", "three"))
	s.live(f, s.with("a", "one", "b", "two"))
}

func (s *suite) prune() {
	want := map[int]Files{}
	for i := range 12 {
		s.put(s.h, "a", fmt.Sprint(i))
		s.put(s.h, fmt.Sprintf("f%d", i%4), fmt.Sprint(i))
		name := ""
		if i%5 == 1 {
			name = fmt.Sprintf("n%d", i)
		}
		n := s.seal(s.h, name)
		if name != "" || i == 11 {
			got, err := s.h.At(n)
			s.ok(err)
			want[n] = got
		}
	}
	live, err := s.h.Live()
	s.ok(err)
	s.ok(s.h.Prune())
	s.live(s.h, live)
	for n, files := range want {
		s.at(s.h, n, files)
	}
	numbers, err := s.h.Numbers()
	s.ok(err)
	if len(numbers) != len(want) {
		s.Errorf("%v are left, want %d", numbers, len(want))
	}
	for n, files := range want {
		s.ok(s.h.Rollback(n))
		s.live(s.h, files)
	}
}

func (s *suite) pruneFork() {
	var forks []History
	for i := range 4 {
		s.put(s.h, "a", fmt.Sprint(i))
		f, err := s.h.Fork(s.seal(s.h, ""))
		s.ok(err)
		forks = append(forks, f)
	}
	s.ok(s.h.Prune())
	for i, f := range forks {
		s.live(f, s.with("a", fmt.Sprint(i)))
		s.ok(f.Reopen())
		s.live(f, s.with("a", fmt.Sprint(i)))
	}
}

func (s *suite) commit() {
	s.put(s.h, "early", "one")
	one := s.seal(s.h, "one")
	f, err := s.h.Fork(one)
	s.ok(err)
	s.put(f, "f", "fork")
	s.put(s.h, "a", "committed")
	s.put(s.h, "new", "committed")
	s.ok(s.h.Remove("b"))
	two := s.seal(s.h, "two")
	live := s.with("early", "one", "a", "committed", "new", "committed", "b", "")
	s.ok(s.h.Commit())
	s.live(s.h, live)
	s.live(f, s.with("early", "one", "f", "fork"))
	s.at(s.h, one, s.with("early", "one"))
	s.at(s.h, two, live)
	s.at(s.h, 0, s.base)
	s.put(s.h, "a", "again")
	s.ok(s.h.Commit())
	s.at(s.h, one, s.with("early", "one"))
	s.at(s.h, two, live)
	s.live(f, s.with("early", "one", "f", "fork"))
}

func (s *suite) beforeCommit() {
	s.put(s.h, "a", "one")
	one := s.seal(s.h, "")
	s.put(s.h, "b", "two")
	s.put(s.h, "n", "two")
	two := s.seal(s.h, "")
	s.ok(s.h.Commit())
	s.ok(s.h.Rollback(one))
	s.live(s.h, s.with("a", "one"))
	s.put(s.h, "c", "three")
	three := s.seal(s.h, "")
	s.at(s.h, three, s.with("a", "one", "c", "three"))
	s.ok(s.h.Rollback(two))
	s.live(s.h, s.with("a", "one", "b", "two", "n", "two"))
}

func (s *suite) reopen() {
	s.put(s.h, "a", "one")
	one := s.seal(s.h, "")
	s.put(s.h, "a", "two")
	two := s.seal(s.h, "")
	s.ok(s.h.Rollback(one))
	s.put(s.h, "b", "open")
	s.ok(s.h.Reopen())
	s.live(s.h, s.with("a", "one", "b", "open"))
	s.at(s.h, two, s.with("a", "two"))
	s.ok(s.h.Rollback(two))
	s.live(s.h, s.with("a", "two"))
}

func (s *suite) unknown() {
	s.put(s.h, "a", "one")
	s.seal(s.h, "")
	if err := s.h.Rollback(4000); err == nil {
		s.Error("rolled back to a snapshot that there is not")
	}
	if _, err := s.h.Fork(4000); err == nil {
		s.Error("forked from a snapshot that there is not")
	}
	if _, err := s.h.At(4000); err == nil {
		s.Error("looked at a snapshot that there is not")
	}
	if _, err := s.h.Find("nothing"); err == nil {
		s.Error("found a name that was never given")
	}
	s.live(s.h, s.with("a", "one"))
}
