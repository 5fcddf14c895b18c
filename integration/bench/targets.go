package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kind is a file system that is measured: how a tree of it comes to stand at
// t.dir over the base, with what is written going to t.upper.
type kind struct {
	name string
	// rootOnly: an ordinary user's kernel would not mount it without a
	// namespace around the whole work.
	rootOnly bool
	// ring: while it is mounted, the kernel may offer FUSE over io_uring.
	ring bool
	// mount is the command that mounts, empty for a plain copy.
	mount func(b *bench, t *target) []string
}

var kinds = []kind{
	{name: "native"},
	{name: "overlayfs", rootOnly: true, mount: func(b *bench, t *target) []string {
		return []string{"mount", "-t", "overlay", "overlay", "-o", t.layerOptions(b), t.dir}
	}},
	{name: "fuse-overlayfs", mount: func(b *bench, t *target) []string {
		return []string{"fuse-overlayfs", "-o", t.layerOptions(b), t.dir}
	}},
	{name: "galley", mount: func(b *bench, t *target) []string { return t.galley(b) }},
	{name: "galley, writeback", mount: func(b *bench, t *target) []string { return t.galley(b, "writeback") }},
	{name: "galley, io_uring", ring: true, mount: func(b *bench, t *target) []string { return t.galley(b) }},
}

// target is one kind in one round, used by one user.
type target struct {
	kind kind
	who  who
	// place holds all of it: upper, work, the mount point. Every server is
	// started with a path below it, and is known by that.
	place string
	dir   string // the tree
	up    bool
	err   error // why it could not be mounted
}

func (t *target) layerOptions(b *bench) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", b.base, t.place, t.place)
}

// galley is the command that shows a session of its own at the target, with
// these mount options; with -direct, the engine and its face without one.
func (t *target) galley(b *bench, options ...string) []string {
	if b.direct {
		argv := []string{b.dir + "/bench", "serve"}
		for _, o := range options {
			argv = append(argv, "-"+o)
		}
		return append(argv, b.base, t.place+"/work", t.dir)
	}
	argv := []string{"env", "GALLEY_HOME=" + t.place + "/work", b.galley, "mount", "--base", b.base}
	for _, o := range options {
		argv = append(argv, "-o", o)
	}
	return append(argv, "bench", t.dir)
}

// newTarget makes the directories of a target, and its copy of the tree if it
// is a plain one.
func (b *bench) newTarget(k kind, w who) (*target, error) {
	name := strings.NewReplacer(" ", "", ",", "-").Replace(k.name)
	t := &target{kind: k, who: w, place: filepath.Join(b.place, name)}
	t.dir = t.place + "/tree"
	if k.mount == nil {
		if err := b.must(w, "/", fmt.Sprintf("mkdir %s && cp -a %s %s && git -C %s/repo status --porcelain", t.place, b.base, t.dir, t.dir)); err != nil {
			return nil, err
		}
		return t, nil
	}
	return t, b.must(w, "/", fmt.Sprintf("mkdir -p %s/upper %s/work %s", t.place, t.place, t.dir))
}

// mount mounts the target. A kind that cannot is left out of the table, with
// the reason in the log.
func (b *bench) mount(t *target) {
	if t.kind.mount == nil || t.up {
		return
	}
	restore, err := allowRings(t.kind.ring)
	if err != nil {
		t.err = err
		return
	}
	defer restore()
	cmd := b.command(t.who, "/", t.kind.mount(b, t)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if t.err = cmd.Start(); t.err != nil {
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(20 * time.Second)
	for {
		if isMounted(t.dir) {
			t.up = true
			// Answered once the server is at work.
			t.err = b.must(t.who, "/", "stat "+t.dir)
			return
		}
		select {
		case err := <-ended:
			if err != nil {
				t.err = fmt.Errorf("%q: %w: %s", cmd.Args, err, out.String())
				return
			}
			ended = nil // it went into the background
		case <-deadline:
			t.err = fmt.Errorf("%q: nothing mounted after 20 seconds: %s", cmd.Args, out.String())
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// allowRings says whether the kernel may offer FUSE over io_uring to mounts
// that are made now, and returns what puts it back.
func allowRings(on bool) (func(), error) {
	const parameter = "/sys/module/fuse/parameters/enable_uring"
	before, err := os.ReadFile(parameter)
	if err != nil && on {
		return nil, fmt.Errorf("the kernel has no FUSE over io_uring: %w", err)
	}
	want := map[bool]string{false: "N", true: "Y"}[on]
	if err != nil || strings.TrimSpace(string(before)) == want {
		return func() {}, nil
	}
	put := func(text string) error { return os.WriteFile(parameter, []byte(text), 0) }
	return func() {
		if err := put(string(before)); err != nil {
			fmt.Fprintf(os.Stderr, "bench: put %s back: %v\n", parameter, err)
		}
	}, put(want)
}

// unmount takes the target down, by force if it must.
func (b *bench) unmount(t *target) {
	if t.kind.mount == nil || !t.up {
		return
	}
	if err := unix.Unmount(t.dir, 0); err != nil {
		// The server of an ordinary user, and a tree that something still
		// looks at.
		if err := unix.Unmount(t.dir, unix.MNT_DETACH); err != nil {
			fmt.Fprintf(os.Stderr, "bench: unmount %s: %v\n", t.dir, err)
		}
	}
	t.up = false
	b.waitServers(t)
}

// waitServers waits for the servers to see that their mount is gone, and ends
// those that do not.
func (b *bench) waitServers(t *target) {
	for range 500 {
		if len(t.servers()) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, pid := range t.servers() {
		fmt.Fprintf(os.Stderr, "bench: server %d of %s did not end by itself\n", pid, t.dir)
		unix.Kill(pid, unix.SIGKILL)
	}
}

// remount gives a cold view: another server, and nothing in the kernel's caches.
func (b *bench) remount(t *target) error {
	b.unmount(t)
	if err := dropCaches(); err != nil {
		return err
	}
	b.mount(t)
	return t.err
}

func isMounted(dir string) bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && bytes.Contains(mounts, []byte(" "+dir+" "))
}
