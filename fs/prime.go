package fs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// primeNames bounds how many names of a directory Prime looks at.
const primeNames = 256

// Prime opens and closes one file in the mount at dir. The kernel asks once
// whether it must tell the server of opens, and learns it from an open(2)
// alone: until some program opens a file, each one that is created costs a
// RELEASE as well. Where dir has no regular file that may be read there is
// nothing to open, and nothing is lost but that. The process must not be the
// one that serves the mount.
func Prime(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.ReadDir(primeNames)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, e := range names {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err == nil {
			return f.Close()
		}
	}
	return nil
}
