// Package guestfs tests the virtio-fs face in a real guest: a kernel of the
// distribution under QEMU, which sees trees of the overlay engine through
// fs/virtiofs.
package guestfs
