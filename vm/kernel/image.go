package kernel

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// The header of a bzImage (Documentation/arch/x86/boot.rst).
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202 // "HdrS"
	offProtocol      = 0x206
	offKernelVersion = 0x20e
	offPayload       = 0x248
	offPayloadLength = 0x24c
	headerEnd        = 0x250
	setupUnit        = 512
	// payloadProtocol is the boot protocol from which a header says where
	// the compressed kernel lies.
	payloadProtocol = 0x208
)

const (
	// maxImage bounds a kernel's file, maxKernel what it is when
	// uncompressed: several times the largest there are.
	maxImage  = 256 << 20
	maxKernel = 512 << 20
)

var errNotKernel = errors.New("not a Linux kernel for x86-64: neither a bzImage nor an ELF file")

// releaseOf reads the release from a kernel's image; "" of an uncompressed one,
// which does not say it where it could be read at once.
func releaseOf(p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		return "", fmt.Errorf("kernel %s: %w", p, err)
	}
	head := make([]byte, 32<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return "", fmt.Errorf("kernel %s: %w", p, err)
	}
	head = head[:n]
	if isELF(head) {
		return "", nil
	}
	if !isBzImage(head) {
		return "", fmt.Errorf("kernel %s: %w", p, errNotKernel)
	}
	at := int(binary.LittleEndian.Uint16(head[offKernelVersion:])) + setupUnit
	if at == setupUnit || at >= len(head) {
		return "", nil
	}
	text, _, _ := bytes.Cut(head[at:], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if strings.ContainsAny(release, "/\n") || len(release) > 128 {
		return "", fmt.Errorf("kernel %s: %w", p, errNotKernel)
	}
	return release, nil
}

func isELF(b []byte) bool { return bytes.HasPrefix(b, []byte(elf.ELFMAG)) }

func isBzImage(b []byte) bool {
	return len(b) >= headerEnd && string(b[offMagic:offMagic+4]) == "HdrS"
}

// payload is the compressed kernel in a bzImage.
func payload(image []byte) ([]byte, error) {
	if !isBzImage(image) || binary.LittleEndian.Uint16(image[offProtocol:]) < payloadProtocol {
		return nil, errors.New("it does not say where its payload is")
	}
	sects := int(image[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := uint64(sects+1)*setupUnit + uint64(binary.LittleEndian.Uint32(image[offPayload:]))
	size := uint64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if size < 8 || start+size > uint64(len(image)) {
		return nil, errors.New("its payload lies outside the file")
	}
	return image[start : start+size], nil
}

// uncompress makes the ELF kernel of a bzImage. A kernel that QEMU could not
// enter, because it has no note of its PVH entry, is an error too.
func uncompress(image []byte) ([]byte, error) {
	p, err := payload(image)
	if err != nil {
		return nil, err
	}
	r, err := decompressor(p)
	if err != nil {
		return nil, err
	}
	// Its size follows each format's own end; gzip's has it there anyway.
	size := int64(binary.LittleEndian.Uint32(p[len(p)-4:]))
	if size > maxKernel {
		return nil, fmt.Errorf("%d bytes uncompressed are too many", size)
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, err
	}
	// The end is where sums are checked.
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("it does not end after %d bytes (%v)", size, err)
	}
	if !hasPVH(out) {
		return nil, errors.New("it has no PVH entry")
	}
	return out, nil
}

// decompressor reads the payload of a bzImage, whose last four bytes are not of
// the compressed stream but, in gzip's, a part of it.
func decompressor(p []byte) (io.Reader, error) {
	body := bytes.NewReader(p[:len(p)-4])
	switch {
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		return gzip.NewReader(bytes.NewReader(p))
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// The kernel's window is as large as the kernel.
		return zstd.NewReader(body, zstd.WithDecoderMaxWindow(maxKernel), zstd.WithDecoderConcurrency(1))
	case bytes.HasPrefix(p, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(body)
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		return lz4.NewReader(body), nil
	case bytes.HasPrefix(p, []byte("BZh")):
		return bzip2.NewReader(body), nil
	}
	return nil, fmt.Errorf("its compression, which begins with % x, is not known", p[:4])
}

// pvhNote is the type of the ELF note that says where QEMU enters a kernel that
// is not compressed.
const pvhNote = 18

// hasPVH looks for that note.
func hasPVH(kernel []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_NOTE || prog.Filesz > 1<<20 {
			continue
		}
		b := make([]byte, prog.Filesz)
		if _, err := prog.ReadAt(b, 0); err != nil {
			continue
		}
		if noteIn(b, "Xen", pvhNote) {
			return true
		}
	}
	return false
}

// noteIn looks for a note of that name and type in a segment of notes.
func noteIn(b []byte, name string, kind uint32) bool {
	pad := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		namesz, descsz := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		end := 12 + pad(namesz) + pad(descsz)
		if end > uint64(len(b)) {
			return false
		}
		if binary.LittleEndian.Uint32(b[8:]) == kind && string(bytes.TrimRight(b[12:12+namesz], "\x00")) == name {
			return true
		}
		b = b[end:]
	}
	return false
}
