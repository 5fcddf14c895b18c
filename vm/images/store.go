package images

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
)

// The files and directories of a store.
const (
	namesFile   = "names.json"
	dirBlobs    = "blobs/sha256"
	dirPartial  = "partial"
	stagePrefix = "new-"
	lockNames   = "lock"
	lockUse     = "use"
)

// namesVersion is the format of names.json. No newer one is read.
const namesVersion = 1

// Limits bound an image; zero fields are the defaults.
type Limits struct {
	// Unpacked bounds all layers of an image together, once unpacked.
	Unpacked oci.Limits
	// Packed is how many bytes the blobs of an image may have together. The
	// default is 32 GiB.
	Packed int64
	// Layers is how many layers an image may have. The default is 512.
	Layers int
}

func (l Limits) withDefaults() Limits {
	if l.Packed <= 0 {
		l.Packed = 32 << 30
	}
	if l.Layers <= 0 {
		l.Layers = 512
	}
	return l
}

// Progress tells how far something has come.
type Progress struct {
	// Stage is "fetch", "read" or "unpack".
	Stage string
	// Done and Total count bytes; Total is 0 where it is not known.
	Done, Total int64
}

// Store is the images of a [snapshots.Store]. It is safe for concurrent use, by
// several processes too.
type Store struct {
	sessions *snapshots.Store
	dir      string
	now      func() time.Time
}

// Open opens the images of st and makes their directory where it is not there.
func Open(st *snapshots.Store) (*Store, error) {
	s := &Store{sessions: st, dir: st.ImagesDir(), now: time.Now}
	for _, d := range []string{s.path(dirBlobs), s.path(dirPartial), st.ImageLayersDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("images: %w", err)
		}
	}
	return s, nil
}

func (s *Store) path(rel ...string) string {
	return filepath.Join(append([]string{s.dir}, rel...)...)
}

// record is what a name stands for.
type record struct {
	// Name is the whole name, with registry and tag.
	Name string `json:"name"`
	// Digest of the manifest; Index that of the index it was chosen from.
	Digest string `json:"digest"`
	Index  string `json:"index,omitempty"`
	// Platform that was asked for.
	Platform string `json:"platform"`
	// Source says where it came from: "registry", "docker-archive", "oci",
	// "rootfs" or "session".
	Source string `json:"source"`
	// Stamp tells whether the file that it was read from is the same still.
	Stamp string    `json:"stamp,omitempty"`
	Time  time.Time `json:"time"`
}

type namesRecord struct {
	Version int      `json:"version"`
	Names   []record `json:"names"`
}

func (s *Store) names() ([]record, error) {
	b, err := os.ReadFile(s.path(namesFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	var r namesRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("images: %s: %w: %w; remove it and import or pull the images again", s.path(namesFile), ErrDamaged, err)
	}
	if r.Version > namesVersion {
		return nil, fmt.Errorf("images: %s is of version %d and this program knows %d; use a newer galley", s.path(namesFile), r.Version, namesVersion)
	}
	for _, n := range r.Names {
		if _, err := hexOf(n.Digest); err != nil {
			return nil, fmt.Errorf("images: %s: %w", s.path(namesFile), err)
		}
	}
	return r.Names, nil
}

// change replaces the names by what fn makes of them.
func (s *Store) change(fn func([]record) ([]record, error)) error {
	lock, err := flock(context.Background(), s.path(lockNames), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	all, err := s.names()
	if err != nil {
		return err
	}
	if all, err = fn(all); err != nil {
		return err
	}
	b, err := json.MarshalIndent(namesRecord{namesVersion, all}, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(s.path(namesFile), append(b, '\n'))
}

// put gives a name to an image, in the place of what had it.
func (s *Store) put(r record) error {
	r.Time = s.now().UTC()
	return s.change(func(all []record) ([]record, error) {
		all = slices.DeleteFunc(all, func(o record) bool { return o.Name == r.Name })
		all = append(all, r)
		slices.SortFunc(all, func(a, b record) int { return strings.Compare(a.Name, b.Name) })
		return all, nil
	})
}

// Hold keeps what there is of images from being removed until release is
// called: from when an image is found to when a session stands on it.
func (s *Store) Hold(ctx context.Context) (release func(), err error) {
	lock, err := flock(ctx, s.path(lockUse), unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}

// lockPoll is how often a lock that is held is tried.
const lockPoll = 20 * time.Millisecond

// flock opens a file and takes its lock, waiting for who has it.
func flock(ctx context.Context, path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			_ = f.Close()
			return nil, fmt.Errorf("images: lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("images: wait for %s: %w", path, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// tryLock is flock for who does not want to wait: nil where somebody has it.
func tryLock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if err == unix.EAGAIN {
		return nil, nil
	}
	return nil, fmt.Errorf("images: lock %s: %w", path, err)
}

// stage makes a directory for what is not whole yet.
func (s *Store) stage() (string, error) {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // cannot fail
	dir := s.path(stagePrefix + hex.EncodeToString(b))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("images: %w", err)
	}
	return dir, nil
}

// replaceFile replaces a file in one step that survives a power cut.
func replaceFile(path string, text []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// hexOf is the hexadecimal part of a SHA-256 digest.
func hexOf(digest string) (string, error) {
	h, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
		return "", fmt.Errorf("digest %q: not a SHA-256: %w", digest, ErrDamaged)
	}
	return h, nil
}
