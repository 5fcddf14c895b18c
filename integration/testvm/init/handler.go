package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/testvm"
)

// handler does what requests say.
type handler struct {
	mu    sync.Mutex
	last  int
	files map[int]*os.File // protected by mu
	maps  map[int][]byte   // protected by mu; of the same number as the file
}

func (h *handler) file(n int) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.files[n]
	if f == nil {
		return nil, unix.EBADF
	}
	return f, nil
}

func (h *handler) do(r testvm.Request) (out testvm.Reply, err error) {
	switch r.Op {
	case "ping":
	case "poweroff":
		off()
	case "run":
		return run(r)
	case "bench":
		return bench(r)
	case "mount": // Args: type, data
		err = unix.Mount(r.To, r.Path, r.Args[0], uintptr(r.N), r.Args[1])
	case "unmount":
		err = unix.Unmount(r.Path, unix.MNT_DETACH)
	case "read":
		out.Data, err = os.ReadFile(r.Path)
	case "write":
		err = writeFile(r.Path, r.Data)
	case "stat":
		out.Stat, err = stat(r.Path)
	case "list":
		var es []os.DirEntry
		es, err = os.ReadDir(r.Path)
		for _, e := range es {
			out.Names = append(out.Names, e.Name())
		}
	case "mkdir":
		err = os.MkdirAll(r.Path, os.FileMode(r.N))
	case "remove":
		err = os.RemoveAll(r.Path)
	case "rename":
		err = os.Rename(r.Path, r.To)
	case "chdir":
		err = os.Chdir(r.Path)
	case "look": // as an agent has the kernel look again at a path
		var st unix.Statx_t
		err = unix.Statx(unix.AT_FDCWD, r.Path, unix.AT_STATX_FORCE_SYNC|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	case "sync":
		unix.Sync()
	default:
		return h.withFile(r)
	}
	return out, err
}

// withFile does what is done with open files.
func (h *handler) withFile(r testvm.Request) (out testvm.Reply, err error) {
	if r.Op == "open" {
		f, err := os.OpenFile(r.Path, r.N, 0o644)
		if err != nil {
			return out, err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.last++
		h.files[h.last] = f
		out.N = h.last
		return out, nil
	}
	f, err := h.file(r.N)
	if err != nil {
		return out, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.maps[r.N]
	switch r.Op {
	case "close":
		delete(h.files, r.N)
		err = f.Close()
	case "pread":
		out.Data = make([]byte, r.Size)
		var n int
		n, err = f.ReadAt(out.Data, r.Off)
		out.Data = out.Data[:n]
		if err == io.EOF {
			err = nil
		}
	case "pwrite":
		_, err = f.WriteAt(r.Data, r.Off)
	case "append":
		_, err = f.Write(r.Data)
	case "fsync":
		err = f.Sync()
	case "fstat":
		out.Stat, err = stat(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	case "map":
		m, err = unix.Mmap(int(f.Fd()), 0, r.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		h.maps[r.N] = m
	case "peek":
		if r.Off+int64(r.Size) > int64(len(m)) {
			return out, unix.EFAULT
		}
		out.Data = append(out.Data, m[r.Off:r.Off+int64(r.Size)]...)
	case "poke":
		copy(m[r.Off:], r.Data)
	case "msync":
		if len(m) == 0 {
			return out, unix.EINVAL
		}
		_, _, e := unix.Syscall(unix.SYS_MSYNC, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.MS_SYNC)
		if e != 0 {
			err = e
		}
	default:
		err = fmt.Errorf("%q: %w", r.Op, unix.ENOSYS)
	}
	return out, err
}

func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func stat(path string) (*testvm.Stat, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if len(path) > 14 && path[:14] == "/proc/self/fd/" {
		flags = 0
	}
	if err := unix.Fstatat(unix.AT_FDCWD, path, &st, flags); err != nil {
		return nil, err
	}
	return &testvm.Stat{
		Dev: st.Dev, Ino: st.Ino, Nlink: uint64(st.Nlink), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Size: st.Size, Blocks: st.Blocks, Mtime: st.Mtim.Nano(),
	}, nil
}

// run runs a program and returns what it said and its exit status.
func run(r testvm.Request) (out testvm.Reply, err error) {
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Dir = r.Path
	cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/tmp", "LANG=C.UTF-8", "GUEST_DIR=" + r.To}
	cmd.Env = append(cmd.Env, r.Env...)
	if r.Root != "" {
		cmd.SysProcAttr = &unix.SysProcAttr{Chroot: r.Root}
	}
	out.Data, err = cmd.CombinedOutput()
	if cmd.ProcessState != nil {
		out.N = cmd.ProcessState.ExitCode()
		err = nil
	}
	return out, err
}
