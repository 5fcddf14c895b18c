//go:build !cgo

package krun

import "errors"

// errNoCgo is why this build has no libkrun.
var errNoCgo = errors.New("this galley was built without cgo, which loading libkrun needs")

// Library is a libkrun that was loaded; in this build there is none.
type Library struct{ calls }

// Open loads the library at path; in this build it cannot.
func Open(string) (*Library, error) { return nil, errNoCgo }

// Preload loads a library for those loaded after it; in this build it cannot.
func Preload(string) error { return errNoCgo }

// Features says what the library can do.
func (l *Library) Features() Features { return Features{} }
