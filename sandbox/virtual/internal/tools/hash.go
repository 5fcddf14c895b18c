package tools

import (
	"bytes"
	"crypto/md5"  // a checksum that users ask for
	"crypto/sha1" // the same
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"strconv"
	"strings"
)

func init() {
	for name, h := range map[string]func() hash.Hash{"md5sum": md5.New, "sha1sum": sha1.New, "sha224sum": sha256.New224, "sha256sum": sha256.New, "sha384sum": sha512.New384, "sha512sum": sha512.New} {
		register(func(c *Call) int { return sum(c, h) }, name)
	}
	register(base64Tool, "base64")
	register(xxd, "xxd")
}

func sum(c *Call, h func() hash.Hash) int {
	opts, files, st, ok := c.parse(options{short: "bctwq①②", long: map[string]rune{"binary": 'b', "check": 'c', "text": 't', "quiet": 'q', "status": '①', "strict": '②', "warn": 'w', "ignore-missing": '②'}})
	if !ok {
		return st
	}
	check, quiet, silent, mark := false, false, false, " "
	for _, o := range opts {
		switch o.name {
		case 'c':
			check = true
		case 'q':
			quiet = true
		case '①':
			silent = true
		case 'b':
			mark = "*"
		}
	}
	if check {
		return c.sumCheck(h, files, quiet, silent)
	}
	c.each(files, func(name string, r io.Reader) error {
		s := h()
		if _, err := io.Copy(s, r); err != nil {
			return err
		}
		c.print(hex.EncodeToString(s.Sum(nil)) + " " + mark + name + "\n")
		return nil
	})
	return c.status
}

func (c *Call) sumCheck(h func() hash.Hash, files []string, quiet, silent bool) int {
	bad, missing := 0, 0
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, _ bool) error {
			want, name, ok := strings.Cut(string(line), " ")
			if !ok || len(want) != 2*h().Size() || len(name) < 2 {
				return nil
			}
			name = name[1:]
			f, err := c.openArg(name)
			if err != nil {
				c.fail("%s: %s", name, msg(err))
				c.print(name + ": FAILED open or read\n")
				missing++
				return nil
			}
			defer f.Close()
			s := h()
			if _, err := io.Copy(s, f); err != nil {
				return err
			}
			switch {
			case !strings.EqualFold(hex.EncodeToString(s.Sum(nil)), want):
				bad++
				if !silent {
					c.print(name + ": FAILED\n")
				}
			case !quiet && !silent:
				c.print(name + ": OK\n")
			}
			return nil
		})
	})
	if missing > 0 && !silent {
		c.fail("WARNING: %d listed file could not be read", missing)
	}
	if bad > 0 {
		c.status = 1
		if !silent {
			c.fail("WARNING: %d computed checksum did NOT match", bad)
		}
	}
	return c.status
}

func base64Tool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "diw:", long: map[string]rune{"decode": 'd', "ignore-garbage": 'i', "wrap": 'w'}})
	if !ok {
		return st
	}
	decode, garbage, wrap := false, false, 76
	for _, o := range opts {
		switch o.name {
		case 'd':
			decode = true
		case 'i':
			garbage = true
		case 'w':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 0 {
				return c.die(1, "invalid wrap size: '%s'", o.arg)
			}
			wrap = n
		}
	}
	c.each(files, func(_ string, r io.Reader) error {
		b, err := c.readAll(r)
		if err != nil {
			return err
		}
		if !decode {
			s := base64.StdEncoding.EncodeToString(b)
			for wrap > 0 && len(s) > 0 {
				n := min(wrap, len(s))
				c.print(s[:n] + "\n")
				s = s[n:]
			}
			c.print(s)
			return nil
		}
		b = bytes.Map(func(r rune) rune {
			if r == '\n' || garbage && !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=", r) {
				return -1
			}
			return r
		}, b)
		out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
		n, err := base64.StdEncoding.Decode(out, b)
		c.write(out[:n])
		if err != nil {
			c.fail("invalid input")
		}
		return nil
	})
	return c.status
}

func xxd(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "pl:"})
	if !ok {
		return st
	}
	plain := false
	limit := int64(1) << 62
	for _, o := range opts {
		switch o.name {
		case 'p':
			plain = true
		case 'l':
			if n, err := strconv.ParseInt(o.arg, 0, 62); err == nil {
				limit = n
			}
		}
	}
	c.each(files, func(_ string, r io.Reader) error {
		b, err := c.readAll(io.LimitReader(r, limit))
		if err != nil {
			return err
		}
		if plain {
			s := hex.EncodeToString(b)
			for len(s) > 0 {
				n := min(60, len(s))
				c.print(s[:n] + "\n")
				s = s[n:]
			}
			return nil
		}
		for off := 0; off < len(b); off += 16 {
			row := b[off:min(off+16, len(b))]
			c.printf("%08x: ", off)
			for i := range 16 {
				if i < len(row) {
					c.printf("%02x", row[i])
				} else {
					c.print("  ")
				}
				if i%2 == 1 {
					c.print(" ")
				}
			}
			c.print(" ")
			for _, x := range row {
				if x < 32 || x > 126 {
					x = '.'
				}
				_ = c.out.WriteByte(x)
			}
			c.print("\n")
		}
		return nil
	})
	return c.status
}
