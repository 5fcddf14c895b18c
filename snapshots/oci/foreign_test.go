package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// FuzzUnpack has layers of images unpacked that nobody wrote with good intent.
// Package vm/images tests what those that somebody did write become.
func FuzzUnpack(f *testing.F) {
	for _, hdrs := range [][]tar.Header{
		{dir("d"), reg("d/x"), lnk("d/y", "d/x"), sym("s", "d"), reg("s/z")}, {reg(".wh.a"), reg("../x"), reg("/abs/x")},
		{dir("sub"), reg("sub/x"), reg("sub/" + opaqueMarker), reg(opaqueMarker)}, {sym("a", "b/../.."), sym("b", "a"), reg("a/b/c")},
		{{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, reg("null/x"), lnk("n", "null")},
	} {
		f.Add(unzipped(f, pack(f, hdrs...)))
	}
	dir := f.TempDir()
	before := listing(f, dir)
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 64<<10 {
			return
		}
		state := t.TempDir()
		must(t, overlay.InitState(nil, state, overlay.Image))
		tree, err := overlay.Open(overlay.Config{Name: "root", StateDir: state, KeepOwners: true, NoWatch: true}, overlay.Stack{Active: overlay.Image})
		must(t, err)
		face := tree.Attach(nil)
		_, err = Unpack(t.Context(), face, bytes.NewReader(plain), Unpacking{Budget: NewBudget(Limits{Bytes: 1 << 20, Files: 100})})
		if errors.Is(err, overlay.ErrCorrupt) || errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		_ = picture(t, face)
		face.Detach()
		must(t, tree.Close())
		// What was written can be read.
		tree, err = overlay.Open(overlay.Config{Name: "root", StateDir: state, KeepOwners: true, NoWatch: true}, overlay.Stack{Active: overlay.Image})
		must(t, err)
		must(t, tree.Close())
		if after := listing(t, dir); before != after {
			t.Fatalf("changed:\n%s\nnow:\n%s", before, after)
		}
	})
}
