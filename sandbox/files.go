package sandbox

import (
	"io/fs"
	"time"
)

// Limits of the calls on files. A request may lower them.
const (
	// MaxRead is how many bytes one Read returns at most, and by default.
	MaxRead = 64 << 20
	// MaxWrite is how large the content of a Write may be.
	MaxWrite = 256 << 20
	// MaxEdit is how large a file may be that Edit works on.
	MaxEdit = 64 << 20
	// MaxDigest is up to what size Read tells the digest of a whole file and
	// counts all its lines.
	MaxDigest = 64 << 20
	// GlobLimit is the default limit of a Glob, in paths, and MaxGlob the
	// highest.
	GlobLimit = 1000
	MaxGlob   = 1_000_000
	// GrepLimit is the default limit of a Grep, in lines that match, and
	// MaxGrep the highest.
	GrepLimit = 200
	MaxGrep   = 1_000_000
	// MaxLine is how many bytes of one line Grep returns; what is longer is
	// cut and says so. A match is found anywhere in a line of up to
	// MaxGrepLine bytes; longer lines are searched in pieces of that size.
	MaxLine     = 2000
	MaxGrepLine = 16 << 20
	// ListLimit is the default limit of a List, in entries, and MaxList the
	// highest.
	ListLimit = 10_000
	MaxList   = 1_000_000
)

// ReadRequest asks for a file. With neither Offset nor Limit it is the whole.
type ReadRequest struct {
	Path string `json:"path"`
	// Offset is the first line to return, from 1; 0 is 1. Past the end
	// nothing is returned, which is no error.
	Offset int `json:"offset,omitempty"`
	// Limit is how many lines to return; 0 is all.
	Limit int `json:"limit,omitempty"`
	// MaxBytes cuts what is returned, and sets Truncated. 0 is [MaxRead], and
	// a whole file larger than that is then refused with [TooLarge] rather
	// than cut.
	MaxBytes int `json:"max_bytes,omitempty"`
	// Client is who reads, so that a later Edit or Write of the same client
	// can be refused as [Stale]. Empty keeps no note.
	Client string `json:"client,omitempty"`
}

// ReadResult is a file's content. Lines end with "\n" alone; bytes are returned
// as they are, whatever encoding they are in.
type ReadResult struct {
	Content []byte   `json:"content"`
	Info    FileInfo `json:"info"`
	// FirstLine is the number of the first line in Content, and LineCount how
	// many lines, whole or cut, Content has.
	FirstLine int `json:"first_line"`
	LineCount int `json:"line_count"`
	// TotalLines is how many lines the file has; -1 where it is larger than
	// [MaxDigest] and was not read to its end. A last line without "\n" counts.
	TotalLines int `json:"total_lines"`
	// Truncated: MaxBytes cut the content.
	Truncated bool `json:"truncated,omitempty"`
	// Digest is "sha256:" and the hex digest of the whole file, "" where it
	// is larger than [MaxDigest].
	Digest string `json:"digest,omitempty"`
}

// WriteRequest makes or replaces a file.
type WriteRequest struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
	// Mode is the permission bits of a new file; 0 is 0666 less the umask. An
	// existing file keeps its own.
	Mode fs.FileMode `json:"mode,omitempty"`
	// New refuses with [Exists] where the path is there already, be it a
	// dangling link.
	New bool `json:"new,omitempty"`
	// Digest, unless empty, is what the file must have: otherwise [Stale].
	Digest string `json:"digest,omitempty"`
	// Client is who writes. A file that this client read and that changed
	// since is refused as [Stale].
	Client string `json:"client,omitempty"`
}

// WriteResult says what was written.
type WriteResult struct {
	// Created is false where a file was replaced.
	Created bool `json:"created"`
	Bytes   int  `json:"bytes"`
	Lines   int  `json:"lines"`
	// Digest is of the new content.
	Digest string `json:"digest"`
	// Path is where the file is, with symbolic links resolved.
	Path string `json:"path"`
}

