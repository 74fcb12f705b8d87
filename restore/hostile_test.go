package restore_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orlop/id"
	"orlop/repo"
	"orlop/restore"
	"orlop/snapshot"
	"orlop/store"
	"orlop/treetest"
)

// A forger has the key, so what it stores has the right names and seals. It
// changes the nodes of a tree as they are saved.
type forger struct {
	*repo.Writer
	edit func(node []byte)
}

func (f *forger) Save(ctx context.Context, kind id.Kind, p []byte) (id.Blob, error) {
	if kind == id.Node && f.edit != nil {
		p = append([]byte(nil), p...)
		f.edit(p)
	}
	return f.Writer.Save(ctx, kind, p)
}

// forge stores a snapshot of what entries says, which may ask to store more.
func forge(t testing.TB, g *rig, edit func([]byte), entries func(save func(id.Kind, []byte) id.Blob) []*snapshot.Entry) (*repo.Repo, snapshot.Root) {
	t.Helper()
	ctx := t.Context()
	r := g.mustOpen(t, g.st)
	w, err := r.NewWriter(ctx)
	must(t, err)
	defer w.Leave(ctx)
	tree := snapshot.NewTree(&forger{w, edit}, r.Sealer().Boundary())
	must(t, tree.Add(ctx, &snapshot.Entry{Type: snapshot.Dir, Mode: 0o755}))
	for _, e := range entries(func(kind id.Kind, p []byte) id.Blob {
		name, err := w.Save(ctx, kind, p)
		must(t, err)
		return name
	}) {
		must(t, tree.Add(ctx, e))
	}
	root, err := tree.Finish(ctx)
	must(t, err)
	_, err = w.Commit(ctx, &snapshot.Snapshot{
		Source: snapshot.Source{Kind: snapshot.Volume, Name: "v"}, Root: root, Sequence: 1,
	})
	must(t, err)
	return r, root
}

func dir(path string) *snapshot.Entry {
	e := &snapshot.Entry{Type: snapshot.Dir, Mode: 0o755}
	e.Dir, e.Name = snapshot.SplitPath(path)
	return e
}

func file(path, data string) *snapshot.Entry {
	e := &snapshot.Entry{Type: snapshot.File, Mode: 0o644, Inline: []byte(data), Size: uint64(len(data))}
	e.Dir, e.Name = snapshot.SplitPath(path)
	return e
}

func link(path, to string) *snapshot.Entry {
	e := &snapshot.Entry{Type: snapshot.Symlink, Mode: 0o777, Target: to}
	e.Dir, e.Name = snapshot.SplitPath(path)
	return e
}

func grouped(e *snapshot.Entry) *snapshot.Entry {
	e.Group = [16]byte{1}
	return e
}

func content(path string, size uint64, refs ...snapshot.Ref) *snapshot.Entry {
	e := file(path, "")
	e.Size, e.Content.Refs = size, refs
	return e
}

type saver = func(id.Kind, []byte) id.Blob

