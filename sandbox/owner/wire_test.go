package owner

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// frame is a message as it travels.
func frame(text string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(text)))) + text
}

var hello = fmt.Sprintf(`{"n":1,"op":"hello","body":{"protocol":%d}}`, protocol)

// A client that sends garbage, too much, or half of something is hung up on,
// and nobody else notices.
func TestHostileClients(t *testing.T) {
	sess := newSession(t)
	good := ensure(t, sess, "good")
	for _, c := range []struct {
		name, send string
		answers    string // in what the owner says before it hangs up
	}{
		{"nothing", "", ""},
		{"garbage", "GET / HTTP/1.1\r\n\r\n", ""},
		{"half a length", "\x00\x00", ""},
		{"half a frame", "\x00\x00\x10\x00{", ""},
		{"a frame of nothing", "\x00\x00\x00\x00", ""},
		{"a frame of 4 GiB", "\xff\xff\xff\xff" + strings.Repeat("x", 1<<16), ""},
		{"a frame of 64 MiB that does not come", "\x04\x00\x00\x00{", ""},
		{"no hello", frame(`{"n":1,"op":"seal","body":{}}`), ""},
		{"no JSON", frame("seal please"), ""},
		{"no UTF-8", frame("{\"n\":1,\"op\":\"hello\xff\"}"), ""},
		{"an unknown field", frame(`{"n":1,"op":"hello","as":"root"}`), ""},
		{"two values", frame(hello + hello), ""},
		{"no number", frame(`{"op":"hello","body":{}}`), ""},
		{"deep nesting", frame(hello) + frame(`{"n":2,"op":"seal","body":`+strings.Repeat("[", 1<<20)+`}`), ""},
		{"another protocol", frame(`{"n":7,"op":"hello","body":{"protocol":99}}`), "protocol 99; end the commands that use the session"},
		{"no such operation", frame(hello) + frame(`{"n":2,"op":"commit","body":{}}`), `\"commit\": no such operation`},
		{"a body of another kind", frame(hello) + frame(`{"n":2,"op":"seal","body":[1]}`), "seal: "},
		{"no descriptor", frame(hello) + frame(`{"n":2,"op":"serve-fuse","body":{"tree":"workspace","mountpoint":"/"}}`), "no descriptor came with the request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := dial(sess.Socket())
			check(t, err)
			defer conn.Close()
			check(t, conn.SetDeadline(time.Now().Add(deadline)))
			_, _ = conn.Write([]byte(c.send)) // it may have been hung up on by now
			check(t, conn.CloseWrite())
			said := readAll(conn)
			if !strings.Contains(said, c.answers) {
				t.Errorf("it says %q, want %q", said, c.answers)
			}
			_, err = good.Seal(t.Context(), snapshots.SealOptions{})
			check(t, err)
		})
	}
	if s, err := good.Status(t.Context()); err != nil || len(s.Clients) != 1 {
		t.Errorf("status %+v, %v: want one client", s.Clients, err)
	}
}

func readAll(conn *net.UnixConn) string {
	var b bytes.Buffer
	_, _ = b.ReadFrom(conn) // an owner that hangs up may reset the connection
	return b.String()
}

func TestOnlyOneDescriptorOfAFUSEDeviceIsTaken(t *testing.T) {
	sess := newSession(t)
	c := ensure(t, sess, "good")
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer null.Close()
	if _, err := c.ServeFUSE(t.Context(), FUSE{Tree: snapshots.Workspace}, int(null.Fd())); err == nil {
		t.Error("/dev/null was served")
	}
	if _, err := c.ServeFUSE(t.Context(), FUSE{Tree: "nosuch"}, int(null.Fd())); err == nil || !strings.Contains(err.Error(), `tree "nosuch"`) {
		t.Errorf("%v: want that there is no such tree", err)
	}
	// Two at once: the connection ends, the owner does not.
	conn, err := dial(sess.Socket())
	check(t, err)
	defer conn.Close()
	_, _, err = conn.WriteMsgUnix([]byte(frame(hello)), unix.UnixRights(int(null.Fd()), int(null.Fd())), nil)
	check(t, err)
	check(t, conn.SetDeadline(time.Now().Add(deadline)))
	if said := readAll(conn); said != "" {
		t.Errorf("it says %q, want nothing", said)
	}
	_, err = c.Seal(t.Context(), snapshots.SealOptions{})
	check(t, err)
}

// A connection that says nothing does not keep the owner.
func TestSilentClientKeepsNobody(t *testing.T) {
	sess := newSession(t)
	c := ensure(t, sess, "good")
	silent, err := dial(sess.Socket())
	check(t, err)
	defer silent.Close()
	_, err = c.Seal(t.Context(), snapshots.SealOptions{}) // by now it is known
	check(t, err)
	check(t, c.Close())
	waitGone(t, c.PID())
}

// FuzzRequest: whatever arrives is refused or understood, and what is
// understood means the same when it is sent on.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(frame(hello)))
	for what, body := range map[op]string{
		opStatus: `null`, opSeal: `{"Name":"x"}`, opCommitted: `{"Snapshot":1,"Paths":{"w":["a"]}}`, opDiscard: `{}`,
		opRollback: `{}`, opTake: `{}`, opWait: `{"id":1}`, opStop: `{"force":true}`, opFUSE: `{"tree":"w","mountpoint":"/x"}`,
	} {
		f.Add([]byte(frame(`{"n":2,"op":"` + string(what) + `","body":` + body + `}`)))
	}
	f.Add([]byte("\xff\xff\xff\xff{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 4 {
			return
		}
		b, err := readBody(bytes.NewReader(data[4:]), binary.BigEndian.Uint32(data))
		if err != nil {
			return
		}
		r, err := decodeRequest(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		if back, err := decodeRequest(again); err != nil || back.Number != r.Number || back.Op != r.Op {
			t.Fatalf("%s became %s: %v", b, again, err)
		}
		decodeBodies(r)
	})
}

// decodeBodies decodes a request's body as that of every operation.
func decodeBodies(r request) {
	_, _ = body[snapshots.SealOptions](r)
	_, _ = body[snapshots.Committed](r)
	_, _ = body[snapshots.Discard](r)
	_, _ = body[snapshots.Rollback](r)
	_, _ = body[snapshots.Take](r)
	_, _ = body[FUSE](r)
	_, _ = body[mountBody](r)
	_, _ = body[stopBody](r)
	_, _ = body[helloBody](r)
	var w wireError
	if decode(r.Body, &w) == nil && w.Message != "" {
		_ = w.err().Error()
	}
}
