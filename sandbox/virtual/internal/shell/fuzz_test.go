package shell

import (
	"context"
	"io"
	"testing"
	"time"
)

// FuzzScript: whatever the text, the interpreter neither fails nor goes on for
// ever.
func FuzzScript(f *testing.F) {
	for _, list := range scripts(f) {
		for i, s := range list {
			if i%7 == 0 {
				f.Add(s)
			}
		}
	}
	for _, s := range []string{"f() { f | f & }; f", "eval 'eval \"echo $((1<<99))\"'", "cat <(cat <(echo x))", "${x@", "a[$(f)]=1", "case x in", "<<E\n", "echo {a,{b,c}}{1..9}", "[[ a =~ ( ]]", "printf -v a%s", "read -d '' -n 5 x <<< y"} {
		f.Add(s)
	}
	v := newView(f)
	f.Fuzz(func(t *testing.T, text string) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		small := Limits{Commands: 300, Loops: 300, Frames: 1500, Output: 64 << 10, Variable: 16 << 10, Memory: 64 << 10, Script: 8 << 10, Nesting: 100, Parallel: 5000}
		_, _ = Run(ctx, v, Script{Text: text, Dir: "/w", Env: testEnv, Home: "/home/user", UID: 1000, Limits: small, Stdout: io.Discard, Stderr: io.Discard})
	})
}
