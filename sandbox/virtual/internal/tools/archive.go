package tools

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

func init() {
	register(gzipTool, "gzip", "gunzip", "zcat")
	register(tarTool, "tar")
}

func gzipTool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "cdfklnqrtvS:123456789", long: map[string]rune{"stdout": 'c', "to-stdout": 'c', "decompress": 'd', "force": 'f', "keep": 'k', "test": 't', "best": '9', "fast": '1', "no-name": 'n'}})
	if !ok {
		return st
	}
	base := path.Base(c.Name)
	stdout, decompress, force, keep, check, level := base == "zcat", base != "gzip", false, false, false, gzip.DefaultCompression
	for _, o := range opts {
		switch {
		case o.name == 'c':
			stdout = true
		case o.name == 'd':
			decompress = true
		case o.name == 'f':
			force = true
		case o.name == 'k':
			keep = true
		case o.name == 't':
			check, decompress = true, true
		case o.name >= '1' && o.name <= '9':
			level = int(o.name - '0')
		}
	}
	pass := func(w io.Writer, r io.Reader) error {
		if !decompress {
			z, err := gzip.NewWriterLevel(w, level)
			if err != nil {
				return err
			}
			if _, err = io.Copy(z, r); err != nil {
				return err
			}
			return z.Close()
		}
		z, err := gzip.NewReader(bufio.NewReader(r))
		if err != nil {
			return err
		}
		_, err = io.Copy(w, z) // bounded by the limits of output, or a file of the view
		return err
	}
	say := func(name string, err error) {
		what := msg(err)
		switch {
		case errors.Is(err, gzip.ErrHeader):
			what = "not in gzip format"
		case errors.Is(err, gzip.ErrChecksum):
			what = "invalid compressed data--crc error"
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			what = "unexpected end of file"
		}
		_, _ = io.WriteString(c.Stderr, "\n"[:0]+"gzip: "+name+": "+what+"\n")
		c.status = 1
	}
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, f := range files {
		if f == "-" || stdout || check {
			r, err := c.openArg(f)
			if err == nil {
				w := io.Writer(c.out)
				if check {
					w = io.Discard
				}
				err = pass(w, r)
				_ = r.Close()
			}
			if err != nil {
				if f == "-" {
					f = "stdin"
				}
				say(f, err)
			}
			continue
		}
		out := f + ".gz"
		if decompress {
			switch {
			case strings.HasSuffix(f, ".tgz"):
				out = strings.TrimSuffix(f, ".tgz") + ".tar"
			case strings.HasSuffix(f, ".gz"):
				out = strings.TrimSuffix(f, ".gz")
			default:
				_, _ = io.WriteString(c.Stderr, "gzip: "+f+": unknown suffix -- ignored\n")
				c.status = 2
				continue
			}
		} else if strings.HasSuffix(f, ".gz") && !force {
			_, _ = io.WriteString(c.Stderr, "gzip: "+f+" already has .gz suffix -- unchanged\n")
			c.status = 2
			continue
		}
		if c.isDir(f) {
			_, _ = io.WriteString(c.Stderr, "gzip: "+f+" is a directory -- ignored\n")
			c.status = 2
			continue
		}
		if _, err := c.stat(out, false); err == nil && !force {
			_, _ = io.WriteString(c.Stderr, "gzip: "+out+" already exists;\tnot overwritten\n")
			c.status = 2
			continue
		}
		if err := c.gzipFile(f, out, pass); err != nil {
			say(f, err)
			continue
		}
		if !keep {
			_ = c.View.Remove(c.abs(f), false)
		}
	}
	return c.status
}

func (c *Call) gzipFile(f, out string, pass func(io.Writer, io.Reader) error) error {
	r, err := c.open(f)
	if err != nil {
		return err
	}
	defer r.Close()
	i, err := c.stat(f, true)
	if err != nil {
		return err
	}
	w, err := c.create(out, truncate, 0o600)
	if err != nil {
		return err
	}
	bw := bufio.NewWriterSize(w, 128<<10)
	err = errors.Join(pass(bw, r), bw.Flush(), w.Close())
	if err != nil {
		_ = c.View.Remove(c.abs(out), false)
		return err
	}
	_ = c.View.Chmod(c.abs(out), i.Stat().Mode&0o777)
	return c.View.Chtimes(c.abs(out), true, i.ModTime(), i.ModTime())
}

