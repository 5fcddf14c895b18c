package local

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/internal/filerpc"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/internal/osfs"
)

// agentName is argv[0] of the process that works on files: it lives in the
// sandbox's namespaces with the rights of a command, so that the kernel
// resolves every path as it does for one. Calls have pid namespaces of their
// own and cannot reach it.
const agentName = "galley: sandbox files"

// agentMain serves the calls on files on descriptor 0. Its working directory
// is the sandbox's.
func agentMain() int {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 1
	}
	dir, err := os.Getwd()
	if err != nil {
		return 1
	}
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
