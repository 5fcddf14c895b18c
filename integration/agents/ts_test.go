package agents

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tsClient is the directory of the TypeScript client with what it needs:
// GALLEY_TS_CLIENT, which scripts/test.sh fills, or one that npm fills now.
func tsClient(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("GALLEY_TS_CLIENT"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/ts")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

func TestMCPWithTheTypeScriptSDK(t *testing.T) {
	p := newProject(t)
	cmd := exec.Command("node", filepath.Join(tsClient(t), "client.mjs"), galley, "mcp")
	cmd.Dir, cmd.Env, cmd.Stderr = p.dir, p.env(), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got struct {
		Tools                   []string
		Written, Shell, Unknown string
		Exit                    int
		Missing                 bool
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(got.Tools) != 12 || !slices.Contains(got.Tools, "RequestReview") {
		t.Errorf("tools %v", got.Tools)
	}
	if got.Written != "Wrote from-ts.txt (1 line, 6 bytes)" || got.Shell != "hello\n(exit code: 3)" || got.Exit != 3 || !got.Missing {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(got.Unknown, "Commit") {
		t.Errorf("a tool that does not exist: %q", got.Unknown)
	}
	p.wantUntouched(t)
}
