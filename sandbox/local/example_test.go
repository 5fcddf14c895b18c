package local_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/snapshots"
)

// A program opens a session on a project, gets a sandbox, and works in it. The
// project stays as it is.
func ExampleOpen() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "galley-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	project := filepath.Join(dir, "project")
	if err := os.Mkdir(project, 0o755); err != nil {
		log.Fatal(err)
	}
	store, err := snapshots.OpenStore(filepath.Join(dir, "state"), snapshots.StoreOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	session, err := store.Create(ctx, snapshots.Spec{Name: "example", Base: project})
	if err != nil {
		log.Fatal(err)
	}
	sb, err := local.Open(ctx, local.Options{Session: session})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()

	if _, err := sb.Write(ctx, sandbox.WriteRequest{Path: "src/greeting", Content: []byte("hello\n")}); err != nil {
		log.Fatal(err)
	}
	r, err := sb.Bash(ctx, sandbox.BashRequest{Command: "cat src/greeting; exit 3"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%sexit code %d\n", r.Output, r.ExitCode)
	_, err = sb.Read(ctx, sandbox.ReadRequest{Path: "src/missing"})
	fmt.Println(errors.Is(err, sandbox.NotFound))
	_, err = os.Stat(filepath.Join(project, "src"))
	fmt.Println(errors.Is(err, os.ErrNotExist))

	// Output:
	// hello
	// exit code 3
	// true
	// true
}
