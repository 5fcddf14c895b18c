// Package guestfiles is the process in a guest that works on files: it runs the
// calls on files of the contract over the guest's own tree, as the process's
// user, by the same code as every other sandbox.
package guestfiles

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/internal/filerpc"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/internal/osfs"
)

// Main serves the calls on descriptor 0, with the current directory as working
// directory, until that ends, and returns the status to exit with.
func Main() int {
	if len(os.Args) > 1 {
		unix.Umask(0o022)
		return copyMain(os.Args[1:])
	}
	dir := os.Getenv("PWD") // as it was asked for, not as the kernel resolves it
	if dir == "" {
		return 2
	}
	unix.Umask(0o022)
	conn, err := net.FileConn(os.Stdin)
	if err != nil {
		return 1
	}
	_ = os.Stdin.Close()
	if err := filerpc.Serve(conn, files.New(osfs.FS{}, dir)); err != nil {
		return 1
	}
	return 0
}