// EditRequest replaces Old by New. Both are bytes of the file: nothing is
// decoded, and what is not touched stays as it is.
type EditRequest struct {
	Path string `json:"path"`
	// Old must occur exactly once, unless All is set. It must not be empty,
	// nor equal to New.
	Old []byte `json:"old"`
	New []byte `json:"new"`
	// All replaces every occurrence, of which there must be one at least.
	// Occurrences do not overlap.
	All bool `json:"all,omitempty"`
	// Digest and Client are as in [WriteRequest].
	Digest string `json:"digest,omitempty"`
	Client string `json:"client,omitempty"`
}

// EditResult says what was replaced. An edit that is refused with [NoMatch] or
// [Ambiguous] returns one as well, with the count and the unchanged content.
type EditResult struct {
	// Count is how many occurrences were found, and, without an error,
	// replaced.
	Count int `json:"count"`
	// Before and After are the whole content; After equals Before when
	// nothing was changed.
	Before []byte `json:"-" cbor:"before,omitempty"`
	After  []byte `json:"-" cbor:"after,omitempty"`
	// Line is the line of the first occurrence, from 1.
	Line int `json:"line"`
	// Digest is of After.
	Digest string `json:"digest"`
	// Path is where the file is, with symbolic links resolved.
	Path string `json:"path"`
}

// StatRequest asks about one path.
type StatRequest struct {
	Path string `json:"path"`
	// NoFollow tells of a final symbolic link itself.
	NoFollow bool `json:"no_follow,omitempty"`
}

// FileInfo tells of one file.
type FileInfo struct {
	// Path is absolute; in a List it is the path of the entry.
	Path string `json:"path"`
	// Mode has the type and permission bits as io/fs has them.
	Mode    fs.FileMode `json:"mode"`
	Size    int64       `json:"size"`
	ModTime time.Time   `json:"mod_time"`
	UID     uint32      `json:"uid"`
	GID     uint32      `json:"gid"`
	Nlink   uint32      `json:"nlink"`
	Ino     uint64      `json:"ino"`
	// Target is what a symbolic link says, "" for anything else.
	Target string `json:"target,omitempty"`
}

// Name is the last element of the path.
func (i FileInfo) Name() string {
	for n := len(i.Path) - 1; n >= 0; n-- {
		if i.Path[n] == '/' && n < len(i.Path)-1 {
			return i.Path[n+1:]
		}
	}
	return i.Path
}

// ListRequest asks for a directory's entries, without "." and "..".
type ListRequest struct {
	Path string `json:"path,omitempty"` // default: the working directory
	// Limit is how many entries to return; 0 is [ListLimit].
	Limit int `json:"limit,omitempty"`
}

// ListResult has entries sorted by name, bytewise. Symbolic links are not
// followed.
type ListResult struct {
	Entries []FileInfo `json:"entries"`
	// Truncated: there are more.
	Truncated bool `json:"truncated,omitempty"`
}

// GlobRequest finds paths. Patterns are those of doublestar: "*" and "?" stop
// at a slash, "**" as a whole element matches any number of elements, "[a-z]"
// and "[!a-z]" (or "[^a-z]") are classes, "{a,b}" alternatives, and "\" makes the next
// character plain. Names that begin with a dot match like any other.
type GlobRequest struct {
	// Pattern is relative to Dir, or absolute. Elements "." and ".." before
	// the first meta character are resolved in the view; after one they are
	// [InvalidPattern].
	Pattern string `json:"pattern"`
	// Dir is where a relative pattern starts; default: the working directory.
	Dir string `json:"dir,omitempty"`
	// Limit is how many paths to return; 0 is [GlobLimit].
	Limit int `json:"limit,omitempty"`
	// Ignore honours .gitignore files from Dir downwards, and leaves out
	// .git directories.
	Ignore bool `json:"ignore,omitempty"`
	// FilesOnly leaves directories out.
	FilesOnly bool `json:"files_only,omitempty"`
}

