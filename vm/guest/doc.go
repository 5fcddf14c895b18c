// Package guest is the host's half of the protocol between Galley and the
// agent in a guest: over any byte stream, such as a virtio-serial port, a
// vsock connection or a pod's exec.
//
// # The protocol
//
// The agent speaks first, with [Hello], which holds the version. Then the
// stream is a yamux session in which the host opens streams and the agent
// never does. A stream is one conversation. It begins with a frame of the host
// that names what is asked for (frameCall), and a call that fails is answered
// by frameFailed. Most calls are one frame each way; the streams of exec carry
// frames of input, output and events; those of files and dial carry bytes of
// their own from the answer on. Closing a stream ends what it was opened for.
//
// A frame is a type, a length and that many bytes, which are CBOR unless the
// type says otherwise. Every type has a limit.
//
// # Trust
//
// The guest is hostile. What it sends is bounded in size and decoded with
// limits, never by a decoder that was not made for it; numbers are checked,
// text is text for a person and never a path, a command or a format on the
// host. A guest that stops answering costs its callers their deadline.
package guest
