// Package strictjson reads what callers send as JSON: what is misspelt is an
// error and not a default.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/galleyfs/galley/sandbox"
)

// Decode reads exactly one JSON object that has no field which T lacks. An empty
// text is an empty object. A message says that it is what of op, as in "the body
// of read", and which fields were expected.
func Decode[T any](op, what string, text []byte, fields func() string) (T, error) {
	var in T
	if err := checkText(op, text); err != nil {
		return in, err
	}
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return in, nil
		}
		err = errors.New("something follows the JSON object")
	}
	e := sandbox.Errorf(sandbox.Invalid, op, "", "%s of %s: %s; expected %s", what, op, strings.TrimPrefix(err.Error(), "json: "), fields())
	e.Offset = int(dec.InputOffset())
	return in, e
}

// checkText refuses a JSON text that is not UTF-8, of which a decoder would make
// another one: a path would not be the path that was meant.
func checkText(op string, text []byte) error {
	if utf8.Valid(text) {
		return nil
	}
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			e := sandbox.Errorf(sandbox.Invalid, op, "", "what was sent is not UTF-8: byte 0x%02x at offset %d", text[i], i)
			e.Offset = i
			return e
		}
		i += n
	}
	return nil
}
