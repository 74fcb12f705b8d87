package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// A fibber is an agent that says what it is told to. Its methods end the
// goroutine when the host hangs up.
type fibber struct {
	c     *conn
	count end
	heard chan heard
}

type heard struct {
	t    frameType
	body []byte
}

// hear reads the stream at all times, as an agent must.
func (l *fibber) hear() {
	l.heard = make(chan heard, 1<<16)
	go func() {
		defer close(l.heard)
		for {
			t, body, err := l.c.read()
			if err != nil {
				return
			}
			l.heard <- heard{t, bytes.Clone(body)}
		}
	}()
}

type hungUp struct{}

func (l *fibber) must(err error) {
	if err != nil {
		panic(hungUp{})
	}
}

func (l *fibber) send(t frameType, body ...[]byte) { l.must(l.c.send(t, body...)) }

func (l *fibber) read(want frameType) []byte {
	h := <-l.heard
	if h.t != want {
		panic(hungUp{})
	}
	return h.body
}

// say sends entries and does not wait for the answers.
func (l *fibber) say(first uint64, stats ...Stat) {
	p := make([]byte, entriesHead)
	putEntriesHead(p, first, len(stats))
	prev := ""
	for _, s := range stats {
		p = appendStat(p, prev, &s)
		prev = s.Dir
	}
	l.send(frameEntries, p)
	l.count.Entries += uint64(len(stats))
}

func (l *fibber) entries(first uint64, stats ...Stat) {
	l.say(first, stats...)
	l.read(frameAnswers)
}

func (l *fibber) offer(offers ...Offer) []bool {
	l.send(frameOffers, appendOffers(nil, offers))
	l.count.Offers += uint64(len(offers))
	want, err := parseWants(l.read(frameWants))
	l.must(err)
	return want
}

func (l *fibber) box(b Box) {
	l.send(frameBox, appendBoxHead(nil, &b), b.Payload)
	l.count.Boxes++
}

func (l *fibber) file(f File) {
	l.send(frameFile, f.append(nil))
	l.count.Files++
}

func (l *fibber) end() {
	l.count.Sum = l.c.writeSum.Sum()
	l.send(frameEnd, l.count.append(nil))
}

// linger waits for the host to hang up.
func (l *fibber) linger() {
	for range l.heard {
	}
}

// The small truth that lies are made from: a root, and a file "f" of 600
// bytes in one blob.
var (
	theContent = noise(600, 7)
	theRoot    = Stat{Type: snapshot.Dir, Mode: 0o755}
	theFile    = Stat{Name: "f", Type: snapshot.File, Size: 600}
	theBlob    = id.NewNamer(nameKey).Blob(id.Data, theContent)
	theOffer   = Offer{N: 1, Ref: snapshot.Ref{Name: theBlob, Length: 600}}
)

func rootFile() File { return File{Stat: theRoot} }

func theWord() File {
	return File{N: 1, Stat: theFile, BytesRead: 600, Refs: [roles]uint64{1}}
}

// boxOf returns a box of blobs that says it holds them.
func boxOf(blobs ...[]byte) Box {
	var b box.Builder
	var x Box
	for _, p := range blobs {
		b.Add(id.Data, p)
		x.Blobs = append(x.Blobs, BoxBlob{id.NewNamer(nameKey).Blob(id.Data, p), id.Data, uint32(len(p))})
	}
	x.Codec, x.Raw, x.Payload = b.Finish(box.NewEncoder(), nil)
	return x
}

// begin is the truth up to the point where the blob is wanted.
func (l *fibber) begin() {
	l.entries(0, theRoot, theFile)
	l.file(rootFile())
	l.offer(theOffer)
}

func (l *fibber) told() {
	l.begin()
	l.box(boxOf(theContent))
	l.file(theWord())
}

