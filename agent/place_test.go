package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop/id"
	"orlop/snapshot"
)

// A wish is an entry that a tree is to have.
type wish struct {
	*snapshot.Entry
	data []byte // of a file, if it is not inline
	link string // the first name of its group
}

// wishes are the oddities, and files that are large enough to be compared.
func wishes() (all []wish) {
	for _, e := range oddities() {
		all = append(all, wish{Entry: e})
	}
	large := func(path string, n int, seed byte) wish {
		e := entry(snapshot.File, path, 0o640)
		e.Size, e.Content = uint64(n), pretend(n)
		return wish{Entry: e, data: noise(n, seed)}
	}
	linked := large("linked", 50_000, 3)
	linked.Group = [16]byte{1}
	again := wish{Entry: new(snapshot.Entry), link: "linked"}
	*again.Entry = *linked.Entry
	again.Name = "linked again"
	sparse := large("sparse", 20_000, 4)
	sparse.Size, sparse.Sparse = 1<<20, true
	sparse.Extents = []snapshot.Extent{{Offset: 8192, Length: 8192}, {Offset: 512 << 10, Length: 11_808}}
	all = append(all, large("large", 200_000, 1), large("larger", 70_000, 2), linked, again, sparse)
	slices.SortFunc(all, func(a, b wish) int { return snapshot.Compare(a.Dir, a.Name, b.Dir, b.Name) })
	return all
}

const blobOf = 4096 // bytes, in these tests

// restoreOver restores wishes in place. It asks of the content as a host does,
// and gives what it is told is missing.
func restoreOver(ctx context.Context, c *Client, root string, in InPlace, marker string, all []wish) (RestoreTotals, []string, error) {
	var mu sync.Mutex
	var problems []string
	verdicts := make(chan []bool, 100)
	in.NameKey = nameKey
	in.Verdict = func(_ uint64, missing []bool) error {
		verdicts <- missing
		return nil
	}
	r, err := c.Restore(ctx, RestoreRequest{Root: root, Marker: marker, InPlace: &in, Problem: func(_ uint64, path, what string) {
		mu.Lock()
		defer mu.Unlock()
		problems = append(problems, path+": "+what)
	}})
	if err != nil {
		return RestoreTotals{}, nil, err
	}
	namer := id.NewNamer(nameKey)
	put := func(w wish) error {
		if w.link != "" {
			_, err := r.Link(w.Entry, w.link)
			return err
		}
		n, err := r.Add(w.Entry, nil, nil)
		if err != nil || w.Type != snapshot.File {
			return err
		}
		var refs []snapshot.Ref
		for blob := range slices.Chunk(w.data, blobOf) {
			refs = append(refs, snapshot.Ref{Name: namer.Blob(id.Data, blob), Length: uint64(len(blob))})
		}
		if err := r.Compare(n, refs); err != nil {
			return err
		}
		var missing []bool
		for len(missing) < len(refs) {
			select {
			case more := <-verdicts:
				missing = append(missing, more...)
			case <-r.Lost():
				return r.Err()
			}
		}
		extents := w.Extents
		if !w.Sparse {
			extents = []snapshot.Extent{{Length: w.Size}}
		}
		done := 0
		for _, x := range extents {
			for off := uint64(0); off < x.Length && done < len(w.data); {
				// To the end of the extent, or of the blob.
				k := min(int(x.Length-off), blobOf-done%blobOf, len(w.data)-done)
				if missing[done/blobOf] && !in.Dry {
					if err := r.Write(n, int64(x.Offset+off), w.data[done:done+k]); err != nil {
						return err
					}
				}
				off, done = off+uint64(k), done+k
			}
		}
		return r.Finish(n)
	}
	for _, w := range all {
		if err := put(w); err != nil {
			_, end := r.End()
			return RestoreTotals{}, problems, errors.Join(err, end)
		}
	}
	totals, err := r.End()
	return totals, problems, err
}