type archiver struct {
	c                *Call
	verbose, gz      bool
	keepOld, stdout  bool
	strip            int
	exclude, members []string
	links            map[[2]uint64]string
	umask            uint32
}

func tarTool(c *Call) int {
	args := c.Args
	// The old form has no dash: tar xzf file.
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		letters := args[0]
		rest := args[1:]
		var out []string
		for _, l := range letters {
			out = append(out, "-"+string(l))
			if strings.ContainsRune("fCTX", l) && len(rest) > 0 {
				out = append(out, rest[0])
				rest = rest[1:]
			}
		}
		c.Args = append(out, rest...)
	}
	opts, files, st, ok := c.parse(options{short: "cxtruf:zjJvC:kpOahmT:X:①:②:③④:⑤⑥:", bad: 64, long: map[string]rune{
		"create": 'c', "extract": 'x', "get": 'x', "list": 't', "file": 'f', "gzip": 'z', "verbose": 'v', "directory": 'C', "keep-old-files": 'k', "to-stdout": 'O', "strip-components": '①', "exclude": '②',
		"auto-compress": 'a', "preserve-permissions": 'p', "files-from": 'T', "numeric-owner": '③', "owner": '④', "group": '④', "sort": '④', "mtime": '④', "no-same-owner": '⑤', "same-owner": '⑤', "append": 'r', "format": '⑥',
	}})
	if !ok {
		return st
	}
	a := archiver{c: c, links: map[[2]uint64]string{}, umask: c.Umask}
	mode, file, dir, auto := rune(0), "", "", false
	for _, o := range opts {
		switch o.name {
		case 'c', 'x', 't':
			mode = o.name
		case 'f':
			file = o.arg
		case 'z':
			a.gz = true
		case 'v':
			a.verbose = true
		case 'C':
			dir = o.arg
		case 'k':
			a.keepOld = true
		case 'O':
			a.stdout = true
		case 'a':
			auto = true
		case 'p':
			a.umask = 0
		case '①':
			n, err := count(o.arg)
			if err != nil || n < 0 {
				return c.die(2, "%s: Invalid number of elements", o.arg)
			}
			a.strip = int(n)
		case '②':
			a.exclude = append(a.exclude, o.arg)
		case 'T':
			b, err := c.readArg(o.arg)
			if err != nil {
				return c.die(2, "%s: Cannot open: %s", o.arg, msg(err))
			}
			files = append(files, split(b, '\n')...)
		case 'r', 'u', 'j', 'J':
			return c.die(2, "-%c is not supported in the virtual sandbox", o.name)
		}
	}
	if mode == 0 {
		return c.usage(2, "You must specify one of the '-Acdtrux', '--delete' or '--test-label' options")
	}
	if auto && (strings.HasSuffix(file, ".gz") || strings.HasSuffix(file, ".tgz")) {
		a.gz = true
	}
	archive := file
	if dir != "" {
		if !c.isDir(dir) {
			return c.die(2, "%s: Cannot open%s", dir, c.whyNoDir(dir))
		}
		if archive != "" && archive != "-" {
			archive = c.abs(archive)
		}
		real, err := c.real(dir, false)
		if err != nil {
			return c.die(2, "%s: Cannot open: %s", dir, msg(err))
		}
		c.Dir = real
	}
	if mode == 'c' {
		return a.create(archive, files)
	}
	var r io.Reader = c.in()
	if archive != "" && archive != "-" {
		f, err := c.open(archive)
		if err != nil {
			c.warn("%s: Cannot open: %s", file, msg(err))
			return c.die(2, "Error is not recoverable: exiting now")
		}
		defer f.Close()
		r = f
	}
	br := bufio.NewReader(r)
	if magic, _ := br.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(br)
		if err != nil {
			return c.die(2, "%s: %v", file, err)
		}
		r = z
	} else {
		r = br
	}
	for _, f := range files {
		a.members = append(a.members, strings.TrimRight(f, "/"))
	}
	return a.extract(tar.NewReader(r), mode == 't')
}

func (a *archiver) excluded(name string) bool {
	for _, e := range a.exclude {
		if fnmatch(e, name, false) || fnmatch("*/"+e, name, false) || strings.HasPrefix(name, strings.TrimRight(e, "/")+"/") {
			return true
		}
	}
	return false
}

