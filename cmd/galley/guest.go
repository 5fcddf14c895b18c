package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/microvm"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/images"
)

// guestOptions say which machine commands run in, and as whom.
type guestOptions struct {
	on     bool
	image  string
	driver string
	kernel string
	net    bool
	cpus   int
	memory int64
	sized  bool // somebody asked for cpus or memory
	as     asOptions
}

// asOptions say how a command runs in a guest; what they leave out is the
// image's.
type asOptions struct {
	env     []string
	user    string
	workdir string
}

// guestFlags are the options of --sandbox microvm.
func guestFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "image", Usage: "with --sandbox microvm: boot the image `NAME`, or what ./FILE or ./DIR holds (default: the session's)"},
		boolFlag("net", "give the machine a network, which it has not otherwise"),
		&cli.IntFlag{Name: "cpus", Usage: "how many processors the machine has: `N`", Value: defaultCPUs},
		&cli.StringFlag{Name: "memory", Usage: "how much memory the machine has: `SIZE`", Value: "1G"},
		&cli.StringFlag{Name: "kernel", Usage: "boot the kernel `FILE` (default: one of this host, see galley doctor)"},
		&cli.StringFlag{Name: "driver", Usage: "what runs the machine: `DRIVER` qemu or krun", Value: "qemu"},
	}, asFlags()...)
}

func asFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `NAME=VALUE` in the guest; NAME alone takes this environment's"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER[:GROUP]` of the guest (default: the image's)"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in the guest's directory `DIR`"},
	}
}

// guestOnly are the options that mean nothing elsewhere.
var guestOnly = []string{"image", "net", "cpus", "memory", "kernel", "driver", "env", "user", "workdir"}

// guestOf reads the options.
func guestOf(c *cli.Context, e *env) (guestOptions, error) {
	g := guestOptions{on: c.String("sandbox") == "microvm"}
	if !g.on {
		for _, name := range guestOnly {
			if c.IsSet(name) {
				return g, usagef(c, "--%s is for --sandbox microvm", name)
			}
		}
		return g, nil
	}
	g.image, g.driver, g.kernel, g.net, g.cpus = c.String("image"), c.String("driver"), c.String("kernel"), c.Bool("net"), c.Int("cpus")
	var err error
	if g.memory, err = parseSize(c.String("memory")); err != nil {
		return g, usagef(c, "--memory: %v", err)
	}
	if g.cpus < 1 || g.cpus > vm.MaxCPUs {
		return g, usagef(c, "--cpus %d: expected 1 to %d", g.cpus, vm.MaxCPUs)
	}
	g.sized = c.IsSet("cpus") || c.IsSet("memory")
	g.as, err = asOf(c, e)
	return g, err
}

// fits refuses a machine that runs already and has another size than was asked
// for. Without asking, any size will do.
func (g guestOptions) fits(sess *snapshots.Session, has owner.VMStatus) error {
	if !g.sized || has.CPUs == g.cpus && has.Memory == g.memory {
		return nil
	}
	return fmt.Errorf("the machine of session %s runs already, with %s and %s; galley stop %s ends it: %w", sess.Name(),
		ui.Count(has.CPUs, "CPU", "CPUs"), ui.Bytes(has.Memory), sess.Name(), snapshots.ErrBusy)
}

func asOf(c *cli.Context, e *env) (asOptions, error) {
	a := asOptions{user: c.String("user"), workdir: c.String("workdir")}
	if a.workdir != "" && (!path.IsAbs(a.workdir) || strings.IndexByte(a.workdir, 0) >= 0) {
		return a, usagef(c, "--workdir %q: expected an absolute directory of the guest", a.workdir)
	}
	for _, kv := range c.StringSlice("env") {
		name, _, given := strings.Cut(kv, "=")
		if name == "" || strings.IndexByte(kv, 0) >= 0 {
			return a, usagef(c, "--env %q: expected NAME=VALUE, or NAME to take this environment's", kv)
		}
		if !given {
			if v := e.getenv(name); v != "" {
				kv = name + "=" + v
			}
		}
		a.env = append(a.env, kv)
	}
	return a, nil
}