// fulfilled asserts that root holds the wishes and nothing else.
func fulfilled(t testing.TB, root string, all []wish) {
	t.Helper()
	want := map[string]bool{}
	for _, w := range all {
		want[w.Path()] = true
		same(t, root, w.Entry)
		if w.data == nil {
			continue
		}
		got, err := os.ReadFile(filepath.Join(root, w.Path()))
		if err != nil {
			t.Fatal(err)
		}
		rest := w.data
		extents := w.Extents
		if !w.Sparse {
			extents = []snapshot.Extent{{Length: w.Size}}
		}
		for _, x := range extents {
			if !bytes.Equal(got[x.Offset:x.End()], rest[:x.Length]) {
				t.Errorf("%s: other bytes at %d", w.Path(), x.Offset)
			}
			clear(got[x.Offset:x.End()])
			rest = rest[x.Length:]
		}
		if len(bytes.Trim(got, "\x00")) > 0 {
			t.Errorf("%s: bytes in its holes", w.Path())
		}
	}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		path = strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		if !want[path] {
			t.Errorf("%q should not be there", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// spoil makes what is in root different from the wishes in every way.
func spoil(t testing.TB, root string) {
	t.Helper()
	f := func(path string) string { return root + "/" + path }
	away := t.TempDir() // what links lead to, should they be followed
	large, err := os.ReadFile(f("large"))
	if err != nil {
		t.Fatal(err)
	}
	copy(large[10_000:], "spoilt")
	copy(large[150_000:], "spoilt")
	sparse, err := os.ReadFile(f("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	sparse[100_000] = 'x'
	if err := errors.Join(
		os.WriteFile(f("large"), large, 0o600),
		os.WriteFile(f("sparse"), sparse, 0o600), // without holes
		os.Truncate(f("larger"), 30_000),
		os.Link(f("capable"), f("zz")),
		os.Remove(f("linked again")), os.WriteFile(f("linked again"), []byte("x"), 0o600),
		os.Remove(f("fifo")), os.MkdirAll(f("fifo/a/b"), 0o700), os.WriteFile(f("fifo/a/f"), nil, 0o600),
		os.Remove(f("char")),
		os.RemoveAll(f("dir/sub")), os.Symlink(away, f("dir/sub")),
		os.Chmod(f("setuid"), 0o644), os.Chown(f("socket"), 1, 1),
		os.MkdirAll(f("extra/1/2"), 0o755), os.WriteFile(f("extra/1/f"), nil, 0o600), os.Symlink(away, f("extra/away")),
		unix.Setxattr(f("listed"), "user.more", []byte("x"), 0),
	); err != nil {
		t.Fatal(err)
	}
}

func TestARestoreInPlaceMakesEverythingGood(t *testing.T) {
	root, c := t.TempDir(), local(t)
	all := wishes()
	if totals, problems, err := restoreOver(t.Context(), c, root, InPlace{}, "mark", all); err != nil || len(problems) > 0 || totals.Changed+totals.Unchanged > 0 {
		t.Fatalf("%+v %q %v", totals, problems, err)
	}
	fulfilled(t, root, all)
	spoil(t, root)
	totals, problems, err := restoreOver(t.Context(), c, root, InPlace{}, "mark", all)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	fulfilled(t, root, all)
	want := RestoreTotals{
		Files: 10, Dirs: 3, Links: 1, Others: 7,
		Removed: 5, RemovedDirs: 6, // zz, extra and what was in it, what fifo was, a link where sub is
	}
	want.Changed, want.Unchanged, want.Bytes = totals.Changed, totals.Unchanged, totals.Bytes
	if totals != want || totals.Changed < 8 || totals.Unchanged < 5 {
		t.Errorf("%+v, want %+v", totals, want)
	}
	// Two blobs of one, ten of another and half of one; what is in the holes is
	// punched out, or written over with the blob.
	if totals.Bytes > 2*blobOf+45_000+20_000 {
		t.Errorf("%d bytes were written", totals.Bytes)
	}
	again, _, err := restoreOver(t.Context(), c, root, InPlace{}, "", all)
	if err != nil || again.Bytes+again.Changed+again.Removed != 0 || again.Unchanged != 18 {
		t.Errorf("%+v, %v", again, err)
	}
}

// victim is the child that is killed: it restores over what its parent made.
func victim(task string) int {
	var k struct {
		Root string
		At   int64
	}
	if err := json.Unmarshal([]byte(task), &k); err != nil {
		panic(err)
	}
	var n atomic.Int64
	set := usual()
	set.hook = func(string, string) error {
		if n.Add(1) > k.At {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		panic(err)
	}
	go func() { _ = serve(context.Background(), os.NewFile(uintptr(fds[1]), "agent"), set) }()
	c, err := newClient(context.Background(), os.NewFile(uintptr(fds[0]), "host"), TransportLocal, set)
	if err != nil {
		panic(err)
	}
	if _, problems, err := restoreOver(context.Background(), c, k.Root, InPlace{}, "mark", wishes()); err != nil || len(problems) > 0 {
		fmt.Println(problems, err)
		return 1
	}
	return 0
}

// Wherever a restore in place is killed, the target says that it is not whole,
// and a second run makes it so.
func TestARestoreInPlaceThatIsKilledIsFinishedByTheNext(t *testing.T) {
	c := local(t)
	all := wishes()
	killed, marked := 0, 0
	for at := int64(0); ; at += 1 + at/8 {
		root := t.TempDir()
		if _, _, err := restoreOver(t.Context(), c, root, InPlace{}, "", all); err != nil {
			t.Fatal(err)
		}
		spoil(t, root)
		before := changes(t, root)
		task, err := json.Marshal(map[string]any{"Root": root, "At": at})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "ORLOP_AGENT_TEST=victim", "ORLOP_AGENT_VICTIM="+string(task), "GORACE=atexit_sleep_ms=0")
		out, err := cmd.CombinedOutput()
		if err == nil {
			fulfilled(t, root, all)
			break // it is over before it is to be killed
		}
		if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Fatalf("%v: %s", err, out)
		}
		killed++
		state, err := c.Look(t.Context(), root)
		if err != nil || state.Empty {
			t.Fatalf("%+v, %v", state, err)
		}
		switch {
		case state.Marker == "mark":
			marked++
		case state.Marker != "":
			t.Errorf("the marker is %q", state.Marker)
		case !maps.Equal(before, changes(t, root)):
			fulfilled(t, root, all) // all was done but to end
		}
		_, problems, err := restoreOver(t.Context(), c, root, InPlace{}, "mark", all)
		if err != nil || len(problems) > 0 {
			t.Errorf("killed at %d: %q, %v", at, problems, err)
		}
		fulfilled(t, root, all)
		if t.Failed() {
			t.Fatalf("after it was killed at %d", at)
		}
	}
	t.Logf("killed at %d moments, marked at %d", killed, marked)
	if killed < 15 || marked < 10 {
		t.Errorf("killed at %d moments, and marked at %d", killed, marked)
	}
}

// changes are the change times of all that is below root, by path.
func changes(t testing.TB, root string) map[string]unix.Timespec {
	t.Helper()
	all := map[string]unix.Timespec{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		all[path] = st.Ctim
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWhatIsInTheWayOrTooMuchMayBeDeepAndLarge(t *testing.T) {
	root := t.TempDir()
	tg, err := openTarget(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tg.close()
	// A path far longer than a call takes, with something at each level.
	if err := os.Mkdir(root+"/deep", 0o700); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Open(root+"/deep", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	const levels = 3000
	for range levels {
		err := errors.Join(unix.Mkdirat(at, "down", 0o700), unix.Mkdirat(at, "aside", 0o700), unix.Mknodat(at, "f", unix.S_IFREG|0o600, 0))
		next, err2 := unix.Openat(at, "down", unix.O_PATH, 0)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	for i := range 3000 {
		if err := os.WriteFile(fmt.Sprintf("%s/deep/%d", root, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	most := 0
	r := &removal{stop: func() bool {
		most = max(most, openBelow(t, root))
		return false
	}}
	slow := 0
	look := r.stop
	r.stop = func() bool {
		if slow++; slow%500 == 0 {
			return look()
		}
		return false
	}
	if err := tg.removeAll(tg.root.fd, "deep", r); err != nil {
		t.Fatal(err)
	}
	if r.files != levels+3000 || r.dirs != 2*levels+1 {
		t.Errorf("%d files and %d directories", r.files, r.dirs)
	}
	if left, _ := os.ReadDir(root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if most > maxDepth+4 || most == 0 {
		t.Errorf("%d descriptors were open", most)
	}
}

func TestWhatCannotBeRemovedIsNamedAndTheRestGoes(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(root+"/a/b/mount", 0o700), os.WriteFile(root+"/a/b/z", nil, 0o600), os.WriteFile(root+"/a/f", nil, 0o600),
		os.Mkdir(root+"/c", 0o700), os.WriteFile(root+"/d", nil, 0o600),
		unix.Mount("tmpfs", root+"/a/b/mount", "tmpfs", 0, "size=1m"),
	); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root+"/a/b/mount", unix.MNT_DETACH)
	if err := os.WriteFile(root+"/a/b/mount/mine", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all := []wish{{Entry: entry(snapshot.Dir, "", 0o755)}, {Entry: inline(entry(snapshot.File, "e", 0o600), "e")}}
	totals, problems, err := restoreOver(t.Context(), local(t), root, InPlace{}, "mark", all)
	if err != nil || len(problems) != 1 || !strings.HasPrefix(problems[0], "a: remove: ") {
		t.Errorf("%q, %v", problems, err)
	}
	if totals.Removed != 3 || totals.RemovedDirs != 1 || totals.Problems != 1 {
		t.Errorf("%+v", totals)
	}
	for path, there := range map[string]bool{"/a/b/mount/mine": true, "/a/b/z": false, "/a/f": false, "/c": false, "/d": false, "/e": true, "/" + MarkerName: false} {
		if _, err := os.Lstat(root + path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// The same games as with a target that is empty, while things are compared,
// replaced and removed.
func TestARacerLeadsNoRestoreInPlaceOutOfItsTarget(t *testing.T) {
	const dirs = 80
	var all []wish
	put := func(e *snapshot.Entry) { all = append(all, wish{Entry: e}) }
	put(entry(snapshot.Dir, "", 0o755))
	var r racer
	for i := range dirs {
		if i%4 > 0 { // the others are to go
			put(entry(snapshot.Dir, r.name(i), 0o755))
		}
	}
	for i := range dirs {
		if i%4 == 0 {
			continue
		}
		put(entry(snapshot.Dir, r.name(i)+"/s", 0o777))
		for k := range 10 {
			put(inline(entry(snapshot.File, fmt.Sprintf("%s/s/%02d", r.name(i), k), 0o666), "evil"))
		}
		f := entry(snapshot.File, r.name(i)+"/s/f", 0o4755)
		f.Size, f.Content = 9000, pretend(9000)
		all = append(all, wish{Entry: f, data: noise(9000, 1)})
		put(entry(snapshot.Fifo, r.name(i)+"/s/n", 0o777))
	}
	met, swaps, totals := 0, int64(0), RestoreTotals{}
	for range 4 {
		base := t.TempDir()
		r := &racer{inside: base + "/in", outside: base + "/out", dirs: dirs}
		r.prepare(t)
		for i := range dirs {
			for k := range 20 {
				if err := os.WriteFile(fmt.Sprintf("%s/%s/s/extra-%d", r.inside, r.name(i), k), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := canary(t, r.outside)
		stop := make(chan struct{})
		var racers sync.WaitGroup
		racers.Go(func() { r.run(stop) })
		got, problems, err := restoreOver(t.Context(), local(t), r.inside, InPlace{}, "mark", all)
		close(stop)
		racers.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, canary(t, r.outside)); diff != "" {
			t.Fatalf("the tree outside was changed (-before +after):\n%s", diff)
		}
		met, swaps = met+len(problems), swaps+r.swaps.Load()
		totals.Removed, totals.Changed = totals.Removed+got.Removed, totals.Changed+got.Changed
	}
	t.Logf("%d problems, %d swaps, %d removed, %d changed", met, swaps, totals.Removed, totals.Changed)
	if met == 0 || swaps == 0 || totals.Removed == 0 {
		t.Error("there was no race")
	}
}

// What an honest host never asks of a restore in place.
func TestTheAgentBelievesNoLiesAboutWhatIsThere(t *testing.T) {
	file := func(path string) *snapshot.Entry { return content(entry(snapshot.File, path, 0o644), 100) }
	refs := func(sizes ...uint64) (list []snapshot.Ref) {
		for i, n := range sizes {
			list = append(list, snapshot.Ref{Name: id.Blob{byte(i + 1)}, Length: n})
		}
		return list
	}
	for _, tt := range []struct {
		lie  string
		want string
		q    order
		say  func(*liar)
	}{
		{"a comparison with what is not to be there", "nothing to compare", order{verb: verbPlace}, func(l *liar) { l.w.compare(0, refs(1)) }},
		{"a comparison with a directory", "nothing to compare", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, entry(snapshot.Dir, "a", 0o755))
			l.w.compare(0, refs(1))
		}},
		{"a comparison after the end of a file", "nothing to compare", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.number(recordDiscard, 0)
			l.w.compare(0, refs(1))
		}},
		{"a comparison where nothing is", "nothing to compare", order{verb: verbRestore}, func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.compare(0, refs(100))
		}},
		{"a comparison of more than a file has", "has no 101 bytes", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.compare(0, refs(100))
			l.w.compare(0, refs(1))
		}},
		{"a comparison of nothing", "has no 0 bytes", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.compare(0, refs(0))
		}},
		{"a comparison of what is inline", "has no 1 bytes", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, inline(entry(snapshot.File, "a", 0o644), "inline"))
			l.w.compare(0, refs(1))
		}},
		{"a blob that is too large", "8388609 where at most", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, content(entry(snapshot.File, "a", 0o644), 9<<20))
			l.w.compare(0, refs(snapshot.MaxData+1))
		}},
		{"too many blobs at a time", "1025 where at most 1024", order{verb: verbPlace}, func(l *liar) {
			l.entry(recordMake, content(entry(snapshot.File, "a", 0o644), 9<<20))
			l.w.compare(0, make([]snapshot.Ref, maxCompare+1))
		}},
		{"a directory to be tidied where nothing is", "told to", order{verb: verbRestore}, func(l *liar) { l.w.path(recordTidy, "a") }},
		{"a directory to be tidied that is kept", "told to", order{verb: verbPlace, keep: true}, func(l *liar) { l.w.path(recordTidy, "a") }},
		{"a directory to be tidied that was spared", "told to", order{verb: verbPlace}, func(l *liar) {
			l.w.begin(recordSpare)
			l.w.path(recordTidy, "a")
		}},
		{"a directory outside", "name", order{verb: verbPlace}, func(l *liar) { l.w.path(recordTidy, "../out") }},
		{"an absolute directory", "name", order{verb: verbPlace}, func(l *liar) { l.w.path(recordTidy, "/etc") }},
		{"the root left as it is", "to be left", order{verb: verbPlace}, func(l *liar) { l.w.path(recordLeave, "") }},
		{"something outside left as it is", "to be left", order{verb: verbPlace}, func(l *liar) { l.w.path(recordLeave, "a/../../b") }},
		{"something left where nothing is", "told to leave", order{verb: verbRestore}, func(l *liar) { l.w.path(recordLeave, "a") }},
		{"something left out of order", `"a" after "b"`, order{verb: verbPlace}, func(l *liar) {
			l.w.path(recordLeave, "b")
			l.w.path(recordLeave, "a")
		}},
		{"a restore of no kind", "EOF", order{verb: 3}, func(*liar) {}},
		{"a dry restore that is not in place", "EOF", order{verb: verbRestore, dry: true}, func(*liar) {}},
	} {
		t.Run(tt.lie, func(t *testing.T) {
			base := t.TempDir()
			if err := errors.Join(os.Mkdir(base+"/in", 0o700), os.WriteFile(base+"/in/a", []byte("mine"), 0o600), os.WriteFile(base+"/out", nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			tt.q.root = base + "/in"
			typ, text := lieOf(t, &tt.q, func(l *liar) {
				tt.say(l)
				l.flushRecords()
				l.finish()
			})
			if typ != frameError && typ != 0 || !strings.Contains(text, tt.want) {
				t.Errorf("frame %d, %q", typ, text)
			}
			if all, _ := os.ReadDir(base); len(all) != 2 {
				t.Errorf("there is now %v", all)
			}
		})
	}
}

// What an honest agent never says of a restore in place.
func TestTheHostBelievesNoLiesAboutWhatIsThere(t *testing.T) {
	say := func(r report) func(*conn) { return func(c *conn) { _ = c.send(frameReport, r.append(nil)) } }
	for name, tt := range map[string]struct {
		plain bool
		lie   func(*conn)
	}{
		"a verdict on a restore that asks nothing": {true, say(report{Verdicts: []verdict{{1, []bool{true}}}})},
		"a change that nobody wants to know":       {false, say(report{Changes: []change{{Created, "a"}}})},
		"a verdict on another file":                {false, say(report{Verdicts: []verdict{{7, []bool{true, true}}}})},
		"a verdict on one of two":                  {false, say(report{Verdicts: []verdict{{1, []bool{true}}}})},
		"a verdict on more than was asked":         {false, say(report{Verdicts: []verdict{{1, []bool{true, true, true}}}})},
		"a verdict given twice":                    {false, say(report{Verdicts: []verdict{{1, []bool{false, false}}, {1, []bool{false, false}}}})},
		"an end without a verdict":                 {false, say(report{Done: []uint64{0, 1}})},
		"a change of no kind":                      {false, say(report{Changes: []change{{9, "a"}}})},
		"more kept than there is": {false, func(c *conn) {
			_ = c.send(frameReport, (&report{Verdicts: []verdict{{1, []bool{false, false}}}, Done: []uint64{1}}).append(nil))
			_ = c.send(frameTotals, RestoreTotals{Files: 1, Unchanged: 1, Changed: 1}.append(nil))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			totals, err := impostorOf(t, tt.plain, tt.lie)
			if err == nil {
				t.Errorf("success: %+v", totals)
			}
		})
	}
}

// impostorOf has an impostor restore one file of two blobs.
func impostorOf(t *testing.T, plain bool, say func(*conn)) (RestoreTotals, error) {
	t.Helper()
	c := pretender(t, say)
	q := RestoreRequest{Root: "/"}
	if !plain {
		q.InPlace = &InPlace{Verdict: func(uint64, []bool) error { return nil }}
	}
	r, err := c.Restore(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	_, err1 := r.Add(entry(snapshot.Dir, "", 0o755), nil, nil)
	n, err2 := r.Add(content(entry(snapshot.File, "f", 0o644), 200), nil, nil)
	var err3 error
	if !plain {
		err3 = r.Compare(n, []snapshot.Ref{{Name: id.Blob{1}, Length: 100}, {Name: id.Blob{2}, Length: 100}})
	}
	err4 := r.Finish(n)
	totals, err := r.End()
	return totals, errors.Join(err, err1, err2, err3, err4)
}

func TestARestoreInPlaceNeedsNoPrivilege(t *testing.T) {
	root := os.Getenv("ORLOP_TEST_ROOT")
	if root == "" {
		again(t, "^TestARestoreInPlaceNeedsNoPrivilege$", 4321)
		return
	}
	c := local(t)
	file := func(path string, mode uint32, n int) wish {
		e := entry(snapshot.File, path, mode)
		e.Size, e.Content = uint64(n), pretend(n)
		return wish{Entry: e, data: noise(n, 5)}
	}
	all := []wish{
		{Entry: entry(snapshot.Dir, "", 0o755)},
		{Entry: entry(snapshot.Dir, "closed", 0o500)},
		file("open", 0o644, 10_000), file("setuid", 0o4755, 5000), file("closed/f", 0o400, 20_000), file("closed/g", 0, 9000),
	}
	slices.SortFunc(all, func(a, b wish) int { return snapshot.Compare(a.Dir, a.Name, b.Dir, b.Name) })
	for round := range 3 {
		totals, problems, err := restoreOver(t.Context(), c, root, InPlace{}, "mark", all)
		if err != nil || len(problems) > 0 {
			t.Fatalf("%q, %v", problems, err)
		}
		for _, w := range all {
			same(t, root, w.Entry)
		}
		switch round {
		case 0:
			if err := errors.Join(
				os.Chmod(root+"/closed", 0o700), os.Chmod(root+"/closed/f", 0o600), os.Truncate(root+"/closed/f", 100), os.Chmod(root+"/closed/f", 0o400),
				os.MkdirAll(root+"/closed/extra/x", 0o700), os.WriteFile(root+"/closed/extra/x/y", nil, 0o400), os.Chmod(root+"/closed/extra/x", 0o500),
				os.Chmod(root+"/closed", 0o500),
			); err != nil {
				t.Fatal(err)
			}
		case 1:
			// A file that nobody may read is not compared, but made again.
			if totals.Removed != 1 || totals.RemovedDirs != 2 || totals.Changed != 2 || totals.Bytes != 20_000+9000 {
				t.Errorf("%+v", totals)
			}
		}
	}
}
