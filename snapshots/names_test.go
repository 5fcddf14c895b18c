package snapshots

import (
	"slices"
	"strings"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

func TestNearest(t *testing.T) {
	cases := []struct {
		given string
		known []string
		want  string
	}{
		{"galey", []string{"galley", "other"}, "galley"},
		{"glaley", []string{"galley"}, "galley"},
		{"a", []string{"zzzzzz"}, ""},
		{"completely-different", []string{"x", "abc"}, ""},
		{"proof-2", []string{"proof", "proof-3"}, "proof-3"},
		{"anything", nil, ""},
	}
	for _, c := range cases {
		if got := nearest(c.given, c.known); got != c.want {
			t.Errorf("nearest(%q, %q) = %q, want %q", c.given, c.known, got, c.want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	cases := []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0},
		{"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"ab", "ba", 2},
	}
	for _, c := range cases {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range []string{"a", "A.b_c-9", "_x", "3rd", strings.Repeat("x", 64)} {
		if err := checkName(s); err != nil {
			t.Errorf("session name %q: %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "..", "-x", "a/b", "a b", "a\n", "é", "\x1b[1m", strings.Repeat("x", 65)} {
		if checkName(s) == nil {
			t.Errorf("session name %q was taken", s)
		}
	}
	if checkSnapshotName("12") == nil {
		t.Error("a snapshot may be named like a number")
	}
	for range 100 {
		if id := newID(); !validID(id) {
			t.Fatalf("id %q is not valid", id)
		}
	}
}

func TestNameFor(t *testing.T) {
	cases := map[string]string{
		"/home/u/galley":                    "galley",
		"/home/u/.config":                   "config",
		"/home/u/my project (2)":            "myproject2",
		"/":                                 "session",
		"/home/u/日本":                        "session",
		"/x/" + strings.Repeat("long", 100): strings.Repeat("long", 14),
	}
	for base, want := range cases {
		if got := nameFor(base); got != want {
			t.Errorf("nameFor(%q) = %q, want %q", base, got, want)
		}
	}
	taken := map[string]bool{"a": true, "a-2": true}
	if got := freeName("a", func(s string) bool { return taken[s] }); got != "a-3" {
		t.Errorf("freeName = %q, want a-3", got)
	}
}

func TestRules(t *testing.T) {
	r := Rules{Hide: []string{"**/.env", "/secret/"}, ReadOnly: []string{"vendor", "*.{key,pem}"}}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	c := r.Compile()
	cases := []struct {
		path             string
		hidden, readOnly bool
	}{
		{".env", true, false},
		{"a/b/.env", true, false},
		{"a/.envrc", false, false},
		{"secret", true, false},
		{"secret/x/y", true, false},
		{"secrets", false, false},
		{"a/secret", false, false},
		{"vendor", false, true},
		{"vendor/m/f.go", false, true},
		{"x.pem", false, true},
		{"d/x.pem", false, false},
		{"", false, false},
	}
	for _, k := range cases {
		if got := c.Hidden(k.path, false); got != k.hidden {
			t.Errorf("Hidden(%q) = %v", k.path, got)
		}
		if got := c.ReadOnly(k.path, false); got != k.readOnly {
			t.Errorf("ReadOnly(%q) = %v", k.path, got)
		}
	}
	if (Rules{}).Compile() != nil {
		t.Error("no pattern needs no rules")
	}
	for _, bad := range []string{"", "/", "[a", "{a,b", "a\\"} {
		err := Rules{Hide: []string{bad}}.Check()
		if err == nil || !strings.Contains(err.Error(), "does not parse") {
			t.Errorf("pattern %q: %v", bad, err)
		}
	}
}

func TestIsGalley(t *testing.T) {
	cases := map[string]bool{
		"25 0:50 / /mnt rw,nosuid - fuse.galley galley rw,user_id=0":       true,
		"25 0:50 / /mnt rw,nosuid shared:3 - fuse.galley /proj rw":         true,
		"25 0:50 / /mnt rw,nosuid shared:3 master:1 - fuse.mine galley rw": true,
		"25 0:50 / /fuse.galley rw - ext4 /dev/sda rw":                     false,
		"25 0:50 / /mnt rw - fuse.sshfs host: rw":                          false,
		"25 0:50 / /mnt rw":                                                    false,
		"25 0:50 / /mnt rw - tmpfs galley rw":                                  false,
		"25 0:50 / /mnt\\040-\\040fuse.galley rw - ext4 /dev/sda rw":           false,
		"25 0:50 / /mnt rw - fuse galley rw,user_id=0,group_id=0,allow_other,": true,
	}
	for line, want := range cases {
		if got := isGalley(line); got != want {
			t.Errorf("isGalley(%q) = %v", line, got)
		}
	}
}

func TestBeneath(t *testing.T) {
	cases := []struct {
		dir, path string
		want      bool
	}{
		{"/a", "/a", true}, {"/a", "/a/b", true}, {"/a", "/ab", false}, {"/", "/x", true}, {"/a/b", "/a", false},
	}
	for _, c := range cases {
		if got := beneath(c.dir, c.path); got != c.want {
			t.Errorf("beneath(%q, %q) = %v", c.dir, c.path, got)
		}
	}
}

// rs makes ranges of pairs of numbers.
func rs(ends ...overlay.LayerID) (out []overlay.Range) {
	for i := 0; i < len(ends); i += 2 {
		out = append(out, overlay.Range{From: ends[i], To: ends[i+1]})
	}
	return out
}

func TestRanges(t *testing.T) {
	cases := []struct{ a, b, want []overlay.Range }{
		{rs(1, 9), rs(3, 4), rs(1, 2, 5, 9)},
		{rs(1, 9), rs(1, 9), nil},
		{rs(1, 9), nil, rs(1, 9)},
		{rs(1, 2, 5, 6), rs(2, 5), rs(1, 1, 6, 6)},
		{rs(5, 6), rs(1, 5, 6, 8), nil},
		{rs(1, 1<<30-1), rs(1<<30, 1<<31-1), rs(1, 1<<30-1)},
	}
	for _, c := range cases {
		if got := without(c.a, c.b); !slices.Equal(got, c.want) {
			t.Errorf("without(%v, %v) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
	got := addLayer(addLayer(addLayer(nil, 3), 4), 6)
	if want := (rs(3, 4, 6, 6)); !slices.Equal(got, want) {
		t.Errorf("layers 3, 4 and 6 are %v, want %v", got, want)
	}
	for name, want := range map[string]bool{"7": true, "07": false, "-1": true, "x": false, "": false, "4294967296": false} {
		if _, ok := layerNumber(name); ok != want {
			t.Errorf("layerNumber(%q) = %v", name, ok)
		}
	}
}

func TestCleanPath(t *testing.T) {
	for _, p := range []string{"", "a", "a/b", "a\nb/\x1b", "..a"} {
		if !cleanPath(p) {
			t.Errorf("%q was refused", p)
		}
	}
	for _, p := range []string{"/", "/a", "a/", "a//b", "..", "a/..", ".", "a/./b", "a\x00"} {
		if cleanPath(p) {
			t.Errorf("%q was taken", p)
		}
	}
}
