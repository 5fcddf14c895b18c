package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// ExportArchive is [Export] into one tar file, which must not be there.
func ExportArchive(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot, file string, opt ExportOptions) (Exported, error) {
	if _, err := os.Lstat(file); err == nil {
		return Exported{}, fmt.Errorf("%q is there already; name a file that is not: %w", file, unix.EEXIST)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(file)), ".galley-export-")
	if err != nil {
		return Exported{}, fmt.Errorf("export to %q: %w", file, err)
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "layout")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Exported{}, err
	}
	done, err := exportTo(ctx, sess, snap, dir, opt)
	if err != nil {
		return done, fmt.Errorf("export session %s: %w", sess.Name(), err)
	}
	out := filepath.Join(tmp, "tar")
	if err := archive(ctx, dir, out); err != nil {
		return done, fmt.Errorf("export to %q: %w", file, err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, out, unix.AT_FDCWD, filepath.Clean(file), unix.RENAME_NOREPLACE); err != nil {
		return done, fmt.Errorf("export to %q: %w", file, err)
	}
	return done, nil
}

// archive writes a layout as a tar, sorted and without times.
func archive(ctx context.Context, dir, file string) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		return err
	}
	names := []string{"index.json", "oci-layout"}
	for _, b := range blobs {
		names = append(names, "blobs/sha256/"+b.Name())
	}
	slices.Sort(names)
	t := tar.NewWriter(f)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := archiveFile(t, dir, name); err != nil {
			return err
		}
	}
	return t.Close()
}

func archiveFile(t *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	hdr := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Size: st.Size(), Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := t.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// ImportArchive is [Import] from a tar file with a layout.
func ImportArchive(ctx context.Context, st *snapshots.Store, file string, opt ImportOptions) (*snapshots.Session, Report, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, Report{}, fmt.Errorf("import: %w", err)
	}
	defer f.Close()
	dir, err := os.MkdirTemp("", "galley-import-")
	if err != nil {
		return nil, Report{}, fmt.Errorf("import %q: %w", file, err)
	}
	defer os.RemoveAll(dir)
	if err := unarchive(ctx, f, dir, opt.Limits.withDefaults()); err != nil {
		return nil, Report{}, fmt.Errorf("import %q: %w", file, err)
	}
	return Import(ctx, st, dir, opt)
}

// unarchive unpacks the files that a layout has, and refuses any other.
func unarchive(ctx context.Context, r io.Reader, dir string, limits Limits) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	t := tar.NewReader(r)
	left := limits.Bytes
	for n := 0; ; n++ {
		hdr, err := t.Next()
		if err == io.EOF && n > 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("no tar file of a layout: %w: %w", ErrDamaged, err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		name := strings.TrimPrefix(hdr.Name, "./")
		if hdr.Typeflag == tar.TypeDir {
			continue // those that a layout has are there
		}
		if hdr.Typeflag != tar.TypeReg || !layoutName(name) {
			return fmt.Errorf("entry %q: a layout has no such file: %w", hdr.Name, ErrHostile)
		}
		if left -= hdr.Size; left < 0 || n > maxLayers+maxImages*2+2 {
			return fmt.Errorf("entry %q: %w", hdr.Name, ErrLimit)
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("entry %q: a second one: %w", hdr.Name, ErrHostile)
		}
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
}

// layoutName tells the names of files in a layout.
func layoutName(name string) bool {
	if name == "index.json" || name == "oci-layout" {
		return true
	}
	digest, ok := strings.CutPrefix(name, "blobs/sha256/")
	return ok && len(digest) == 64 && strings.Trim(digest, "0123456789abcdef") == ""
}
