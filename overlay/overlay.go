// Package overlay is the engine: every copy-on-write rule of Galley is here
// and nowhere else.
package overlay
