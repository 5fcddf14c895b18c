package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"github.com/galleyfs/galley/vm"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// elfKernel is an ELF file with the note of a PVH entry, or without.
func elfKernel(t *testing.T, pvh bool) []byte {
	t.Helper()
	var note bytes.Buffer
	kind := uint32(pvhNote)
	if !pvh {
		kind = 1
	}
	for _, v := range []any{uint32(4), uint32(8), kind, []byte("Xen\x00"), uint64(0x1000000)} {
		check(t, binary.Write(&note, binary.LittleEndian, v))
	}
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	p := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(note.Len()), Memsz: uint64(note.Len())}
	var b bytes.Buffer
	check(t, binary.Write(&b, binary.LittleEndian, h))
	check(t, binary.Write(&b, binary.LittleEndian, p))
	b.Write(note.Bytes())
	b.Write(bytes.Repeat([]byte("kernel text "), 4096))
	return b.Bytes()
}

// bzImage wraps a kernel as the kernel's build does.
func bzImage(release string, payload []byte) []byte {
	b := make([]byte, 3*setupUnit)
	b[offSetupSects] = 2
	copy(b[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[offProtocol:], 0x20f)
	binary.LittleEndian.PutUint16(b[offKernelVersion:], 2*setupUnit-setupUnit)
	copy(b[2*setupUnit:], release+" (builder@host) #1\x00")
	binary.LittleEndian.PutUint32(b[offPayload:], 0)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(b, payload...)
}

// compressors make payloads, with the size after them that the kernel's build
// appends to all but gzip's.
var compressors = map[string]func(w io.Writer) (io.WriteCloser, error){
	"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	"lz4": func(w io.Writer) (io.WriteCloser, error) {
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true))
	},
}

func compressed(t *testing.T, format string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := compressors[format](&out)
	check(t, err)
	_, err = w.Write(b)
	check(t, err)
	check(t, w.Close())
	if format != "gzip" {
		check(t, binary.Write(&out, binary.LittleEndian, uint32(len(b))))
	}
	return out.Bytes()
}

// Every compression that distributions use is undone; what cannot be is booted
// as it is.
func TestUncompressed(t *testing.T) {
	want := elfKernel(t, true)
	for format := range compressors {
		t.Run(format, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "vmlinuz")
			check(t, os.WriteFile(image, bzImage("6.1.0-13-amd64", compressed(t, format, want)), 0o644))
			c, err := openCache(filepath.Join(t.TempDir(), "cache"))
			check(t, err)
			p, err := c.uncompressed(t.Context(), image)
			check(t, err)
			got, err := os.ReadFile(p)
			check(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, want the %d of the kernel", len(got), len(want))
			}
			if again, err := c.uncompressed(t.Context(), image); err != nil || again != p {
				t.Errorf("the second time: %q, %v; want %q", again, err, p)
			}
		})
	}
	for name, payload := range map[string][]byte{
		"unknown compression": []byte("??????????????????"),
		"damaged":             compressed(t, "gzip", want)[:200],
		"without PVH":         compressed(t, "zstd", elfKernel(t, false)),
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "vmlinuz")
			b := bzImage("6.1.0-13-amd64", payload)
			check(t, os.WriteFile(image, b, 0o644))
			c, err := openCache(filepath.Join(t.TempDir(), "cache"))
			check(t, err)
			p, err := c.uncompressed(t.Context(), image)
			check(t, err)
			if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes, %v; want the image as it is", len(got), err)
			}
		})
	}
}

// host makes a root directory with kernels and their modules.
func host(t *testing.T, releases ...string) string {
	t.Helper()
	root := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(root, "boot"), 0o755))
	for _, r := range releases {
		check(t, os.WriteFile(filepath.Join(root, "boot/vmlinuz-"+r), bzImage(r, compressed(t, "gzip", elfKernel(t, true))), 0o644))
		addModules(t, filepath.Join(root, "lib/modules", r), ".ko", func(b []byte) []byte { return b })
	}
	return root
}