func TestAClientFindsEachLieOut(t *testing.T) {
	named := func(name string) func(l *fibber) {
		return func(l *fibber) {
			s := theFile
			s.Name = name
			l.entries(0, theRoot, s)
		}
	}
	in := func(dir string) func(l *fibber) {
		return func(l *fibber) {
			s := theFile
			s.Dir = dir
			l.entries(0, theRoot, s)
		}
	}
	after := func(f func(l *fibber)) func(l *fibber) {
		return func(l *fibber) {
			l.begin()
			f(l)
		}
	}
	word := func(change func(f *File)) func(l *fibber) {
		return after(func(l *fibber) {
			l.box(boxOf(theContent))
			f := theWord()
			change(&f)
			l.file(f)
			l.end()
		})
	}
	ends := func(change func(e *end)) func(l *fibber) {
		return func(l *fibber) {
			l.told()
			l.count.Sum = l.c.writeSum.Sum()
			change(&l.count)
			l.send(frameEnd, l.count.append(nil))
		}
	}
	zeros := make([]byte, 4<<20)
	tests := []struct {
		name, want string
		lie        func(l *fibber)
	}{
		{"nothing but the truth", "", func(l *fibber) {
			l.told()
			l.end()
			l.read(frameDone)
			l.send(frameDone)
		}},

		{"a name ..", `a name ".."`, named("..")},
		{"a name .", `a name "."`, named(".")},
		{"no name", "an empty name", named("")},
		{"a name with a slash", "with a slash", named("a/b")},
		{"an absolute name", "with a slash", named("/etc")},
		{"a name with a NUL", "with a NUL", named("a\x00")},
		{"a name too long", "256 where at most 255", named(strings.Repeat("x", 256))},
		{"a directory that goes up", `a name ".."`, in("a/../..")},
		{"an absolute directory", "an empty name", in("/etc")},
		{"a directory that ends in a slash", "an empty name", in("a/")},
		{"a path too long", "a path of", in(strings.Repeat("d/", 32766) + "dd")},
		{"no root", "the first entry is not the root", func(l *fibber) { l.entries(0, theFile) }},
		{"a root that is a file", "an empty name", func(l *fibber) { l.entries(0, Stat{Type: snapshot.File}) }},
		{"two roots", "an empty name", func(l *fibber) { l.entries(0, theRoot, theRoot) }},
		{"unsorted entries", `"a" is not after "f"`, func(l *fibber) {
			a := theFile
			a.Name = "a"
			l.entries(0, theRoot, theFile, a)
		}},
		{"unsorted batches", `"a" is not after "f"`, func(l *fibber) {
			a := theFile
			a.Name = "a"
			l.entries(0, theRoot, theFile)
			l.entries(2, a)
		}},
		{"duplicate entries", `"f" is not after "f"`, func(l *fibber) { l.entries(0, theRoot, theFile, theFile) }},
		{"duplicate entries over batches", `"f" is not after "f"`, func(l *fibber) {
			l.entries(0, theRoot, theFile)
			l.entries(2, theFile)
		}},
		{"a batch out of turn", "entry 7 where 2 is next", func(l *fibber) {
			l.entries(0, theRoot, theFile)
			l.entries(7, theFile)
		}},
		{"a batch too large", "a batch of 513 entries", func(l *fibber) {
			batch := []Stat{theRoot}
			for i := range maxBatch {
				batch = append(batch, Stat{Name: fmt.Sprintf("%04d", i), Type: snapshot.File})
			}
			l.entries(0, batch...)
		}},
		{"an empty batch", "a batch of 0 entries", func(l *fibber) { l.entries(0) }},
		{"an unknown type", "an entry of type(8)", func(l *fibber) { l.entries(0, theRoot, Stat{Name: "x", Type: 8}) }},
		{"a time that is none", "1000000000 nanoseconds", func(l *fibber) {
			l.entries(0, theRoot, Stat{Name: "x", Type: snapshot.File, MTime: snapshot.Time{Nsec: 1e9}})
		}},
		{"more batches than the window holds", "more than 16 batches", func(l *fibber) {
			l.entries(0, theRoot)
			for i := range uint64(100) {
				l.entries(i+1, Stat{Name: fmt.Sprintf("%04d", i), Type: snapshot.File})
			}
		}},

		{"content of a directory", `content of "", a directory`, func(l *fibber) {
			l.entries(0, theRoot)
			l.offer(Offer{N: 0, Ref: theOffer.Ref})
		}},
		{"content of nobody", "entry 9, which is not being read", func(l *fibber) {
			l.entries(0, theRoot)
			l.offer(Offer{N: 9, Ref: theOffer.Ref})
		}},
		{"content after the last word", "which is not being read", func(l *fibber) {
			l.told()
			l.offer(theOffer)
		}},
		{"a third attempt", `attempt 2 at "f"`, after(func(l *fibber) {
			o := theOffer
			o.Attempt = 2
			l.offer(o)
		})},
		{"an attempt that goes back", `attempt 0 at "f" after 1`, after(func(l *fibber) {
			o := theOffer
			o.Attempt = 1
			l.offer(o, theOffer)
		})},
		{"one name with two lengths", "is 600 bytes long, or 601", after(func(l *fibber) {
			o := theOffer
			o.Ref.Length++
			l.offer(o)
		})},
		{"an empty blob", "an empty blob", after(func(l *fibber) {
			o := theOffer
			o.Ref.Length = 0
			l.offer(o)
		})},
		{"a role that is none", "a blob of role 3", after(func(l *fibber) {
			o := theOffer
			o.Role = 3
			l.offer(o)
		})},
		{"more bytes than there is credit for", "bytes offered at a time", after(func(l *fibber) {
			for i := range 100 {
				l.offer(Offer{N: 1, Ref: snapshot.Ref{Name: id.Blob{byte(i), 1}, Length: 1 << 20}})
			}
		})},
		{"more small blobs than there is credit for", "bytes offered at a time", after(func(l *fibber) {
			for i := range 1 << 20 {
				l.offer(Offer{N: 1, Ref: snapshot.Ref{Name: id.Blob{byte(i), byte(i >> 8), byte(i >> 16), 1}, Length: 1}})
			}
		})},

		{"an unwanted box", "was not wanted", after(func(l *fibber) { l.box(boxOf([]byte("something else"))) })},
		{"a box that was wanted once, twice", "", after(func(l *fibber) {
			l.box(boxOf(theContent))
			l.box(boxOf(theContent))
		})},
		{"a blob twice in a box", "came twice", after(func(l *fibber) { l.box(boxOf(theContent, theContent)) })},
		{"a box of wrong names", "is something else", after(func(l *fibber) {
			b := boxOf(noise(600, 8))
			b.Blobs[0].Name = theBlob
			l.box(b)
			l.file(theWord())
			l.end()
			l.linger()
		})},
		{"a box of another length", "was offered with 600", after(func(l *fibber) {
			b := boxOf(noise(601, 8))
			b.Blobs[0].Name = theBlob
			l.box(b)
		})},
		{"a box that holds another length than it says", "open a box", after(func(l *fibber) {
			b := boxOf(noise(599, 8))
			b.Blobs[0] = BoxBlob{theBlob, id.Data, 600}
			b.Raw++
			l.box(b)
			l.file(theWord())
			l.end()
			l.linger()
		})},
		{"a box with a blob too many", "a box of 2 blobs names 1", after(func(l *fibber) {
			b := boxOf(theContent, noise(9, 9))
			b.Blobs = b.Blobs[:1]
			l.box(b)
			l.file(theWord())
			l.end()
			l.linger()
		})},
		{"a box of nodes", "a blob of kind node", after(func(l *fibber) {
			b := boxOf(theContent)
			b.Blobs[0].Kind = id.Node
			l.box(b)
		})},
		{"an empty box", "an empty box", after(func(l *fibber) { l.box(Box{Raw: 1}) })},
		{"a box that is garbage", "open a box", after(func(l *fibber) {
			b := boxOf(theContent)
			b.Codec, b.Payload = box.Zstd, []byte("garbage")
			l.box(b)
			l.file(theWord())
			l.end()
			l.linger()
		})},
		{"a decompression bomb", "open a box", after(func(l *fibber) {
			b := boxOf(zeros)
			b.Raw, b.Blobs = 700, boxOf(theContent).Blobs
			l.box(b)
			l.file(theWord())
			l.end()
			l.linger()
		})},
		{"a bomb that says how large it is", "a box of 4294967295 bytes", after(func(l *fibber) {
			b := boxOf(theContent)
			b.Raw = 1<<32 - 1
			l.box(b)
		})},

		{"a word of nobody", "entry 9, which is not being read", word(func(f *File) { f.N = 9 })},
		{"a second word", "which is not being read", func(l *fibber) {
			l.told()
			l.file(theWord())
		}},
		{"a file that grew in between", "600 bytes of content, and size 601", word(func(f *File) { f.Stat.Size = 601 })},
		{"a file that shrank in between", "600 bytes of content, and size 599", word(func(f *File) { f.Stat.Size = 599 })},
		{"content that was never read", "600 bytes of content, and 599 read", word(func(f *File) { f.BytesRead = 599 })},
		{"more blobs than were offered", "blobs counted", word(func(f *File) { f.Refs[Content] = 2 })},
		{"blobs of an attempt that made none", "blobs counted", word(func(f *File) { f.Attempt = 1 })},
		{"content twice", "both inline and in blobs", word(func(f *File) { f.Inline = []byte("x") })},
		{"a class that there is not", "class 2", word(func(f *File) { f.Class = 2 })},
		{"the class of what was not read", "has content", word(func(f *File) {
			*f = File{N: f.N, Stat: f.Stat, Outcome: Failed, Reason: "no", Refs: f.Refs, Class: chunk.Fixed}
		})},
		{"inline content too long", "513 where at most 512", word(func(f *File) { f.Inline = make([]byte, 513) })},
		{"a file that became a link", "a symlink that was a file", word(func(f *File) {
			f.Stat.Type, f.Stat.Size, f.Target = snapshot.Symlink, 0, "/etc"
		})},
		{"a file with a target", `a file with target "/etc"`, word(func(f *File) { f.Target = "/etc" })},
		{"extents without holes", "extents of a file without holes", word(func(f *File) {
			f.Extents = []snapshot.Extent{{Offset: 0, Length: 600}}
		})},
		{"extents of another length", "500 bytes in extents, and 600 of content", word(func(f *File) {
			f.Sparse, f.Extents = true, []snapshot.Extent{{Offset: 0, Length: 500}}
		})},
		{"extents past the end", "extents up to 4696, and size 600", word(func(f *File) {
			f.Sparse, f.Extents = true, []snapshot.Extent{{Offset: 4096, Length: 600}}
		})},
		{"a failure with content", "it failed and has content", word(func(f *File) {
			f.Outcome, f.Reason, f.Inline = Failed, "no", []byte("x")
		})},
		{"a failure without a reason", `failed because of ""`, word(func(f *File) { f.Outcome = Failed })},
		{"an outcome that is none", "outcome(4)", word(func(f *File) { f.Outcome = 4 })},

		{"no end", "the stream ended", func(l *fibber) { l.told() }},
		{"an end too early", "the end before all was read", func(l *fibber) {
			l.entries(0, theRoot, theFile)
			l.end()
		}},
		{"an end without a wanted blob", "1 wanted blobs never came", after(func(l *fibber) {
			l.file(theWord())
			l.end()
		})},
		{"an end without a beginning", "the end without a beginning", func(l *fibber) { l.end() }},
		{"two ends", "frame 23 after the end", func(l *fibber) {
			l.told()
			l.end()
			l.end()
		}},
		{"entries after the end", "frame 17 after the end", func(l *fibber) {
			l.told()
			l.end()
			l.say(2, Stat{Name: "z", Type: snapshot.File})
		}},
		{"too many entries counted", "the agent counts", ends(func(e *end) { e.Entries++ })},
		{"too few files counted", "the agent counts", ends(func(e *end) { e.Files-- })},
		{"offers miscounted", "the agent counts", ends(func(e *end) { e.Offers++ })},
		{"boxes miscounted", "the agent counts", ends(func(e *end) { e.Boxes++ })},
		{"problems miscounted", "the agent counts", ends(func(e *end) { e.Problems++ })},
		{"a wrong sum", "the stream is not what was sent", ends(func(e *end) { e.Sum[0]++ })},

		{"a frame that is none", "frame 99 during a backup", func(l *fibber) { l.send(99) }},
		{"a frame of the host", "frame 18 during a backup", func(l *fibber) { l.send(frameAnswers) }},
		{"a header of 4 GiB", "a frame of 4294967295 bytes", func(l *fibber) {
			_, err := l.c.rw.Write([]byte{byte(frameEntries), 255, 255, 255, 255})
			l.must(err)
		}},
		{"half a frame", "the stream ends inside a frame", func(l *fibber) {
			_, err := l.c.rw.Write([]byte{byte(frameEntries), 255, 0, 0, 0, 1})
			l.must(err)
		}},
		{"a problem without a reason", "a problem without a reason", func(l *fibber) {
			l.send(frameProblem, appendProblem(nil, snapshot.Problem{Path: "f"}))
		}},
		{"a refusal in the middle", "the agent refused", after(func(l *fibber) {
			l.send(frameError, failure{Text: "the agent refused"}.append(nil))
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := listenTo(t, usual(), newShelf(), tt.lie)
			switch {
			case tt.name == "a box that was wanted once, twice":
				// It came twice, or came when it was not wanted any more.
				if err == nil || !strings.Contains(err.Error(), "came twice") && !strings.Contains(err.Error(), "was not wanted") {
					t.Errorf("error %v", err)
				}
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, ErrProtocol)):
				t.Errorf("error %v\n want %s", err, tt.want)
			}
		})
	}
}

