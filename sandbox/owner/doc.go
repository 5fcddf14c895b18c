// Package owner is the owner process of a live session and the protocol by
// which other processes ask it for things.
//
// A session that is in use has exactly one owner: it holds the session's lock,
// has its trees open in one engine, and serves every face. It is started by
// [Ensure], counts its users (the connections that hold a lease), and ends
// when the last of them has gone and nothing is mounted. It can seal, and move
// committed or discarded entries out of the layers; it has no operation that
// writes to a base.
package owner
