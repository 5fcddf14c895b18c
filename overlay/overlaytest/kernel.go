package overlaytest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MountKernel mounts the Linux kernel's own overlayfs at dir: lower from the
// highest to the lowest, and upper and work, or neither for a read-only
// mount. It understands everything that a layer of Galley may hold. The caller
// unmounts.
func MountKernel(dir string, lower []string, upper, work string) error {
	opts := []string{"redirect_dir=on", "metacopy=on", "index=off", "lowerdir=" + strings.Join(lower, ":")}
	flags := uintptr(unix.MS_NODEV)
	if upper != "" {
		opts = append(opts, "upperdir="+upper, "workdir="+work)
	} else {
		opts[0] = "redirect_dir=follow"
		flags |= unix.MS_RDONLY
	}
	data := strings.Join(opts, ",")
	if len(data) >= unix.Getpagesize() {
		return fmt.Errorf("mount options of %d bytes: %w", len(data), unix.E2BIG)
	}
	if err := unix.Mount("overlay", dir, "overlay", flags, data); err != nil {
		return fmt.Errorf("mount overlayfs with %q: %w", data, err)
	}
	return nil
}
