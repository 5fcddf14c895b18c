// Package images keeps OCI images and makes of them what a session's tree stands
// on.
//
// # What there is
//
// An image is a manifest, a configuration and layers, each a blob that is kept
// once under its digest, whoever brought it: a registry, a file of docker save,
// an OCI layout, the file system of something in a directory or a tar. A name
// stands for the digest of one manifest, which does not change when the name in
// a registry moves on.
//
// # Layers
//
// A layer is unpacked once, the first time that a session needs it, into a
// sealed layer as package overlay writes them: the engine itself makes it, with
// the layers below as its lower ones, from entries that are applied by names of
// one component. It lies under its chain, which is the digest over its own and
// those below, so that all images that begin alike have it in common; renaming
// it there is the moment from which it exists. What the host does not take of
// it, such as owners without root, is in the record beside it.
//
// A session's tree on an image has no base. Its stack begins with the image's
// layers, in their directories, and its own come above; nothing is copied.
//
// # On disk
//
// In the directory images of a [snapshots.Store]:
//
//	names.json           the names, each with its digest
//	blobs/sha256/<hex>   manifests, configurations and layers, as they came
//	partial/<hex>        what was fetched of a blob so far; flock(2)ed while it is
//	layers/<chain>/      an unpacked layer and its description, layer.json
//	new-…/               what is being made
//	lock                 flock(2): held while names.json is changed
//	use                  flock(2): shared by who reads or adds, exclusive to remove
//
// # Hostile input
//
// A blob is read up to the size that its descriptor says and compared with its
// digest before anything in it is believed; manifests and configurations are
// bounded; the limits of package oci hold for all layers of an image together.
package images
