package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"orlop/box"
	"orlop/id"
	"orlop/snapshot"
)

// A Receiver takes what a backup yields. Its methods must not wait for the
// agent. An error from any of them ends the backup and is returned by it.
type Receiver interface {
	// Entries tells of the next entries in walk order, of which the first is
	// the first-th, and wants one answer for each. The batch is the
	// receiver's.
	Entries(ctx context.Context, first uint64, batch []Stat) ([]Answer, error)

	// Offers names blobs and asks which of them are wanted. The client sees
	// to it that a name is sent only once, however often it is wanted, until
	// Box has returned with it.
	Offers(ctx context.Context, offers []Offer) (want []bool, err error)

	// Box brings wanted blobs, each exactly once. It is called by several
	// goroutines at a time, out of order, and how fast it returns is how fast
	// the agent may go on.
	Box(ctx context.Context, b Box) error

	// File is the last word on an entry that was to be read. Its offers all
	// came before, and it comes once.
	File(ctx context.Context, f *File) error
}

// Totals count what a backup saw.
type Totals struct {
	Entries   uint64
	Files     uint64 // entries that were to be read, of any type
	Offers    uint64
	Boxes     uint64
	BytesRead uint64 // of file content
	BytesSent uint64 // of boxes, as they came

	// Problems are things that are not in the backup and have no entry that
	// could say so, such as directories that could not be listed (theirs is
	// empty). Past a mebibyte they are only counted.
	Problems     []snapshot.Problem
	ProblemCount uint64
	problemBytes int
}

const (
	keptProblems = 1 << 20 // bytes of problems that are kept
	maxAttempts  = 2
)

// Backup backs up a directory as the agent sees it. It trusts nothing: what
// the agent sends is valid, in order, complete, within all bounds and names
// what it says it names, or there is an error. Errors of an agent that breaks
// the protocol satisfy errors.Is(err, [ErrProtocol]); after one, and after any
// other but [ErrRefused], the client is of no more use.
//
// When Backup returns, no method of r is running.
func (c *Client) Backup(ctx context.Context, q BackupRequest, r Receiver) (Totals, error) {
	done, err := c.begin(ctx)
	if err != nil {
		return Totals{}, fmt.Errorf("back up %s: %w", q.Root, err)
	}
	b := &receiving{
		client: c, receiver: r, namer: id.NewNamer(q.NameKey),
		coming: make(map[id.Blob]*coming), boxes: make(chan Box, c.conn.set.boxes),
	}
	if err = done(b.run(ctx, q)); err != nil {
		return Totals{}, fmt.Errorf("back up %s: %w", q.Root, err)
	}
	return b.totals, nil
}

// receiving is the host's side of one BACKUP. One goroutine, the caller's,
// reads the stream and answers at once: it may wait for the agent to take an
// answer, as the agent's reader never waits, and for room in boxes, which a
// few workers empty into the receiver.
type receiving struct {
	client   *Client
	receiver Receiver
	namer    *id.Namer
	totals   Totals
	boxes    chan Box

	next    uint64 // ordinal of the next entry
	last    Stat   // the one before it
	batches []*asked
	old     int // old cuts that the agent holds
	scratch []byte

	mu      sync.Mutex
	coming  map[id.Blob]*coming
	missing int   // of coming, that have not arrived
	held    int64 // charges of what was offered and was not refused, nor has arrived
}

// asked is a batch that was answered and is not all filed.
type asked struct {
	first uint64
	open  []*opened // nil: not to be read, or filed
	left  int
}

// opened is an entry that is to be read and has no FILE yet.
type opened struct {
	stat    Stat
	attempt uint8
	refs    [roles]uint64
	bytes   [roles]uint64
	old     int
}

// coming is a wanted blob that the receiver does not have yet.
type coming struct {
	length  uint64
	arrived bool
}

func (b *receiving) run(ctx context.Context, q BackupRequest) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for range b.client.conn.set.boxes {
		workers.Go(func() {
			if err := b.unpack(ctx); err != nil {
				cancel(err)
				b.client.conn.close() // to wake the reader
			}
		})
	}
	if err := b.listen(ctx, q); err != nil {
		cancel(err)
	}
	close(b.boxes)
	workers.Wait()
	return context.Cause(ctx) // the first error of all
}

