package tarcopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stream is what a guest sends that is not what it was asked for.
func stream(t *testing.T, hs ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = "hostile"
		}
		h.Size, h.Mode = int64(len(content)), 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func dir(name string) tar.Header  { return tar.Header{Typeflag: tar.TypeDir, Name: name} }
func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

// Nothing but what is asked for is written, whatever links the stream makes or
// finds.
func TestHostileStream(t *testing.T) {
	for name, hs := range map[string][]tar.Header{
		"through a link beside":   {dir("."), link("l", "../keys"), file("l/authorized")},
		"through a link beneath":  {dir("."), dir("d"), link("l", "d"), file("l/x")},
		"through a deep link":     {dir("."), dir("d"), link("d/l", "../../keys"), dir("d/l/e"), file("d/l/e/x")},
		"the top is a link":       {link(".", "keys"), file("authorized")},
		"the top becomes a link":  {file("."), link(".", "keys"), file("authorized")},
		"a link as a directory":   {dir("."), link("l", "../keys"), dir("l")},
		"a directory at a link":   {dir("."), link("l", "../keys"), dir("l"), file("l/authorized")},
		"no top":                  {link("l", "../keys"), file("l/authorized")},
		"no top, a name that is":  {file("authorized")},
		"out":                     {dir("."), file("../keys/authorized")},
		"through a link there is": {dir("."), file("mine/authorized")},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			keys := filepath.Join(home, "keys")
			if err := errors.Join(os.Mkdir(keys, 0o700), os.Mkdir(filepath.Join(home, "out"), 0o700),
				os.Symlink("../keys", filepath.Join(home, "out", "mine"))); err != nil {
				t.Fatal(err)
			}
			for _, to := range []string{filepath.Join(home, "new"), home} { // there it is called out
				if _, err := Unpack(stream(t, hs...), to, "out"); err == nil && !(name == "through a link there is" && to != home) {
					t.Errorf("to %s: taken", to)
				}
			}
			st, err := os.Stat(keys)
			if err != nil {
				t.Fatal(err)
			}
			if in, err := os.ReadDir(keys); err != nil || len(in) > 0 || st.Mode().Perm() != 0o700 {
				t.Errorf("keys has the mode %v and has %v, %v", st.Mode(), in, err)
			}
		})
	}
}

// A link that stands where the directory is to be made is not followed.
func TestLinkAtTop(t *testing.T) {
	home := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(home, "keys"), 0o700), os.Symlink("keys", filepath.Join(home, "out"))); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(stream(t, dir("."), file("x")), home, "out"); !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), "out") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(home, "keys", "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("written through the link: %v", err)
	}
}

// What is packed is unpacked as it was, and again over what is there.
func TestThereAndBack(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "a", "b"), 0o755), os.WriteFile(filepath.Join(from, "a", "b", "f"), []byte("f"), 0o640),
		os.WriteFile(filepath.Join(from, "g"), []byte("g"), 0o600), os.Symlink("a/b", filepath.Join(from, "l"))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var b bytes.Buffer
		if err := Pack(&b, from); err != nil {
			t.Fatal(err)
		}
		if r, err := Unpack(&b, to, "copy"); err != nil || r != (Result{Files: 3, Bytes: 2}) {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	f, err := os.ReadFile(filepath.Join(to, "copy", "l", "f"))
	if err != nil || string(f) != "f" {
		t.Errorf("%q, %v", f, err)
	}
	var b bytes.Buffer
	if err := Pack(&b, filepath.Join(from, "g")); err != nil {
		t.Fatal(err)
	}
	if r, err := Unpack(&b, filepath.Join(to, "h"), "g"); err != nil || r != (Result{Files: 1, Bytes: 1}) {
		t.Errorf("%+v, %v", r, err)
	}
	b.Reset()
	if err := Pack(&b, filepath.Join(from, "none")); err == nil {
		t.Error("what is not there was packed")
	}
	if _, err := Unpack(&b, to, "none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("%v", err)
	}
}