// addModules makes the modules that a guest needs, as in Debian 12: virtio is
// loaded after virtio_ring.
func addModules(t *testing.T, dir, suffix string, pack func([]byte) []byte) {
	t.Helper()
	deps := map[string][]string{
		"virtio_ring": nil, "virtio": {"virtio_ring"}, "virtio_pci": {"virtio_ring", "virtio"}, "virtio_console": {"virtio_ring", "virtio"},
		"fuse": nil, "virtiofs": {"virtio_ring", "virtio", "fuse"}, "virtio-rng": {"virtio_ring", "virtio"}, "unrelated": nil,
	}
	check(t, os.MkdirAll(filepath.Join(dir, "kernel"), 0o755))
	var list strings.Builder
	for m, needs := range deps {
		list.WriteString("kernel/" + m + suffix + ":")
		for _, n := range needs {
			list.WriteString(" kernel/" + n + suffix)
		}
		list.WriteString("\n")
		check(t, os.WriteFile(filepath.Join(dir, "kernel", m+suffix), pack([]byte("module "+m)), 0o644))
	}
	check(t, os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(list.String()), 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/net/ipv4/tcp.ko\n"), 0o644))
}

func TestFindTakesTheNewestWithItsModules(t *testing.T) {
	root := host(t, "6.1.0-9-amd64", "6.1.0-13-amd64", "6.1.0-13-cloud-amd64", "5.15.0-100-generic")
	// A newer one without modules, and one that is no kernel.
	check(t, os.WriteFile(filepath.Join(root, "boot/vmlinuz-6.9.0"), bzImage("6.9.0", compressed(t, "gzip", elfKernel(t, true))), 0o644))
	check(t, os.WriteFile(filepath.Join(root, "boot/vmlinuz-7.0.0"), []byte("not one"), 0o644))
	got, err := Find(Options{Root: root})
	check(t, err)
	if got.Release != "6.1.0-13-cloud-amd64" {
		t.Errorf("found %+v", got)
	}
}

func TestFindSaysWhatIsMissing(t *testing.T) {
	_, err := Find(Options{Root: t.TempDir()})
	var m *vm.Missing
	if !errors.As(err, &m) || m.Fix == "" {
		t.Errorf("an empty host: %v, want what to install", err)
	}
	root := host(t, "6.1.0-13-amd64")
	check(t, os.RemoveAll(filepath.Join(root, "lib")))
	if _, err = Find(Options{Root: root}); err == nil || !strings.Contains(err.Error(), "/lib/modules/6.1.0-13-amd64 is not there") {
		t.Errorf("no modules: %v", err)
	}
	root = host(t, "6.1.0-13-amd64")
	dep := filepath.Join(root, "lib/modules/6.1.0-13-amd64/modules.dep")
	check(t, os.WriteFile(dep, []byte("kernel/virtio_pci.ko:\nkernel/virtio_console.ko:\n"), 0o644))
	if _, err = Find(Options{Root: root}); err == nil || !strings.Contains(err.Error(), "no module virtiofs") {
		t.Errorf("no virtiofs: %v", err)
	}
	check(t, os.WriteFile(dep, []byte("kernel/virtio_pci.ko: ../../../etc/passwd\n"), 0o644))
	if _, err = Find(Options{Root: root}); err == nil || !strings.Contains(err.Error(), "lies outside") {
		t.Errorf("a module outside: %v", err)
	}
	for name, o := range map[string]Options{
		"no such file": {Path: filepath.Join(root, "nothing")},
		"not a kernel": {Path: dep},
		"too old":      {Path: filepath.Join(host(t, "4.19.0-5-amd64"), "boot/vmlinuz-4.19.0-5-amd64")},
		"a directory":  {Path: root},
	} {
		if _, err := Find(o); err == nil || !strings.Contains(err.Error(), o.Path) {
			t.Errorf("%s: %v, want an error that names it", name, err)
		}
	}
}

func TestUnreadableKernelIsNamed(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("needs an ordinary user: root reads everything")
	}
	root := host(t, "6.1.0-13-generic")
	image := filepath.Join(root, "boot/vmlinuz-6.1.0-13-generic")
	check(t, os.Chmod(image, 0))
	if _, err := Find(Options{Root: root}); err == nil || !strings.Contains(err.Error(), "chmod a+r "+image) {
		t.Errorf("%v, want what to do about it", err)
	}
}

