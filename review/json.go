package review

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review/termsafe"
)

// JSONHelp documents what WriteJSON writes.
const JSONHelp = `{
  "version": 1,              the number changes when a field changes its meaning or goes
  "digest": "hex",           names the change set; what galley commit --digest takes
  "summary": "text",
  "changes": [{
    "tree": "workspace",
    "kind": "added" | "modified" | "deleted" | "renamed" | "mode" | "type",
    "path": "a/b",           in the view; of a deleted entry, in the base
    "from": "a/c",           renamed: its path in the base
    "origin": "a/c",         the path in the base of "old", where that is not "path"
    "link": "a/d",           another name of the same file, which leads
    "similarity": 100,       renamed files: percent of equal content
    "parts": ["content", "target", "mode", "owner", "xattrs", "rdev"],
    "old": node, "new": node,
    "drift": {"kind": "content", "path": "a/b", "text": "…"},
    "flags": [{"code": "set-id", "text": "…"}]
  }]
}
node: {"type": "file" | "directory" | "symbolic link" | "fifo" | "socket" | "character device" | "block device",
  "mode": "0644", "uid": 0, "gid": 0, "size": 12, "mtime": "RFC 3339",
  "target": "…",             of a symbolic link
  "major": 1, "minor": 3,    of a device
  "sha256": "hex",           of a file's content, where it is known
  "xattrs": [{"name": "user.x", "value_base64": "…"}]}
A string that is not valid UTF-8 has replacement characters in it, and its bytes
stand beside it in a field of the same name with "_base64" appended. Fields
without a value are left out.
`

type jsonSet struct {
	Version int          `json:"version"`
	Digest  string       `json:"digest"`
	Summary string       `json:"summary"`
	Changes []jsonChange `json:"changes"`
}

type jsonChange struct {
	Tree       string     `json:"tree"`
	TreeB64    []byte     `json:"tree_base64,omitempty"`
	Kind       string     `json:"kind"`
	Path       string     `json:"path"`
	PathB64    []byte     `json:"path_base64,omitempty"`
	From       *string    `json:"from,omitempty"`
	FromB64    []byte     `json:"from_base64,omitempty"`
	Origin     *string    `json:"origin,omitempty"`
	OriginB64  []byte     `json:"origin_base64,omitempty"`
	Link       string     `json:"link,omitempty"`
	LinkB64    []byte     `json:"link_base64,omitempty"`
	Similarity int        `json:"similarity,omitempty"`
	Parts      []string   `json:"parts,omitempty"`
	Old        *jsonNode  `json:"old,omitempty"`
	New        *jsonNode  `json:"new,omitempty"`
	Drift      *jsonDrift `json:"drift,omitempty"`
	Flags      []jsonFlag `json:"flags,omitempty"`
}

type jsonNode struct {
	Type      string      `json:"type"`
	Mode      string      `json:"mode"`
	UID       uint32      `json:"uid"`
	GID       uint32      `json:"gid"`
	Size      int64       `json:"size"`
	Mtime     string      `json:"mtime"`
	Target    string      `json:"target,omitempty"`
	TargetB64 []byte      `json:"target_base64,omitempty"`
	Major     *uint32     `json:"major,omitempty"`
	Minor     *uint32     `json:"minor,omitempty"`
	SHA256    string      `json:"sha256,omitempty"`
	Xattrs    []jsonXattr `json:"xattrs,omitempty"`
}

type jsonXattr struct {
	Name    string `json:"name"`
	NameB64 []byte `json:"name_base64,omitempty"`
	Value   []byte `json:"value_base64"`
}

type jsonDrift struct {
	Kind    string `json:"kind"`
	Path    string `json:"path"`
	PathB64 []byte `json:"path_base64,omitempty"`
	Text    string `json:"text"`
}

type jsonFlag struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// WriteJSON writes a change set as one JSON object, as JSONHelp describes it,
// followed by a newline. Of names, what could act on a terminal is escaped.
func WriteJSON(w io.Writer, cs *ChangeSet) error {
	out := jsonSet{Version: 1, Digest: cs.Digest().String(), Summary: Summary(cs), Changes: make([]jsonChange, 0, len(cs.Changes))}
	for i := range cs.Changes {
		out.Changes = append(out.Changes, changeJSON(&cs.Changes[i]))
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(termsafe.JSON(text), '\n'))
	return err
}

// raw is the bytes of a string that is not valid UTF-8, nil for any other.
func raw(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

func changeJSON(c *Change) jsonChange {
	j := jsonChange{Tree: c.Tree, TreeB64: raw(c.Tree), Kind: c.Kind.String(), Path: c.Path, PathB64: raw(c.Path),
		Link: c.Link, LinkB64: raw(c.Link), Similarity: c.Similarity, Old: nodeJSON(c.Old), New: nodeJSON(c.New)}
	if c.Kind == Renamed {
		j.From, j.FromB64 = &c.From, raw(c.From)
	} else if c.Old != nil && c.Origin != c.Path {
		j.Origin, j.OriginB64 = &c.Origin, raw(c.Origin)
	}
	for _, p := range []struct {
		part Parts
		word string
	}{{PartContent, "content"}, {PartTarget, "target"}, {PartMode, "mode"}, {PartOwner, "owner"}, {PartXattrs, "xattrs"}, {PartRdev, "rdev"}} {
		if c.Parts&p.part != 0 {
			j.Parts = append(j.Parts, p.word)
		}
	}
	if d := c.Drift; d.Kind != DriftNone {
		j.Drift = &jsonDrift{d.Kind.String(), d.Path, raw(d.Path), d.Text}
	}
	for _, f := range c.Flags {
		j.Flags = append(j.Flags, jsonFlag(f))
	}
	return j
}

func nodeJSON(m *Meta) *jsonNode {
	if m == nil {
		return nil
	}
	j := &jsonNode{Type: TypeName(m.Mode), Mode: fmt.Sprintf("%04o", m.Mode&0o7777), UID: m.UID, GID: m.GID, Size: m.Size,
		Mtime: rfc3339(m.Mtime), Target: m.Target, TargetB64: raw(m.Target)}
	if t := m.Type(); t == unix.S_IFBLK || t == unix.S_IFCHR {
		major, minor := unix.Major(m.Rdev), unix.Minor(m.Rdev)
		j.Major, j.Minor = &major, &minor
	}
	if m.HasDigest {
		j.SHA256 = fmt.Sprintf("%x", m.Digest)
	}
	for _, x := range m.Xattrs {
		value := x.Value
		if value == nil {
			value = []byte{}
		}
		j.Xattrs = append(j.Xattrs, jsonXattr{x.Name, raw(x.Name), value})
	}
	return j
}

func rfc3339(t overlay.Time) string {
	return time.Unix(t.Sec, int64(t.Nsec)).UTC().Format(time.RFC3339Nano)
}
