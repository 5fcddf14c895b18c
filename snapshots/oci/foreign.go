package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// maxSpelt bounds the bytes of the paths of the directories that have no entry of
// their own in a layer: one entry with a long name stands for thousands.
const maxSpelt = 64 << 20

// maxWindow bounds what a layer may have a decompressor keep in memory.
const maxWindow = 64 << 20

// Budget is what is left of the limits of an import.
type Budget struct{ left budget }

// NewBudget begins with all of the limits.
func NewBudget(l Limits) *Budget {
	l = l.withDefaults()
	return &Budget{budget{bytes: l.Bytes, files: l.Files}}
}

// Unpacking says how [Unpack] unpacks; the zero value is the default.
type Unpacking struct {
	// Budget bounds what is unpacked; nil is the default limits.
	Budget *Budget
	// Progress is told how many bytes of content were unpacked since it was
	// last.
	Progress func(bytes int64)
}

// Unpack makes in a tree the changes of a layer as any tool writes it: plain, or
// compressed with gzip or zstd. It is confined to the tree as an import is, but
// takes what other tools read as well: absolute names, directories that have no
// entry of their own, names that lead through links of the tree, entries that
// come twice, markers in any order. It returns the digest of the tar.
func Unpack(ctx context.Context, face *overlay.Face, layer io.Reader, opt Unpacking) (diffID string, err error) {
	if opt.Budget == nil {
		opt.Budget = NewBudget(Limits{})
	}
	a := &applier{
		f: face, devices: true, foreign: true, told: opt.Progress, report: &Report{},
		compared: map[string]bool{}, mine: map[string]bool{}, left: &opt.Budget.left,
	}
	diffID, err = readForeign(layer, &opt.Budget.left, func(it *item, content io.Reader) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		return a.foreignItem(it, content)
	})
	if err != nil {
		return diffID, err
	}
	return diffID, a.endLayer()
}

// Plain is the tar in a layer, whatever it is compressed with.
func Plain(layer io.Reader) (io.ReadCloser, error) {
	r := bufio.NewReaderSize(layer, 64<<10)
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		zip, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("%w: no gzip data: %w", ErrDamaged, err)
		}
		return zip, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("%w: no zstd data: %w", ErrDamaged, err)
		}
		return z.IOReadCloser(), nil
	case bytes.Equal(magic, []byte("\xfd7zX")) || bytes.HasPrefix(magic, []byte("BZh")):
		return nil, fmt.Errorf("compressed with xz or bzip2; gzip, zstd and no compression are known, so unpack it first: %w", ErrForeign)
	}
	return io.NopCloser(r), nil
}

// readForeign is readLayer for a layer that another tool wrote.
func readForeign(blob io.Reader, left *budget, fn func(it *item, content io.Reader) error) (diffID string, err error) {
	packed := newCounted(io.Discard)
	plain, err := Plain(io.TeeReader(blob, packed))
	if err != nil {
		return "", err
	}
	defer plain.Close()
	b := &bounded{r: plain, packed: packed, left: left, h: sha256.New()}
	l := &layerReader{seen: map[string]bool{}, filled: map[string]bool{}, left: left}
	return b.entries(func(hdr *tar.Header, content io.Reader) error {
		it, err := l.checkForeign(hdr)
		if err != nil || it == nil {
			return err
		}
		return fn(it, content)
	})
}

