package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
)

// layerFile describes an unpacked layer, beside it.
const layerFile = "layer.json"

type layerRecord struct {
	Version int    `json:"version"`
	DiffID  string `json:"diff_id"`
	Below   string `json:"below,omitempty"` // chain
}

// Root says what a session's tree [snapshots.Root] on an image is, and unpacks
// what is not unpacked of it. Between this and making the session, [Store.Hold]
// keeps the layers.
func (s *Store) Root(ctx context.Context, img *Image, progress func(Progress)) (snapshots.TreeSpec, error) {
	release, err := s.Hold(ctx)
	if err != nil {
		return snapshots.TreeSpec{}, err
	}
	defer release()
	spec := snapshots.TreeSpec{Name: snapshots.Root, Image: &snapshots.Image{Name: img.Name, Digest: img.Digest}}
	spec.Image.Layers, err = s.unpack(ctx, img, Limits{}, progress)
	return spec, err
}

// unpack unpacks the layers of an image that are not yet, and returns their
// chains.
//
// Preconditions: the lock use is held.
func (s *Store) unpack(ctx context.Context, img *Image, limits Limits, progress func(Progress)) (chains []string, err error) {
	if len(img.Layers) == 0 {
		return nil, fmt.Errorf("the image has no layers: %w", oci.ErrForeign)
	}
	u := &unpacker{s: s, budget: oci.NewBudget(limits.Unpacked), tell: &teller{fn: progress, stage: "unpack"}}
	for i, l := range img.Layers {
		if err := u.layer(ctx, chains, l, i); err != nil {
			return nil, fmt.Errorf("unpack layer %d of %d, %s: %w", i+1, len(img.Layers), l.Digest, err)
		}
		img.Layers[i].Unpacked = true
		chains = append(chains, l.Chain)
	}
	return chains, nil
}

type unpacker struct {
	s      *Store
	budget *oci.Budget
	tell   *teller
}

// layer unpacks one layer on those below it, unless it is there.
func (u *unpacker) layer(ctx context.Context, below []string, l Layer, i int) error {
	final := filepath.Join(u.s.sessions.ImageLayersDir(), l.Chain)
	if _, err := os.Lstat(filepath.Join(final, layerFile)); err == nil {
		return nil
	}
	stage, err := u.s.stage()
	if err != nil {
		return err
	}
	defer u.s.discard(stage)
	state := filepath.Join(stage, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return err
	}
	n := overlay.Image + overlay.LayerID(i)
	if err := overlay.InitState(hostfs.OS, state, n); err != nil {
		return err
	}
	if err := u.fill(ctx, state, below, l, n); err != nil {
		return err
	}
	return u.place(stage, final, below, l, n)
}

// fill applies the layer's entries to an engine's tree, whose active layer
// becomes the unpacked one.
func (u *unpacker) fill(ctx context.Context, state string, below []string, l Layer, n overlay.LayerID) (err error) {
	dirs, err := u.open(below)
	if err != nil {
		return err
	}
	stack := overlay.Stack{Active: n}
	if len(below) > 0 {
		stack.Sealed = []overlay.Range{{From: overlay.Image, To: n - 1}}
	}
	tree, err := overlay.Open(overlay.Config{Name: snapshots.Root, StateDir: state, LayerDirs: dirs, KeepOwners: true, NoWatch: true}, stack)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	face := tree.Attach(nil)
	defer face.Detach()
	if len(below) == 0 {
		// The root of an image, where no entry says otherwise.
		mode, id := uint32(0o755), uint32(0)
		if _, err := face.Setattr(face.Root(), overlay.SetAttr{Mode: &mode, UID: &id, GID: &id, Mtime: &overlay.Time{}}); err != nil {
			return err
		}
	}
	blob, check, err := u.s.openBlob(l.Digest, l.Size)
	if err != nil {
		return err
	}
	defer blob.Close()
	diffID, err := oci.Unpack(ctx, face, blob, oci.Unpacking{Budget: u.budget, Progress: u.tell.add})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// A wrong digest explains whatever else is wrong.
	if cerr := check(); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if "sha256:"+diffID != l.DiffID {
		return fmt.Errorf("unpacked it has the digest sha256:%s and not %s: %w", diffID, l.DiffID, ErrDamaged)
	}
	return nil
}

func (u *unpacker) open(below []string) (out []overlay.LayerDir, err error) {
	for i, chain := range below {
		fd, err := unix.Open(filepath.Join(u.s.sessions.ImageLayersDir(), chain), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			for _, d := range out {
				_ = unix.Close(d.FD)
			}
			return nil, fmt.Errorf("the layer below, %s: %w", chain, err)
		}
		out = append(out, overlay.LayerDir{Only: overlay.Image + overlay.LayerID(i), FD: fd})
	}
	return out, nil
}

// place makes the layer durable and moves it to where it is found.
func (u *unpacker) place(stage, final string, below []string, l Layer, n overlay.LayerID) error {
	out := filepath.Join(stage, "layer")
	if err := os.Mkdir(out, 0o700); err != nil {
		return err
	}
	name := strconv.Itoa(int(n))
	if err := os.Rename(filepath.Join(stage, "state", "layers", name), filepath.Join(out, name)); err != nil {
		return err
	}
	rec := layerRecord{Version: 1, DiffID: l.DiffID}
	if len(below) > 0 {
		rec.Below = below[len(below)-1]
	}
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(out, layerFile), append(text, '\n')); err != nil {
		return err
	}
	dir, err := os.Open(out)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(dir.Fd()))
	_ = dir.Close()
	if err != nil {
		return fmt.Errorf("sync the layer: %w", err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, out, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return nil // somebody else was as far
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(final))
}

// discard removes what was being made. Directories that let nobody in are
// opened first.
func (s *Store) discard(dir string) {
	fd, err := unix.Open(filepath.Dir(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = hostfs.RemoveAll(hostfs.OS, fd, filepath.Base(dir))
}

// rootDir makes an image of a directory, as the file system of a guest.
func (im *importer) rootDir(dir string) (string, error) {
	stage, err := im.s.stage()
	if err != nil {
		return "", err
	}
	defer im.s.discard(stage)
	if err := overlay.InitState(hostfs.OS, stage, 1); err != nil {
		return "", err
	}
	base, err := overlay.OpenBase(hostfs.OS, dir)
	if err != nil {
		return "", err
	}
	tree, err := overlay.Open(overlay.Config{
		Name: snapshots.Root, StateDir: stage, Base: base, ReadOnly: true, NoWatch: true,
		Hide: []overlay.HostID{im.s.sessions.HostID()},
	}, overlay.Stack{})
	if err != nil {
		return "", err
	}
	face := tree.Attach(nil)
	tell := &teller{fn: im.opt.Progress, stage: "read"}
	p, err := im.s.putLayer(func(w io.Writer) (oci.Packed, error) { return oci.WriteTree(im.ctx, w, face, tell.add) })
	face.Detach()
	if err = errors.Join(err, tree.Close()); err != nil {
		return "", err
	}
	return im.single(p.Digest, p.Size, p.DiffID)
}

// putLayer keeps the layer that write writes.
func (s *Store) putLayer(write func(io.Writer) (oci.Packed, error)) (oci.Packed, error) {
	f, err := os.CreateTemp(s.path(dirBlobs), stagePrefix)
	if err != nil {
		return oci.Packed{}, err
	}
	p, err := write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.blobPath(p.Digest))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return p, err
	}
	return p, syncDir(s.path(dirBlobs))
}