// The initial file system holds the agent and the modules in an order in which
// they can be loaded, uncompressed, and cpio(1) reads it.
func TestInitrd(t *testing.T) {
	for suffix, format := range map[string]string{".ko": "", ".ko.xz": "xz", ".ko.zst": "zstd", ".ko.gz": "gzip"} {
		t.Run(suffix, func(t *testing.T) {
			root := host(t, "6.1.0-13-amd64")
			dir := filepath.Join(root, "lib/modules/6.1.0-13-amd64")
			check(t, os.RemoveAll(dir))
			addModules(t, dir, suffix, func(b []byte) []byte {
				if format == "" {
					return b
				}
				out := compressed(t, format, b)
				if format != "gzip" {
					out = out[:len(out)-4]
				}
				return out
			})
			exe, err := os.Executable()
			check(t, err)
			image, err := Find(Options{Root: root})
			check(t, err)
			loads, err := resolve(image)
			check(t, err)
			c, err := openCache(filepath.Join(t.TempDir(), "cache"))
			check(t, err)
			p, err := c.initrd(t.Context(), exe, loads)
			check(t, err)
			if again, err := c.initrd(t.Context(), exe, loads); err != nil || again != p {
				t.Errorf("the second time: %q, %v; want %q", again, err, p)
			}
			files := unpack(t, p)
			order := strings.Fields(string(files["modules/order"]))
			before := func(a, b string) {
				i, j := slices.Index(order, "/modules/"+a+".ko"), slices.Index(order, "/modules/"+b+".ko")
				if i < 0 || j < 0 || i > j {
					t.Errorf("%s is not before %s in %q", a, b, order)
				}
			}
			before("virtio_ring", "virtio")
			before("virtio", "virtio_pci")
			before("fuse", "virtiofs")
			before("virtio", "virtio_rng")
			if slices.Contains(order, "/modules/unrelated.ko") {
				t.Errorf("%q has a module that nobody needs", order)
			}
			for _, o := range order {
				name := strings.TrimPrefix(o, "/")
				want := "module " + strings.TrimSuffix(strings.TrimPrefix(name, "modules/"), ".ko")
				if got := strings.ReplaceAll(string(files[name]), "-", "_"); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			self, err := os.ReadFile(exe)
			check(t, err)
			if !bytes.Equal(files["init"], self) {
				t.Errorf("init has %d bytes, want the %d of the agent", len(files["init"]), len(self))
			}
		})
	}
}

// unpack reads an archive by the format's description, not by our writer.
func unpack(t *testing.T, p string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(p)
	check(t, err)
	files := map[string][]byte{}
	number := func(at int) int {
		var n int
		for _, c := range b[at : at+8] {
			n = n<<4 | strings.IndexByte("0123456789abcdef", c)
		}
		return n
	}
	for at := 0; ; {
		if len(b) < at+110 || string(b[at:at+6]) != "070701" {
			t.Fatalf("no entry at %d of %d", at, len(b))
		}
		size, namesize := number(at+6+6*8), number(at+6+11*8)
		name := string(b[at+110 : at+110+namesize-1])
		data := (at + 110 + namesize + 3) &^ 3
		if name == "TRAILER!!!" {
			return files
		}
		files[name] = b[data : data+size]
		at = (data + size + 3) &^ 3
	}
}

// A cache that many fill at a time holds each file once and nothing else.
func TestCacheIsFilledAtOnce(t *testing.T) {
	root := host(t, "6.1.0-13-amd64")
	dir := filepath.Join(t.TempDir(), "cache")
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := Uncompressed(context.Background(), Options{Root: root, Cache: dir})
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(dir)
	check(t, err)
	if len(entries) != 1 || !strings.HasPrefix(entries[0].Name(), kernelPrefix) {
		t.Errorf("the cache holds %v", entries)
	}
}

func TestGuestIsChecked(t *testing.T) {
	script := filepath.Join(t.TempDir(), "galley-guest")
	check(t, os.WriteFile(script, bytes.Repeat([]byte("#!/bin/sh\n"), 10), 0o755))
	dynamic, err := exec.LookPath("mount")
	check(t, err)
	for name, k := range map[string]struct{ path, want string }{
		"not there": {filepath.Join(t.TempDir(), "none"), "no such file"},
		"a script":  {script, "bad magic"},
		"dynamic":   {dynamic, "CGO_ENABLED=0"},
	} {
		if _, err := FindGuest(k.path); err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v, want %q in it", name, err, k.want)
		}
	}
}

func TestCompareReleases(t *testing.T) {
	order := []string{"5.15.0-100-generic", "6.1.0-9-amd64", "6.1.0-13-amd64", "6.1.0-13-cloud-amd64", "6.10.2-arch1-1", "6.18.44"}
	for i := range order[1:] {
		if compareReleases(order[i], order[i+1]) >= 0 || compareReleases(order[i+1], order[i]) <= 0 {
			t.Errorf("%s is not before %s", order[i], order[i+1])
		}
	}
}

// FuzzImage feeds the readers of kernels what no kernel is.
func FuzzImage(f *testing.F) {
	f.Add([]byte("HdrS"))
	f.Add(bzImage("6.1.0", []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4 {
			// A claim of half a gigabyte is allowed, and slow.
			binary.LittleEndian.PutUint32(b[len(b)-4:], uint32(b[0])<<8)
		}
		_, _ = uncompress(b)
		hasPVH(b)
	})
}
