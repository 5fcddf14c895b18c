package shell

import (
	"os"
	"strings"
	"testing"
)

// differences are what the sandbox does otherwise than bash and coreutils, each
// as docs/virtual.md has it, with what happens here.
var differences = []struct{ doc, script, want string }{
	{"Only the descriptors 0, 1 and 2", "exec 3>f", "unsupported redirect fd"},
	{"`PIPESTATUS`", "false | true; echo \"[${PIPESTATUS[0]}]\"", "[]\n"},
	{"`>(…)`", "echo x > >(cat)", "not possible in the virtual sandbox"},
	{"run to its end first", "cat <(echo a; sleep 0; echo b)", "a\nb\n"},
	{"back-references", "echo aa | grep '\\(a\\)\\1'", "not supported"},
	{"`declare -i`, `-l` and `-u`", "declare -i x=1", "invalid option"},
	{"`nocasematch`", "shopt -s nocasematch", "unsupported option"},
	{"coprocesses", "coproc cat", "unhandled"},
	{"signals", "kill -TERM 1", "not supported"},
	{"`DEBUG` and `RETURN`", "trap x RETURN", "not supported"},
	{"`$!`", "true & echo $!", "g1\n"},
	{"padded as for a pipe", "echo one > f; wc < f", "      1       1       4\n"},
	{"the status of a C-style `for`", "for ((i=0;i<1;i++)); do false; done; echo $?", "0\n"},
	{"a syntax error anywhere", "echo before\nif", "syntax error"},
	{"`awk`, `python`, `git`", "awk 1", "command not found"},
	{"`tail -f`", "tail -f f", "not supported"},
	{"UTC", "date -d @0 +%Z", "UTC\n"},
	{"user 1000", "id", "uid=1000(user)"},
	{"a named pipe", "mkfifo p; cat < p", "No such device or address"},
	{"`ls` lists one name a line", "touch a b; ls", "a\nb\n"},
	{"the first line of `--help`", "ls --help", "virtual sandbox"},
}

func TestDifferencesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../../../docs/virtual.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if !strings.Contains(strings.Join(strings.Fields(string(doc)), " "), d.doc) {
			t.Errorf("docs/virtual.md does not say %q", d.doc)
		}
		v := newView(t)
		if got, _ := quick(t, v, d.script); !strings.Contains(got, d.want) {
			t.Errorf("%s: %q, want %q; if it is as in bash now, docs/virtual.md has to say so", d.script, got, d.want)
		}
	}
}
