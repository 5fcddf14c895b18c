// Package netstacktest makes a small internet for tests of a guest's network:
// the process that runs the tests is a host in network and mount namespaces of
// its own, and a child in another network namespace is the rest of the world, at
// the end of a veth pair. It works as root and as an ordinary user.
package netstacktest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const (
	worldEnv    = "GALLEY_TEST_WORLD"    // this process is the host
	internetEnv = "GALLEY_TEST_INTERNET" // this one is the internet

	// HostIP is the host's address.
	HostIP = "8.8.4.2"
	// InternetIP is a public address of the other end. Its servers are HTTP on
	// port 80, echo on port 7 (TCP and UDP) and DNS on port 53.
	InternetIP = "8.8.4.1"
	// PrivateIP is another of its addresses, which is not public.
	PrivateIP = "10.20.30.1"
	// Page is what its HTTP server says.
	Page = "hello from the internet\n"

	resolvConf = "/etc/resolv.conf"
)

// Inside is true in the process that is the host, where [Main] makes it so.
func Inside() bool { return os.Getenv(worldEnv) != "" || os.Getenv(internetEnv) != "" }

// Main runs the tests on the host of the small internet, in a process of their
// own, and returns its exit status; run is m.Run.
func Main(run func() int) int {
	switch {
	case os.Getenv(internetEnv) != "":
		internet()
	case os.Getenv(worldEnv) != "":
		return host(run)
	}
	cmd := Command(os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	check(err)
	return 0
}

// Command is this test program again, in the namespaces of the host; its
// TestMain is to call [Main] when it is [Inside].
func Command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), worldEnv+"=1")
	cmd.SysProcAttr = ownNetwork()
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
	return cmd
}

// ownNetwork starts a process as root of a network namespace of its own.
func ownNetwork() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "test network:", err)
		os.Exit(1)
	}
}

func ip(args ...string) {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		check(fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out))
	}
}

// host makes the network and runs the tests in it.
func host(run func() int) int {
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	conf, err := os.CreateTemp("", "galley-resolv")
	check(err)
	_, err = fmt.Fprintf(conf, "search example\nnameserver %s\n", InternetIP)
	check(err)
	check(conf.Close())
	check(unix.Mount(conf.Name(), resolvConf, "", unix.MS_BIND, ""))
	check(os.Remove(conf.Name()))

	ip("link", "set", "lo", "up")
	ip("link", "add", "up0", "type", "veth", "peer", "name", "net0")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), internetEnv+"=1", worldEnv+"=")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	in, err := cmd.StdinPipe()
	check(err)
	out, err := cmd.StdoutPipe()
	check(err)
	check(cmd.Start())
	ip("link", "set", "net0", "netns", fmt.Sprint(cmd.Process.Pid))
	ip("addr", "add", HostIP+"/24", "dev", "up0")
	ip("link", "set", "up0", "up")
	_, err = io.WriteString(in, "begin\n")
	check(err)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		check(fmt.Errorf("the internet said %q: %w", line, err))
	}
	ip("route", "add", "10.20.30.0/24", "via", InternetIP)
	ip("route", "add", "169.254.169.254/32", "via", InternetIP)
	ip("addr", "add", "9.9.9.9/32", "dev", "lo")           // an address of the host that looks public
	ip("route", "add", "local", "9.9.8.0/24", "dev", "lo") // and a range of them
	code := run()
	_ = in.Close()
	_ = cmd.Wait()
	return code
}

// internet is a host with servers on all of its addresses; it ends with its
// standard input.
func internet() {
	begin := bufio.NewReader(os.Stdin)
	_, err := begin.ReadString('\n')
	check(err)
	ip("link", "set", "lo", "up")
	ip("addr", "add", InternetIP+"/24", "dev", "net0")
	ip("addr", "add", PrivateIP+"/24", "dev", "net0")
	ip("addr", "add", "169.254.169.254/32", "dev", "net0")
	ip("link", "set", "net0", "up")

	web, err := net.Listen("tcp4", ":80")
	check(err)
	go func() {
		_ = http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, Page)
		}))
	}()
	echo, err := net.Listen("tcp4", ":7")
	check(err)
	go acceptAll(echo, func(c net.Conn) { _, _ = io.Copy(c, c); _ = c.Close() })
	echoUDP, err := net.ListenPacket("udp4", ":7")
	check(err)
	go func() {
		buf := make([]byte, 65536)
		for {
			k, from, err := echoUDP.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echoUDP.WriteTo(buf[:k], from)
		}
	}()
	names, err := net.ListenPacket("udp4", ":53")
	check(err)
	go func() {
		buf := make([]byte, 4096)
		for {
			k, from, err := names.ReadFrom(buf)
			if err != nil {
				return
			}
			// A stranger's answer first: it must not be taken.
			if b := nameAnswer(buf[:k]); b != nil {
				wrong := append([]byte(nil), b...)
				wrong[0] ^= 0xff
				_, _ = names.WriteTo(wrong, from)
				_, _ = names.WriteTo(b, from)
			}
		}
	}()
	namesTCP, err := net.Listen("tcp4", ":53")
	check(err)
	go acceptAll(namesTCP, func(c net.Conn) {
		defer c.Close()
		for {
			q, err := readDNS(c)
			if err != nil || writeDNS(c, nameAnswer(q)) != nil {
				return
			}
		}
	})
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, begin)
	os.Exit(0)
}

func acceptAll(ln net.Listener, serve func(net.Conn)) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go serve(c)
	}
}

// nameAnswer gives every name of .example the internet's address, and says
// that others are not there.
func nameAnswer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	h := dnsmessage.Header{ID: head.ID, Response: true, RecursionAvailable: true}
	known := strings.HasSuffix(q.Name.String(), ".example.")
	if !known {
		h.RCode = dnsmessage.RCodeNameError
	}
	b := dnsmessage.NewBuilder(nil, h)
	_ = b.StartQuestions()
	_ = b.Question(q)
	_ = b.StartAnswers()
	if known && q.Type == dnsmessage.TypeA {
		_ = b.AResource(dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 5},
			dnsmessage.AResource{A: [4]byte(net.ParseIP(InternetIP).To4())})
	}
	out, _ := b.Finish()
	return out
}

// readDNS reads a message of DNS over TCP, which comes after its length.
func readDNS(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeDNS(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}
