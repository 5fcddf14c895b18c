package httpapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/galleyfs/galley/sandbox"
)

var update = flag.Bool("update", false, "write docs/openapi.json anew")

type m = map[string]any

// typeSchemas are the types that are something else in JSON than they seem.
var typeSchemas = map[reflect.Type]*jsonschema.Schema{
	reflect.TypeFor[[]byte]():          {Type: "string", ContentEncoding: "base64"},
	reflect.TypeFor[json.RawMessage](): {},
	reflect.TypeFor[time.Time]():       {Type: "string", Format: "date-time"},
	reflect.TypeFor[sandbox.Code](): {Type: "string", Enum: []any{
		sandbox.NotFound, sandbox.IsDirectory, sandbox.NotDirectory, sandbox.Exists, sandbox.Permission, sandbox.ReadOnly, sandbox.Timeout,
		sandbox.Canceled, sandbox.NotSupported, sandbox.Invalid, sandbox.InvalidPattern, sandbox.Stale, sandbox.NoMatch, sandbox.Ambiguous,
		sandbox.Binary, sandbox.TooLarge, sandbox.Loop, sandbox.Limit, sandbox.Closed, sandbox.Failed,
	}},
}

// describe makes the description of the routes.
func describe(t *testing.T) []byte {
	t.Helper()
	schemas, paths := m{}, m{}
	ref := func(typ reflect.Type) m {
		if typ == reflect.TypeFor[json.RawMessage]() {
			return m{"type": "object"}
		}
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if schemas[typ.Name()] == nil {
			s, err := jsonschema.ForType(typ, &jsonschema.ForOptions{TypeSchemas: typeSchemas})
			if err != nil {
				t.Fatalf("%v: %v", typ, err)
			}
			schemas[typ.Name()] = s
		}
		return m{"$ref": "#/components/schemas/" + typ.Name()}
	}
	failure := m{"description": "an error; its code says which", "content": m{"application/json": m{"schema": ref(reflect.TypeFor[Failure]())}}}
	for _, r := range routes {
		kind := "application/json"
		if r.lines {
			kind = ndjson
		}
		op := m{
			"operationId": r.name, "summary": r.summary,
			"responses": m{"200": m{"description": "done", "content": m{kind: m{"schema": ref(r.out)}}}, "default": failure},
		}
		var params []any
		for _, p := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(r.path, -1) {
			params = append(params, m{"name": p[1], "in": "path", "required": true, "schema": m{"type": "string"}})
		}
		if r.name == "events" {
			params = append(params, m{"name": "follow", "in": "query", "schema": m{"type": "string", "enum": []any{"0", "1"}}})
		}
		if params != nil {
			op["parameters"] = params
		}
		if r.in != nil {
			op["requestBody"] = m{"content": m{"application/json": m{"schema": ref(r.in)}}}
		}
		if paths[r.path] == nil {
			paths[r.path] = m{}
		}
		paths[r.path].(m)[strings.ToLower(r.method)] = op
	}
	doc := m{
		"openapi": "3.1.0",
		"info": m{
			"title": "Galley sandbox", "version": Version,
			"description": "The sandbox of a session, as galley serve offers it on a unix socket. Bytes are base64. What is changed lands in the session; nothing here commits. " +
				"A streamed answer is lines of JSON.",
			"license": m{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers": []any{m{"url": "http://galley", "description": "any host name, over the socket"}},
		"paths":   paths, "components": m{"schemas": schemas},
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const document = "../../docs/openapi.json"

// TestOpenAPI: the document says what the routes and the types of their bodies
// are. `go test ./sandbox/httpapi -run OpenAPI -update` writes it anew.
func TestOpenAPI(t *testing.T) {
	want := describe(t)
	if *update {
		if err := os.WriteFile(document, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/openapi.json is not what the routes and types say; write it anew with -update")
	}
	for _, r := range routes {
		if strings.Contains(strings.ToLower(r.path+r.name), "commit") {
			t.Errorf("%s leads to a commit", r.path)
		}
	}
	var doc any
	if err := json.Unmarshal(got, &doc); err != nil {
		t.Fatal(err)
	}
	checkRefs(t, doc, doc)
	seen := map[string]bool{}
	for _, r := range routes {
		if seen[r.name] {
			t.Errorf("two operations are called %s", r.name)
		}
		seen[r.name] = true
	}
}

// checkRefs checks that every reference in v leads to something in doc.
func checkRefs(t *testing.T, doc, v any) {
	switch v := v.(type) {
	case m:
		if r, ok := v["$ref"].(string); ok {
			at := doc
			for _, part := range strings.Split(strings.TrimPrefix(r, "#/"), "/") {
				next, _ := at.(m)
				at = next[part]
			}
			if at == nil {
				t.Errorf("%s leads nowhere", strconv.Quote(r))
			}
		}
		for _, x := range v {
			checkRefs(t, doc, x)
		}
	case []any:
		for _, x := range v {
			checkRefs(t, doc, x)
		}
	}
}
