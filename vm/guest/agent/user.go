package agent

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/guest"
)

// user is who a process runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

func (u *user) credential() *syscall.Credential {
	return &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
}

// maxAccounts bounds how much of /etc/passwd and /etc/group is read, in bytes.
const maxAccounts = 4 << 20

// findUser resolves "USER[:GROUP]", by name or number, in the guest's accounts,
// as docker does: a number need not be there, a name must. The calling thread is
// in the guest's namespace.
func findUser(spec string) (*user, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	u := &user{home: "/"}
	known, account, err := lookupUser(name, u)
	if err != nil {
		return nil, err
	}
	if !known {
		n, err := strconv.ParseUint(name, 10, 31)
		if err != nil {
			return nil, guest.Failuref(guest.BadUser, "user %q is not in the guest's /etc/passwd", name)
		}
		u.uid = uint32(n)
	}
	found := false
	err = eachLine("/etc/group", func(f []string) {
		if len(f) < 4 {
			return
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil {
			return
		}
		if hasGroup {
			if !found && (f[0] == group || f[2] == group) {
				u.gid, found = uint32(gid), true
			}
			return
		}
		for m := range strings.SplitSeq(f[3], ",") {
			if known && m == account && len(u.groups) < 1000 {
				u.groups = append(u.groups, uint32(gid))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if hasGroup && !found {
		n, err := strconv.ParseUint(group, 10, 31)
		if err != nil {
			return nil, guest.Failuref(guest.BadUser, "group %q is not in the guest's /etc/group", group)
		}
		u.gid = uint32(n)
	}
	return u, nil
}

// lookupUser fills in what /etc/passwd has of a user. A name goes before a
// number.
func lookupUser(name string, u *user) (known bool, account string, err error) {
	byName := false
	err = eachLine("/etc/passwd", func(f []string) {
		if len(f) < 6 || byName || f[0] != name && (f[2] != name || known) {
			return
		}
		uid, uerr := strconv.ParseUint(f[2], 10, 31)
		gid, gerr := strconv.ParseUint(f[3], 10, 31)
		if uerr != nil || gerr != nil {
			return
		}
		known, byName, account = true, f[0] == name, f[0]
		u.uid, u.gid = uint32(uid), uint32(gid)
		if u.home = f[5]; !strings.HasPrefix(u.home, "/") {
			u.home = "/"
		}
	})
	return known, account, err
}

// eachLine gives the fields of each line of a file of accounts to fn. A file
// that is not there, or no regular file, has none.
func eachLine(p string, fn func(fields []string)) error {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	s := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fn(strings.Split(s.Text(), ":"))
	}
	return s.Err()
}
