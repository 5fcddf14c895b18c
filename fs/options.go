package fs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Subtype is the subtype of every Galley mount: mountinfo shows them as
// "fuse.galley", which is how stale ones are found.
const Subtype = "galley"

// maxIO is the largest READ and WRITE in bytes: what the kernel allows at
// most before fs.fuse.max_pages_limit is raised (256 pages).
const maxIO = 1 << 20

// MountOptions are the options of a FUSE mount. The zero value is a writable
// mount for the mounting user alone, shown as "galley".
//
// Permission checks are always the kernel's (default_permissions), and set-id
// bits and device nodes never take effect (nosuid, nodev): a session may hold
// either, but must not lend them to a program.
type MountOptions struct {
	// FsName is the source column of mountinfo (default "galley").
	FsName string
	// Subtype is what follows "fuse." in the type column (default
	// [Subtype]). A mount of another subtype is not found by [Mounts], so
	// nothing clears it when its server dies.
	Subtype string
	// AllowOther lets users other than the mounting one in; the kernel
	// limits them to the mount's user namespace and those below it. For an
	// ordinary user's [OpenFusermount] it needs user_allow_other in
	// /etc/fuse.conf.
	AllowOther bool
	// ReadOnly refuses writes in the kernel already.
	ReadOnly bool
	// NoExec refuses to run programs from the mount.
	NoExec bool
	// NoAtime is accepted for the sake of mount(8); FUSE reports the
	// engine's access times and never sends any.
	NoAtime bool
	// Writeback is not the mount's but its server's: see [Options].
	Writeback bool
}

// OptionError is a mount option that was not understood.
type OptionError struct {
	Option string // as it was given
	Reason string // what is wrong with it, and what is accepted
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("mount option %q: %s", e.Option, e.Reason)
}

// ParseMountOptions reads a comma-separated list as given to -o. Known are
// fsname=NAME, subtype=NAME, allow_other, ro, rw, exec, noexec, noatime,
// relatime, writeback, default_permissions, nosuid and nodev; anything else is
// an [OptionError]. A backslash keeps the character after it, so a name may hold
// a comma.
func ParseMountOptions(s string) (MountOptions, error) {
	var o MountOptions
	for _, opt := range splitOptions(s) {
		if err := o.set(opt); err != nil {
			return MountOptions{}, err
		}
	}
	return o, nil
}

func (o *MountOptions) set(opt string) error {
	key, val, hasVal := strings.Cut(opt, "=")
	switch key {
	case "fsname", "subtype":
		if !hasVal || val == "" {
			return &OptionError{opt, "needs a value, as in " + key + "=NAME"}
		}
		if strings.ContainsAny(val, "\x00\n") {
			return &OptionError{opt, "a name holds no newline and no NUL"}
		}
		if key == "fsname" {
			o.FsName = val
			return nil
		}
		if strings.ContainsAny(val, "., /\\") {
			return &OptionError{opt, "a subtype is one plain word"}
		}
		o.Subtype = val
		return nil
	}
	if hasVal {
		return &OptionError{opt, "takes no value, or is not known"}
	}
	switch key {
	case "":
	case "allow_other":
		o.AllowOther = true
	case "ro":
		o.ReadOnly = true
	case "rw":
		o.ReadOnly = false
	case "noexec":
		o.NoExec = true
	case "exec":
		o.NoExec = false
	case "noatime":
		o.NoAtime = true
	case "writeback":
		o.Writeback = true
	case "relatime", "default_permissions", "nosuid", "nodev":
		// what every Galley mount has
	case "suid", "dev":
		return &OptionError{opt, "a session's set-id programs and devices never take effect; leave it out"}
	default:
		return &OptionError{opt, "not known; known are fsname=, subtype=, allow_other, ro, rw, exec, noexec, noatime, relatime, writeback, default_permissions, nosuid, nodev"}
	}
	return nil
}

// splitOptions splits at commas that no backslash precedes, and removes those
// backslashes.
func splitOptions(s string) []string {
	var out []string
	var cur strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			cur.WriteByte(s[i])
		case s[i] == ',':
			out = append(out, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(s[i])
		}
	}
	return append(out, cur.String())
}

func (o *MountOptions) fsName() string {
	if o.FsName == "" {
		return "galley"
	}
	return o.FsName
}

func (o *MountOptions) subtype() string {
	if o.Subtype == "" {
		return Subtype
	}
	return o.Subtype
}

// flags are the mount(2) flags.
func (o *MountOptions) flags() uintptr {
	f := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if o.ReadOnly {
		f |= unix.MS_RDONLY
	}
	if o.NoExec {
		f |= unix.MS_NOEXEC
	}
	if o.NoAtime {
		f |= unix.MS_NOATIME
	}
	return f
}

// data is the option string that the kernel's fuse takes for the open
// descriptor fd.
func (o *MountOptions) data(fd int) string {
	s := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, os.Geteuid(), os.Getegid(), maxIO)
	if o.AllowOther {
		s += ",allow_other"
	}
	return s
}

// fusermount is the same for fusermount3's -o, which adds the descriptor, the
// mode and the ids itself.
func (o *MountOptions) fusermount() string {
	esc := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	s := []string{
		"fsname=" + esc.Replace(o.fsName()),
		"subtype=" + esc.Replace(o.subtype()),
		fmt.Sprintf("max_read=%d", maxIO),
		"default_permissions", "nosuid", "nodev",
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{o.AllowOther, "allow_other"}, {o.ReadOnly, "ro"}, {o.NoExec, "noexec"}, {o.NoAtime, "noatime"}} {
		if f.on {
			s = append(s, f.name)
		}
	}
	return strings.Join(s, ",")
}
