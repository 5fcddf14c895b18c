package snapshots

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// manifestVersion is the version that this program writes. It reads no newer
// one, since it would lose what it does not know when it replaces the file.
const manifestVersion = 1

const (
	manifestFile  = "manifest.json"
	manifestLimit = 1 << 20 // bytes
	maxTrees      = 64
	maxRanges     = 4096
	maxRetired    = 4096
)

// manifest is the record of a session: the truth about which layers it is made
// of. It is replaced as a whole and never changed in place.
type manifest struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Boot is the kernel's boot id when the manifest was written: under
	// another one, layers after Durable may have lost their unsynced end.
	Boot string `json:"boot"`
	// Trees all have the same active layer, for one seal cuts them together.
	Trees []treeRecord `json:"trees"`
	// Next is the number of the next layer. It only grows: a number is never
	// used twice, not even one whose layer never came to be.
	Next overlay.LayerID `json:"next"`
	// Last is the latest snapshot, without its stacks: those of Trees.
	Last *lastRecord `json:"last,omitempty"`
	// Durable is the highest layer that is known to be on the disk whole.
	Durable overlay.LayerID `json:"durable,omitempty"`
	// Building is a layer that is being written from others. Unless a stack
	// has it, it holds nothing of its own and can be removed.
	Building overlay.LayerID `json:"building,omitempty"`
	// Retired are layers that left the stacks and wait for their removal.
	Retired []retired `json:"retired,omitempty"`
	Rules   Rules     `json:"rules,omitzero"`
	// MaxSize bounds the content of the layers, in bytes; 0 is no bound. Used
	// is how much there is, while that is known: see quota.go.
	MaxSize int64  `json:"max_size,omitempty"`
	Used    *int64 `json:"used,omitempty"`
	// Origins are the sessions that this one is a fork of, the first ancestor
	// first.
	Origins []origin `json:"origins,omitempty"`
	// Family is the id of the session that it and all its other forks descend
	// from; empty for that session itself.
	Family string `json:"family,omitempty"`
	// Merges and Replacements count the numbers that were used for merged
	// layers and for layers of replaced files.
	Merges       int `json:"merges,omitempty"`
	Replacements int `json:"replacements,omitempty"`
	// Replaced are the layers of replaced files that older snapshots need.
	Replaced []replaced `json:"replaced,omitempty"`
	// Dropping are layers that a prune is about to remove, or was when it was
	// cut off: they go unless something still needs them.
	Dropping map[string][]overlay.Range `json:"dropping,omitempty"`
	// Taking is the snapshot to return to if paths were being taken from
	// elsewhere when the process ended.
	Taking *overlay.LayerID `json:"taking,omitempty"`
	// Discarded is when the session was discarded. A session that is marked
	// but not in the trash is on its way there; one in the trash that is not
	// marked is on its way back.
	Discarded *time.Time `json:"discarded,omitempty"`
	// Purged: the session is gone from the trash for good, and only layers
	// that its forks share are still there.
	Purged bool `json:"purged,omitempty"`
}

type treeRecord struct {
	TreeSpec
	Stack overlay.Stack `json:"stack"`
	// Inodes is one above the inode numbers of all sealed layers, also of
	// those that a rollback took off the stack.
	Inodes uint64 `json:"inodes,omitempty"`
}

type lastRecord struct {
	Number overlay.LayerID `json:"number"`
	Name   string          `json:"name,omitempty"`
	Cause  Cause           `json:"cause"`
	Time   time.Time       `json:"time"`
}

// retired is the record of layers whose entries were committed, discarded, or
// carried over into another layer.
type retired struct {
	// Layers are the ones each tree lost, by the tree's name.
	Layers map[string][]overlay.Range `json:"layers"`
	Time   time.Time                  `json:"time"`
	Cause  Cause                      `json:"cause"`
	// Trash is the entry of the trash that can bring the layers back.
	Trash string `json:"trash,omitempty"`
}

func (m *manifest) active() overlay.LayerID { return m.Trees[0].Stack.Active }