// listenTo backs up from an agent that does what lie says and hangs up.
func listenTo(t *testing.T, host settings, r Receiver, lie func(l *fibber)) (Totals, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	h, a := net.Pipe()
	lied := make(chan struct{})
	go func() {
		defer close(lied)
		defer a.Close()
		defer func() {
			if p := recover(); p != nil && p != (hungUp{}) {
				panic(p)
			}
		}()
		l := &fibber{c: newConn(a, usual())}
		l.hear()
		l.read(frameHello)
		l.send(frameHello, appendHello(nil, fullCredits))
		l.read(frameBackup)
		l.c.sumWrites()
		lie(l)
	}()
	c, err := newClient(ctx, h, TransportSocket, host)
	if err != nil {
		t.Fatal(err)
	}
	totals, err := c.Backup(ctx, request("/v"), r)
	_ = c.Close()
	<-lied
	return totals, err
}

func TestEndlessEntriesComeToAnEnd(t *testing.T) {
	h, a := net.Pipe()
	defer a.Close()
	c := &Client{conn: newConn(h, usual()), credits: fullCredits}
	defer h.Close()
	b := &receiving{client: c, receiver: newShelf(), next: maxEntries - 1, last: theRoot}
	p := make([]byte, entriesHead)
	putEntriesHead(p, maxEntries-1, 2)
	p = appendStat(p, "", &Stat{Name: "a", Type: snapshot.File})
	p = appendStat(p, "", &Stat{Name: "b", Type: snapshot.File})
	if err := b.entries(t.Context(), p); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "over 4294967296 entries") {
		t.Errorf("error %v", err)
	}
}

func TestSilenceEndsABackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := listenTo(t, usual(), newShelf(), func(l *fibber) {
			l.entries(0, theRoot)
			for range l.heard { // says no word, and listens
			}
		})
		if !errors.Is(err, ErrSilent) {
			t.Errorf("error %v, want ErrSilent", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("after %v, want a minute", d)
		}
	})
}

func TestAnAgentThatDoesNotListenIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := net.Pipe()
		go func() {
			l := &fibber{c: newConn(a, usual())}
			_, _, _ = l.c.read()
			l.send(frameHello, appendHello(nil, fullCredits))
			for { // beats, and takes nothing
				time.Sleep(time.Second)
				if l.c.send(frameBeat) != nil {
					return
				}
			}
		}()
		c, err := newClient(t.Context(), h, TransportSocket, usual())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Backup(t.Context(), request("/v"), newShelf()); !errors.Is(err, ErrSilent) {
			t.Errorf("error %v, want ErrSilent", err)
		}
		_ = c.Close()
	})
}

func TestBeatsKeepASlowAgentAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := listenTo(t, usual(), newShelf(), func(l *fibber) {
			for range 100 {
				time.Sleep(50 * time.Second)
				l.send(frameBeat)
			}
			l.told()
			l.end()
			l.read(frameDone)
			l.send(frameDone)
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestAHostThatIsGoneEndsTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := net.Pipe()
		defer h.Close()
		if err := serve(t.Context(), a, usual()); !errors.Is(err, ErrSilent) {
			t.Errorf("error %v, want ErrSilent", err)
		}
	})
}