// guestRoot finds the image that a session's guest has as its root, and gives
// the session a tree on it where it has none.
func (e *env) guestRoot(ctx context.Context, sess *snapshots.Session, ref string) (*images.Image, error) {
	im, err := images.Open(sess.Store())
	if err != nil {
		return nil, err
	}
	var have *snapshots.TreeSpec
	for _, t := range sess.Trees() {
		if t.Name == snapshots.Root && t.OnImage() {
			have = &t
		}
	}
	if ref == "" {
		if have == nil {
			return nil, withHint(fmt.Errorf("session %q has no image yet", sess.Name()), "--image NAME chooses one, such as debian:12 or ./image.tar", "galley images lists what is here")
		}
		return im.OfTree(*have)
	}
	release, err := im.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	p := newImageProgress(e)
	defer p.Close()
	img, err := im.Ensure(ctx, ref, images.PullOptions{Progress: p.tell})
	if err != nil {
		return nil, imageError(err)
	}
	if have != nil {
		if have.Image.Digest != img.Digest {
			return nil, withHint(fmt.Errorf("the guest of session %q stands on the image %s (%s), and %s is another (%s)",
				sess.Name(), have.Image.Name, shortDigest(have.Image.Digest), ref, shortDigest(img.Digest)),
				"without --image the session's own is used", "--new starts another session")
		}
		return img, nil
	}
	spec, err := im.Root(ctx, img, p.tell)
	if err != nil {
		return nil, imageError(err)
	}
	return img, addRoot(ctx, sess, spec)
}

// addRoot adds the guest's root to a session, live or not.
func addRoot(ctx context.Context, sess *snapshots.Session, spec snapshots.TreeSpec) error {
	c, err := owner.Dial(ctx, sess)
	if errors.Is(err, owner.ErrNoOwner) {
		return whenIdle(ctx, sess, func() error { return sess.AddTree(ctx, spec) })
	}
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.AddTree(ctx, owner.AddTree{Image: spec.Image})
	return err
}

// guestRequest is the machine that the options ask for.
func (e *env) guestRequest(ctx context.Context, sess *snapshots.Session, g guestOptions, img *images.Image, command string) (owner.VM, error) {
	r := owner.VM{
		Driver: g.driver, KernelFile: g.kernel, Net: g.net, Image: img.Name, Command: command,
		Config: vm.Config{CPUs: g.cpus, Memory: g.memory},
		Setup: guest.Setup{
			Hostname: hostname(sess.Name()), Workdir: microvm.Workdir,
			MaxProcesses: maxGuestProcesses, Reserve: guestReserve,
		},
	}
	return r, e.prepareMachine(ctx, sess.Store(), &r)
}

const (
	// maxGuestProcesses bounds the processes of a guest's commands, so that
	// one that forks without end leaves the agent its own.
	maxGuestProcesses = 8192
	// guestReserve is the memory that a guest's commands leave to the agent.
	guestReserve = 64 << 20
)

// hostname is a session's name as a host's.
func hostname(name string) string {
	h := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, name)
	if h = strings.Trim(h[:min(len(h), 63)], "-"); h == "" {
		return "galley"
	}
	return h
}

// openGuest opens the sandbox in a session's machine, which it starts.
func (e *env) openGuest(ctx context.Context, sess *snapshots.Session, g guestOptions, what string) (*microvm.Sandbox, error) {
	img, err := e.guestRoot(ctx, sess, g.image)
	if err != nil {
		return nil, err
	}
	r, err := e.guestRequest(ctx, sess, g, img, what)
	if err != nil {
		return nil, err
	}
	client, err := owner.Ensure(ctx, sess, owner.Options{Log: e.log, What: what})
	if err != nil {
		return nil, err
	}
	status, err := e.startMachine(ctx, client, r)
	if err == nil {
		err = g.fits(sess, status)
	}
	if err == nil {
		noteSandbox(sess, inMachine, e.log)
		var sb *microvm.Sandbox
		sb, err = microvm.Join(ctx, microvm.Options{
			Session: sess, VM: r, Env: img.Config.Environ(g.as.env...), User: or(g.as.user, img.Config.User), Dir: g.as.workdir,
		}, client, status)
		if err == nil {
			return sb, nil
		}
	}
	_ = client.Close()
	return nil, err
}

// execOf is a command as the image and the options want it.
func execOf(img *images.Image, a asOptions, secrets map[string]string, argv []string) guest.Exec {
	return guest.Exec{
		Argv: argv, Env: environ(img.Config.Environ(a.env...), secrets), User: or(a.user, img.Config.User),
		Dir: or(a.workdir, guestDir(img)),
	}
}

// guestDir is where a command starts: in the image's own directory, if it has
// one, else where the workspace is.
func guestDir(img *images.Image) string {
	if d := img.Config.Dir(""); d != "/" {
		return d
	}
	return microvm.Workdir
}

// detachFlags keep the machine when a command has ended.
func detachFlags() []cli.Flag {
	return []cli.Flag{
		boolFlag("detach", "with --sandbox microvm: keep the machine afterwards, for galley exec and others"),
		&cli.DurationFlag{Name: "idle", Value: defaultIdle, Usage: "with --detach: end the machine when nobody has used it for `TIME`; 0 is never"},
	}
}

// detachOf reads them.
func detachOf(c *cli.Context, on bool) (bool, time.Duration, error) {
	if !on && (c.IsSet("detach") || c.IsSet("idle")) {
		return false, 0, usagef(c, "--detach and --idle are for --sandbox microvm")
	}
	d, err := idleOf(c)
	return c.Bool("detach"), d, err
}