// clone is a copy whose slices can be changed without changing m's.
func (m *manifest) clone() *manifest {
	c := *m
	c.Trees = append([]treeRecord(nil), m.Trees...)
	for i := range c.Trees {
		c.Trees[i].Stack.Sealed = append([]overlay.Range(nil), m.Trees[i].Stack.Sealed...)
	}
	c.Retired = append([]retired(nil), m.Retired...)
	c.Replaced = append([]replaced(nil), m.Replaced...)
	return &c
}

// last is the latest snapshot with its stacks.
func (m *manifest) last() Snapshot {
	s := Snapshot{Time: m.Created, Changed: Unknown, Stacks: map[string]overlay.Stack{}}
	if m.Last != nil {
		s.Number, s.Name, s.Cause, s.Time = m.Last.Number, m.Last.Name, m.Last.Cause, m.Last.Time
	}
	for _, t := range m.Trees {
		s.Stacks[t.Name] = overlay.Stack{Sealed: append([]overlay.Range(nil), t.Stack.Sealed...)}
	}
	return s
}

func (m *manifest) encode() ([]byte, error) {
	m.Version = manifestVersion
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	b = append(b, '\n')
	if len(b) > manifestLimit {
		return nil, fmt.Errorf("manifest grew to %d bytes, more than %d; run galley gc: %w", len(b), manifestLimit, unix.EFBIG)
	}
	return b, nil
}

// decodeManifest reads a manifest and trusts nothing in it: everything the
// program later relies on is checked here.
func decodeManifest(b []byte) (*manifest, error) {
	var v struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("%w: not a manifest: %v", overlay.ErrCorrupt, err)
	}
	if v.Version == nil || *v.Version < 1 {
		return nil, fmt.Errorf("%w: no version in the manifest", overlay.ErrCorrupt)
	}
	if *v.Version > manifestVersion {
		return nil, fmt.Errorf("%w: manifest of version %d, this program knows up to %d; use a newer galley",
			overlay.ErrFormat, *v.Version, manifestVersion)
	}
	m := new(manifest)
	if err := decodeStrict(b, m); err != nil {
		return nil, fmt.Errorf("%w: %v", overlay.ErrCorrupt, err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", overlay.ErrCorrupt, err)
	}
	return m, nil
}

// decodeStrict decodes exactly one JSON value with no field that into does not
// have.
func decodeStrict(b []byte, into any) error {
	if !utf8.Valid(b) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the end")
	}
	return nil
}

func (m *manifest) check() error {
	if !validID(m.ID) {
		return fmt.Errorf("id %q: %w", m.ID, ErrBadName)
	}
	if err := checkName(m.Name); err != nil {
		return err
	}
	if m.Created.IsZero() {
		return errors.New("no time of creation")
	}
	if n := len(m.Trees); n < 1 || n > maxTrees {
		return fmt.Errorf("%d trees; 1 to %d are possible", n, maxTrees)
	}
	seen := map[string]bool{}
	for _, t := range m.Trees {
		if m.Building != 0 && contains(t.Stack.Sealed, m.Building) {
			return fmt.Errorf("tree %q: layer %d is in its stack and being built", t.Name, m.Building)
		}
		if err := t.check(); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name, err)
		}
		if seen[t.Name] {
			return fmt.Errorf("tree %q: named twice", t.Name)
		}
		seen[t.Name] = true
		if err := checkStack(t.Stack); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name, err)
		}
		if t.Stack.Active != m.active() {
			return fmt.Errorf("tree %q: active layer %d, and %d in the first tree", t.Name, t.Stack.Active, m.active())
		}
	}
	if m.Family != "" && !validID(m.Family) {
		return fmt.Errorf("family %q: %w", m.Family, ErrBadName)
	}
	if err := m.checkOrigins(); err != nil {
		return err
	}
	if err := m.checkReplaced(); err != nil {
		return err
	}
	return m.checkLayers()
}

