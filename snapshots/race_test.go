package snapshots

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// raceEnv tells a helper process which store and base it is to work in.
const raceEnv = "GALLEY_SNAPSHOTS_TEST_RACE"

func TestMain(m *testing.M) {
	if at := os.Getenv(raceEnv); at != "" {
		home, name, _ := strings.Cut(at, "\n")
		if err := raceHelper(home, name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if how := os.Getenv(killEnv); how != "" {
		if err := killHelper(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// raceRounds is how much each process does.
func raceRounds() int {
	if os.Getenv(raceEnv) != "" || testing.Short() {
		return 15
	}
	return 40
}

// raceHelper works in the session that it forks off: it writes, seals, rolls
// back, prunes and collects, as long as the test does the same in its own.
func raceHelper(home, name string) error {
	store, err := OpenStore(home, StoreOptions{})
	if err != nil {
		return err
	}
	defer store.Close()
	sess, err := store.Find(name)
	if err != nil {
		return err
	}
	o, err := openLive(sess)
	if err != nil {
		return err
	}
	defer o.close()
	return work(store, o, name)
}

// work does a round of everything again and again, from several goroutines.
func work(store *Store, o *opened, name string) error {
	errs := make(chan error, 4)
	var all sync.WaitGroup
	for g := range 3 {
		all.Go(func() {
			for i := range raceRounds() {
				if err := o.put(Workspace, fmt.Sprintf("%s-%d", name, g), fmt.Sprint(i)); err != nil {
					errs <- err
					return
				}
				if _, err := o.Seal(ctx, SealOptions{Name: fmt.Sprintf("g%d-%d", g, i), Durable: i%5 == 0}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Go(func() {
		for i := range raceRounds() / 3 {
			if _, err := o.Rollback(ctx, Rollback{To: o.Session().Last().Number}); err != nil {
				errs <- err
				return
			}
			if _, err := o.Prune(ctx, Prune{KeepLast: 50, KeepNamed: true}); err != nil {
				errs <- err
				return
			}
			if _, err := store.GC(ctx, GCOptions{}); err != nil {
				errs <- err
				return
			}
			fork, err := store.Fork(ctx, o.Session(), Fork{At: o.Session().Last().Number, Name: fmt.Sprintf("%s-f%d", name, i)})
			if err == nil {
				_, err = store.Remove(fork)
			}
			if err != nil {
				errs <- err
				return
			}
		}
	})
	all.Wait()
	close(errs)
	var out []error
	for err := range errs {
		out = append(out, err)
	}
	return errors.Join(out...)
}

// TestTwoProcesses has two processes write, snapshot, roll back, fork, prune and
// collect at once, in a session and in a fork of it that shares its layers.
func TestTwoProcesses(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{Name: "mine"})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "common", "1"))
	first := o.mustSeal(t, "first")
	_, err := f.store.Fork(ctx, s, Fork{At: first.Number, Name: "theirs"})
	check(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), raceEnv+"="+f.home+"\ntheirs")
	var said strings.Builder
	cmd.Stderr = &said
	check(t, cmd.Start())
	mine := work(f.store, o, "mine")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the other process: %v\n%s", err, said.String())
	}
	check(t, mine)
	for _, name := range []string{"mine", "theirs"} {
		sess, err := f.store.Find(name)
		check(t, err)
		// The fork begins as a snapshot without a name, which it may prune.
		n := first.Number
		if name == "theirs" {
			n = sess.Last().Number
		}
		if got := sealedContent(t, sess, n, Workspace); !strings.HasPrefix(got, "common=1 kept=base") {
			t.Errorf("snapshot %d of %s shows %q", n, name, got)
		}
		history, err := sess.History()
		check(t, err)
		named := 0
		for _, snap := range history {
			// Each shows what its goroutine had just written, unless a rollback
			// came in between, and never what was written later.
			var g, i int
			if n, _ := fmt.Sscanf(snap.Name, "g%d-%d", &g, &i); n != 2 {
				continue
			}
			named++
			checkRound(t, sess, snap, fmt.Sprintf("%s-%d=", name, g), i)
		}
		if named == 0 {
			t.Errorf("%s has no snapshots", name)
		}
	}
}

func checkRound(t *testing.T, sess *Session, snap Snapshot, prefix string, i int) {
	t.Helper()
	var got int
	for _, part := range strings.Fields(sealedContent(t, sess, snap.Number, Workspace)) {
		if text, ok := strings.CutPrefix(part, prefix); ok && text != "" {
			if _, err := fmt.Sscan(text, &got); err != nil {
				t.Fatal(err)
			}
			if got > i {
				t.Errorf("%s of %s shows round %d", snap.Name, sess.Name(), got)
			}
			return
		}
	}
}
