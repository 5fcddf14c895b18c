package commit

import (
	"fmt"
	"strings"
)

// within reports whether path is dir or below it; everything is within "".
func within(path, dir string) bool {
	if dir == "" || path == dir {
		return true
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && strings.HasPrefix(path, dir)
}

// split cuts a path into its directory ("" for the root) and last component.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// join puts a name or relative path below a directory, which may be the root.
func join(dir, rest string) string {
	if dir == "" {
		return rest
	}
	if rest == "" {
		return dir
	}
	return dir + "/" + rest
}

// checkPath refuses a path that is not in the one form that change sets and
// journals use: components of 1 to 255 bytes separated by single slashes, none
// of them "." or "..", no NUL. The root is "".
func checkPath(path string) error {
	if path == "" {
		return nil
	}
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "":
			return fmt.Errorf("path %q has an empty component", path)
		case name == "." || name == "..":
			return fmt.Errorf("path %q has a component %q", path, name)
		case len(name) > 255:
			return fmt.Errorf("path %q has a component of %d bytes, more than 255", path, len(name))
		case strings.IndexByte(name, 0) >= 0:
			return fmt.Errorf("path %q has a zero byte", path)
		}
	}
	return nil
}

// pathName is a path in a journal: JSON strings hold only UTF-8, paths hold any
// byte, so that '%', control characters and what is no valid UTF-8 are written
// as %XX. It stays readable for a person with a broken commit before them.
type pathName string

// MarshalText escapes a path for a journal.
func (p pathName) MarshalText() ([]byte, error) {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(p))
	escape := func(b byte) { out = append(out, '%', hex[b>>4], hex[b&15]) }
	s := string(p)
	for i, r := range s {
		switch {
		case r == '%' || r < 0x20 || r == 0x7f:
			escape(s[i])
		case r == '\uFFFD' && !strings.HasPrefix(s[i:], "\uFFFD"):
			escape(s[i])
		default:
			out = append(out, string(r)...)
		}
	}
	return out, nil
}

// UnmarshalText reads what MarshalText wrote.
func (p *pathName) UnmarshalText(text []byte) error {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			out = append(out, text[i])
			continue
		}
		if i+2 >= len(text) {
			return fmt.Errorf("path ends within an escape")
		}
		hi, lo := unhex(text[i+1]), unhex(text[i+2])
		if hi < 0 || lo < 0 {
			return fmt.Errorf("path has a bad escape %q", text[i:i+3])
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	*p = pathName(out)
	return nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// key names a path of one tree.
func key(tree, path string) string { return tree + "\x00" + path }
