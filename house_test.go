// Package orlop_test holds the map of the house: which room may import which,
// and which outside module comes in by which door.
package orlop_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms lists every package and the packages of ours it may import. To add an
// arrow, add it here; the reviewer sees it on its own line. A room stands
// above all that it imports (docs/design.md, "The house").
var rooms = map[string]string{
	"id":              "",
	"chunk":           "",
	"store":           "",
	"store/storetest": "store",
	"treetest":        "",

	"snapshot": "id",
	"box":      "id",
	"seal":     "id",

	"pack":  "box id seal",
	"index": "box id pack seal",
	"local": "id snapshot",
	"agent": "box chunk id snapshot",

	"repo":   "box chunk id index local pack seal snapshot store",
	"docker": "agent id",

	"backup":  "agent id local pack repo snapshot",
	"restore": "agent id repo snapshot",

	"bench":      "", // it runs programs, ours and others
	"bench/cuts": "box chunk id",

	"cmd/orlop": "agent backup chunk docker id local repo restore seal snapshot store",
}

// testRooms lists what only tests may import besides.
var testRooms = map[string]string{
	"store":     "store/storetest",
	"agent":     "treetest",
	"repo":      "store/storetest",
	"backup":    "store store/storetest treetest restore seal chunk",
	"restore":   "store store/storetest treetest backup seal chunk",
	"cmd/orlop": "treetest",
}

// doors lists outside modules and the only packages that may import them.
var doors = map[string]string{
	"github.com/restic/chunker":         "chunk",
	"github.com/zeebo/blake3":           "id",
	"go.etcd.io/bbolt":                  "index local",
	"github.com/klauspost/compress":     "box",
	"github.com/docker":                 "docker",
	"github.com/containerd":             "docker",
	"github.com/opencontainers":         "docker",
	"github.com/fxamacker/cbor":         "repo snapshot",
	"golang.org/x/crypto":               "seal",
	"github.com/gofrs/flock":            "local",
	"github.com/google/renameio":        "cmd/orlop",
	"github.com/spf13/cobra":            "cmd/orlop",
	"github.com/spf13/pflag":            "cmd/orlop",
	"github.com/vbauerster/mpb":         "cmd/orlop",
	"github.com/jedib0t/go-pretty":      "cmd/orlop",
	"github.com/dustin/go-humanize":     "cmd/orlop",
	"golang.org/x/term":                 "cmd/orlop",
	"golang.org/x/sync":                 "agent repo restore docker",
	"golang.org/x/sys":                  "agent cmd/orlop docker index local seal store treetest",
	"github.com/rogpeppe/go-internal":   "cmd/orlop",
	"github.com/google/go-cmp":          "*",
	"pgregory.net/rapid":                "*",
	"go.uber.org/goleak":                "*",
	"github.com/moby/docker-image-spec": "docker",
	"github.com/distribution/reference": "docker",
}

// testDoors lists who may use a module in tests besides.
var testDoors = map[string]string{
	"golang.org/x/sys":    "cmd/orlop restore", // terminals, signals; which files are as they were
	"golang.org/x/crypto": "docker",            // an SSH server to reach an engine by
	"golang.org/x/sync":   "index local",       // as everywhere else
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestEveryImportIsOnTheMap(t *testing.T) {
	for _, p := range packages(t) {
		room := strings.TrimPrefix(p.ImportPath, "orlop/")
		if p.ImportPath == "orlop" {
			continue
		}
		may, ok := rooms[room]
		if !ok {
			t.Errorf("package %s is not on the map", room)
			continue
		}
		allowed := strings.Fields(may)
		inTests := append(strings.Fields(testRooms[room]), append(allowed, room)...)
		for _, i := range p.Imports {
			check(t, room, i, allowed)
		}
		for _, i := range append(p.TestImports, p.XTestImports...) {
			check(t, room+" (test)", i, inTests)
		}
	}
}

func check(t *testing.T, room, imported string, allowed []string) {
	t.Helper()
	if ours, ok := strings.CutPrefix(imported, "orlop/"); ok {
		if !slices.Contains(allowed, ours) {
			t.Errorf("%s imports %s, and there is no such arrow on the map", room, ours)
		}
		return
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		return // the standard library
	}
	plain := strings.TrimSuffix(room, " (test)")
	for module, door := range doors {
		if imported != module && !strings.HasPrefix(imported, module+"/") {
			continue
		}
		if plain != room {
			door += " " + testDoors[module]
		}
		if !strings.HasPrefix(door, "*") && !slices.Contains(strings.Fields(door), plain) {
			t.Errorf("%s imports %s, whose door is %s", room, imported, door)
		}
		return
	}
	t.Errorf("%s imports %s, which has no door", room, imported)
}

// The map itself has floors: no room stands above itself.
func TestTheMapHasNoCircles(t *testing.T) {
	var below func(room string, path []string)
	below = func(room string, path []string) {
		if slices.Contains(path, room) {
			t.Fatalf("circle: %s", strings.Join(append(path, room), " -> "))
		}
		for _, next := range strings.Fields(rooms[room]) {
			if _, ok := rooms[next]; !ok {
				t.Errorf("%s imports %s, which is not on the map", room, next)
			}
			below(next, append(path, room))
		}
	}
	for room := range rooms {
		below(room, nil)
	}
}

func packages(t *testing.T) (all []goPackage) {
	t.Helper()
	out, err := exec.Command("go", "list", "-tags", "engine", "-json=ImportPath,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