func TestAClientThatIsIdleForAnHourIsNotGone(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h, a := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- serve(t.Context(), a, usual()) }()
		// What an idle host does not read must fit the stream.
		c, err := newClient(t.Context(), deep(h), TransportStdio, usual())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := c.Backup(t.Context(), request(root), newShelf()); err != nil {
			t.Error(err)
		}
		_ = c.Close()
		<-served
	})
}

// A deepStream reads ahead, as the buffers of a kernel do.
type deepStream struct {
	io.ReadWriteCloser
	ahead *io.PipeReader
}

func (d deepStream) Read(p []byte) (int, error) { return d.ahead.Read(p) }

func deep(rw io.ReadWriteCloser) io.ReadWriteCloser {
	r, w := io.Pipe()
	chunks := make(chan []byte, 1<<16)
	go func() {
		for {
			p := make([]byte, 4096)
			n, err := rw.Read(p)
			if err != nil {
				close(chunks)
				return
			}
			chunks <- p[:n]
		}
	}()
	go func() {
		for p := range chunks {
			_, _ = w.Write(p)
		}
		_ = w.Close()
	}()
	return deepStream{rw, r}
}

// A receiver that fails.
type failing struct {
	*shelf
	err error
}

func (f failing) Box(context.Context, Box) error { return f.err }

