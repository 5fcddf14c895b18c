package jail

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/jail/jailtest"
)

const (
	escapePath  = "/escape"  // the program that tries to get out
	networkPath = "/network" // the same with the filter of a network
	waitPath    = "/wait"    // waits for its standard input, which never ends
	ownersPath  = "/owners"  // makes files of other owners
)

func TestMain(m *testing.M) {
	Init()
	switch os.Args[0] {
	case escapePath:
		escape(Machine)
	case networkPath:
		escape(Network)
	case waitPath:
		_, _ = io.Copy(io.Discard, os.NewFile(3, "never"))
		os.Exit(7)
	case ownersPath:
		makeOwners()
	}
	os.Exit(m.Run())
}

// escape reads what is outside from descriptor 3 and reports to 4.
func escape(use Use) {
	err := Filter(use)
	var o jailtest.Outside
	if err == nil {
		err = json.NewDecoder(os.NewFile(3, "world")).Decode(&o)
	}
	if err == nil {
		err = jailtest.Report(os.NewFile(4, "report"), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "escape:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inJail runs the spec's program with o on its descriptor 3 and returns what
// it wrote to descriptor 4.
func inJail(t *testing.T, s Spec, o any) []byte {
	t.Helper()
	in, world, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, report, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	if err := json.NewEncoder(world).Encode(o); err != nil {
		t.Fatal(err)
	}
	_ = world.Close()
	p, err := Start(s, os.Stderr, in, report)
	_ = report.Close()
	if err != nil {
		t.Fatal(err)
	}
	_ = out.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(out)
	if err != nil {
		t.Error(err)
	}
	if err != nil {
		p.Kill()
	}
	if code, signal := p.Wait(); code != 0 {
		t.Fatalf("it ended with status %d, signal %d", code, signal)
	}
	return b
}

const patience = 60 * time.Second

// self is the spec of this test at a path, in a jail as a machine has it.
func self(t *testing.T, at string) Spec {
	t.Helper()
	s, err := Self(at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func paths(s Spec) []string {
	var out []string
	for _, b := range s.Binds {
		out = append(out, b.Inside)
	}
	return out
}

// TestNothingLeadsOut: the program of a jail reaches what was placed in it, as
// it was placed, and nothing else, whatever it calls.
func TestNothingLeadsOut(t *testing.T) {
	share := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(share, 0o777); err != nil {
		t.Fatal(err)
	}
	machine := self(t, escapePath)
	machine.Owners, machine.Proc = true, true
	machine.Dirs = []string{"/empty"}
	machine.Memory = []Memory{
		{Inside: "/run", Size: 64 << 10, Write: true},
		{Inside: "/guest", Size: 64 << 10, Dirs: []string{"/proc", "/sys"}, Binds: []Bind{{Host: exe, Inside: "/agent"}}},
	}
	machine.Devices = []string{"null"}
	machine.Binds = append(machine.Binds, Bind{Host: share, Inside: "/share", Write: true})
	plain := self(t, escapePath)
	network := self(t, networkPath)
	network.HostNetwork, network.Proc = true, true
	for _, k := range []struct {
		name          string
		spec          Spec
		seen, written []string
		capabilities  uint64
	}{
		{"a machine with owners", machine, []string{"/share", "/run", "/guest/agent", "/dev/null"}, []string{"/share", "/run"}, ownerCapabilities},
		{"a machine", plain, nil, nil, 0},
		{"a network", network, nil, nil, 0},
	} {
		t.Run(k.name, func(t *testing.T) {
			o := jailtest.World(t)
			o.Inet = k.spec.HostNetwork
			f := jailtest.Judge(t, inJail(t, k.spec, o), append(paths(k.spec), k.seen...), k.written, k.capabilities)
			if !strings.Contains(strings.Join(f.Seen, " "), k.spec.Argv[0]) {
				t.Errorf("it sees only %v", f.Seen)
			}
			for _, w := range k.written {
				if !strings.Contains(strings.Join(f.Written, " ")+" ", w+" ") {
					t.Errorf("it cannot write to %s, which it is to", w)
				}
			}
		})
	}
}

// makeOwners makes files of owners in /run and says what they are.
func makeOwners() {
	out := map[string]string{}
	for _, id := range []int{0, 1, 1000, 65535} {
		name := fmt.Sprintf("/run/%d", id)
		err := os.WriteFile(name, nil, 0o600)
		if err == nil {
			err = os.Chown(name, id, id)
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(name, &st)
		}
		out[fmt.Sprint(id)] = fmt.Sprint(st.Uid, " ", st.Gid, " ", err)
	}
	_ = json.NewEncoder(os.NewFile(4, "report")).Encode(out)
	os.Exit(0)
}

func TestOwners(t *testing.T) {
	s := self(t, ownersPath)
	s.Owners = true
	s.Memory = []Memory{{Inside: "/run", Size: 64 << 10, Write: true}}
	var got map[string]string
	if err := json.Unmarshal(inJail(t, s, 0), &got); err != nil {
		t.Fatal(err)
	}
	why := SubordinateIDs()
	for id, what := range got {
		ok := what == id+" "+id+" <nil>"
		if want := why == nil || id == "0"; ok != want {
			t.Errorf("a file of %s is %q, with ids: %v", id, what, why)
		}
	}
	if len(got) != 4 {
		t.Errorf("it made %v", got)
	}
}

func TestRangeIn(t *testing.T) {
	for _, k := range []struct {
		idMap string
		seed  int
		start int
		ok    bool
	}{
		{"0 0 4294967295\n", 0, highestOwners, true},
		{"0 0 4294967295\n", ownersRanges + 3, highestOwners + 3*ownersCount, true},
		{"0 100000 65536\n", 1, -1, false},
		{"0 1000 1\n1 100000 65536\n", 1, -1, false},
		{"0 100000 200000\n", 9, 134464, true},
		{"nonsense\n", 1, -1, false},
	} {
		if start, ok := rangeIn(k.idMap, k.seed); ok != k.ok || ok && start != k.start {
			t.Errorf("rangeIn(%q, %d) = %d, %v", k.idMap, k.seed, start, ok)
		}
	}
}

func TestSubordinate(t *testing.T) {
	file := t.TempDir() + "/subuid"
	text := "# comment\nann:100000:65536\nbob:1:nonsense\n1001:200000:1000\n1001:300000:65536\nann:5:3\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		name, uid    string
		start, count int
		ok           bool
	}{{"ann", "1000", 100000, 65536, true}, {"eve", "1001", 300000, 65536, true}, {"bob", "7", 0, 0, false}} {
		start, count, err := subordinate(file, k.name, k.uid)
		if start != k.start || count != k.count || (err == nil) != k.ok {
			t.Errorf("%s: %d %d %v", k.name, start, count, err)
		}
	}
}

// TestKill: a program ends at once, and is gone when Kill returns.
func TestKill(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p, err := Start(self(t, waitPath), os.Stderr, r)
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(p.PID(), 0); err != nil {
		t.Fatalf("it does not run: %v", err)
	}
	p.Kill()
	if _, signal := p.Wait(); signal != int(unix.SIGKILL) {
		t.Errorf("signal %d ended it", signal)
	}
	if err := unix.Kill(p.PID(), 0); err == nil {
		t.Error("it runs after it was killed")
	}
	p.Kill() // again does nothing
}

func TestWhatCannotStart(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"a program that is not there": func(s *Spec) { s.Argv[0] = "/nothing" },
		"a file that is not there":    func(s *Spec) { s.Binds = append(s.Binds, Bind{Host: "/nothing/there", Inside: "/x"}) },
		"a path outside":              func(s *Spec) { s.Binds = append(s.Binds, Bind{Host: "/", Inside: "/../x"}) },
		"a device that is none":       func(s *Spec) { s.Devices = []string{"no-such-device"} },
	} {
		s := self(t, waitPath)
		change(&s)
		if p, err := Start(s, os.Stderr); err == nil {
			p.Kill()
			t.Errorf("%s: it started", name)
		}
	}
}
