// Package library shows what a Go program does with Galley: open a session, get
// a sandbox, call tools in it, look at the change set, and, with another
// package that it must hold for that, commit it.
package library

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/commit"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/sandbox/virtual"
	"github.com/galleyfs/galley/snapshots"
)

func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "galley-library-")
	check(err)
	defer os.RemoveAll(dir)
	project := filepath.Join(dir, "project")
	check(os.Mkdir(project, 0o755))
	check(os.WriteFile(filepath.Join(project, "conf"), []byte("port = 80\n"), 0o644))

	// A session of the project, open in this process.
	store, err := snapshots.OpenStore(filepath.Join(dir, "state"), snapshots.StoreOptions{})
	check(err)
	defer store.Close()
	session, err := store.Create(ctx, snapshots.Spec{Name: "example", Base: project})
	check(err)
	live, err := session.Open(ctx, snapshots.OpenOptions{})
	check(err)
	defer live.Close()

	// What an agent is given: tools over a sandbox. local.Open is the other one,
	// for programs of the host. Nothing of this leads to a commit.
	set := tools.New(tools.Options{Sandbox: func(context.Context) (sandbox.Sandbox, error) {
		return virtual.New(virtual.Config{
			Session: session.Name(), Trees: []virtual.Tree{{Path: "/work", Tree: live.Tree(snapshots.Workspace)}},
		})
	}})
	for _, call := range [][2]string{
		{"Edit", `{"path": "conf", "old": "80", "new": "8080"}`},
		{"Bash", `{"command": "echo todo > NOTES; wc -l NOTES conf"}`},
	} {
		r, err := set.Call(ctx, call[0], []byte(call[1]), nil)
		check(err)
		fmt.Println(strings.TrimSpace(r.Text))
	}
	check(set.Close())
	snapshot, err := live.Seal(ctx, snapshots.SealOptions{Name: "done"})
	check(err)

	// What a person looks at: a change set, named by its digest.
	changes, closeChanges := changesOf(ctx, session, snapshot)
	defer closeChanges()
	check(review.WriteNameStatus(ctx, os.Stdout, changes))

	// What only a program does that was given the right to: package commit
	// writes exactly these changes to the base.
	plan, err := commit.NewPlan(changes, commit.Options{})
	check(err)
	result, err := commit.Apply(ctx, commit.Config{
		Trees:  []commit.Tree{{Name: snapshots.Workspace, BasePath: project}},
		Source: commit.ChangeSetSource(changes), CommitDir: filepath.Join(session.CommitsDir(), "1"), LockDir: filepath.Join(dir, "locks"),
		Leaving: changes.Dropped(plan.Changes),
	}, plan)
	check(err)
	fmt.Println(len(result.Applied), "changes applied, as reviewed:", result.Digest == changes.Digest())
	text, err := os.ReadFile(filepath.Join(project, "conf"))
	check(err)
	fmt.Print(string(text))

	// Output:
	// Edited conf (1 replacement)
	// ```diff
	// --- a/conf
	// +++ b/conf
	// @@ -1 +1 @@
	// -port = 80
	// +port = 8080
	// ```
	// 1 NOTES
	//  1 conf
	//  2 total
	// A	NOTES
	// M	conf
	// 2 changes applied, as reviewed: true
	// port = 8080
}

// changesOf is the change set of a snapshot.
func changesOf(ctx context.Context, session *snapshots.Session, snapshot snapshots.Snapshot) (*review.ChangeSet, func()) {
	sealed, err := session.OpenSealed(snapshot.Number)
	check(err)
	var in []review.TreeInput
	var fds []int
	for _, t := range sealed.Trees() {
		fd, err := unix.Open(t.Base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		check(err)
		fds = append(fds, fd)
		in = append(in, review.TreeInput{Name: t.Name, View: review.FaceView(t.Face), BaseFD: fd})
	}
	changes, err := review.Compute(ctx, in, review.Options{})
	check(err)
	return changes, func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		_ = sealed.Close()
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