func TestAReceiversErrorIsTheBackups(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/f", noise(100_000, 1))
	full := errors.New("the store is full")
	c := pair(t, usual(), usual())
	if _, err := c.Backup(t.Context(), request(root), failing{newShelf(), full}); !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
	if _, err := c.Backup(t.Context(), request(root), newShelf()); err == nil || !strings.Contains(err.Error(), "the agent was lost") {
		t.Errorf("after that: %v", err)
	}
}

func TestACancelledBackupSaysSo(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/f", noise(100_000, 1))
	ctx, cancel := context.WithCancel(t.Context())
	set := usual()
	set.hook = func(moment, path string) error {
		if path == "f" && moment == "more" {
			cancel()
		}
		return nil
	}
	c := pair(t, usual(), set)
	if _, err := c.Backup(ctx, request(root), newShelf()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
}

func TestARootThatIsNotThereIsRefused(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/file", nil)
	c := pair(t, usual(), usual())
	for path, want := range map[string]string{
		root + "/nothing": "no such file", root + "/file": "not a directory", "": "no such file",
	} {
		_, err := c.Backup(t.Context(), request(path), newShelf())
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", path, err, want)
		}
	}
	if _, err := c.Backup(t.Context(), request(root), newShelf()); err != nil {
		t.Errorf("after that: %v", err)
	}
	q := request(root)
	q.Chunk.Algorithm = "sliced"
	if _, err := c.Backup(t.Context(), q, newShelf()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "sliced") {
		t.Errorf("error %v", err)
	}
}
