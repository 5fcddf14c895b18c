package review

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Flag is a reason for which a person should look at a change before it
// reaches the host.
type Flag struct {
	// Code is a stable word: one of the Flag… constants.
	Code string
	// Text explains it, for people; plain ASCII, without the path.
	Text string
}

// The codes of flags, most serious first, which is also their order in
// [Change.Flags].
const (
	// FlagSetID: set-uid or set-gid, which a commit strips unless asked.
	FlagSetID = "set-id"
	// FlagDevice, FlagFifo and FlagSocket: nodes that a commit leaves out
	// unless asked.
	FlagDevice = "device"
	FlagFifo   = "fifo"
	FlagSocket = "socket"
	// FlagSecurityXattr: security.* and trusted.* attributes, which a
	// commit strips unless asked; FlagACL: access control lists.
	FlagSecurityXattr = "security-xattr"
	FlagACL           = "acl"
	// FlagEscapingLink: a symbolic link that leads out of its tree.
	FlagEscapingLink = "escaping-link"
	// FlagRunsOnHost: a program on the host acts on this file by itself: a
	// git hook, an editor's tasks, a build's or a shell's configuration.
	FlagRunsOnHost = "runs-on-host"
	// FlagLookalike: the name equals a watched one but for case or
	// invisible characters, which some file systems do not tell apart.
	FlagLookalike = "lookalike"
	// FlagExecutable: an executable bit was gained.
	FlagExecutable = "executable"
	// FlagHardLink: the base's file has other names, which keep the old
	// content after a commit.
	FlagHardLink = "hard-link"
	// FlagOwner: the owner differs.
	FlagOwner = "owner"
)

// flagsOf derives the flags of a change.
func flagsOf(c *Change) []Flag {
	var out []Flag
	add := func(code, text string) { out = append(out, Flag{code, text}) }
	if n := c.New; n != nil {
		flagNode(c, n, add)
	}
	flagPath(c, add)
	if n := c.New; n != nil && n.IsRegular() && n.Mode&0o111 != 0 && (c.Old == nil || !c.Old.IsRegular() || c.Old.Mode&0o111 == 0) {
		add(FlagExecutable, "became executable")
	}
	if c.Old != nil && c.Old.IsRegular() && c.Kind != Deleted && c.Kind != Renamed && len(c.Facts) > 0 && c.Facts[0].Nlink > 1 {
		add(FlagHardLink, fmt.Sprintf("has %d names on the host; the others keep the old content", c.Facts[0].Nlink))
	}
	if c.Parts&PartOwner != 0 {
		add(FlagOwner, fmt.Sprintf("owner changes from %d:%d to %d:%d", c.Old.UID, c.Old.GID, c.New.UID, c.New.GID))
	}
	return out
}

// flagNode looks at what the new node is.
func flagNode(c *Change, n *Meta, add func(code, text string)) {
	if n.IsRegular() && n.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		add(FlagSetID, fmt.Sprintf("runs with the rights of its owner or group (mode %04o)", n.Mode&0o7777))
	}
	switch n.Type() {
	case unix.S_IFBLK, unix.S_IFCHR:
		add(FlagDevice, fmt.Sprintf("is a %s %d:%d", TypeName(n.Mode), unix.Major(n.Rdev), unix.Minor(n.Rdev)))
	case unix.S_IFIFO:
		add(FlagFifo, "is a fifo")
	case unix.S_IFSOCK:
		add(FlagSocket, "is a socket")
	}
	if c.Old == nil || c.Parts&PartXattrs != 0 || c.Kind == TypeChanged {
		for _, x := range n.Xattrs {
			switch {
			case strings.HasPrefix(x.Name, "security.") || strings.HasPrefix(x.Name, "trusted."):
				add(FlagSecurityXattr, "carries a privileged extended attribute, "+plain(x.Name))
			case strings.HasPrefix(x.Name, "system.posix_acl"):
				add(FlagACL, "carries an access control list")
			}
		}
	}
	if n.IsSymlink() && (c.Old == nil || c.Old.Target != n.Target || c.Kind == Renamed) && escapes(c.Path, n.Target) {
		add(FlagEscapingLink, "is a symbolic link that leads out of the tree")
	}
}

// plain reduces a string to printable ASCII for a flag's text.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}

// escapes reports whether a link at path leads out of the tree by its text: an
// absolute target, or more ".." than the path has directories. That another
// link on the way leads out is that one's flag.
func escapes(linkPath, target string) bool {
	if strings.HasPrefix(target, "/") {
		return true
	}
	depth := strings.Count(linkPath, "/")
	for _, part := range strings.Split(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// flagPath looks at where a change is: names that a program of the host reads
// and acts on. A deletion counts too (of a .gitignore or a CI check).
func flagPath(c *Change, add func(code, text string)) {
	p := c.Path
	if reason := runsOnHost(p); reason != "" {
		add(FlagRunsOnHost, reason)
	} else if folded := foldName(p); folded != p {
		if reason := runsOnHost(folded); reason != "" {
			add(FlagLookalike, "is spelt almost like "+plain(path.Base(folded))+", which "+reason)
		}
	}
}
