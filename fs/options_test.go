package fs

import (
	"errors"
	"strings"
	"testing"
)

func TestParseMountOptions(t *testing.T) {
	for _, c := range []struct {
		in   string
		want MountOptions
	}{
		{"", MountOptions{}},
		{"allow_other,ro", MountOptions{AllowOther: true, ReadOnly: true}},
		{"ro,rw", MountOptions{}},
		{"fsname=my\\,tree,subtype=x,noexec,noatime", MountOptions{FsName: "my,tree", Subtype: "x", NoExec: true, NoAtime: true}},
		{"default_permissions,nosuid,nodev,relatime", MountOptions{}},
		{"writeback", MountOptions{Writeback: true}},
	} {
		got, err := ParseMountOptions(c.in)
		if err != nil || got != c.want {
			t.Errorf("%q: got %+v, %v; want %+v", c.in, got, err, c.want)
		}
	}
}

func TestParseMountOptionsRefuses(t *testing.T) {
	for in, name := range map[string]string{
		"ro,big_writes":  "big_writes",
		"fsname":         "fsname",
		"fsname=":        "fsname=",
		"subtype=a.b":    "subtype=a.b",
		"suid":           "suid",
		"dev":            "dev",
		"allow_other=1":  "allow_other=1",
		"fd=3":           "fd=3",
		"fsname=a\nb,ro": "fsname=a\nb",
	} {
		_, err := ParseMountOptions(in)
		var bad *OptionError
		if !errors.As(err, &bad) {
			t.Errorf("%q: %v, want an OptionError", in, err)
			continue
		}
		if bad.Option != name {
			t.Errorf("%q: refused %q, want %q", in, bad.Option, name)
		}
	}
}

func TestFusermountOptionsAreEscaped(t *testing.T) {
	o := MountOptions{FsName: `a,b\c`}
	if got := o.fusermount(); !strings.Contains(got, `fsname=a\,b\\c,`) {
		t.Errorf("got %s", got)
	}
}
