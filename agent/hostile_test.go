package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"orlop/snapshot"
)

// A narrow stream carries one byte at a time, and now and then lets others run
// first.
type narrow struct{ net.Conn }

func (n narrow) Read(p []byte) (int, error) {
	if rand.IntN(8) == 0 {
		runtime.Gosched()
	}
	return n.Conn.Read(p[:min(len(p), 1)])
}

// couple returns a client of an agent, joined by the two ends of a stream.
func couple(t testing.TB, h, a io.ReadWriteCloser, set settings) (*Client, error) {
	t.Helper()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = serve(context.WithoutCancel(t.Context()), a, set)
	}()
	c, err := newClient(t.Context(), h, TransportStdio, set)
	t.Cleanup(func() {
		if err == nil {
			_ = c.Close()
		}
		<-served
	})
	return c, err
}

func TestARestoreNeverGetsStuckInANarrowStream(t *testing.T) {
	for _, credit := range []uint32{1, 5000, 100_000} {
		t.Run(fmt.Sprint(credit), func(t *testing.T) {
			set := usual()
			set.credits.Writes = credit
			h, a := net.Pipe()
			c, err := couple(t, narrow{h}, narrow{a}, set)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // one client, several restores
				root := t.TempDir()
				r := fill(t, c, root)
				for _, e := range oddities() {
					r.put(e)
				}
				var all sync.WaitGroup
				for i := range 20 {
					n, err := r.Add(content(entry(snapshot.File, fmt.Sprintf("zz/%02d", i), 0o644), 1500), nil, nil)
					if err != nil {
						t.Fatal(err)
					}
					all.Go(func() {
						for off := 0; off < 1500; off += 500 {
							if err := r.Write(n, int64(off), pattern(i, off, 500)); err != nil {
								t.Error(err)
							}
						}
						if err := r.Finish(n); err != nil {
							t.Error(err)
						}
					})
				}
				all.Wait()
				// Nobody made zz: that is 20 times the same problem.
				totals, err := r.End()
				if want := (RestoreTotals{Files: 6, Dirs: 3, Others: 7, Bytes: oddTotals.Bytes, Problems: 20}); err != nil || totals != want {
					t.Errorf("%+v, %v", totals, err)
				}
				for _, e := range oddities() {
					same(t, root, e)
				}
			}
		})
	}
}

// A liar is a host that says what an honest one never would.
type liar struct {
	*conn
	w   recordWriter
	sum closing
}

// lie starts a restore into a new directory, has the host say what say wants,
// and returns the agent's last word.
func lie(t *testing.T, root string, say func(*liar)) (frameType, string) {
	t.Helper()
	return lieOf(t, &order{verb: verbRestore, root: root}, say)
}

func lieOf(t *testing.T, q *order, say func(*liar)) (frameType, string) {
	t.Helper()
	h, a := net.Pipe()
	set := usual()
	set.credits.Writes = 100_000
	l := &liar{conn: newConn(h, set)}
	defer l.close()
	served := make(chan error, 1)
	go func() { served <- serve(t.Context(), a, set) }()
	if err := l.send(frameHello, appendHello(nil, set.credits)); err != nil {
		t.Fatal(err)
	}
	if typ, _, err := l.read(); typ != frameHello || err != nil {
		t.Fatal(typ, err)
	}
	go func() {
		_ = l.send(frameRestore, q.append(nil))
		say(l)
	}()
	for {
		typ, body, err := l.read()
		switch {
		case err != nil:
			return 0, err.Error()
		case typ == frameReady || typ == frameReport:
			continue
		}
		text := ""
		if typ == frameError {
			f, err := parseFailure(body)
			if err != nil {
				t.Fatal(err)
			}
			text = f.Text
		}
		l.close()
		if err := <-served; typ == frameError && !errors.Is(err, ErrProtocol) {
			t.Errorf("the agent ended with %v", err)
		}
		return typ, text
	}
}

func (l *liar) entry(kind uint8, e *snapshot.Entry) {
	l.w.begin(kind)
	l.w.entry(e)
	l.sum.Entries++
}

func (l *liar) flushRecords() {
	if len(l.w.body) > 0 {
		_ = l.send(frameRecords, l.w.take())
	}
}

func (l *liar) finish() { _ = l.send(frameClose, l.sum.append(nil)) }

