package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"orlop/treetest"
)

// The scripts run a binary of its own; here the race detector sees the commands.
func TestTheMainPathInThisProcess(t *testing.T) {
	home := t.TempDir()
	for _, v := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"} {
		t.Setenv(v, filepath.Join(home, v))
	}
	source, target := filepath.Join(home, "source"), filepath.Join(home, "target")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	treetest.Small(t, source)
	for _, args := range [][]string{
		{"init"},
		{"backup", "--path", source, "--path", source},
		{"snapshots"},
		{"ls", "latest", "-R", "-l"},
		{"restore", "latest", "--target", target},
		{"check", "--read-data"},
	} {
		var out, errs bytes.Buffer
		a := &app{out: &out, err: &errs}
		if code := a.run(t.Context(), args); code != exitOK || out.Len() == 0 {
			t.Fatalf("orlop %q: exit code %d, %d bytes of results\n%s", args, code, out.Len(), errs.String())
		}
	}
	treetest.Same(t, source, target)
	treetest.RemoveAll(t, target)
}
