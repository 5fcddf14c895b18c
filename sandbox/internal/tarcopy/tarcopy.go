// Package tarcopy copies a file or a directory as a tar stream: what galley cp
// sends between the host and a guest. Neither side trusts the other's names.
package tarcopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// errorRecord carries why a stream ends before its time.
const errorRecord = "GALLEY.error"

// Pack writes what is at p, a file or a directory with all beneath it, to w.
// Links are not followed, but for p itself. The first entry has the name "."; an
// error is told in the stream, too.
func Pack(w io.Writer, p string) error {
	t := tar.NewWriter(w)
	err := pack(t, p)
	if err != nil {
		text := err.Error()
		_ = t.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{errorRecord: text[:min(len(text), 4096)]}})
	}
	return errors.Join(err, t.Close())
}

func pack(t *tar.Writer, top string) error {
	real, err := filepath.EvalSymlinks(top)
	if err != nil {
		return err
	}
	return filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(real, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return packOne(t, p, rel, info)
	})
}

func packOne(t *tar.Writer, p, rel string, info fs.FileInfo) error {
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(p); err != nil {
			return err
		}
	}
	if info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe|fs.ModeDevice|fs.ModeIrregular) != 0 {
		return nil // nothing that could be copied
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = rel, tar.FormatPAX, "", ""
	if !info.Mode().IsRegular() {
		return t.WriteHeader(h)
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(t, io.LimitReader(f, h.Size)); err != nil {
		return err
	}
	return nil
}

// Result is what was copied.
type Result struct {
	Files int
	Bytes int64
	// Skipped are entries of a kind that is not copied, such as devices.
	Skipped int
}

// Unpack makes what r has at to. Where to is a directory that is there it is
// made in it, by name. Nothing outside is reached, whatever links there are.
func Unpack(r io.Reader, to, name string) (Result, error) {
	var out Result
	if st, err := os.Stat(to); err == nil && st.IsDir() {
		if name == "" || name == "/" || name == "." || name == ".." {
			return out, fmt.Errorf("%s is a directory, and what is copied has no name to stand there by", to)
		}
		to = filepath.Join(to, name)
	}
	root, err := os.OpenRoot(filepath.Dir(to))
	if err != nil {
		return out, err
	}
	defer root.Close()
	t := tar.NewReader(r)
	for first := true; ; first = false {
		h, err := t.Next()
		if err == io.EOF && !first {
			return out, nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return out, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if text, ok := h.PAXRecords[errorRecord]; ok {
				return out, errors.New(text)
			}
			continue
		}
		rel := path.Clean(h.Name)
		if !filepath.IsLocal(rel) || strings.ContainsRune(rel, 0) {
			return out, fmt.Errorf("the stream has the name %q, which leads out", h.Name)
		}
		if err := unpackOne(root, t, h, path.Join(filepath.Base(to), rel), &out); err != nil {
			return out, err
		}
	}
}

func unpackOne(root *os.Root, t *tar.Reader, h *tar.Header, p string, out *Result) error {
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(p, 0o700|mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return root.Chmod(p, mode|0o700)
	case tar.TypeReg:
		return unpackFile(root, t, h, p, mode, out)
	case tar.TypeSymlink:
		if err := clear(root, p); err != nil {
			return err
		}
		out.Files++
		return root.Symlink(h.Linkname, p)
	}
	out.Skipped++
	return nil
}

func unpackFile(root *os.Root, t *tar.Reader, h *tar.Header, p string, mode fs.FileMode, out *Result) error {
	if err := clear(root, p); err != nil {
		return err
	}
	f, err := root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, t)
	out.Files, out.Bytes = out.Files+1, out.Bytes+n
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return root.Chtimes(p, h.ModTime, h.ModTime)
}

// clear removes what a file is to replace; a directory stays, and is an error
// then.
func clear(root *os.Root, p string) error {
	st, err := root.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s is a directory, and is not replaced by a file", p)
	}
	return root.Remove(p)
}