func (a *archiver) create(archive string, files []string) int {
	c := a.c
	if len(files) == 0 {
		return c.die(2, "Cowardly refusing to create an empty archive")
	}
	var w io.Writer = c.out
	if archive != "" && archive != "-" {
		f, err := c.create(archive, truncate, 0o666)
		if err != nil {
			return c.die(2, "%s: Cannot open: %s", archive, msg(err))
		}
		defer f.Close()
		bw := bufio.NewWriterSize(f, 128<<10)
		defer bw.Flush()
		w = bw
	}
	if a.gz {
		z := gzip.NewWriter(w)
		defer z.Close()
		w = z
	}
	t := tar.NewWriter(w)
	own, _ := c.View.Real(c.abs(archive))
	for _, f := range files {
		a.add(t, f, own)
	}
	if err := t.Close(); err != nil {
		return c.die(2, "%s", err)
	}
	return c.status
}

func (a *archiver) add(t *tar.Writer, p, own string) {
	c := a.c
	i, err := c.stat(p, false)
	if err != nil {
		c.warn("%s: Cannot stat: %s", p, msg(err))
		c.status = 2
		return
	}
	name := strings.TrimLeft(p, "/")
	if a.excluded(name) || c.Ctx.Err() != nil {
		return
	}
	if real, err := c.View.Real(c.abs(p)); err == nil && real == own && !i.IsDir() {
		return // the archive itself
	}
	st := i.Stat()
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Uname: owner(st.Uid), Gname: owner(st.Gid), ModTime: i.ModTime().Truncate(time.Second), Format: tar.FormatGNU}
	key := [2]uint64{uint64(st.Dev), st.Ino}
	switch m := i.Mode(); {
	case m.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimRight(name, "/")+"/"
	case m&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, _ = c.View.Readlink(c.abs(p))
	case m.IsRegular() && a.links[key] != "":
		h.Typeflag, h.Linkname = tar.TypeLink, a.links[key]
	case m.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if st.Nlink > 1 {
			a.links[key] = name
		}
	case m&fs.ModeNamedPipe != 0:
		h.Typeflag = tar.TypeFifo
	default:
		c.warn("%s: file type is not supported; ignored", p)
		return
	}
	if a.verbose {
		_, _ = io.WriteString(c.Stderr, h.Name+"\n")
	}
	if err := t.WriteHeader(h); err != nil {
		c.warn("%s: %v", p, err)
		c.status = 2
		return
	}
	if h.Typeflag == tar.TypeReg {
		r, err := c.open(p)
		if err == nil {
			_, err = io.CopyN(t, r, h.Size)
			_ = r.Close()
		}
		if err != nil {
			c.warn("%s: Read error: %s", p, msg(err))
			c.status = 2
		}
	}
	if i.IsDir() {
		entries, err := c.View.ReadDir(c.abs(p))
		if err != nil {
			c.warn("%s: Cannot open: %s", p, msg(err))
			c.status = 2
		}
		for _, e := range entries {
			a.add(t, strings.TrimRight(p, "/")+"/"+e.Name(), own)
		}
	}
}

func (a *archiver) wanted(name string) bool {
	if a.excluded(name) {
		return false
	}
	if len(a.members) == 0 {
		return true
	}
	clean := strings.TrimRight(name, "/")
	for _, m := range a.members {
		if clean == m || strings.HasPrefix(clean, m+"/") || fnmatch(m, clean, false) && strings.ContainsAny(m, "*?[") {
			return true
		}
	}
	return false
}

