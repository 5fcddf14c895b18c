package virtiofs

import (
	"fmt"
	"log/slog"
	"net"
	"os"
)

// Options configures [Serve].
type Options struct {
	// Logger takes what goes wrong in serving (default slog.Default()).
	Logger *slog.Logger
}

// Server is a vhost-user-fs device. Its methods may be called from any
// goroutine.
type Server struct {
	conn *net.UnixConn
	done chan struct{}
	err  error // set before done is closed
}

// Serve serves the export to the guest whose monitor (QEMU's vhost-user-fs-pci) is
// at the other end of conn, a connected stream socket, which Serve takes over. It
// returns at once; the device lives until the connection ends. An export has one
// server at a time.
func Serve(conn *os.File, x *Export, o Options) (*Server, error) {
	c, err := net.FileConn(conn)
	_ = conn.Close()
	if err != nil {
		return nil, fmt.Errorf("serve virtio-fs: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("serve virtio-fs: a %s socket; a connected unix socket is needed", c.LocalAddr().Network())
	}
	if err := x.hold(); err != nil {
		_ = uc.Close()
		return nil, fmt.Errorf("serve virtio-fs: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	// A guest decides how many complaints there are.
	log := slog.New(&fewer{Handler: o.Logger.Handler()})
	s := &Server{conn: uc, done: make(chan struct{})}
	d := newDevice(uc, &session{x: x, log: log}, log)
	go func() {
		defer close(s.done)
		s.err = d.run()
		x.release()
	}()
	return s, nil
}

// Done is closed when the connection has ended and nothing touches the guest's
// memory any more.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why the server ended, once Done is closed: nil if the monitor hung up or
// Close was called.
func (s *Server) Err() error {
	<-s.done
	return s.err
}

// Close ends the device. It waits for the requests under way, and never for the
// monitor.
func (s *Server) Close() error {
	_ = s.conn.Close()
	<-s.done
	return nil
}
