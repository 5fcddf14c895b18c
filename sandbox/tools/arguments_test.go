package tools_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/tools"
)

// TestArguments: whatever a client sends as arguments, a call says what is
// wrong with them or goes on to the sandbox, which there is none of here. The
// arguments are right ones that were damaged, the same in every run.
func TestArguments(t *testing.T) {
	set := tools.New(tools.Options{Sandbox: func(context.Context) (sandbox.Sandbox, error) { return nil, errors.New("none here") }})
	seeds := []string{
		`{"path":"a"}`, `{"command":"x","timeout":-1}`, `{"path":"a","old":"\ud800","new":"","all":1}`, `{"pattern":"a"} {}`, `null`, "{\"to\":\"\x00",
		`{"paths":["a",{}],"summary":true}`, `[[[[]]]]`, `{"process":"p1","wait":1e99}`, ``, `{"path":{"path":"a"}}`,
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		args := []byte(seeds[rng.IntN(len(seeds))])
		for range rng.IntN(4) {
			if at := rng.IntN(len(args) + 1); rng.IntN(2) == 0 && at < len(args) {
				args[at] = byte(rng.IntN(256))
			} else {
				args = append(args[:at:at], append([]byte(seeds[rng.IntN(len(seeds))]), args[at:]...)...)
			}
		}
		for _, tool := range tools.Tools() {
			r, err := set.Call(t.Context(), tool.Name, args, nil)
			if err != nil || !r.Failed || r.Text == "" {
				t.Fatalf("%s %q: %+v, %v", tool.Name, args, r, err)
			}
			switch r.Code {
			case sandbox.Invalid, sandbox.Failed, sandbox.NotSupported:
			default:
				t.Fatalf("%s %q: code %q: %s", tool.Name, args, r.Code, r.Text)
			}
		}
	}
}
