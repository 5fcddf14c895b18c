package tools

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/itchyny/gojq"
)

func init() { register(jq, "jq") }

type jqPrinter struct {
	c                  *Call
	raw, join, compact bool
	ascii, nul         bool
	indent             string
}

func jq(c *Call) int {
	p := jqPrinter{c: c, indent: "  "}
	o := options{short: "rjcnseSaRCMf:L:h①②③:④⑤", bad: 2, ordered: false, long: map[string]rune{
		"raw-output": 'r', "join-output": 'j', "compact-output": 'c', "null-input": 'n', "slurp": 's', "exit-status": 'e', "sort-keys": 'S', "ascii-output": 'a', "raw-input": 'R', "color-output": 'C', "monochrome-output": 'M', "from-file": 'f', "tab": '①', "indent": '③', "raw-output0": '④',
	}}
	args, names, values, positional, ok := c.jqArgs()
	if !ok {
		return 2
	}
	c.Args = args
	opts, rest, st, ok := c.parse(o)
	if !ok {
		return st
	}
	var null, slurp, exitStatus, rawIn bool
	from := ""
	for _, o := range opts {
		switch o.name {
		case 'r':
			p.raw = true
		case 'j':
			p.raw, p.join = true, true
		case '④':
			p.raw, p.nul = true, true
		case 'c':
			p.compact = true
		case 'n':
			null = true
		case 's':
			slurp = true
		case 'e':
			exitStatus = true
		case 'a':
			p.ascii = true
		case 'R':
			rawIn = true
		case 'f':
			from = o.arg
		case '①':
			p.indent = "\t"
		case '③':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 0 || n > 9 {
				return c.die(2, "Cannot indent more than 9 characters")
			}
			if p.indent = strings.Repeat(" ", n); n == 0 {
				p.compact = true
			}
		}
	}
	src := ""
	switch {
	case from != "":
		b, err := c.readArg(from)
		if err != nil {
			return c.die(2, "error: Could not open %s: %s", from, msg(err))
		}
		src = string(b)
	case len(rest) == 0:
		src = "."
	default:
		src, rest = rest[0], rest[1:]
	}
	if positional != nil {
		rest = nil
	}
	q, err := gojq.Parse(src)
	if err != nil {
		return c.die(3, "error: %v\njq: 1 compile error", err)
	}
	env := func() []string { return c.Env }
	code, err := gojq.Compile(q, gojq.WithVariables(names), gojq.WithEnvironLoader(env))
	if err != nil {
		return c.die(3, "error: %v\njq: 1 compile error", err)
	}
	inputs, err := c.jqInputs(rest, rawIn, slurp, null)
	if err != nil {
		return c.die(2, "error: %v", err)
	}
	var last any
	some := false
	for _, in := range inputs {
		iter := code.RunWithContext(c.Ctx, in, values...)
		for !c.broken() {
			v, ok := iter.Next()
			if !ok {
				break
			}
			if err, ok := v.(error); ok {
				var halt *gojq.HaltError
				if errors.As(err, &halt) {
					if s, ok := halt.Value().(string); ok {
						_, _ = io.WriteString(c.Stderr, s)
					}
					return halt.ExitCode()
				}
				c.warn("error (at <unknown>): %v", err)
				c.status = 5
				break
			}
			last, some = v, true
			p.print(v)
		}
	}
	if exitStatus && c.status == 0 {
		switch {
		case !some:
			return 4
		case last == nil || last == false:
			return 1
		}
	}
	return c.status
}