func (b *receiving) listen(ctx context.Context, q BackupRequest) error {
	conn := b.client.conn
	conn.sumReads()
	if err := conn.send(frameBackup, q.append(nil)); err != nil {
		return err
	}
	for {
		t, body, err := conn.read()
		if err != nil {
			return err
		}
		switch t {
		case frameEntries:
			err = b.entries(ctx, body)
		case frameOffers:
			err = b.offers(ctx, body)
		case frameBox:
			err = b.box(ctx, body)
		case frameFile:
			err = b.file(ctx, body)
		case frameProblem:
			err = b.problem(body)
		case frameError:
			if err = failed(body); b.next > 0 {
				err = fmt.Errorf("%w: %s", ErrProtocol, err) // a refusal comes before all else
			}
		case frameEnd:
			return b.end(body)
		default:
			err = protocolError("frame %d during a backup", t)
		}
		if err != nil {
			return err
		}
	}
}

// entries handles a batch of entries.
func (b *receiving) entries(ctx context.Context, body []byte) error {
	first, batch, err := parseEntries(body)
	if err != nil {
		return err
	}
	credit := b.client.credits
	switch {
	case first != b.next:
		return protocolError("entry %d where %d is next", first, b.next)
	case first+uint64(len(batch)) > maxEntries:
		return protocolError("over %d entries", uint64(maxEntries))
	case first > 0 && snapshot.Compare(b.last.Dir, b.last.Name, batch[0].Dir, batch[0].Name) >= 0:
		return protocolError("%q is not after %q", batch[0].Path(), b.last.Path())
	case len(b.batches) >= int(credit.Batches):
		return protocolError("more than %d batches at a time", credit.Batches)
	}
	b.next += uint64(len(batch))
	b.last = batch[len(batch)-1]
	b.totals.Entries = b.next
	a := &asked{first: first, open: make([]*opened, len(batch))}
	for i := range batch {
		a.open[i] = &opened{stat: batch[i]}
	}
	answers, err := b.receiver.Entries(ctx, first, batch)
	if err != nil {
		return err
	}
	if len(answers) != len(a.open) {
		return fmt.Errorf("%d answers to %d entries", len(answers), len(a.open))
	}
	for i, o := range a.open {
		// What is a problem is not to be read, unless it is a directory.
		if !answers[i].Read || o.stat.Problem != "" && o.stat.Type != snapshot.Dir {
			answers[i], a.open[i] = Answer{}, nil
			continue
		}
		a.left++
		// Old cuts are a hint, so the agent need not get more than it can hold.
		o.old = min(len(answers[i].Old), int(credit.Old)-b.old)
		answers[i].Old = answers[i].Old[:o.old]
		b.old += o.old
	}
	if a.left > 0 {
		b.batches = append(b.batches, a)
	}
	b.scratch = appendAnswers(b.scratch[:0], answers)
	return b.client.conn.send(frameAnswers, b.scratch)
}

// find returns the entry n, if it is to be read and has no FILE yet.
func (b *receiving) find(n uint64) (*asked, int, error) {
	for _, a := range b.batches {
		if n >= a.first && n-a.first < uint64(len(a.open)) && a.open[n-a.first] != nil {
			return a, int(n - a.first), nil
		}
	}
	return nil, 0, protocolError("word of entry %d, which is not being read", n)
}

// offers handles names.
func (b *receiving) offers(ctx context.Context, body []byte) error {
	offers, err := parseOffers(body)
	if err != nil {
		return err
	}
	credit := b.client.credits
	if len(offers) > int(credit.Names) {
		return protocolError("more than %d names at a time", credit.Names)
	}
	for _, o := range offers {
		a, i, err := b.find(o.N)
		if err != nil {
			return err
		}
		x := a.open[i]
		if err := x.at(o.Attempt); err != nil {
			return err
		}
		if o.Role != Xattrs && x.stat.Type != snapshot.File {
			return protocolError("content of %q, a %v", x.stat.Path(), x.stat.Type)
		}
		x.refs[o.Role]++
		if x.bytes[o.Role] += o.Ref.Length; x.bytes[o.Role] > snapshot.MaxSize {
			return protocolError("a stream of %q without end", x.stat.Path())
		}
	}
	want, err := b.receiver.Offers(ctx, offers)
	if err != nil {
		return err
	}
	if len(want) != len(offers) {
		return fmt.Errorf("%d answers to %d offers", len(want), len(offers))
	}
	if err := b.expect(offers, want); err != nil {
		return err
	}
	b.totals.Offers += uint64(len(offers))
	b.scratch = appendWants(b.scratch[:0], want)
	return b.client.conn.send(frameWants, b.scratch)
}

// at makes an attempt the current one.
func (x *opened) at(attempt uint8) error {
	if attempt < x.attempt || attempt >= maxAttempts {
		return protocolError("attempt %d at %q after %d", attempt, x.stat.Path(), x.attempt)
	}
	if attempt > x.attempt {
		x.attempt, x.refs, x.bytes = attempt, [roles]uint64{}, [roles]uint64{}
	}
	return nil
}

