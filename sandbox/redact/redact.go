// Package redact strikes the secrets of a session from what leaves it: the
// results of calls, events, and what the history keeps of a call.
//
// A secret is found where its bytes are found. What a program makes of it
// (its base64, its first half) is another text, and is not.
package redact

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// MinSecret is the least length of a secret, in bytes: a shorter one would be
// struck from words that only look like it.
const MinSecret = 4

// minLine is the least length of a line of a secret with several for which that
// line alone is struck, too: tools show files line by line.
const minLine = 8

var name = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Check says why a secret cannot be one.
func Check(n, value string) error {
	switch {
	case !name.MatchString(n):
		return fmt.Errorf("secret %q: expected the name of a variable: letters, digits and _", n)
	case strings.IndexByte(value, 0) >= 0:
		return fmt.Errorf("secret %s: its value has a NUL byte, which no variable can hold", n)
	case len(value) < MinSecret:
		return fmt.Errorf("secret %s: its value has %d bytes; one of fewer than %d cannot be told from other text", n, len(value), MinSecret)
	}
	return nil
}

// A Redactor strikes a fixed set of secrets. The nil one, and one without
// secrets, changes nothing. It is safe for concurrent use.
type Redactor struct {
	needles [][]byte // the longest first
	mark    [][]byte
	first   [256]bool // bytes that one begins with
	strings *strings.Replacer
}

// New makes a redactor of secrets by name.
func New(secrets map[string]string) *Redactor {
	type needle struct{ text, name string }
	var all []needle
	for n, v := range secrets {
		if len(v) < MinSecret {
			continue
		}
		all = append(all, needle{v, n})
		if strings.Contains(v, "\n") {
			for line := range strings.SplitSeq(v, "\n") {
				if line = strings.TrimSuffix(line, "\r"); len(line) >= minLine {
					all = append(all, needle{line, n})
				}
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	// One that holds another goes first, so that nothing of it is left.
	slices.SortFunc(all, func(a, b needle) int {
		if len(a.text) != len(b.text) {
			return len(b.text) - len(a.text)
		}
		return strings.Compare(a.text+a.name, b.text+b.name)
	})
	r := &Redactor{}
	var pairs []string
	for _, n := range all {
		mark := "[REDACTED:" + n.name + "]"
		r.needles = append(r.needles, []byte(n.text))
		r.mark = append(r.mark, []byte(mark))
		r.first[n.text[0]] = true
		pairs = append(pairs, n.text, mark)
	}
	r.strings = strings.NewReplacer(pairs...)
	return r
}

// Empty reports whether there is nothing to strike.
func (r *Redactor) Empty() bool { return r == nil || len(r.needles) == 0 }

// String is s without secrets.
func (r *Redactor) String(s string) string {
	if r.Empty() {
		return s
	}
	return r.strings.Replace(s)
}

// Bytes is b without secrets; b itself where it has none.
func (r *Redactor) Bytes(b []byte) []byte {
	if r.Empty() || !slices.ContainsFunc(r.needles, func(n []byte) bool { return bytes.Contains(b, n) }) {
		return b
	}
	return []byte(r.strings.Replace(string(b)))
}

// JSON is a JSON text without secrets in its strings. What is no JSON is taken
// as text.
func (r *Redactor) JSON(raw json.RawMessage) json.RawMessage {
	if r.Empty() || len(raw) == 0 {
		return raw
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err == nil {
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		if enc.Encode(r.Value(v)) == nil {
			return bytes.TrimRight(out.Bytes(), "\n")
		}
	}
	return r.Bytes(raw)
}

// Value is a copy of v in which no string and no bytes have a secret: in
// whatever depth of structs, maps, slices and pointers.
func (r *Redactor) Value(v any) any {
	if r.Empty() || v == nil {
		return v
	}
	return r.value(reflect.ValueOf(v)).Interface()
}

var rawType = reflect.TypeFor[json.RawMessage]()

func (r *Redactor) value(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.String:
		return reflect.ValueOf(r.String(v.String())).Convert(v.Type())
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return v
		}
		if v.Kind() == reflect.Interface {
			return r.value(v.Elem())
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(r.value(v.Elem()))
		return out
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		if v.Type() == rawType {
			return reflect.ValueOf(r.JSON(v.Bytes()))
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return reflect.ValueOf(r.Bytes(v.Bytes())).Convert(v.Type())
		}
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(r.value(v.Index(i)))
		}
		return out
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeMapWithSize(v.Type(), v.Len())
		for _, k := range v.MapKeys() {
			out.SetMapIndex(r.value(k), r.value(v.MapIndex(k)))
		}
		return out
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		for i := range v.NumField() {
			if f := out.Field(i); f.CanSet() {
				f.Set(r.value(v.Field(i)))
			}
		}
		return out
	}
	return v
}

// Error is err without secrets in its message. What it wraps is still found
// in it.
func (r *Redactor) Error(err error) error {
	if r.Empty() || err == nil {
		return err
	}
	text := err.Error()
	if struck := r.String(text); struck != text {
		return &hidden{struck, err}
	}
	return err
}

// hidden is an error with another message.
type hidden struct {
	text string
	err  error
}

func (e *hidden) Error() string        { return e.text }
func (e *hidden) Is(target error) bool { return errors.Is(e.err, target) }

// A Stream strikes secrets from pieces of a text, also where a secret lies
// across two of them: what may be the beginning of one is held back.
type Stream struct {
	r    *Redactor
	emit func([]byte)
	kept []byte
}

// Stream passes what is written to it on to emit, which must not keep it.
func (r *Redactor) Stream(emit func([]byte)) *Stream { return &Stream{r: r, emit: emit} }

// Write takes a piece; it never fails.
func (s *Stream) Write(p []byte) (int, error) {
	if s.r.Empty() {
		s.emit(p)
		return len(p), nil
	}
	s.kept = append(s.kept, p...)
	s.pass(false)
	return len(p), nil
}

// Close passes on what was held back.
func (s *Stream) Close() { s.pass(true) }

// pass emits what is certain: all of it, at the end.
func (s *Stream) pass(end bool) {
	var out []byte
	from, i := 0, 0
	for ; i < len(s.kept); i++ {
		if !s.r.first[s.kept[i]] {
			continue
		}
		n := s.r.at(s.kept[i:])
		if !end && s.r.begins(s.kept[i:]) {
			break
		}
		if n < 0 {
			continue
		}
		out = append(append(out, s.kept[from:i]...), s.r.mark[n]...)
		from = i + len(s.r.needles[n])
		i = from - 1
	}
	if out = append(out, s.kept[from:i]...); len(out) > 0 {
		s.emit(out)
	}
	s.kept = append(s.kept[:0], s.kept[i:]...)
}

// at is the longest secret that b begins with, or -1.
func (r *Redactor) at(b []byte) int {
	return slices.IndexFunc(r.needles, func(n []byte) bool { return bytes.HasPrefix(b, n) })
}

// begins reports whether b may be the beginning of a secret that goes on.
func (r *Redactor) begins(b []byte) bool {
	return slices.ContainsFunc(r.needles, func(n []byte) bool { return len(n) > len(b) && bytes.HasPrefix(n, b) })
}
