package netstack

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/galleyfs/galley/vm/jail"
	"github.com/galleyfs/galley/vm/netstack/netstacktest"
)

const (
	hostIP     = netstacktest.HostIP
	internetIP = netstacktest.InternetIP
	privateIP  = netstacktest.PrivateIP
	page       = netstacktest.Page
)

func TestMain(m *testing.M) {
	jail.Init()
	Init()
	for _, arg := range os.Args {
		// Fuzz targets need no network, and their workers no second process.
		if strings.HasPrefix(arg, "-test.fuzz=") || strings.HasPrefix(arg, "-test.fuzzworker") {
			os.Exit(m.Run())
		}
	}
	os.Exit(netstacktest.Main(m.Run))
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