// checkLayers checks the numbers outside the stacks.
func (m *manifest) checkLayers() error {
	active := m.active()
	if m.Last != nil {
		if m.Last.Number == 0 || m.Last.Number >= active {
			return fmt.Errorf("last snapshot %d with active layer %d", m.Last.Number, active)
		}
		if m.Last.Name != "" {
			if err := checkSnapshotName(m.Last.Name); err != nil {
				return err
			}
		}
	}
	if m.Durable >= active || m.Durable < 0 {
		return fmt.Errorf("layer %d recorded as durable, active is %d", m.Durable, active)
	}
	if m.Next <= active || m.Building >= m.Next || m.Building == active {
		return fmt.Errorf("next layer %d, active %d, being built %d", m.Next, active, m.Building)
	}
	if m.Taking != nil && (*m.Taking < 0 || *m.Taking >= active) {
		return fmt.Errorf("paths were being taken after snapshot %d; active layer is %d", *m.Taking, active)
	}
	if err := checkMaxSize(m.MaxSize); err != nil {
		return err
	}
	if m.Used != nil && *m.Used < 0 {
		return fmt.Errorf("%d bytes of content", *m.Used)
	}
	if len(m.Retired) > maxRetired {
		return fmt.Errorf("%d records of retired layers; up to %d are possible", len(m.Retired), maxRetired)
	}
	for _, r := range m.Retired {
		if r.Trash != "" && !validID(r.Trash) {
			return fmt.Errorf("retired layers: id %q: %w", r.Trash, ErrBadName)
		}
		for name, layers := range r.Layers {
			if err := m.checkRetired(name, layers); err != nil {
				return fmt.Errorf("retired layers of tree %q: %w", name, err)
			}
		}
	}
	return nil
}

func (m *manifest) checkRetired(tree string, layers []overlay.Range) error {
	if err := checkStack(overlay.Stack{Sealed: layers, Active: m.active()}); err != nil {
		return err
	}
	for _, t := range m.Trees {
		if t.Name != tree {
			continue
		}
		if overlaps(layers, t.Stack.Sealed) {
			return fmt.Errorf("some of %v are in its stack", layers)
		}
		return nil
	}
	return errors.New("no such tree")
}

// checkStack checks that layers ascend and that the active one is above them.
func checkStack(s overlay.Stack) error {
	if s.Active == 0 {
		return errors.New("no active layer")
	}
	if len(s.Sealed) > maxRanges {
		return fmt.Errorf("%d ranges of layers; up to %d are possible", len(s.Sealed), maxRanges)
	}
	below := overlay.LayerID(math.MinInt32)
	for _, r := range s.Sealed {
		if r.From <= below || r.To < r.From || r.From <= 0 && r.To >= 0 {
			return fmt.Errorf("layers %d to %d above layer %d", r.From, r.To, below)
		}
		below = r.To
	}
	if s.Active <= below {
		return fmt.Errorf("active layer %d below sealed layer %d", s.Active, below)
	}
	return nil
}

func (t *TreeSpec) check() error {
	if !validTreeName(t.Name) {
		return fmt.Errorf("%w: lower-case letters, digits, '-' and '_', at most 32 of them", ErrBadName)
	}
	if t.Image != nil {
		if t.Base != "" || t.Mount != "" {
			return fmt.Errorf("on an image and on %q, shown at %q; a tree has one of both", t.Base, t.Mount)
		}
		return t.Image.check()
	}
	for _, p := range []string{t.Base, t.Mount} {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || len(p) > 4095 || bytes.IndexByte([]byte(p), 0) >= 0 {
			return fmt.Errorf("%q is not an absolute, clean path", p)
		}
	}
	return nil
}

// readManifest reads the manifest in a session's directory.
func readManifest(fs hostfs.FS, dir int, path string) (*manifest, error) {
	b, err := hostfs.ReadFile(fs, dir, manifestFile, manifestLimit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, manifestFile), err)
	}
	m, err := decodeManifest(b)
	if err != nil {
		if kept, kerr := keptManifest(fs, dir, path, b); kerr == nil {
			return kept, nil
		}
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, manifestFile), err)
	}
	return m, nil
}

// writeManifest replaces the manifest durably.
func writeManifest(fs hostfs.FS, dir int, m *manifest) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	return replaceFile(fs, dir, manifestFile, b)
}
