package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// teller adds up what several goroutines did and reports it.
type teller struct {
	fn    func(Progress)
	stage string
	total int64

	mu   sync.Mutex
	done int64
}

func (t *teller) add(n int64) {
	if t == nil || t.fn == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += n
	t.fn(Progress{Stage: t.stage, Done: t.done, Total: t.total})
}

const (
	// fetchTries is how often a blob is asked for without any byte of it
	// coming, before that is an error.
	fetchTries = 4
	// fetchPause is how long the first wait between two tries is.
	fetchPause = 200 * time.Millisecond
)

// blob fetches one blob, unless it is there. What came of it stays in a partial
// file, whose lock keeps others from fetching it as well.
func (p *puller) blob(ctx context.Context, d v1.Descriptor) error {
	name, err := hexOf(d.Digest.String())
	if err != nil {
		return err
	}
	if p.s.hasBlob(name, d.Size) {
		p.tell.add(d.Size)
		return nil
	}
	path := p.s.path(dirPartial, name)
	f, err := flock(ctx, path, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer f.Close()
	if p.s.hasBlob(name, d.Size) { // by who had the lock
		p.tell.add(d.Size)
		return remove(path)
	}
	t := &transfer{p: p, d: d, f: f, h: sha256.New()}
	if err := t.run(ctx); err != nil {
		return err
	}
	if got := hex.EncodeToString(t.h.Sum(nil)); got != name {
		_ = remove(path)
		return fmt.Errorf("its content has the digest sha256:%s: %w", got, ErrDamaged)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path, p.s.blobPath(name)); err != nil {
		return err
	}
	return syncDir(p.s.path(dirBlobs))
}

// transfer is the fetching of one blob.
type transfer struct {
	p    *puller
	d    v1.Descriptor
	f    *os.File
	h    hash.Hash
	have int64
}

func (t *transfer) run(ctx context.Context) error {
	n, err := io.Copy(t.h, io.LimitReader(t.f, t.d.Size))
	if err != nil {
		return err
	}
	t.have = n
	t.p.tell.add(n)
	pause := fetchPause
	for tries := 0; t.have < t.d.Size; {
		before := t.have
		err := t.once(ctx)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if tries++; t.have > before {
			tries, pause = 0, fetchPause
		}
		if tries >= fetchTries || !again(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
			pause *= 2
		}
	}
	return t.f.Truncate(t.d.Size)
}

// statusError is an answer that is not what was asked for.
type statusError struct{ code int }

func (e *statusError) Error() string { return "the registry answers " + http.StatusText(e.code) }

// again tells errors that may pass: of the network, and of a registry that is
// overloaded.
func again(err error) bool {
	var s *statusError
	if errors.As(err, &s) {
		return s.code >= 500 || s.code == http.StatusTooManyRequests || s.code == http.StatusRequestTimeout
	}
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound) {
		return false
	}
	no := overlay.Errno(err)
	return no != unix.ENOSPC && no != unix.EDQUOT && no != unix.EFBIG
}

// once asks for what is missing and writes what comes.
func (t *transfer) once(ctx context.Context) error {
	repo := t.p.ref.Context()
	u := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/" + t.d.Digest.String()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	if t.have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", t.have, t.d.Size-1))
	}
	resp, err := t.p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && t.have > 0:
	case resp.StatusCode == http.StatusOK:
		// From the beginning, whatever was asked for.
		t.p.tell.add(-t.have)
		t.have = 0
		t.h.Reset()
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("the registry names it and does not have it: %w", ErrNotFound)
	default:
		return &statusError{resp.StatusCode}
	}
	body := io.LimitReader(resp.Body, t.d.Size-t.have+1)
	buf := make([]byte, 256<<10)
	for {
		n, rerr := body.Read(buf)
		if n > 0 {
			if t.have+int64(n) > t.d.Size {
				return fmt.Errorf("more than the %d bytes that are promised: %w", t.d.Size, ErrDamaged)
			}
			if _, err := t.f.WriteAt(buf[:n], t.have); err != nil {
				return err
			}
			t.h.Write(buf[:n])
			t.have += int64(n)
			t.p.tell.add(int64(n))
		}
		if rerr == io.EOF && t.have < t.d.Size {
			return fmt.Errorf("cut off at %d of %d bytes: %w", t.have, t.d.Size, io.ErrUnexpectedEOF)
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}