func TestTheAgentBelievesNoLies(t *testing.T) {
	file := func(path string) *snapshot.Entry { return content(entry(snapshot.File, path, 0o644), 100) }
	sparse := func(path string) *snapshot.Entry {
		e := content(entry(snapshot.File, path, 0o644), 10)
		e.Size, e.Sparse, e.Extents = 100, true, []snapshot.Extent{{Offset: 20, Length: 5}, {Offset: 40, Length: 5}}
		return e
	}
	for _, tt := range []struct {
		lie  string
		want string
		say  func(*liar)
	}{
		{"entries out of order", `"a" after "b"`, func(l *liar) {
			l.entry(recordMake, file("b"))
			l.entry(recordMake, file("a"))
		}},
		{"an entry twice", `"a" after "a"`, func(l *liar) {
			l.entry(recordMake, file("a"))
			l.entry(recordMake, file("a"))
		}},
		{"a name that leads out", "name", func(l *liar) {
			l.entry(recordMake, file("xx"))
			l.w.body = bytes.Replace(l.w.body, []byte("xx"), []byte(".."), 1)
		}},
		{"a path that leads out", "name", func(l *liar) {
			l.entry(recordMake, file("yy/xx"))
			l.w.body = bytes.Replace(l.w.body, []byte("yy"), []byte(".."), 1)
		}},
		{"an absolute path", "name", func(l *liar) {
			l.entry(recordMake, file("yy/xx"))
			l.w.body = bytes.Replace(l.w.body, []byte("yy"), []byte("/y"), 1)
		}},
		{"data past the end", "no data", func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.data(0, 99, []byte("xx"))
		}},
		{"data far past the end", "no data", func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.data(0, 1<<62, []byte("xx"))
		}},
		{"data before an extent", "no data", func(l *liar) {
			l.entry(recordMake, sparse("a"))
			l.w.data(0, 19, []byte("x"))
		}},
		{"data across two extents", "no data", func(l *liar) {
			l.entry(recordMake, sparse("a"))
			l.w.data(0, 20, make([]byte, 25))
		}},
		{"data after an extent", "no data", func(l *liar) {
			l.entry(recordMake, sparse("a"))
			l.w.data(0, 45, []byte("x"))
		}},
		{"data for nothing", "takes none", func(l *liar) { l.w.data(0, 0, []byte("x")) }},
		{"data for a directory", "takes none", func(l *liar) {
			l.entry(recordMake, entry(snapshot.Dir, "a", 0o755))
			l.w.data(0, 0, []byte("x"))
		}},
		{"data after the end of a file", "takes none", func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.number(recordFinish, 0)
			l.w.data(0, 0, []byte("x"))
		}},
		{"two ends of a file", "has none", func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.number(recordFinish, 0)
			l.w.number(recordDiscard, 0)
		}},
		{"a link to nothing", "nothing that was made", func(l *liar) {
			e := file("a")
			e.Group = [16]byte{1}
			l.entry(recordLink, e)
			l.w.body = appendBytes(l.w.body, "etc/passwd")
		}},
		{"a link to another type", "nothing that was made", func(l *liar) {
			e := entry(snapshot.Fifo, "a", 0o600)
			e.Group = [16]byte{1}
			l.entry(recordMake, e)
			e = file("b")
			e.Group = [16]byte{1}
			l.entry(recordLink, e)
			l.w.body = appendBytes(l.w.body, "a")
		}},
		{"a link that leads out", `a link to "../a"`, func(l *liar) {
			e := file("a")
			e.Group = [16]byte{1}
			l.entry(recordMake, e)
			e = file("b")
			e.Group = [16]byte{1}
			l.entry(recordLink, e)
			l.w.body = appendBytes(l.w.body, "../a")
		}},
		{"metadata of what was not made", "no directory that was made", func(l *liar) {
			l.w.number(recordDress, 0)
			l.w.entry(entry(snapshot.Dir, "a", 0o755))
		}},
		{"metadata of a file", "no directory that was made", func(l *liar) {
			l.entry(recordMake, file("a"))
			l.w.number(recordDress, 0)
			l.w.entry(file("a"))
		}},
		{"two sets of xattrs", "two sets", func(l *liar) {
			l.w.xattrs([]snapshot.Xattr{{Name: "user.a"}})
			e := file("a")
			e.Xattrs = []snapshot.Xattr{{Name: "user.a"}}
			l.entry(recordMake, e)
		}},
		{"an xattr twice", "user.a", func(l *liar) {
			l.w.xattrs([]snapshot.Xattr{{Name: "user.a"}})
			l.w.xattrs([]snapshot.Xattr{{Name: "user.a"}})
			l.entry(recordMake, file("a"))
		}},
		{"xattrs without an entry, for ever", "xattrs of", func(l *liar) {
			for i := range 400 {
				l.w.xattrs([]snapshot.Xattr{{Name: fmt.Sprintf("user.%03d", i), Value: make([]byte, 60_000)}})
				l.flushRecords()
			}
		}},
		{"extents of a file without holes", "no holes", func(l *liar) {
			l.w.extents([]snapshot.Extent{{Offset: 0, Length: 100}})
			l.entry(recordMake, file("a"))
		}},
		{"extents that are not the content", "extents", func(l *liar) {
			l.w.extents([]snapshot.Extent{{Offset: 10, Length: 10}})
			e := file("a")
			e.Size, e.Sparse, e.Map = 200, true, snapshot.Content{Refs: []snapshot.Ref{{Name: [32]byte{1}, Length: 9}}}
			l.entry(recordMake, e)
		}},
		{"a record of no kind", "kind 99", func(l *liar) { l.w.number(99, 0) }},
		{"more records than are there", "records", func(l *liar) {
			_ = l.send(frameRecords, []byte{255, 255, 255, 255, 1})
		}},
		{"a frame without a count", "without its head", func(l *liar) { _ = l.send(frameRecords, []byte{0}) }},
		{"a frame of another operation", "during a restore", func(l *liar) { _ = l.send(frameAnswers) }},
		{"a file that is not finished", "not finished", func(l *liar) { l.entry(recordMake, file("a")) }},
		{"fewer entries than were sent", "when 5", func(l *liar) {
			l.entry(recordMake, entry(snapshot.Dir, "a", 0o755))
			l.sum.Entries = 5
		}},
		{"less data than was sent", "0 entries and 0 bytes", func(l *liar) { l.sum.Bytes = 1 }},
		{"other records than were sent", "not those that were sent", func(l *liar) { l.sum.Sum = 1 }},
	} {
		t.Run(tt.lie, func(t *testing.T) {
			base := t.TempDir()
			if err := os.Mkdir(base+"/in", 0o700); err != nil {
				t.Fatal(err)
			}
			typ, text := lie(t, base+"/in", func(l *liar) {
				tt.say(l)
				l.flushRecords()
				l.finish()
			})
			if typ != frameError || !strings.Contains(text, tt.want) {
				t.Errorf("frame %d, %q", typ, text)
			}
			if all, _ := os.ReadDir(base); len(all) != 1 {
				t.Errorf("there is now %v", all)
			}
		})
	}
}

