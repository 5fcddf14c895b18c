package owner

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// LogFile is the name of the log of a session's owner, in its directory.
const LogFile = "owner.log"

// maxLog bounds the log, in bytes: past it the log begins anew, and the one
// before is kept under another name.
const maxLog = 1 << 20

// logWriter appends to the log.
type logWriter struct {
	path string
	mu   sync.Mutex
	file *os.File
	size int64
}

// openLog opens the log at path and makes it the process's standard output and
// error, where a fatal error of the runtime is written.
func openLog(path string) (*slog.Logger, error) {
	w := &logWriter{path: path}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return slog.New(slog.NewTextHandler(w, nil)), nil
}

func (w *logWriter) open() error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		err = unix.Dup3(int(f.Fd()), 1, 0)
	}
	if err == nil {
		err = unix.Dup3(int(f.Fd()), 2, 0)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	if w.file != nil {
		_ = w.file.Close()
	}
	w.file, w.size = f, st.Size()
	return nil
}

// Write appends a line. A log that cannot be written stops nobody.
func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size+int64(len(b)) > maxLog {
		if err := os.Rename(w.path, w.path+".old"); err != nil {
			return 0, err
		}
		if err := w.open(); err != nil {
			return 0, err
		}
	}
	n, err := w.file.Write(b)
	w.size += int64(n)
	return n, err
}
