package main

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/images"
)

// scriptRegistry starts a registry on the loopback, with an image
// sample:1 for linux/amd64 in it, and sets a variable to its address.
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: registry NAME")
	}
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	img, err := random.Image(1000, 2)
	ts.Check(err)
	c, err := img.ConfigFile()
	ts.Check(err)
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", "amd64", v1.Config{User: "app", Cmd: []string{"/bin/sh"}}
	img, err = mutate.ConfigFile(img, c)
	ts.Check(err)
	ref, err := name.ParseReference(host + "/sample:1")
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
	ts.Setenv(args[0], host)
}

// scriptOnImage makes a session on a directory with a tree on an image, in which
// etc/motd is changed, etc/gone removed and etc/new made, as far as they are or
// are not there.
func scriptOnImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: on-image SESSION DIR IMAGE")
	}
	st, err := snapshots.OpenStore(ts.Getenv("GALLEY_HOME"), snapshots.StoreOptions{})
	ts.Check(err)
	defer st.Close()
	im, err := images.Open(st)
	ts.Check(err)
	img, err := im.Find(args[2])
	ts.Check(err)
	root, err := im.Root(context.Background(), img, nil)
	ts.Check(err)
	sess, err := st.Create(context.Background(), snapshots.Spec{Name: args[0], Base: filepath.Clean(ts.MkAbs(args[1])), Extra: []snapshots.TreeSpec{root}})
	ts.Check(err)
	live, err := sess.Open(context.Background(), snapshots.OpenOptions{NoWatch: true})
	ts.Check(err)
	f := live.Tree(snapshots.Root).Attach(nil)
	etc, _, err := f.Walk("etc")
	ts.Check(err)
	motd, _, err := f.Walk("etc/motd")
	ts.Check(err)
	_, err = f.Write(motd, []byte("CHANGED "+args[0]), 0)
	ts.Check(err)
	_ = f.Unlink(etc, "gone")
	_, _, _ = f.Create(etc, "new", 0o644, overlay.Caller{})
	f.Detach()
	_, err = live.Seal(context.Background(), snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseCommand, Text: "apt-get install"}})
	ts.Check(err)
	ts.Check(live.Close())
}
