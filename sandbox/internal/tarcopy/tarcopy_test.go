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

// swapping is a guest at the far end of a copy, or a program beside it, that
// changes what is copied once the content of its first file is sent.
type swapping struct {
	bytes.Buffer
	swap func()
}

func (s *swapping) Write(b []byte) (int, error) {
	if s.swap != nil && bytes.Contains(b, []byte("first")) {
		s.swap()
		s.swap = nil
	}
	return s.Buffer.Write(b)
}

// What is swapped for a link while it is packed leads nowhere: nothing that is
// not beneath what was to be copied is sent. What is swapped for a pipe holds
// nobody up.
func TestSwappedWhilePacked(t *testing.T) {
	for name, with := range map[string]func(keys, at string) error{
		"a link":           os.Symlink,
		"a relative link":  func(_, at string) error { return os.Symlink("../keys", at) },
		"a link to a file": func(keys, at string) error { return os.Symlink(filepath.Join(keys, "f"), at) },
		"a pipe":           func(_, at string) error { return syscall.Mkfifo(at, 0o600) },
	} {
		for _, swapped := range []string{"d", "f"} {
			t.Run(swapped+" for "+name, func(t *testing.T) {
				home := t.TempDir()
				keys, from := filepath.Join(home, "keys"), filepath.Join(home, "from")
				if err := errors.Join(os.MkdirAll(filepath.Join(from, "d"), 0o755), os.Mkdir(keys, 0o700),
					os.WriteFile(filepath.Join(keys, "f"), []byte("secret"), 0o600), os.WriteFile(filepath.Join(from, "d", "f"), []byte("mine"), 0o600),
					os.WriteFile(filepath.Join(from, "a"), []byte("first"), 0o600),
					os.WriteFile(filepath.Join(from, "f"), []byte("mine"), 0o600)); err != nil {
					t.Fatal(err)
				}
				w := &swapping{swap: func() {
					at := filepath.Join(from, swapped)
					if err := errors.Join(os.RemoveAll(at), with(keys, at)); err != nil {
						t.Error(err)
					}
				}}
				if err := Pack(w, from); err != nil {
					t.Logf("refused: %v", err)
				}
				if w.swap != nil || strings.Contains(w.String(), "secret") {
					t.Error("nothing was swapped, or what is outside was sent")
				}
			})
		}
	}
}

// The same in the moment between the look at an entry and its opening.
func TestSwappedBeforeItIsOpened(t *testing.T) {
	home := t.TempDir()
	from := filepath.Join(home, "from")
	if err := errors.Join(os.Mkdir(from, 0o755), os.WriteFile(filepath.Join(home, "key"), []byte("secret"), 0o600),
		os.WriteFile(filepath.Join(from, "f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(from)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	seen, err := root.Lstat("f")
	if err != nil {
		t.Fatal(err)
	}
	for name, with := range map[string]func(at string) error{
		"a link": func(at string) error { return os.Symlink("../key", at) },
		"a pipe": func(at string) error { return syscall.Mkfifo(at, 0o600) },
	} {
		at := filepath.Join(from, "f")
		if err := errors.Join(os.Remove(at), with(at)); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		p := packer{tar: tar.NewWriter(&b), root: root}
		if err := p.one("f", "f", seen); err == nil {
			t.Errorf("swapped for %s it was packed: %q", name, b.String())
		}
	}
}
