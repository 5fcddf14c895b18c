package images

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// User is who a command runs as in a guest.
type User struct {
	UID, GID uint32
	// Groups are the further groups.
	Groups []uint32
	// Name and Home are what /etc/passwd says; empty where it has nobody of
	// that number.
	Name, Home string
}

// maxAccounts bounds what is read of /etc/passwd and /etc/group.
const maxAccounts = 4 << 20

// UserIn resolves a user as the tree that face shows knows it: "" (root),
// "USER" or "USER:GROUP", each a name or a number. Files of the tree are read
// where its own links lead, never outside it.
func UserIn(face *overlay.Face, spec string) (User, error) {
	passwd, err := readIn(face, "etc/passwd", maxAccounts)
	if err != nil {
		return User{}, err
	}
	group, err := readIn(face, "etc/group", maxAccounts)
	if err != nil {
		return User{}, err
	}
	return ResolveUser(spec, passwd, group)
}

// ResolveUser is [UserIn] on the text of /etc/passwd and /etc/group, as docker
// resolves it: a name must be there, a number need not; without a group the
// user's own is taken, with those that list the user, or 0 for an unknown number.
func ResolveUser(spec string, passwd, group []byte) (User, error) {
	user, grp, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	if spec != "" && hasGroup && grp == "" {
		return User{}, fmt.Errorf("user %q: no group after the colon: %w", spec, unix.EINVAL)
	}
	u, known, err := findUser(user, passwd)
	if err != nil {
		return User{}, err
	}
	if hasGroup {
		u.GID, err = findGroup(grp, group)
		return u, err
	}
	if !known {
		return u, nil
	}
	eachLine(group, 4, func(f []string) bool {
		gid, ok := number(f[2])
		if ok && gid != u.GID && slices.Contains(strings.Split(f[3], ","), u.Name) && !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
		return true
	})
	return u, nil
}

func findUser(user string, passwd []byte) (u User, known bool, err error) {
	want, isNumber := number(user)
	eachLine(passwd, 7, func(f []string) bool {
		uid, ok := number(f[2])
		gid, gok := number(f[3])
		if !ok || !gok || f[0] == "" || f[0] != user && (!isNumber || uid != want) {
			return true
		}
		u, known = User{UID: uid, GID: gid, Name: f[0], Home: f[5]}, true
		return false
	})
	switch {
	case known:
		return u, true, nil
	case isNumber:
		return User{UID: want}, false, nil
	case digits(user):
		return u, false, fmt.Errorf("user %q: numbers go up to %d: %w", user, math.MaxInt32, unix.ERANGE)
	}
	return u, false, fmt.Errorf("user %q: %w: /etc/passwd does not have it", user, ErrNoUser)
}

func findGroup(group string, text []byte) (uint32, error) {
	want, isNumber := number(group)
	found := false
	eachLine(text, 3, func(f []string) bool {
		gid, ok := number(f[2])
		if !ok || f[0] != group {
			return true
		}
		want, found = gid, true
		return false
	})
	switch {
	case found || isNumber:
		return want, nil
	case digits(group):
		return 0, fmt.Errorf("group %q: numbers go up to %d: %w", group, math.MaxInt32, unix.ERANGE)
	}
	return 0, fmt.Errorf("group %q: %w: /etc/group does not have it", group, ErrNoUser)
}

// number reads an id; larger ones than programs can hold in an int are none.
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// eachLine calls fn with the fields of every line that has at least n, until it
// returns false.
func eachLine(text []byte, n int, fn func(fields []string) bool) {
	for line := range bytes.Lines(text) {
		f := strings.Split(strings.TrimSpace(string(line)), ":")
		if strings.HasPrefix(f[0], "#") || len(f) < n {
			continue
		}
		if !fn(f) {
			return
		}
	}
}

// maxLinks is how many links a path may lead through, as in the kernel.
const maxLinks = 40

// readIn reads a regular file of a tree, following links within it; what is not
// there is empty.
func readIn(f *overlay.Face, file string, limit int64) ([]byte, error) {
	n, a, err := walkIn(f, file)
	switch no := overlay.Errno(err); {
	case errors.Is(no, unix.ENOENT) || errors.Is(no, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("/%s of the image: %w", file, err)
	}
	defer f.Forget(n, 1)
	if !a.IsRegular() {
		return nil, fmt.Errorf("/%s of the image is no regular file: %w", file, ErrHostile)
	}
	if a.Size > limit {
		return nil, fmt.Errorf("/%s of the image: %d bytes, more than %d: %w", file, a.Size, limit, ErrLimit)
	}
	out := make([]byte, a.Size)
	got, err := f.Read(n, out, 0)
	if err != nil {
		return nil, fmt.Errorf("/%s of the image: %w", file, err)
	}
	return out[:got], nil
}

// walkIn finds a path as a process with this root would.
func walkIn(f *overlay.Face, file string) (*overlay.Node, overlay.Attr, error) {
	at, rest := "", strings.Split(file, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = parentOf(at)
			continue
		}
		next := strings.TrimPrefix(at+"/"+name, "/")
		n, a, err := f.Walk(next)
		if err != nil {
			return nil, a, err
		}
		if !a.IsSymlink() {
			f.Forget(n, 1)
			at = next
			continue
		}
		target, err := f.Readlink(n)
		f.Forget(n, 1)
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			return nil, a, err
		}
		if strings.HasPrefix(target, "/") {
			at = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return f.Walk(at)
}

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}
