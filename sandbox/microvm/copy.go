package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/galleyfs/galley/sandbox/internal/tarcopy"
	"github.com/galleyfs/galley/vm/guest"
)

// Copied is what a copy between host and guest did.
type Copied = tarcopy.Result

// CopyOut copies a file or a directory of the guest to a path of the host, where
// it is written beneath the directory of to and nowhere else. User is who reads
// it in the guest.
func CopyOut(ctx context.Context, c *guest.Client, user, from, to string) (Copied, error) {
	conn, err := c.Copy(ctx, guest.Copy{User: user, Args: []string{"pack", from}})
	if err != nil {
		return Copied{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	out, err := tarcopy.Unpack(conn, to, path.Base(path.Clean(from)))
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out, err
}

// CopyIn copies a file or a directory of the host to a path of the guest, as
// user.
func CopyIn(ctx context.Context, c *guest.Client, user, from, name, to string) error {
	conn, err := c.Copy(ctx, guest.Copy{User: user, Args: []string{"unpack", to, name}})
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	said := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(conn, 8<<10))
		said <- string(b)
	}()
	err = tarcopy.Pack(conn, from)
	if h, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
	answer := <-said
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case answer == "\x00ok":
		return err
	case answer != "" && err == nil:
		return fmt.Errorf("in the guest: %s", answer)
	case err == nil:
		return errors.New("the guest has ended")
	}
	return err // the guest heard of it, and says the same
}