// expect notes what is wanted, and takes back the wish for what is coming
// anyway.
func (b *receiving) expect(offers []Offer, want []bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	credit := b.client.credits
	held := b.held
	for i, o := range offers {
		held += credit.charge(o.Ref.Length)
		if c := b.coming[o.Ref.Name]; c != nil {
			if c.length != o.Ref.Length {
				return protocolError("blob %s is %d bytes long, or %d", o.Ref.Name.Short(), c.length, o.Ref.Length)
			}
			want[i] = false
		}
		if want[i] {
			b.coming[o.Ref.Name] = &coming{length: o.Ref.Length}
			b.missing++
			b.held += credit.charge(o.Ref.Length)
		}
	}
	if held > int64(credit.Bytes) {
		return protocolError("more than %d bytes offered at a time", credit.Bytes)
	}
	return nil
}

// box handles blobs.
func (b *receiving) box(ctx context.Context, body []byte) error {
	x, err := parseBox(body)
	if err != nil {
		return err
	}
	if beside := b.client.conn.set.beside; beside != nil {
		recycle(x.frame)
		select {
		case p := <-beside:
			x.Payload, x.frame = p.bytes, p.buffer
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := b.arrive(x); err != nil {
		return err
	}
	b.totals.Boxes++
	b.totals.BytesSent += uint64(len(x.Payload))
	select {
	case b.boxes <- x:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *receiving) arrive(x Box) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, blob := range x.Blobs {
		c := b.coming[blob.Name]
		switch {
		case c == nil:
			return protocolError("blob %s was not wanted", blob.Name.Short())
		case c.arrived:
			return protocolError("blob %s came twice", blob.Name.Short())
		case c.length != uint64(blob.Length):
			return protocolError("blob %s of %d bytes was offered with %d", blob.Name.Short(), blob.Length, c.length)
		}
		c.arrived = true
		b.missing--
		b.held -= b.client.credits.charge(c.length)
	}
	return nil
}

// unpack checks boxes and hands them to the receiver.
func (b *receiving) unpack(ctx context.Context) error {
	var plain []byte
	for x := range b.boxes {
		if err := ctx.Err(); err != nil {
			return err
		}
		// An agent in this process need not be distrusted; but what shrinks
		// boxes is complex, and has been wrong in others' backups.
		if b.client.transport != TransportLocal || x.Codec != box.Stored {
			var err error
			if plain, err = b.check(plain[:0], x); err != nil {
				return err
			}
		}
		if err := b.receiver.Box(ctx, x); err != nil {
			return err
		}
		recycle(x.frame)
		b.mu.Lock()
		for _, blob := range x.Blobs {
			delete(b.coming, blob.Name)
		}
		b.mu.Unlock()
	}
	return nil
}

// check opens a box and compares what is in it with what it says.
func (b *receiving) check(plain []byte, x Box) ([]byte, error) {
	plain, err := box.Decode(plain, x.Codec, x.Raw, x.Payload)
	if err != nil {
		return nil, protocolError("open a box: %v", err)
	}
	blobs, err := box.Blobs(plain)
	if err != nil {
		return nil, protocolError("open a box: %v", err)
	}
	if len(blobs) != len(x.Blobs) {
		return nil, protocolError("a box of %d blobs names %d", len(blobs), len(x.Blobs))
	}
	for i, y := range blobs {
		if y.Kind != x.Blobs[i].Kind || len(y.Data) != int(x.Blobs[i].Length) ||
			b.namer.Blob(y.Kind, y.Data) != x.Blobs[i].Name {
			return nil, protocolError("blob %s is something else", x.Blobs[i].Name.Short())
		}
	}
	return plain, nil
}

// file handles the last word on an entry.
func (b *receiving) file(ctx context.Context, body []byte) error {
	f, err := parseFile(body)
	if err != nil {
		return err
	}
	a, i, err := b.find(f.N)
	if err != nil {
		return err
	}
	x := a.open[i]
	if err := x.at(f.Attempt); err != nil {
		return err
	}
	f.Stat.Dir, f.Stat.Name, f.Stat.Problem = x.stat.Dir, x.stat.Name, x.stat.Problem
	f.Bytes = x.bytes
	if err := f.valid(x); err != nil {
		return protocolError("%q: %v", x.stat.Path(), err)
	}
	a.open[i] = nil
	a.left--
	b.old -= x.old
	for len(b.batches) > 0 && b.batches[0].left == 0 {
		b.batches = b.batches[1:]
	}
	b.totals.Files++
	b.totals.BytesRead += f.BytesRead
	return b.receiver.File(ctx, f)
}

// valid says what does not fit in f, whose offers are in x.
func (f *File) valid(x *opened) error {
	if f.Refs != x.refs {
		return fmt.Errorf("%d blobs counted, %d offered", f.Refs, x.refs)
	}
	if (f.Outcome != Whole) != (f.Reason != "") {
		return fmt.Errorf("%v because of %q", f.Outcome, f.Reason)
	}
	if f.Stat.Type != x.stat.Type {
		return fmt.Errorf("a %v that was a %v", f.Stat.Type, x.stat.Type)
	}
	if f.Outcome == Vanished || f.Outcome == Failed {
		if f.Class != 0 || len(f.Inline) > 0 || f.Sparse || len(f.Extents) > 0 || len(f.Xattrs) > 0 || f.Target != "" {
			return fmt.Errorf("it %v and has content", f.Outcome)
		}
		return nil
	}
	if len(f.Xattrs) > 0 && f.Refs[Xattrs] > 0 {
		return errors.New("xattrs both inline and in blobs")
	}
	if f.Bytes[Xattrs] > snapshot.MaxXattrSet {
		return fmt.Errorf("%d bytes of xattrs", f.Bytes[Xattrs])
	}
	if len(f.Inline) > 0 && f.Refs[Content] > 0 {
		return errors.New("content both inline and in blobs")
	}
	if (f.Target != "") != (f.Stat.Type == snapshot.Symlink) {
		return fmt.Errorf("a %v with target %q", f.Stat.Type, f.Target)
	}
	if f.Stat.Type != snapshot.File {
		if f.Class != 0 || len(f.Inline) > 0 || f.Sparse || len(f.Extents) > 0 || f.Outcome == Torn || f.BytesRead > 0 {
			return fmt.Errorf("a %v with content", f.Stat.Type)
		}
		return nil
	}
	stream := uint64(len(f.Inline)) + f.Bytes[Content]
	switch {
	case !f.Sparse && (len(f.Extents) > 0 || f.Refs[Map] > 0):
		return errors.New("extents of a file without holes")
	case !f.Sparse && stream != f.Stat.Size, stream > f.Stat.Size:
		return fmt.Errorf("%d bytes of content, and size %d", stream, f.Stat.Size)
	case stream > f.BytesRead:
		return fmt.Errorf("%d bytes of content, and %d read", stream, f.BytesRead)
	case f.Sparse && f.Refs[Map] > 0 && len(f.Extents) > 0:
		return errors.New("extents both inline and in blobs")
	case f.Sparse && f.Refs[Map] == 0:
		return snapshot.ValidExtents(f.Extents, f.Stat.Size, stream)
	}
	return nil
}

// problem handles what has no entry.
func (b *receiving) problem(body []byte) error {
	p, err := parseProblem(body)
	if err != nil {
		return err
	}
	b.totals.ProblemCount++
	if n := b.totals.problemBytes + len(p.Path) + len(p.Reason); n <= keptProblems {
		b.totals.problemBytes = n
		b.totals.Problems = append(b.totals.Problems, p)
	}
	return nil
}

// end handles END: everything that was begun is finished, and the stream was
// what the agent says it was.
func (b *receiving) end(body []byte) error {
	e, err := parseEnd(body)
	if err != nil {
		return err
	}
	b.mu.Lock()
	missing := b.missing
	b.mu.Unlock()
	t := &b.totals
	got := end{t.Entries, t.Files, t.Offers, t.Boxes, t.ProblemCount, b.client.conn.readSum.Sum()}
	switch {
	case e.Sum != got.Sum:
		return protocolError("the stream is not what was sent")
	case e != got:
		return protocolError("the agent counts %v, and this is %v", e.counts(), got.counts())
	case t.Entries == 0:
		return protocolError("the end without a beginning")
	case len(b.batches) > 0:
		return protocolError("the end before all was read")
	case missing > 0:
		return protocolError("the end, and %d wanted blobs never came", missing)
	}
	conn := b.client.conn
	if err := conn.send(frameDone); err != nil {
		return err
	}
	kind, body, err := conn.read()
	if err != nil {
		return err
	}
	if kind != frameDone || len(body) > 0 {
		return protocolError("frame %d after the end", kind)
	}
	return nil
}

func (e *end) counts() [5]uint64 {
	return [5]uint64{e.Entries, e.Files, e.Offers, e.Boxes, e.Problems}
}
