package overlaytest

import (
	"golang.org/x/sys/unix"
)

func (d *DirFS) unmap(slot int) {
	if m := d.maps[slot]; m != nil {
		_ = unix.Munmap(m)
		delete(d.maps, slot)
	}
}

// mapped calls fn with a shared mapping of a regular file that is not empty.
// That of a held file stays until its size changes, so that it lives through
// whatever happens to the file.
func (d *DirFS) mapped(at Loc, fn func(m []byte) error) error {
	return d.regular(at, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
			return err
		}
		keep := at.Path == ""
		if m := d.maps[at.Slot]; keep && m != nil {
			if int64(len(m)) == st.Size {
				return fn(m)
			}
			d.unmap(at.Slot)
		}
		m, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		if keep {
			d.maps[at.Slot] = m
		} else {
			defer func() { _ = unix.Munmap(m) }()
		}
		return fn(m)
	})
}

// MapRead implements [FS].
func (d *DirFS) MapRead(at Loc, p []byte, off int64) (n int, err error) {
	err = d.mapped(at, func(m []byte) error {
		if off < int64(len(m)) {
			n = copy(p, m[off:])
		}
		return nil
	})
	return n, err
}

// MapWrite implements [FS].
func (d *DirFS) MapWrite(at Loc, p []byte, off int64) (n int, err error) {
	err = d.mapped(at, func(m []byte) error {
		if off >= int64(len(m)) || len(p) == 0 {
			return nil
		}
		n = copy(m[off:], p)
		return unix.Msync(m, unix.MS_SYNC)
	})
	return n, err
}
