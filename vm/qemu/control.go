package qemu

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync"
)

// maxEvent bounds a line of the control connection. A guest that took QEMU over
// may write anything there.
const maxEvent = 64 << 10

// event is a message of QEMU (docs/interop/qmp-spec.rst), as far as it matters.
type event struct {
	Event string `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
		Guest  bool   `json:"guest"`
	} `json:"data"`
}

// ends are the reasons of QEMU for ending, in words, for those that are faults.
var ends = map[string]string{
	"guest-reset": "the guest reset itself, as its kernel does when it panics",
	"guest-panic": "the guest's kernel panicked",
	"host-error":  "QEMU met an error",
	"host-signal": "QEMU was asked to end",
}

// listen follows the control connection until it ends, and notes why the
// machine does. A machine that QEMU stops, because it cannot go on, is ended.
func (m *machine) listen(control *os.File) {
	defer control.Close()
	if _, err := io.WriteString(control, `{"execute":"qmp_capabilities"}`+"\n"); err != nil {
		return
	}
	lines := bufio.NewScanner(control)
	lines.Buffer(make([]byte, 4096), maxEvent)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		switch e.Event {
		case "SHUTDOWN":
			m.mu.Lock()
			if m.reason == "" {
				m.reason = ends[e.Data.Reason]
			}
			m.mu.Unlock()
		case "STOP":
			go m.kill("QEMU could not go on running the guest")
		}
	}
}

// tail keeps the end of what a process writes.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// maxTail bounds it, in bytes.
const maxTail = 2048

func newTail() *tail { return &tail{} }

// read takes f over and reads it to its end.
func (t *tail) read(f *os.File) {
	defer f.Close()
	b := make([]byte, maxTail)
	for {
		n, err := f.Read(b)
		if n > 0 {
			t.mu.Lock()
			t.text = append(t.text, b[:n]...)
			if over := len(t.text) - maxTail; over > 0 {
				t.text = append(t.text[:0], t.text[over:]...)
			}
			t.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// maxLines bounds what is shown of it.
const maxLines = 3

// String is the last lines, as one.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(t.text), "�")) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), insideExe+":"))
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-maxLines):], "; ")
}
