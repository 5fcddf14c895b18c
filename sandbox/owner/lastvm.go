package owner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// machineFile keeps what the session's last machine was, in the session's
// directory, so that it can be started again.
const machineFile = "machine.json"

// LastVM is the request by which the session's last machine was started;
// [snapshots.ErrNotFound] if it had none.
func LastVM(sess *snapshots.Session) (VM, error) {
	var r VM
	b, err := os.ReadFile(filepath.Join(sess.Dir(), machineFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("session %s has had no machine: %w", sess.Name(), snapshots.ErrNotFound)
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("session %s: read what its machine was: %w", sess.Name(), err)
	}
	return r, nil
}

// keepVM records r as the session's last machine.
func keepVM(sess *snapshots.Session, r VM) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(sess.Dir(), machineFile)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