func TestTheAgentTakesNoMoreThanThereIsCreditFor(t *testing.T) {
	var stream bytes.Buffer
	c := newConn(&stream, usual())
	c.credits.Writes = 10_000
	var w recordWriter
	for range 3 {
		w.xattrs([]snapshot.Xattr{{Name: "user.a"}})
		if err := c.write(frameRecords, w.take()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	// A parcel that nobody gives back, as if a worker were slow.
	s := &restorer{c: c}
	s.underWay.Store(9000)
	if _, err := s.read(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "credit") {
		t.Errorf("read: %v", err)
	}
}

// An impostor is an agent that answers the request to restore with what say
// says.
func impostor(t *testing.T, say func(*conn)) (RestoreTotals, error) {
	t.Helper()
	c := pretender(t, say)
	r, err := c.Restore(t.Context(), RestoreRequest{Root: "/"})
	if err != nil {
		t.Fatal(err)
	}
	_, err1 := r.Add(entry(snapshot.Dir, "", 0o755), nil, nil)
	n, err2 := r.Add(inline(entry(snapshot.File, "f", 0o644), "x"), nil, nil)
	err3 := r.Finish(n)
	totals, err := r.End()
	if err == nil {
		err = errors.Join(err1, err2, err3)
	}
	return totals, err
}

// pretender is the client of an impostor.
func pretender(t *testing.T, say func(*conn)) *Client {
	t.Helper()
	h, a := net.Pipe()
	go func() {
		c := newConn(a, usual())
		defer c.close()
		_, _, _ = c.read()
		_ = c.send(frameHello, appendHello(nil, fullCredits))
		_, _, _ = c.read()
		_ = c.send(frameReady, Target{Empty: true}.append(nil))
		go say(c)
		for {
			if _, _, err := c.read(); err != nil {
				return
			}
		}
	}()
	c, err := newClient(t.Context(), h, TransportStdio, usual())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestTheHostBelievesNoLies(t *testing.T) {
	say := func(r report) func(*conn) {
		return func(c *conn) { _ = c.send(frameReport, r.append(nil)) }
	}
	for name, lie := range map[string]func(*conn){
		"an end before the end":     func(c *conn) { _ = c.send(frameTotals, RestoreTotals{Files: 1, Dirs: 1}.append(nil)) },
		"the end of the stream":     func(c *conn) { c.close() },
		"an error":                  func(c *conn) { _ = c.send(frameError, failure{Text: "no"}.append(nil)) },
		"a final error":             func(c *conn) { _ = c.send(frameError, failure{Final: true, Text: "no"}.append(nil)) },
		"another frame":             func(c *conn) { _ = c.send(frameEntries, nil) },
		"no report":                 func(c *conn) { _ = c.send(frameReport, nil) },
		"credit that was not taken": say(report{Credit: 1 << 40}),
		"an entry that is not":      say(report{Done: []uint64{77}}),
		"an entry done twice":       say(report{Done: []uint64{1, 1}}),
		"a full disk":               say(report{Fatal: "f: no space left on device", Full: true}),
	} {
		t.Run(name, func(t *testing.T) {
			if totals, err := impostor(t, func(c *conn) {
				lie(c)
				if name == "a full disk" {
					c.close()
				}
			}); err == nil {
				t.Errorf("success: %+v", totals)
			}
		})
	}
}

// A brittle stream breaks when so many bytes were read.
type brittle struct {
	net.Conn
	left  atomic.Int64
	tried atomic.Int64 // bytes that were to be written
}

func (b *brittle) Write(p []byte) (int, error) {
	b.tried.Add(int64(len(p)))
	return b.Conn.Write(p)
}

func (b *brittle) Read(p []byte) (int, error) {
	left := b.left.Load()
	if left <= 0 {
		_ = b.Conn.Close()
		return 0, io.EOF
	}
	n, err := b.Conn.Read(p[:min(int64(len(p)), left)])
	b.left.Add(-int64(n))
	return n, err
}

func TestAnAgentThatDiesIsNeverASuccess(t *testing.T) {
	restore := func(c *Client, root string) error {
		r, err := c.Restore(t.Context(), RestoreRequest{Root: root})
		if err != nil {
			return err
		}
		for _, e := range oddities() {
			n, err := r.Add(e, nil, nil)
			if err == nil && e.Type == snapshot.File {
				err = r.Finish(n)
			}
			if err != nil {
				break
			}
		}
		_, err = r.End()
		return err
	}
	// Once to see how many bytes cross each way.
	crossed := func(limit int, host bool) (int64, error) {
		x, y := net.Pipe()
		h, a := &brittle{Conn: x}, &brittle{Conn: y}
		breaks, lasts := h, a
		if !host {
			breaks, lasts = a, h
		}
		breaks.left.Store(int64(limit))
		lasts.left.Store(1 << 30)
		c, err := couple(t, h, a, usual())
		if err == nil {
			err = restore(c, t.TempDir())
			_ = c.Close()
		}
		return lasts.tried.Load(), err
	}
	for _, host := range []bool{false, true} {
		n, err := crossed(1<<30, host)
		if err != nil {
			t.Fatal(err)
		}
		all := int(n)
		died := 0
		for limit := 0; limit < all-1; limit += 1 + all/60 {
			if n, err := crossed(limit, host); err != nil {
				died++
			} else if n > int64(limit) { // a report more or less is luck
				t.Errorf("the stream broke after %d of %d bytes, and the restore succeeded", limit, n)
			}
		}
		if died < 30 {
			t.Errorf("%d streams broke", died)
		}
	}
}

func FuzzRecords(f *testing.F) {
	var w recordWriter
	e := content(entry(snapshot.File, "a/b", 0o644), 10)
	e.Group = [16]byte{1}
	w.xattrs([]snapshot.Xattr{{Name: "user.a", Value: []byte("b")}})
	w.extents([]snapshot.Extent{{Offset: 1, Length: 2}, {Offset: 9, Length: 1}})
	w.begin(recordMake)
	w.entry(e)
	w.begin(recordLink)
	w.entry(e)
	w.body = appendBytes(w.body, "x/y")
	w.data(5, 1<<40, []byte("data"))
	w.number(recordFinish, 5)
	w.number(recordDiscard, 1<<63)
	w.number(recordDress, 3)
	w.entry(entry(snapshot.Dir, "a/c", 0o755))
	f.Add(w.take())
	for _, e := range oddities() {
		w.begin(recordMake)
		w.entry(e)
	}
	f.Add(w.take())
	w.compare(3, []snapshot.Ref{{Name: [32]byte{1}, Length: 1 << 20}, {Name: [32]byte{2}, Length: 1}})
	w.path(recordTidy, "a/b")
	w.path(recordLeave, "a/c")
	w.begin(recordSpare)
	f.Add(w.take())
	f.Add([]byte{1, 0, 0, 0})

	f.Fuzz(func(t *testing.T, p []byte) {
		r := readRecords(p)
		var w recordWriter
		var rec record
		n := 0
		for r.next(&rec) {
			n++
			switch rec.kind {
			case recordMake:
				w.begin(rec.kind)
				w.entry(rec.entry)
			case recordLink:
				w.begin(rec.kind)
				w.entry(rec.entry)
				w.body = appendBytes(w.body, rec.path)
			case recordData:
				w.data(rec.n, int64(rec.off), rec.data)
			case recordFinish, recordDiscard:
				w.number(rec.kind, rec.n)
			case recordDress:
				w.number(rec.kind, rec.n)
				w.entry(rec.entry)
			case recordCompare:
				w.compare(rec.n, rec.refs)
			case recordTidy, recordLeave:
				w.path(rec.kind, rec.path)
			case recordSpare:
				w.begin(rec.kind)
			default:
				w.begin(rec.kind)
				w.body = appendBytes(w.body, rec.data)
			}
		}
		if err := r.end(); err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if n == 0 {
			return
		}
		// What was read is written again as the same bytes.
		if again := w.take(); !bytes.Equal(again, p) {
			t.Fatalf("read    %x\nwritten %x", p, again)
		}
	})
}

func FuzzReport(f *testing.F) {
	f.Add((&report{Credit: 1 << 40, Problems: []woe{{1, "a/b", "mode"}, {2, "", "x"}}, Done: []uint64{1, 1 << 60}, Fatal: "full", Full: true}).append(nil))
	f.Add((&report{Verdicts: []verdict{{1, []bool{true, false, true}}, {1 << 40, nil}}, Changes: []change{{Removed, "a"}, {Created, "b/c"}}}).append(nil))
	f.Add((&report{}).append(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := parseReport(p)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if again := r.append(nil); !bytes.Equal(again, p) {
			t.Fatalf("read    %x\nwritten %x", p, again)
		}
	})
}

// The agent gets whatever bytes for records, and touches nothing beside its
// target.
func FuzzRestorer(f *testing.F) {
	var w recordWriter
	for i, e := range oddities() {
		w.begin(recordMake)
		w.entry(e)
		if e.Type == snapshot.File {
			w.data(uint64(i), 0, e.Inline)
			w.number(recordFinish, uint64(i))
		}
	}
	f.Add(w.take())
	for i, w2 := range wishes() {
		w.begin(recordMake)
		w.entry(w2.Entry)
		if n := w2.Content.Size(); len(w2.data) > 0 {
			w.compare(uint64(i), []snapshot.Ref{{Name: [32]byte{1}, Length: n}})
			w.data(uint64(i), 0, w2.data[:min(n, 5000)])
		}
	}
	w.path(recordTidy, "")
	f.Add(w.take())
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, verb := range []byte{verbRestore, verbPlace} {
			base := t.TempDir()
			in := filepath.Join(base, "in")
			if err := errors.Join(
				os.MkdirAll(in+"/dir/sub", 0o700), os.WriteFile(in+"/large", noise(200_000, 9), 0o600),
				os.Symlink(base, in+"/char"), os.WriteFile(base+"/canary", []byte("sings"), 0o400),
			); err != nil {
				t.Fatal(err)
			}
			if verb == verbRestore {
				if err := errors.Join(os.RemoveAll(in), os.Mkdir(in, 0o700)); err != nil {
					t.Fatal(err)
				}
			}
			var stream bytes.Buffer
			set := usual()
			set.credits.Writes = 1 // and small queues
			host := newConn(&stream, set)
			if err := errors.Join(
				host.write(frameHello, appendHello(nil, fullCredits)),
				host.write(frameRestore, (&order{verb: verb, root: in}).append(nil)),
				host.write(frameRecords, p),
				host.write(frameClose, closing{Abandon: true}.append(nil)),
				host.flush(),
			); err != nil {
				t.Fatal(err)
			}
			_ = serve(t.Context(), struct {
				io.Reader
				io.Writer
			}{&stream, io.Discard}, set)
			if all, err := os.ReadDir(base); len(all) != 2 || err != nil {
				t.Fatalf("beside the target: %v, %v", all, err)
			}
			if got, err := os.ReadFile(base + "/canary"); string(got) != "sings" || err != nil {
				t.Fatalf("the canary: %q, %v", got, err)
			}
		}
	})
}