// Whoever has the key can store any tree. Restoring it touches nothing but the
// target, takes no more memory than another, names what is wrong, and gets the
// rest right.
func TestAHostileTreeTouchesNothingOutsideItsTarget(t *testing.T) {
	home := fast(t)
	canary := home + "/canary"
	write(t, canary+"/file", []byte("sings"))
	write(t, canary+"/dir/below", []byte("sings too"))
	lives := func() string {
		out := fmt.Sprint(look(t, canary))
		for _, path := range []string{"", "/file", "/dir", "/dir/below"} {
			var st syscall.Stat_t
			must(t, syscall.Stat(canary+path, &st))
			out += fmt.Sprint(st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Mtim, st.Ctim)
		}
		return out
	}
	before := lives()
	forged := 0
	replace := func(old, new string) func([]byte) {
		return func(p []byte) {
			if at := strings.Index(string(p), old); at >= 0 && len(old) == len(new) {
				forged++
				copy(p[at:], new)
			}
		}
	}
	tests := []struct {
		name    string
		edit    func([]byte)
		entries func(save saver) []*snapshot.Entry
		named   string // what a problem or the error names; "": nothing is wrong
		lost    bool   // so much so that what is good may be lost too
	}{
		{"something below a file", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("f", "f"), file("good", "good"), file("f/x", "evil")}
		}, "f/x", false},
		{"something below a link to a directory outside", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), link("l", canary), file("l/file", "evil"), file("l/new", "evil"), dir("l/sub"), file("l/sub/x", "evil")}
		}, "l/new", false},
		{"something below a relative link", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), link("l", "../canary"), link("l/file", "evil")}
		}, "l/file", false},
		{"something below a link to a directory inside", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{dir("d"), file("good", "good"), link("l", "d"), file("l/x", "evil")}
		}, "l/x", false},
		{"a directory that is a link, deep below", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), link("l", canary), file("l/dir/below", "evil"), file("l/dir/more/x", "evil")}
		}, "l/dir/below", false},
		{"directories that nobody made", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), file("no/such/x", "x")}
		}, "no/such/x", false},
		{"a hard link that is a file, of a symlink", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{grouped(link("a", canary+"/file")), grouped(file("b", "evil")), file("good", "good")}
		}, "b", false},
		{"a hard link that is a symlink, of a file", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{grouped(file("a", "a")), grouped(link("b", canary+"/file")), file("good", "good")}
		}, "b", false},
		{"a hard link below a link, to a file below a link", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), link("l", canary), grouped(file("l/file", "evil")), grouped(file("l/linked", "evil"))}
		}, "l/linked", false},
		{"a hard link of a file that cannot be made", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("f", "f"), file("good", "good"), grouped(file("f/x", "evil")), grouped(file("f/y", "evil"))}
		}, "f/y", false},
		{"two entries of one path", replace("bb", "aa"), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("aa", "1"), file("bb", "2")}
		}, "aa", true},
		{"entries out of order", replace("bb", "00"), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("aa", "1"), file("bb", "2")}
		}, "00", true},
		{"a name that leads up", replace("zz", ".."), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), file("zz", "evil")}
		}, "..", true},
		{"a directory that leads up", replace("zz", ".."), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), file("zz/canary/file", "evil")}
		}, "..", true},
		{"a name with a slash", replace("x-canary-one", "x/canary/one"), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), file("x-canary-one", "evil")}
		}, "x/canary/one", true},
		{"a name with a NUL", replace("zz", "z\x00"), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), file("zz", "evil")}
		}, "NUL", true},
		{"an absolute name", replace("zz-canary", "/z-canary"), func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), file("zz-canary", "evil")}
		}, "/z-canary", true},
		{"a hole of eight exbibytes", nil, func(saver) []*snapshot.Entry {
			e := file("huge", "")
			e.Sparse, e.Size = true, snapshot.MaxSize
			return []*snapshot.Entry{file("good", "good"), e}
		}, "", false},
		{"a byte at the end of eight exbibytes", nil, func(saver) []*snapshot.Entry {
			e := file("huge", "x")
			e.Sparse, e.Size, e.Extents = true, snapshot.MaxSize, []snapshot.Extent{{Offset: snapshot.MaxSize - 1, Length: 1}}
			return []*snapshot.Entry{file("good", "good"), e}
		}, "", false},
		{"content that is shorter than its name says", nil, func(save saver) []*snapshot.Entry {
			b := save(id.Data, []byte("ten bytes!"))
			return []*snapshot.Entry{file("good", "good"), content("short", 2000, snapshot.Ref{Name: b, Length: 2000})}
		}, "short", false},
		{"content that is longer than its name says", nil, func(save saver) []*snapshot.Entry {
			b := save(id.Data, []byte("ten bytes!"))
			return []*snapshot.Entry{file("good", "good"), content("long", 3, snapshot.Ref{Name: b, Length: 3})}
		}, "long", false},
		{"content that is a node", nil, func(save saver) []*snapshot.Entry {
			b := save(id.Node, []byte("ten bytes!"))
			return []*snapshot.Entry{file("good", "good"), content("node", 10, snapshot.Ref{Name: b, Length: 10})}
		}, "node", false},
		{"content that nobody has", nil, func(saver) []*snapshot.Entry {
			return []*snapshot.Entry{file("good", "good"), content("none", 10, snapshot.Ref{Name: id.Blob{9}, Length: 10})}
		}, "none", false},
		{"content in a list that is garbage", nil, func(save saver) []*snapshot.Entry {
			b := save(id.List, []byte("this is no list"))
			e := content("list", 1<<50, snapshot.Ref{Name: b, Length: 1 << 50})
			e.Content.Level = 7
			return []*snapshot.Entry{file("good", "good"), e}
		}, "list", false},
		{"a map with extents beyond the file", nil, func(save saver) []*snapshot.Entry {
			m := snapshot.EncodeExtents([]snapshot.Extent{{Offset: 0, Length: 5}, {Offset: 1 << 40, Length: 5}})
			b := save(id.Data, m)
			e := file("beyond", "ten bytes!")
			e.Sparse, e.Size, e.Map.Refs = true, 100, []snapshot.Ref{{Name: b, Length: uint64(len(m))}}
			return []*snapshot.Entry{e, file("good", "good")}
		}, "beyond", false},
		{"a map that is garbage", nil, func(save saver) []*snapshot.Entry {
			b := save(id.Data, []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
			e := file("garbled", "ten bytes!")
			e.Sparse, e.Size, e.Map.Refs = true, 100, []snapshot.Ref{{Name: b, Length: 11}}
			return []*snapshot.Entry{e, file("good", "good")}
		}, "garbled", false},
		{"xattrs that are garbage", nil, func(save saver) []*snapshot.Entry {
			b := save(id.Data, []byte("garbage"))
			e, d, l := file("odd", "x"), dir("odd-dir"), link("odd-link", "x")
			for _, e := range []*snapshot.Entry{e, d, l} {
				e.XattrSet.Refs = []snapshot.Ref{{Name: b, Length: 7}}
			}
			return []*snapshot.Entry{file("good", "good"), e, d, l}
		}, "odd-dir", false},
		{"millions of extents in a few bytes", nil, func(save saver) []*snapshot.Entry {
			one := make([]byte, 0, 256<<10)
			for end := uint64(0); len(one) < 256<<10; end += 2 {
				one = snapshot.AppendExtent(one, end, snapshot.Extent{Offset: end + 1, Length: 1})
			}
			m := snapshot.Ref{Name: save(id.Data, one), Length: uint64(len(one))}
			d := snapshot.Ref{Name: save(id.Data, make([]byte, 2<<20)), Length: 2 << 20}
			e := file("bomb", "")
			e.Sparse, e.Size = true, math.MaxInt32
			e.Map, e.Content = many(t, save, m, 100), many(t, save, d, 50)
			return []*snapshot.Entry{e, file("good", "good")}
		}, "bomb", false},
	}
	var peak uint64
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, store.NewMem(), small)
			forged = 0
			r, root := forge(t, g, tt.edit, tt.entries)
			// Keys are drawn: a boundary can lie so that a spine has the name too.
			for tries := 0; tt.edit != nil && forged != 1; tries++ {
				if tries == 100 {
					t.Fatalf("forged %d times", forged)
				}
				g, forged = newRig(t, store.NewMem(), small), 0
				r, root = forge(t, g, tt.edit, tt.entries)
			}
			to := home + "/target"
			must(t, os.Mkdir(to, 0o755))
			defer func() { must(t, os.RemoveAll(to)) }()
			s, err := run(t.Context(), r, root, to)
			if lives() != before {
				t.Fatal("what is outside was touched")
			}
			said := fmt.Sprint(err)
			if s != nil {
				said = fmt.Sprintf("%q", s.Problems)
			}
			quiet := err == nil && s.ProblemCount == 0
			if tt.named != "" && (quiet || !strings.Contains(said, tt.named)) {
				t.Errorf("%s is not named: %s", tt.named, said)
			}
			if p, rerr := os.ReadFile(to + "/good"); !tt.lost && (err != nil || rerr != nil || string(p) != "good") {
				t.Errorf("what is good is %q, %v; the restore: %s", p, rerr, said)
			}
			for path, what := range look(t, to) {
				if strings.HasSuffix(what, "evil") {
					t.Errorf("%s was made: %s", path, said)
				}
			}

			// The same over what was there, and leads out.
			must(t, os.RemoveAll(to))
			must(t, os.MkdirAll(to+"/f", 0o755))
			for name, leads := range map[string]string{"l": canary, "d": "../canary", "good": canary + "/file", "zz": canary + "/dir"} {
				must(t, os.Symlink(leads, to+"/"+name))
			}
			p := &restore.InPlace{NameKey: g.key.NameKey()}
			s, err = runWith(t.Context(), r, root, to, restore.Options{InPlace: p})
			if lives() != before {
				t.Fatal("in place, what is outside was touched")
			}
			if p, rerr := os.ReadFile(to + "/good"); !tt.lost && (err != nil || rerr != nil || string(p) != "good") {
				t.Errorf("in place, what is good is %q, %v; %v", p, rerr, err)
			}
			if err == nil && tt.named != "" && s.ProblemCount == 0 {
				t.Errorf("in place, %s is not named", tt.named)
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.Sys)
		})
	}
	t.Logf("%d faults fired, 0 violations; %d MiB at most", len(tests), peak>>20)
	if peak > 2<<30 {
		t.Errorf("%d bytes of memory were used", peak)
	}
}

