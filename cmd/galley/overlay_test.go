package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseOverlay(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "b:c", "up", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	r, err := parseOverlay([]string{`lowerdir=a:b\:c,upperdir=up`, "workdir=work,redirect_dir=on,userxattr,allow_other,fsname=x"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b:c")}
	if strings.Join(r.Dirs.Lower, "|") != strings.Join(want, "|") || r.Dirs.Upper != filepath.Join(dir, "up") || !r.Dirs.UserXattr {
		t.Errorf("directories: %+v", r.Dirs)
	}
	if !r.Options.AllowOther || r.Options.FsName != "x" || r.Options.ReadOnly {
		t.Errorf("options: %+v", r.Options)
	}
	if r, err = parseOverlay([]string{"lowerdir=a"}); err != nil || !r.Options.ReadOnly {
		t.Errorf("without upperdir: %+v, %v; want a read-only view", r, err)
	}
	for opts, want := range map[string]string{
		"":                                      "no lowerdir",
		"lowerdir=":                             "needs a directory",
		"lowerdir=none":                         "none",
		"lowerdir=file":                         "found a file",
		"lowerdir=a,upperdir=up":                "upperdir without workdir",
		"lowerdir=a,workdir=work":               "workdir without upperdir",
		"lowerdir=a,metacopy=off":               `"metacopy=off"`,
		"lowerdir=a,volatile":                   `"volatile"`,
		"lowerdir=a,nfs_export=on":              `"nfs_export=on"`,
		"lowerdir=a,upperdir=up,workdir=up/../": "is in workdir",
		"lowerdir=a,upperdir=up,workdir=up/../work": "",
	} {
		if _, err := parseOverlay([]string{opts}); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", opts, err, want)
		}
	}
}
