// Package imagestest gives tests images of something real: Busybox, in a few
// milliseconds, and Debian, made once on a machine from its own apt sources.
package imagestest

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// variable names the file that scripts/debian-image.sh made.
const variable = "GALLEY_DEBIAN"

// Debian is the path of a tar with the root file system of a Debian as small as it
// goes, with git and sqlite3. It is made the first time that it is asked for,
// which takes a minute and root; the test scripts do so beforehand, for all users.
func Debian(t testing.TB) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(os.TempDir(), fmt.Sprintf("galley-debian-%d", os.Getuid()), "root.tar")
	}
	if st, err := os.Stat(path); err == nil && st.Size() > 0 {
		return path
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("mmdebstrap is not installed")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to make the image of Debian")
	}
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "..", "..", "..", "scripts", "debian-image.sh")
	if out, err := exec.Command(script, path).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", script, path, err, out)
	}
	return path
}

// applets are the names that Busybox gets in [Busybox].
const applets = "sh ash cat ls echo mkdir rm rmdir mv cp ln chmod chown stat head tail grep sed awk find sleep sync mount umount " +
	"true false test env id whoami hostname uname ps kill touch dd wc sort tee tr cut xargs date df du printf readlink realpath " +
	"mktemp od cmp diff tar gzip gunzip ip ifconfig nslookup wget nc stty tty setsid nohup"

// Busybox is the path of a tar with the root file system of a static Busybox: a
// shell and the usual tools in /bin, /etc/passwd with root and app, and nothing
// else. It is a file of the test's own.
func Busybox(t testing.TB) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	in, err := os.Open(busybox)
	must(t, err)
	defer in.Close()
	st, err := in.Stat()
	must(t, err)
	path := filepath.Join(t.TempDir(), "busybox.tar")
	out, err := os.Create(path)
	must(t, err)
	w := tar.NewWriter(out)
	add := func(typ byte, name, link string, mode int64, uid int, size int64, content io.Reader) {
		must(t, w.WriteHeader(&tar.Header{
			Format: tar.FormatPAX, Typeflag: typ, Name: name, Linkname: link, Mode: mode, Uid: uid, Gid: uid, Size: size, ModTime: time.Unix(1e9, 0),
		}))
		if content != nil {
			_, err := io.Copy(w, content)
			must(t, err)
		}
	}
	for dir, mode := range map[string]int64{"bin": 0o755, "etc": 0o755, "root": 0o700, "tmp": 0o1777, "proc": 0o555, "sys": 0o555, "dev": 0o755, "var": 0o755, "usr": 0o755, "run": 0o755} {
		add(tar.TypeDir, dir+"/", "", mode, 0, 0, nil)
	}
	add(tar.TypeDir, "home/", "", 0o755, 0, 0, nil)
	add(tar.TypeDir, "home/app/", "", 0o755, 1000, 0, nil)
	add(tar.TypeReg, "bin/busybox", "", 0o755, 0, st.Size(), in)
	for name := range strings.FieldsSeq(applets) {
		add(tar.TypeSymlink, "bin/"+name, "busybox", 0o777, 0, 0, nil)
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:An app:/home/app:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1000:\nlog:x:4:app\n",
	} {
		add(tar.TypeReg, name, "", 0o644, 0, int64(len(text)), strings.NewReader(text))
	}
	must(t, w.Close())
	must(t, out.Close())
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