// checkForeign takes an entry apart; nil is one that means nothing.
func (l *layerReader) checkForeign(hdr *tar.Header) (*item, error) {
	if l.left.files--; l.left.files < 0 {
		return nil, fmt.Errorf("more entries than the limit: %w", ErrLimit)
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	parts, err := foreignPath(hdr.Name)
	if err != nil {
		return nil, err
	}
	it := &item{hdr: hdr}
	if len(parts) > 0 {
		last := parts[len(parts)-1]
		of, marker := strings.CutPrefix(last, whPrefix)
		switch {
		case last == opaqueMarker:
			it.opaque = true
			parts = parts[:len(parts)-1]
		case marker && strings.HasPrefix(of, whPrefix):
			return nil, nil // what aufs kept for itself
		case marker:
			if err := checkComponent(of); err != nil {
				return nil, hostile("a whiteout of %q", of)
			}
			it.whiteout = true
			parts[len(parts)-1] = of
		}
	}
	if it.path, err = unescape(parts); err != nil {
		return nil, err
	}
	if it.whiteout || it.opaque {
		return it, nil
	}
	switch hdr.Typeflag {
	case tar.TypeGNUSparse, tar.TypeCont, '\x00':
		hdr.Typeflag = tar.TypeReg
	case tar.TypeLink:
		link, err := foreignPath(hdr.Linkname)
		if err != nil {
			return nil, fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
		}
		if len(link) == 0 {
			return nil, hostile("a hard link to the root")
		}
		hdr.Linkname = strings.Join(link, "/")
	}
	if hdr.Typeflag != tar.TypeReg {
		hdr.Size = 0 // some tools write that of what a link leads to
	}
	hdr.Mode &= 0o7777 // some write the type too
	return it, it.node(hdr, l.left)
}

// foreignPath takes a name apart that may be absolute, or spelt with more
// slashes and dots than it needs. What leads up is refused.
func foreignPath(name string) (parts []string, err error) {
	if len(name) > maxPath {
		return nil, hostile("a name of %d bytes", len(name))
	}
	for p := range strings.SplitSeq(name, "/") {
		if p == "" || p == "." {
			continue
		}
		if err := checkComponent(p); err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// foreignItem makes what an entry says, in the directory that its name leads to
// within the tree.
func (a *applier) foreignItem(it *item, content io.Reader) error {
	if it.path == "" {
		if it.opaque {
			return a.older("")
		}
		a.dirs = append(a.dirs, it)
		return nil
	}
	dir, name := dirOf(it.path), path.Base(it.path)
	if it.opaque {
		dir, name = it.path, ""
	}
	parent, at, err := a.resolve(dir, !it.whiteout && !it.opaque, it)
	if (it.whiteout || it.opaque) && overlay.Errno(err) == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the directory that it lies in: %w", err)
	}
	defer a.f.Forget(parent, 1)
	if it.opaque {
		return a.older(at)
	}
	it.path = join(at, name)
	if it.whiteout {
		delete(a.mine, it.path)
		if err := a.remove(parent, name); err != nil && overlay.Errno(err) != unix.ENOENT {
			return err
		}
		return nil
	}
	if it.link != "" {
		to, at, err := a.resolve(dirOf(it.link), false, it)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", it.link, err)
		}
		a.f.Forget(to, 1)
		it.link = join(at, path.Base(it.link))
		if it.link == it.path {
			return hostile("a hard link to itself")
		}
	}
	for p := it.path; p != "" && !a.mine[p]; p = dirOf(p) {
		a.mine[p] = true
	}
	return a.put(parent, name, it, content)
}

// maxLinks is how many links a name may lead through, as in the kernel.
const maxLinks = 40

// resolve walks to a directory of the tree, through its links as a process with
// this root would, and makes what is missing of it, if made, for the entry it.
// It returns the path without links.
func (a *applier) resolve(dir string, made bool, it *item) (*overlay.Node, string, error) {
	at, links := "", 0
	rest := strings.Split(dir, "/")
	n := a.f.Root() // which needs no Forget
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = dirOf(at)
		default:
			c, _, err := a.f.Lookup(n, name)
			if overlay.Errno(err) == unix.ENOENT && made {
				c, err = a.implied(n, join(at, name), name, it)
			}
			if err != nil {
				a.f.Forget(n, 1)
				return nil, "", err
			}
			if c.Type() == unix.S_IFLNK {
				target, err := a.f.Readlink(c)
				a.f.Forget(c, 1)
				if links++; err == nil && links > maxLinks {
					err = unix.ELOOP
				}
				if err != nil {
					a.f.Forget(n, 1)
					return nil, "", err
				}
				if strings.HasPrefix(target, "/") {
					at = ""
				}
				rest = append(strings.Split(target, "/"), rest...)
				break
			}
			a.f.Forget(n, 1)
			if n = c; n.Type() != unix.S_IFDIR {
				a.f.Forget(n, 1)
				return nil, "", hostile("%q is no directory", join(at, name))
			}
			at = join(at, name)
			continue
		}
		// Up, or to where a link leads: from the path that was found so far.
		a.f.Forget(n, 1)
		next, _, err := a.f.Walk(at)
		if err != nil {
			return nil, "", err
		}
		n = next
	}
	return n, at, nil
}

// implied makes a directory that has no entry of its own.
func (a *applier) implied(parent *overlay.Node, at, name string, it *item) (*overlay.Node, error) {
	if len(name) > maxComponent {
		return nil, hostile("a component of %d bytes", len(name))
	}
	a.spelt += len(at)
	if a.left.files--; a.left.files < 0 || a.spelt > maxSpelt {
		return nil, fmt.Errorf("more directories than the limit: %w", ErrLimit)
	}
	n, _, err := a.f.Mkdir(parent, name, unix.S_IFDIR|0o755, overlay.Caller{})
	if err != nil {
		return nil, err
	}
	a.mine[at] = true
	a.dirs = append(a.dirs, &item{path: at, typ: unix.S_IFDIR, hdr: &tar.Header{
		Typeflag: tar.TypeDir, Mode: 0o755, ModTime: it.hdr.ModTime,
	}})
	return n, nil
}

// older removes what is in a directory but for what this layer put there.
func (a *applier) older(at string) error {
	type level struct {
		dir *overlay.Node
		at  string
	}
	top, err := a.walk(at)
	if err != nil {
		return err
	}
	levels := []level{{top, at}}
	var errs []error
	for len(levels) > 0 {
		l := levels[len(levels)-1]
		levels = levels[:len(levels)-1]
		names, err := a.names(l.dir)
		errs = append(errs, err)
		for _, name := range names {
			p := join(l.at, name)
			if !a.mine[p] {
				errs = append(errs, a.remove(l.dir, name))
				continue
			}
			n, _, err := a.f.Lookup(l.dir, name)
			errs = append(errs, err)
			if err == nil && n.Type() == unix.S_IFDIR {
				levels = append(levels, level{n, p})
			} else if err == nil {
				a.f.Forget(n, 1)
			}
		}
		a.f.Forget(l.dir, 1)
	}
	return errors.Join(errs...)
}