// jqArgs takes the options with two arguments and those behind --args.
func (c *Call) jqArgs() (args, names []string, values []any, positional []any, ok bool) {
	named := map[string]any{}
	mode := ""
	program := false
	for i := 0; i < len(c.Args); i++ {
		a := c.Args[i]
		switch a {
		case "--arg", "--argjson", "--slurpfile", "--rawfile":
			if i+2 >= len(c.Args) {
				c.warn("error: %s takes two parameters (e.g. %s name value)", a, a)
				return nil, nil, nil, nil, false
			}
			name, text := c.Args[i+1], c.Args[i+2]
			i += 2
			var v any = text
			var err error
			switch a {
			case "--argjson":
				err = json.Unmarshal([]byte(text), &v)
			case "--slurpfile", "--rawfile":
				var b []byte
				if b, err = c.readArg(text); err == nil {
					if v = string(b); a == "--slurpfile" {
						v, err = jsonValues(b)
					}
				}
			}
			if err != nil {
				c.warn("error: invalid value for %s: %v", a, err)
				return nil, nil, nil, nil, false
			}
			names, values = append(names, "$"+name), append(values, v)
			named[name] = v
			continue
		case "--args", "--jsonargs":
			mode = a
			positional = []any{}
			continue
		}
		if mode != "" && program && !strings.HasPrefix(a, "-") {
			var v any = a
			if mode == "--jsonargs" {
				if err := json.Unmarshal([]byte(a), &v); err != nil {
					c.warn("error: invalid JSON text passed to --jsonargs")
					return nil, nil, nil, nil, false
				}
			}
			positional = append(positional, v)
			continue
		}
		if !strings.HasPrefix(a, "-") {
			program = true
		}
		args = append(args, a)
	}
	pos := positional
	if pos == nil {
		pos = []any{}
	}
	names = append(names, "$ARGS")
	values = append(values, map[string]any{"named": named, "positional": pos})
	return args, names, values, positional, true
}

func jsonValues(b []byte) ([]any, error) {
	out := []any{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	for {
		var v any
		err := d.Decode(&v)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, numbers(v))
	}
}

// numbers makes integers of the numbers that are, as gojq wants them.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n
		}
		if strings.Trim(v.String(), "-0123456789") == "" && len(v) < 400 {
			if n, ok := new(big.Int).SetString(v.String(), 10); ok {
				return n
			}
		}
		f, err := v.Float64()
		if err != nil && math.IsInf(f, 0) {
			f = math.Copysign(math.MaxFloat64, f)
		}
		return f
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	}
	return v
}

func (c *Call) jqInputs(files []string, raw, slurp, null bool) ([]any, error) {
	if null {
		return []any{nil}, nil
	}
	var all []byte
	var failed error
	c.each(files, func(_ string, r io.Reader) error {
		b, err := c.readAll(r)
		if len(all)+len(b) > c.MaxInput {
			return errTooBig
		}
		all = append(all, b...)
		return err
	})
	if c.status != 0 {
		failed = errors.New("could not read all inputs")
		c.status = 0
	}
	if raw {
		if slurp {
			return []any{string(all)}, failed
		}
		var out []any
		for _, l := range split(all, '\n') {
			out = append(out, l)
		}
		return out, failed
	}
	vals, err := jsonValues(all)
	if slurp {
		vals = []any{any(vals)}
	}
	if err != nil {
		c.warn("error (at <stdin>): %v", err)
		c.status = 2
		if slurp {
			return nil, failed
		}
	}
	return vals, failed
}

func (p *jqPrinter) print(v any) {
	c := p.c
	if s, ok := v.(string); ok && p.raw {
		c.print(s)
	} else {
		b, err := gojq.Marshal(v)
		if err != nil {
			c.warn("error: %v", err)
			c.status = 5
			return
		}
		if !p.compact {
			var out bytes.Buffer
			if json.Indent(&out, b, "", p.indent) == nil {
				b = out.Bytes()
			}
		}
		if p.ascii {
			b = []byte(asciiOnly(string(b)))
		}
		c.write(b)
	}
	switch {
	case p.nul:
		c.print("\x00")
	case !p.join:
		c.print("\n")
	}
}

func asciiOnly(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r < 128:
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			b.WriteString(`\u` + strconv.FormatInt(int64(0xd800+r>>10), 16) + `\u` + strconv.FormatInt(int64(0xdc00+r&0x3ff), 16))
		default:
			h := strconv.FormatInt(int64(r), 16)
			b.WriteString(`\u` + strings.Repeat("0", 4-len(h)) + h)
		}
	}
	return b.String()
}