func (a *archiver) extract(t *tar.Reader, list bool) int {
	c := a.c
	found := map[string]bool{}
	type late struct {
		path string
		mode uint32
		time time.Time
	}
	var dirs []late
	for {
		if c.Ctx.Err() != nil {
			return statusKilled
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			c.warn("This does not look like a tar archive")
			return c.die(2, "Exiting with failure status due to previous errors")
		}
		if !a.wanted(h.Name) {
			continue
		}
		for _, m := range a.members {
			if strings.HasPrefix(h.Name, m) {
				found[m] = true
			}
		}
		if list {
			a.list(h)
			continue
		}
		name := h.Name
		for range a.strip {
			_, rest, ok := strings.Cut(strings.TrimLeft(name, "/"), "/")
			if !ok {
				rest = ""
			}
			name = rest
		}
		if name == "" {
			continue
		}
		if a.verbose {
			c.print(h.Name + "\n")
		}
		if a.stdout {
			if h.Typeflag == tar.TypeReg {
				_, _ = io.Copy(c.out, t) // bounded by the limits of output
			}
			continue
		}
		if err := a.put(t, h, name); err != nil {
			c.warn("%s: %s", h.Name, err)
			c.status = 2
			continue
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, late{cleanMember(name), uint32(h.Mode) & 0o777 &^ a.umask, h.ModTime})
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = c.View.Chmod(c.abs(dirs[i].path), dirs[i].mode)
		_ = c.View.Chtimes(c.abs(dirs[i].path), false, dirs[i].time, dirs[i].time)
	}
	for _, m := range a.members {
		if !found[m] && !strings.ContainsAny(m, "*?[") {
			c.warn("%s: Not found in archive", m)
			c.status = 2
		}
	}
	return c.status
}

func (a *archiver) list(h *tar.Header) {
	if !a.verbose {
		a.c.print(h.Name + "\n")
		return
	}
	m := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeDir:
		m |= unix.S_IFDIR
	case tar.TypeSymlink:
		m |= unix.S_IFLNK
	default:
		m |= unix.S_IFREG
	}
	a.c.printf("%s %s/%s %9d %s %s", modeString(m), h.Uname, h.Gname, h.Size, h.ModTime.UTC().Format("2006-01-02 15:04"), h.Name)
	if h.Linkname != "" {
		a.c.print(" -> " + h.Linkname)
	}
	a.c.print("\n")
}

// cleanMember takes the root and "." off a name; ".." has been refused.
func cleanMember(name string) string {
	return strings.TrimLeft(path.Clean("/"+name), "/")
}

var errMember = gnuError("Member name contains '..'")

// errThrough refuses what would be written through a link of the archive.
var errThrough = errors.New("a directory above it is a symbolic link that the archive may have made; refused")

func (a *archiver) put(t *tar.Reader, h *tar.Header, name string) error {
	c := a.c
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return errMember
		}
	}
	p := cleanMember(name)
	if p == "" {
		return nil
	}
	// What an archive's own link leads to is not written to.
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if i, err := c.stat(dir, false); err == nil && i.Mode()&fs.ModeSymlink != 0 {
			return errThrough
		}
	}
	if dir := path.Dir(p); dir != "." {
		if err := c.mkdirAll(dir, 0o777); err != nil {
			return gnuError("Cannot open: " + msg(err))
		}
	}
	old, oerr := c.stat(p, false)
	if h.Typeflag == tar.TypeDir {
		if oerr == nil && old.IsDir() {
			return nil
		}
		if oerr == nil {
			_ = c.View.Remove(c.abs(p), false)
		}
		return wrapTar(c.View.Mkdir(c.abs(p), 0o700|uint32(h.Mode)&0o777))
	}
	if oerr == nil {
		if a.keepOld {
			return gnuError("Cannot open: File exists")
		}
		if err := c.View.Remove(c.abs(p), old.IsDir()); err != nil {
			return wrapTar(err)
		}
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return wrapTar(c.View.Symlink(h.Linkname, c.abs(p)))
	case tar.TypeLink:
		return wrapTar(c.View.Link(c.abs(cleanMember(h.Linkname)), c.abs(p), false))
	case tar.TypeFifo:
		return wrapTar(c.View.Mkfifo(c.abs(p), uint32(h.Mode)&0o777&^c.Umask))
	case tar.TypeReg:
	default:
		return errors.New("a kind of file that the virtual sandbox cannot make")
	}
	f, err := c.View.OpenFile(c.abs(p), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return wrapTar(err)
	}
	_, err = io.Copy(struct{ io.Writer }{f}, t) // into a file of the view, whose size nothing else bounds
	if err = errors.Join(err, f.Close()); err != nil {
		return wrapTar(err)
	}
	if err := c.View.Chmod(c.abs(p), uint32(h.Mode)&0o777&^a.umask); err != nil {
		return wrapTar(err)
	}
	return wrapTar(c.View.Chtimes(c.abs(p), false, h.ModTime, h.ModTime))
}

func wrapTar(err error) error {
	if err == nil {
		return nil
	}
	return gnuError("Cannot open: " + view.Message(err))
}
