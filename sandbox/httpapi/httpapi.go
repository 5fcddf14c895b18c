// Package httpapi offers the contract of package sandbox, and the tools over
// it, as JSON over HTTP on a unix socket, for programs in other languages.
// docs/openapi.json describes it; a test holds the two to each other.
//
// Who can open the socket can work in the session, with all rights of its
// sandbox. Nothing here leads to a commit.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/strictjson"
	"github.com/galleyfs/galley/sandbox/tools"
)

// Version is the version of the API, and the first element of every path.
const Version = "v1"

const (
	// maxBody bounds the body of a request in bytes, maxWriteBody that of one
	// which carries a file's content.
	maxBody      = 8 << 20
	maxWriteBody = sandbox.MaxWrite/3*4 + maxBody
	// maxPoll is how long a poll may wait.
	maxPoll = time.Minute
	// ndjson is the type of an answer of many lines.
	ndjson = "application/x-ndjson"
)

// Options configures a handler.
type Options struct {
	// Set are the tools, and the sandbox below them.
	Set *tools.Set
	// Info is what is known of the sandbox before it starts.
	Info sandbox.Info
	// Events gives fn the events of the session, one JSON text each; with
	// follow also those to come, until ctx ends.
	Events func(ctx context.Context, follow bool, fn func(json.RawMessage) error) error
}

// api answers requests.
type api struct {
	opt Options
}

// route is one operation.
type route struct {
	method, path, name, summary string
	in, out                     reflect.Type // nil: no body
	lines                       bool         // the answer is many lines, each an out
	large                       bool         // the request carries a file
	handle                      func(a *api, w http.ResponseWriter, r *http.Request, body []byte) (any, error)
}

// Handler serves the API.
func Handler(o Options) http.Handler {
	a := &api{o}
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) { a.serve(rt, w, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		for _, rt := range routes {
			if rt.path == r.URL.Path {
				w.Header().Set("Allow", rt.method)
				answer(w, http.StatusMethodNotAllowed, Failure{Error: sandbox.Errorf(sandbox.Invalid, "http", r.URL.Path, "expected the method %s", rt.method)})
				return
			}
		}
		answer(w, http.StatusNotFound, Failure{Error: sandbox.Errorf(sandbox.NotFound, "http", r.URL.Path, "no such path; docs/openapi.json lists all, which begin with /%s/", Version)})
	})
	return mux
}

// Serve serves on a listener until ctx ends.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10,
		// A request ends with the server.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serve answers one request.
func (a *api) serve(rt route, w http.ResponseWriter, r *http.Request) {
	body, err := readBody(rt, w, r)
	if err != nil {
		fail(w, err)
		return
	}
	out, err := rt.handle(a, w, r, body)
	switch {
	case err != nil:
		fail(w, err)
	case !rt.lines: // else it has been written
		answer(w, http.StatusOK, out)
	}
}

// readBody reads the body of a request, as far as its route may have one.
func readBody(rt route, w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if rt.in == nil {
		return nil, nil
	}
	if t := r.Header.Get("Content-Type"); t != "" {
		if kind, _, err := mime.ParseMediaType(t); err != nil || kind != "application/json" {
			return nil, sandbox.Errorf(sandbox.Invalid, rt.name, "", "the Content-Type is %q; expected application/json", t)
		}
	}
	limit := int64(maxBody)
	if rt.large {
		limit = maxWriteBody
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, sandbox.Errorf(sandbox.TooLarge, rt.name, "", "the body has more than %d bytes", large.Limit)
	case err != nil:
		return nil, sandbox.Errorf(sandbox.Invalid, rt.name, "", "the body was cut: %w", err)
	}
	return body, nil
}

// decode reads a body strictly.
func decode[T any](name string, body []byte) (T, error) {
	return strictjson.Decode[T](name, "the body", body, func() string { return fieldsOf(reflect.TypeFor[T]()) })
}

// fieldsOf lists the fields of a body for a message.
func fieldsOf(t reflect.Type) string {
	if t.Kind() != reflect.Struct {
		return "a JSON object"
	}
	var out []string
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			out = append(out, name)
		}
	}
	return "an object of " + strings.Join(out, ", ")
}

// statuses are the HTTP statuses of the contract's codes; 500 for any other.
var statuses = map[sandbox.Code]int{
	sandbox.NotFound: http.StatusNotFound, sandbox.IsDirectory: http.StatusConflict, sandbox.NotDirectory: http.StatusConflict,
	sandbox.Exists: http.StatusConflict, sandbox.Permission: http.StatusForbidden, sandbox.ReadOnly: http.StatusForbidden,
	sandbox.Timeout: http.StatusRequestTimeout, sandbox.Canceled: 499, sandbox.NotSupported: http.StatusNotImplemented,
	sandbox.Invalid: http.StatusBadRequest, sandbox.InvalidPattern: http.StatusBadRequest, sandbox.Stale: http.StatusPreconditionFailed,
	sandbox.NoMatch: http.StatusConflict, sandbox.Ambiguous: http.StatusConflict, sandbox.Binary: http.StatusUnsupportedMediaType,
	sandbox.TooLarge: http.StatusRequestEntityTooLarge, sandbox.Loop: http.StatusConflict, sandbox.Limit: http.StatusTooManyRequests,
	sandbox.Closed: http.StatusServiceUnavailable,
}

func fail(w http.ResponseWriter, err error) {
	e := errorOf(err)
	status, ok := statuses[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	out := Failure{Error: e}
	var edit *editFailure
	if errors.As(err, &edit) {
		out.Edit = edit.edit
	}
	answer(w, status, out)
}

// errorOf is an error of the contract.
func errorOf(err error) *sandbox.Error {
	var e *sandbox.Error
	if errors.As(err, &e) {
		return e
	}
	return sandbox.Errorf(sandbox.Failed, "", "", "%w", err)
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, fmt.Appendf(nil, `{"error":{"code":"failed","message":%q,"offset":-1,"count":0}}`, err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// lineWriter writes the lines of a streamed answer, each at once.
type lineWriter struct {
	w     http.ResponseWriter
	flush *http.ResponseController
	begun bool
}

func newLines(w http.ResponseWriter) *lineWriter {
	return &lineWriter{w: w, flush: http.NewResponseController(w)}
}

func (l *lineWriter) put(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", ndjson)
		l.w.WriteHeader(http.StatusOK)
	}
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return err
	}
	return l.flush.Flush()
}

// Paths are the method and the path of each operation.
func Paths() [][2]string {
	out := make([][2]string, len(routes))
	for i, r := range routes {
		out[i] = [2]string{r.method, r.path}
	}
	return out
}
