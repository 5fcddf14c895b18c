package main

import (
	"unicode/utf8"

	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/commit"
)

// Paths are bytes, and JSON strings are not: a path that is not valid UTF-8
// has its bytes in a second field.

// pathInfo is one change in the JSON of commit and discard.
type pathInfo struct {
	Tree    string `json:"tree"`
	Path    string `json:"path"`
	PathB64 []byte `json:"path_base64,omitempty"`
	Kind    string `json:"kind"`
}

// noteInfo is what was left out or stripped of a change.
type noteInfo struct {
	Tree    string `json:"tree"`
	Path    string `json:"path"`
	PathB64 []byte `json:"path_base64,omitempty"`
	What    string `json:"what"`
}

// driftInfo is one path of the base that changed on the host.
type driftInfo struct {
	Tree    string `json:"tree"`
	Path    string `json:"path"`
	PathB64 []byte `json:"path_base64,omitempty"`
	Kind    string `json:"kind"`
	Text    string `json:"text"`
}

// rawBytes is the path where a JSON string cannot carry it, else nil.
func rawBytes(path string) []byte {
	if utf8.ValidString(path) {
		return nil
	}
	return []byte(path)
}

func newPathInfo(c *review.Change) pathInfo {
	return pathInfo{Tree: c.Tree, Path: c.Path, PathB64: rawBytes(c.Path), Kind: c.Kind.String()}
}

func newDriftInfo(c *review.Change) driftInfo {
	d := c.Drift
	return driftInfo{Tree: c.Tree, Path: d.Path, PathB64: rawBytes(d.Path), Kind: d.Kind.String(), Text: d.Text}
}

func changePaths(list []*review.Change) []pathInfo {
	out := make([]pathInfo, 0, len(list))
	for _, c := range list {
		out = append(out, newPathInfo(c))
	}
	return out
}

func notes(list []commit.Note) []noteInfo {
	out := make([]noteInfo, 0, len(list))
	for _, n := range list {
		out = append(out, noteInfo{Tree: n.Tree, Path: n.Path, PathB64: rawBytes(n.Path), What: n.What})
	}
	return out
}
