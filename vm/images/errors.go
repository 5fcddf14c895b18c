package images

import (
	"errors"

	"github.com/galleyfs/galley/snapshots/oci"
)

// Errors that callers test with errors.Is.
var (
	// ErrNotFound: there is no such image, here or where it was looked for.
	ErrNotFound = errors.New("no such image")
	// ErrPlatform: there is the image, but not for the platform asked for.
	ErrPlatform = errors.New("not for this platform")
	// ErrSession: it is a session that galley push wrote, and no image.
	ErrSession = errors.New("an exported session, not an image")
	// ErrBusy: images are being fetched or unpacked, so that none can be
	// removed now.
	ErrBusy = errors.New("images are being fetched or unpacked; try again when that is done")
	// ErrNoCommand: neither the image nor the caller says what to run.
	ErrNoCommand = errors.New("the image names no command")
	// ErrNothing: there is nothing to make an image of.
	ErrNothing = errors.New("nothing changed")
	// ErrNoUser: the image knows no such user or group.
	ErrNoUser = errors.New("no such user in the image")

	// ErrDamaged, ErrHostile and ErrLimit are those of package oci.
	ErrDamaged = oci.ErrDamaged
	ErrHostile = oci.ErrHostile
	ErrLimit   = oci.ErrLimit
)
