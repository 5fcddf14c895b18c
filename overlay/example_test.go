package overlay_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/galleyfs/galley/overlay"
)

// A tree in process, with no FUSE and no session: a base, one layer, one face.
func Example() {
	dir, err := os.MkdirTemp("", "overlay-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	base, state := filepath.Join(dir, "base"), filepath.Join(dir, "state")
	for _, d := range []string{base, state} {
		if err := os.Mkdir(d, 0o755); err != nil {
			log.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "greeting"), []byte("hello"), 0o644); err != nil {
		log.Fatal(err)
	}

	if err := overlay.InitState(nil, state, 1); err != nil {
		log.Fatal(err)
	}
	b, err := overlay.OpenBase(nil, base)
	if err != nil {
		log.Fatal(err)
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: state, Base: b}, overlay.Stack{Active: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer tree.Close()
	face := tree.Attach(nil)
	defer face.Detach()

	n, _, err := face.Walk("greeting")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := face.Write(n, []byte("HELLO"), 0); err != nil {
		log.Fatal(err)
	}
	face.Forget(n, 1)

	err = face.Delta(func(e overlay.Entry) error {
		fmt.Println("changed:", e.Path)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(base, "greeting"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the base has:", string(text))
	// Output:
	// changed: greeting
	// the base has: hello
}