// many is n times the same blob as a stream.
func many(t testing.TB, save saver, r snapshot.Ref, n int) snapshot.Content {
	t.Helper()
	b := snapshot.NewContentBuilder(saverSink(save))
	for range n {
		must(t, b.Add(t.Context(), r))
	}
	c, err := b.Finish(t.Context())
	must(t, err)
	return c
}

type saverSink saver

func (s saverSink) Save(_ context.Context, kind id.Kind, p []byte) (id.Blob, error) {
	return s(kind, p), nil
}

// Files that are not finished take memory of the agent. When that is too much
// they are finished first; it is no error.
func TestFilesThatWaitForTheirContentAreNotTooMany(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	const files = 12
	r, root := forge(t, g, nil, func(save saver) []*snapshot.Entry {
		var set []snapshot.Xattr
		for i := range 240 {
			set = append(set, snapshot.Xattr{Name: fmt.Sprintf("user.%03d", i), Value: treetest.Bytes("x", 65_536)})
		}
		var refs []snapshot.Ref
		for p := snapshot.EncodeXattrs(set); len(p) > 0; {
			n := min(len(p), 4<<20)
			refs = append(refs, snapshot.Ref{Name: save(id.Data, p[:n]), Length: uint64(n)})
			p = p[n:]
		}
		all := []*snapshot.Entry{file("good", "good")}
		for i := range files {
			// The bytes are gone, which spares this test a disk that can take
			// such xattrs.
			e := content(fmt.Sprint("x-", 10+i), 1000, snapshot.Ref{Name: id.Blob{9}, Length: 1000})
			e.XattrSet.Refs = refs
			all = append(all, e)
		}
		return all
	})
	to := target(t)
	s, err := run(t.Context(), r, root, to)
	must(t, err)
	if s.ProblemCount != files || s.Files != 1 {
		t.Errorf("%d problems, %d files: %.500v", s.ProblemCount, s.Files, s.Problems)
	}
	if names, err := os.ReadDir(to); err != nil || len(names) != 1 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// Somebody who can write to the target replaces directories by links that lead
// out of it, all the time.
func TestARacerInTheTargetLeadsNothingOutside(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	for i := range 12 {
		for j := range 40 {
			write(t, fmt.Sprintf("%s/d%d/e/%d", g.src, i, j), treetest.Text(fmt.Sprint(i, j), 1500+j))
		}
	}
	g.backup(t)
	canary := fast(t)
	write(t, canary+"/e/0", []byte("sings"))
	must(t, os.Chmod(canary+"/e/0", 0o600))
	state := func() string {
		out := fmt.Sprint(look(t, canary))
		for _, path := range []string{"", "/e", "/e/0"} {
			var st syscall.Stat_t
			must(t, syscall.Stat(canary+path, &st))
			out += fmt.Sprint(st.Mode, st.Nlink, st.Uid, st.Size, st.Mtim)
		}
		return out
	}
	before := state()
	cache := fast(t)
	swaps, problems, whole := 0, uint64(0), 0
	for range 12 {
		to := target(t)
		stop, done := make(chan struct{}), make(chan int)
		var racing sync.WaitGroup
		racing.Go(func() {
			n := 0
			defer func() { done <- n }()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				d := fmt.Sprintf("%s/d%d", to, i%12)
				if i%24 >= 12 {
					d += "/e"
				}
				aside := fmt.Sprint(to, "-aside")
				if os.Rename(d, aside) != nil {
					continue
				}
				target := canary
				if strings.HasSuffix(d, "/e") {
					target += "/e"
				}
				if os.Symlink(target, d) == nil {
					n++
				}
				runtime.Gosched()
				_ = os.Remove(d)
				_ = os.Rename(aside, d)
			}
		})
		s, err := g.try(t.Context(), g.st, cache, to)
		close(stop)
		swaps += <-done
		racing.Wait()
		if err == nil {
			if problems += s.ProblemCount; s.ProblemCount == 0 {
				whole++
			}
		}
		if state() != before {
			t.Fatal("what is outside was touched")
		}
	}
	t.Logf("%d faults fired, 0 violations; %d problems, %d of 12 restores whole", swaps, problems, whole)
	if swaps < 12 {
		t.Errorf("only %d links were made", swaps)
	}
	g.holds(t, g.src)
}
