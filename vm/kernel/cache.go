package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	kernelPrefix = "vmlinux-"
	initrdPrefix = "initrd-"
	tempPrefix   = "tmp-"
	// initrdFormat changes with what is made of the same modules and agent.
	initrdFormat = "galley initrd 1"
	// keepUnused is how long what is no longer booted is kept.
	keepUnused = 30 * 24 * time.Hour
	// keepTemp is how long a file that is being made may take.
	keepTemp = time.Hour
	// cachedMode lets the confined process, which has an id of its own,
	// read a file that it is shown; the directory is the user's alone.
	cachedMode = 0o444
)

// cache keeps what was made, each under the digest of what it was made of. A
// file appears in it by rename(2), whole and synced, so that any number of
// processes may use it and make the same at a time.
type cache struct{ dir string }

func openCache(dir string) (cache, error) {
	if dir == "" {
		return cache{}, errors.New("no directory for what is made of a kernel")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cache{}, fmt.Errorf("cache of kernels: %w", err)
	}
	return cache{dir}, nil
}

// uncompressed is the kernel of image without its compression; image itself,
// where it is not compressed or cannot be booted any other way.
func (c cache) uncompressed(ctx context.Context, image string) (string, error) {
	b, err := readBounded(image, maxImage)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	if isELF(b) {
		if !hasPVH(b) {
			return "", fmt.Errorf("kernel %s: an uncompressed kernel needs a PVH entry (CONFIG_PVH) to be booted; use its bzImage", image)
		}
		return image, nil
	}
	sum := sha256.Sum256(b)
	return c.get(ctx, kernelPrefix, hex.EncodeToString(sum[:]), func(w io.Writer) error {
		out, err := uncompress(b)
		if err != nil {
			// The image boots as it is, only slower.
			out = b
		}
		_, err = w.Write(out)
		return err
	})
}

// initrd is the initial file system with the agent and modules.
func (c cache) initrd(ctx context.Context, guest string, modules []string) (string, error) {
	h := sha256.New()
	hashPart(h, "", []byte(initrdFormat))
	agent, err := readBounded(guest, maxImage)
	if err != nil {
		return "", fmt.Errorf("guest agent: %w", err)
	}
	hashPart(h, "init", agent)
	contents := make([][]byte, len(modules))
	for i, m := range modules {
		if contents[i], err = readBounded(m, maxModule); err != nil {
			return "", fmt.Errorf("module: %w", err)
		}
		hashPart(h, filepath.Base(m), contents[i])
	}
	return c.get(ctx, initrdPrefix, hex.EncodeToString(h.Sum(nil)), func(w io.Writer) error {
		return writeInitrd(w, agent, modules, contents)
	})
}

// hashPart hashes b so that where it begins and ends counts.
func hashPart(h hash.Hash, name string, b []byte) {
	fmt.Fprintf(h, "%q %d\n", name, len(b))
	h.Write(b)
}

// writeInitrd writes the archive. The agent loads /modules/order, a file in a
// line.
func writeInitrd(w io.Writer, agent []byte, modules []string, contents [][]byte) error {
	a := &archive{w: w}
	for _, dir := range []string{"dev", "modules", "proc", "sys"} {
		a.directory(dir)
	}
	// The kernel opens it for init before anything can mount a /dev.
	a.device("dev/console", 0o600, 5, 1)
	a.file("init", 0o755, agent)
	var order strings.Builder
	for i, m := range modules {
		content, err := moduleContent(m, contents[i])
		if err != nil {
			return err
		}
		name := "modules/" + moduleName(m) + ".ko"
		a.file(name, 0o644, content)
		fmt.Fprintf(&order, "/%s\n", name)
	}
	a.file("modules/order", 0o644, []byte(order.String()))
	return a.close()
}

// get is the file of that digest, which is made if it is not there.
func (c cache) get(ctx context.Context, prefix, digest string, write func(io.Writer) error) (string, error) {
	path := filepath.Join(c.dir, prefix+digest)
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cache of kernels: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := c.make(path, write); err != nil {
		return "", fmt.Errorf("make %s: %w", path, err)
	}
	c.sweep(now)
	return path, nil
}

func (c cache) make(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone by its new name, if all goes well
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(cachedMode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// sweep removes what was not used for long, and what others left half made. It
// is a matter of tidiness: a machine that runs keeps its files.
func (c cache) sweep(now time.Time) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		keep := keepUnused
		switch {
		case strings.HasPrefix(e.Name(), tempPrefix):
			keep = keepTemp
		case !strings.HasPrefix(e.Name(), kernelPrefix) && !strings.HasPrefix(e.Name(), initrdPrefix):
			continue
		}
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > keep {
			_ = os.Remove(filepath.Join(c.dir, e.Name()))
		}
	}
}

// readBounded reads a file of the host of up to limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if st, err := f.Stat(); err == nil && st.Size() <= limit {
		b.Grow(int(st.Size()) + bytes.MinRead)
	}
	n, err := b.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%s: larger than %d MiB", path, limit>>20)
	}
	return b.Bytes(), err
}