// GlobResult has the paths that match, sorted bytewise. They are relative to
// Dir where the pattern was, else absolute. A symbolic link matches by its own
// name; "**" does not walk through links to directories.
type GlobResult struct {
	Paths []string `json:"paths"`
	// Truncated: there are more. Those returned are the first of the order.
	Truncated bool `json:"truncated,omitempty"`
}

// GrepRequest finds lines. The syntax is RE2's; matching takes linear time
// whatever the expression.
type GrepRequest struct {
	Pattern string `json:"pattern"`
	// Literal takes Pattern as plain text.
	Literal bool `json:"literal,omitempty"`
	// Path is a file, or a directory that is searched with all beneath it;
	// default: the working directory. Symbolic links beneath it are not
	// followed.
	Path string `json:"path,omitempty"`
	// Glob selects files beneath a directory by a doublestar pattern: of the
	// path relative to Path where it contains a slash, of the name else.
	Glob string `json:"glob,omitempty"`
	// IgnoreCase matches letters of either case.
	IgnoreCase bool `json:"ignore_case,omitempty"`
	// Before and After are how many lines of context to return, up to 100.
	Before int `json:"before,omitempty"`
	After  int `json:"after,omitempty"`
	// Limit is how many lines that match to return; 0 is [GrepLimit].
	Limit int `json:"limit,omitempty"`
	// FilesOnly returns one match, the first, for each file, and Limit then
	// counts files.
	FilesOnly bool `json:"files_only,omitempty"`
	// CountOnly returns no lines, only the counts of each file in Files. No
	// limit ends the search.
	CountOnly bool `json:"count_only,omitempty"`
	// Ignore honours .gitignore files from Path downwards, and leaves out
	// .git directories.
	Ignore bool `json:"ignore,omitempty"`
	// Binary searches files that have a NUL byte in their first 8 KiB, too;
	// without it they are passed over, except when Path is the file itself.
	Binary bool `json:"binary,omitempty"`
}

// GrepResult has the lines that match, sorted by path and line.
type GrepResult struct {
	Matches []GrepMatch `json:"matches"`
	// Files has the count for each file that has a match, with CountOnly.
	Files []GrepCount `json:"files,omitempty"`
	// Count is how many lines matched, as far as was searched.
	Count int `json:"count"`
	// Searched is how many files were looked into.
	Searched int `json:"searched"`
	// Truncated: Limit ended the search; Matches are the first of the order.
	Truncated bool `json:"truncated,omitempty"`
	// Unreadable counts files and directories that could not be read.
	Unreadable int `json:"unreadable,omitempty"`
}

// GrepMatch is a line that matches, or a line of context.
type GrepMatch struct {
	// Path is absolute.
	Path string `json:"path"`
	Line int    `json:"line"` // from 1
	// Text is the line without its end, cut to [MaxLine] bytes.
	Text []byte `json:"text"`
	Cut  bool   `json:"cut,omitempty"`
	// Column is where the match begins in the line, from 1 in bytes; 0 for a
	// line of context.
	Column int `json:"column,omitempty"`
	// Context: the line does not match, it is near one that does.
	Context bool `json:"context,omitempty"`
}

// GrepCount is how many lines of a file match.
type GrepCount struct {
	Path  string `json:"path"`
	Count int    `json:"count"`
}

// MountRequest shows a directory of the host in the sandbox.
type MountRequest struct {
	// Host is an absolute path on the host, of a directory that is neither
	// the session's state nor contains it.
	Host string `json:"host"`
	// Path is where it is to stand in the sandbox, absolute. Missing
	// directories are made for it; what is there is covered, where it is a
	// directory, and [NotDirectory] else. [Exists] where something is mounted
	// at that very path.
	Path string `json:"path"`
	// Write lets it be written to, copy-on-write: the changes go to a tree of
	// the session and are reviewed and committed like others. Without it every
	// change is refused with [ReadOnly]. Whatever it says, the host is not
	// written to.
	Write bool `json:"write,omitempty"`
}

// MountResult says what was mounted.
type MountResult struct {
	Path string `json:"path"`
	// Tree is the name of the session's tree that takes the changes; "" when
	// read-only.
	Tree string `json:"tree,omitempty"`
}
