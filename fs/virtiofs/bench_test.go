package virtiofs

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkRequests is what a request costs from the kick to the call, without a
// guest.
func BenchmarkRequests(b *testing.B) {
	x, _, _ := newExport(b)
	d := connect(b, x)
	d.begin(1)
	d.init()
	root, a := d.walk("workspace"), d.walk("workspace", "a.txt")
	f := d.create(root, "f")
	page := make([]byte, 4096)
	d.write(f, 0, make([]byte, 1<<20))
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"lookup", func() { d.lookup(root, "a.txt") }},
		{"failed lookup", func() { d.lookup(root, "none") }},
		{"getattr", func() { d.do(opGetattr, a, 104, u32s(0, 0), u64s(0)) }},
		{"read 4 KiB", func() { d.read(f, 0, 4096) }},
		{"read 1 MiB", func() { d.read(f, 0, 1<<20) }},
		{"write 4 KiB", func() { d.write(f, 0, page) }},
		{"create and unlink", func() {
			d.create(root, "new")
			d.do(opUnlink, root, 0, []byte("new\x00"))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var before, after unix.Rusage
			must(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
			for b.Loop() {
				c.do()
			}
			must(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
			b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/float64(b.N)/1000, "cpu-µs/op")
		})
	}
}
