package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// foundFile keeps what was found out about QEMU, because asking it for its
// version and the dynamic linker for its libraries is a good part of a start.
const foundFile = "qemu.json"

// remembrance is an installation as it is kept.
type remembrance struct {
	Exe       string            `json:"exe"`
	Version   string            `json:"version"`
	Libraries []string          `json:"libraries"`
	Modules   []string          `json:"modules"`
	Firmware  map[string]string `json:"firmware"`
	// Files are all of these as they were then.
	Files map[string]string `json:"files"`
}

// remember keeps q for others.
func (d *Driver) remember(q *installation) {
	if d.opt.Cache == "" {
		return
	}
	r := remembrance{Exe: q.exe, Version: q.version, Libraries: q.libraries, Modules: q.modules, Firmware: q.firmware}
	r.Files = r.stamps()
	b, err := json.Marshal(r)
	if err == nil {
		err = os.MkdirAll(d.opt.Cache, 0o700)
	}
	if err == nil {
		err = replaceFile(filepath.Join(d.opt.Cache, foundFile), b)
	}
	if err != nil {
		d.opt.Log.Warn("keep what was found out about QEMU", "error", err)
	}
}

// remembered is what is kept of the QEMU at exe, if none of its files has
// changed since; nil otherwise.
func (d *Driver) remembered(exe string) *installation {
	if d.opt.Cache == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(d.opt.Cache, foundFile))
	var r remembrance
	if err != nil || json.Unmarshal(b, &r) != nil || r.Exe != exe {
		return nil
	}
	now := r.stamps()
	if len(now) != len(r.Files) {
		return nil
	}
	for p, stamp := range now {
		if stamp == "" || stamp != r.Files[p] {
			return nil
		}
	}
	return &installation{exe: r.Exe, version: r.Version, libraries: r.Libraries, modules: r.Modules, firmware: r.Firmware}
}

// stamps tell whether each file is the one that it was; "" of one that is not
// there.
func (r remembrance) stamps() map[string]string {
	out := map[string]string{}
	note := func(p string) {
		out[p] = ""
		if st, err := os.Stat(p); err == nil {
			out[p] = fmt.Sprintf("%d %d", st.Size(), st.ModTime().UnixNano())
		}
	}
	note(r.Exe)
	for _, list := range [][]string{r.Libraries, r.Modules} {
		for _, p := range list {
			note(p)
		}
	}
	for _, p := range r.Firmware {
		note(p)
	}
	return out
}
