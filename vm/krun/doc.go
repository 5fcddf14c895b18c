// Package krun is the driver of libkrun, a virtual machine monitor in a
// library that runs guests on KVM.
//
// Galley neither links against libkrun nor needs it to be there: a child
// process loads it when a machine starts, looks up each function by its name,
// and says which one is missing. A build without cgo has a driver that says
// that it cannot load it.
//
// libkrun takes over the process that starts a machine, and its virtio-fs
// server does what the guest asks with the rights of that process. So it runs
// in a jail (vm/jail) that holds the share, the libraries, and /dev/kvm, and
// nothing else. What starts there is this program again, which
//
//   - opens the library and checks what it can do ([Library.Features]);
//   - listens for the guest's agent on a socket in the jail, and carries its
//     bytes to and from the stream that the machine was given;
//   - carries the console from a pipe in the jail;
//   - shuts itself off from system calls that nothing here needs;
//   - calls the library in the order that [configure] documents.
//
// libkrun gives a guest the host's network unless told otherwise: its vsock
// device takes the guest's sockets for its own ("transparent socket
// impersonation", TSI). A machine is refused where that cannot be turned off.
//
// A guest runs one fixed program, the agent, with a fixed environment:
// libkrun writes both into the kernel's command line without quoting. What is
// to be executed goes to the agent, over its stream.
package krun
