package main

import (
	"errors"
	"fmt"
	"os"
)

// disk is a fresh ext4 in a file. ext4 does not take an inode again for
// minutes after it was freed and steps over all of those at each create, so on
// a disk on which thousands of files have just been removed, by an earlier row
// or by the clean-up of an earlier round, a create costs up to a hundred times
// what it should. Everybody works on a disk of its own round; rows that remove
// come last.
type disk struct{ image, dir string }

// newDisk makes and mounts one that holds size bytes, writable for all.
func (b *bench) newDisk(name string, size int64) (*disk, error) {
	d := &disk{image: b.dir + "/" + name + ".image", dir: b.dir + "/" + name}
	// An own inode for each 8 KiB, initialized lazily but by nobody in the
	// background.
	err := b.must(b.root, "/", fmt.Sprintf(`mkdir %s && truncate -s %d %s && mkfs.ext4 -q -F -i 8192 %[3]s &&
		mount -o loop,noinit_itable %[3]s %[1]s && rmdir %[1]s/lost+found && chmod 0777 %[1]s`, d.dir, size, d.image))
	if err != nil {
		return nil, errors.Join(err, d.remove())
	}
	b.mu.Lock()
	b.disks = append(b.disks, d)
	b.mu.Unlock()
	return d, nil
}

// remove unmounts the disk and removes its image. Nothing on it may be in use.
func (d *disk) remove() error {
	return errors.Join(unmountIf(d.dir), os.RemoveAll(d.image), os.RemoveAll(d.dir))
}
