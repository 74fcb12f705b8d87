//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// A backup is the agent's side of one BACKUP:
//
//	walk -> batches -> out            (waits while the window is full)
//	conn -> answers -> feed -> tasks -> readers -> offers, files -> out
//	conn -> wants -> group -> groups -> packers -> boxes -> out -> conn
//
// Only the writer behind out ever waits for the host. The reader of the
// stream never waits: answers and wants hold all that the credits allow.
type backup struct {
	conn   *conn
	set    settings
	dirs   *dirs
	crew   *crew
	window window

	out    chan message
	tasks  chan task
	wants  chan want
	groups chan *bundle

	builders chan *box.Builder // that were used, and have room

	names      *semaphore.Weighted // names offered and not answered
	bytes      *semaphore.Weighted // see credits.Bytes
	unanswered atomic.Int64        // names in flight, from before they are in out
	waiting    atomic.Int64        // readers that wait for bytes
	poke       chan struct{}       // a reader began to wait
	asked      chan *blob          // offers on the wire, in order
	ended      atomic.Bool         // END is on the wire
	end        end
}

// A message is one of what may be sent.
type message struct {
	batch   *entryBatch
	offer   *blob
	box     *packed
	file    *File
	from    *entryBatch // of file
	problem *snapshot.Problem
}

// A batch of entries: sent, then answered, then filed one by one.
type entryBatch struct {
	first   uint64
	stats   []Stat
	body    []byte // the frame's
	answers []Answer
	left    int // entries that are to be read and have no FILE yet
}

// A task is one entry to read.
type task struct {
	n     uint64
	stat  *Stat
	old   []snapshot.Ref
	batch *entryBatch
}

// A blob is a chunk that was offered.
type blob struct {
	offer Offer
	data  []byte
	lent  *semaphore.Weighted // the data is lent, and this is whose; else it is in buf
	buf   []byte              // box.Head bytes of room, then the data
}

// keep makes x have its data to itself.
func (x *blob) keep() {
	x.buf = append(buffer(box.Head + len(x.data))[:box.Head], x.data...)
	x.data = x.buf[box.Head:]
	if x.lent != nil {
		x.lent.Release(1)
		x.lent = nil
	}
}

// drop says that nobody looks at the data any more.
func (x *blob) drop() {
	if x.lent != nil {
		x.lent.Release(1)
	}
	recycle(x.buf)
}

type want struct {
	*blob
	wanted bool
}

// A bundle is what becomes one box: a group of small blobs, or a large one.
type bundle struct {
	group  *box.Builder
	large  *blob
	blobs  []BoxBlob
	charge int64
}

type packed struct {
	box    Box // its frame is the buffer of the payload
	charge int64
}

// The window holds the batches that are under way, oldest first.
type window struct {
	slots    chan struct{}    // one taken for each
	answered chan *entryBatch // in order; nil is the end. It holds a whole window.

	mu      sync.Mutex
	batches []*entryBatch
	next    int  // of batches, to be answered
	whole   bool // no more batches come
}

// sent adds a batch whose slot is taken already; nil is the end.
func (w *window) sent(b *entryBatch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b != nil {
		w.batches = append(w.batches, b)
		return
	}
	w.whole = true
	if w.next == len(w.batches) {
		w.answered <- nil
	}
}

// answer gives the batch whose turn it is its answers.
func (w *window) answer(answers []Answer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == len(w.batches) {
		return protocolError("answers to no question")
	}
	b := w.batches[w.next]
	if len(answers) != len(b.stats) {
		return protocolError("%d answers to %d entries", len(answers), len(b.stats))
	}
	w.next++
	b.answers = answers
	for _, a := range answers {
		if a.Read {
			b.left++
		}
	}
	w.answered <- b
	if w.whole && w.next == len(w.batches) {
		w.answered <- nil
	}
	w.slide()
	return nil
}

// filed says that the FILE of an entry of b was sent.
func (w *window) filed(b *entryBatch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.left--
	w.slide()
}

// slide lets go of the oldest batches that are done.
func (w *window) slide() {
	for w.next > 0 && w.batches[0].left == 0 {
		w.batches[0] = nil
		w.batches = w.batches[1:]
		w.next--
		<-w.slots
	}
}

// serveBackup carries out a BACKUP; see serveRestore.
func serveBackup(ctx context.Context, c *conn, request []byte) error {
	q, err := parseBackupRequest(request)
	if err != nil {
		return err
	}
	// Before the first frame of the answer.
	c.sumWrites()
	splitter, err := chunk.New(q.Chunk, q.ChunkSecret)
	if err != nil {
		return refuse(c, fmt.Errorf("cut files: %w", err))
	}
	d, err := openDirs(q.Root)
	if err != nil {
		return refuse(c, fmt.Errorf("open %s: %w", q.Root, err))
	}
	defer d.close()
	set, credit := c.set, c.credits
	b := &backup{
		conn: c, set: set, dirs: d,
		window: window{
			slots:    make(chan struct{}, credit.Batches),
			answered: make(chan *entryBatch, credit.Batches+1),
		},
		out:    make(chan message, set.queue),
		tasks:  make(chan task, set.queue),
		wants:  make(chan want, credit.Names),
		groups: make(chan *bundle),
		// One is filled, one handed over, the others are with the packers.
		builders: make(chan *box.Builder, set.packers+2),
		names:    semaphore.NewWeighted(int64(credit.Names)),
		bytes:    semaphore.NewWeighted(int64(credit.Bytes)),
		poke:     make(chan struct{}, 1),
		asked:    make(chan *blob, credit.Names),
	}
	namer := id.NewNamer(q.NameKey)
	b.crew = newCrew(set.cores, set.large, splitter, namer)
	readers := make([]*reader, set.readers)
	for i := range readers {
		r := newReader(d, splitter, namer, q.ReadOnlyMount, b.crew)
		r.offer, r.problem, r.hook = b.offer, b.problem, set.hook
		readers[i] = r
	}
	// Whatever ends the work ends the reading of the stream, and the other way.
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	worked := make(chan error, 1)
	go func() {
		err := b.work(work, readers)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				_ = c.send(frameError, failure{Final: true, Text: err.Error()}.append(nil))
			}
			c.close()
		}
		worked <- err
	}()
	err = b.listen()
	if err != nil {
		cancel()
		// A writer that is stuck in the stream must get out of it too.
		c.close()
	}
	if werr := <-worked; werr != nil && !errors.Is(werr, context.Canceled) {
		err = werr
	}
	return err
}

// refuse tells the host that the operation cannot be done; the stream is fine.
func refuse(c *conn, err error) error {
	return c.send(frameError, failure{Text: err.Error()}.append(nil))
}

// listen reads the stream until the host's DONE. It never waits for the rest
// of the agent.
func (b *backup) listen() error {
	for {
		t, body, err := b.conn.read()
		if err != nil {
			return err
		}
		switch t {
		case frameAnswers:
			answers, err := parseAnswers(body, int(b.conn.credits.Old))
			if err != nil {
				return err
			}
			if err := b.window.answer(answers); err != nil {
				return err
			}
		case frameWants:
			bits, err := parseWants(body)
			if err != nil {
				return err
			}
			for _, wanted := range bits {
				select {
				case x := <-b.asked:
					b.wants <- want{x, wanted} // never full: it holds all names
				default:
					return protocolError("an answer to no offer")
				}
			}
		case frameDone:
			if len(body) > 0 || !b.ended.Load() {
				return protocolError("done before the end")
			}
			return b.conn.send(frameDone)
		default:
			return protocolError("frame %d during a backup", t)
		}
	}
}

// work runs all stages and ends them one after the other.
func (b *backup) work(ctx context.Context, readers []*reader) error {
	g, ctx := errgroup.WithContext(ctx)
	stage := func(n int, f func(i int) error) (wait func()) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Add(1)
			g.Go(func() error {
				defer wg.Done()
				return f(i)
			})
		}
		return wg.Wait
	}
	walked := stage(1, func(int) error { return b.walk(ctx) })
	fed := stage(1, func(int) error { return b.feed(ctx) })
	read := stage(len(readers), func(i int) error { return b.read(ctx, readers[i]) })
	grouped := stage(1, func(int) error { return b.group(ctx) })
	shrunk := stage(b.set.packers, func(int) error { return b.pack(ctx) })
	wrote := stage(1, func(int) error { return b.write(ctx) })
	g.Go(func() error {
		walked()
		fed() // it ends with the last answer
		close(b.tasks)
		read()
		// All names are in flight now, or were answered: when every one has
		// been, nothing can come into wants any more.
		if err := b.names.Acquire(ctx, int64(b.conn.credits.Names)); err != nil {
			return err
		}
		close(b.wants)
		grouped()
		close(b.groups)
		shrunk()
		close(b.out)
		wrote()
		return nil
	})
	return g.Wait()
}

// put sends a message on its way.
func (b *backup) put(ctx context.Context, m message) error {
	select {
	case b.out <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *backup) problem(ctx context.Context, path, reason string) error {
	return b.put(ctx, message{problem: &snapshot.Problem{Path: path, Reason: reason[:min(len(reason), maxProblem)]}})
}

// walk sends batches.
func (b *backup) walk(ctx context.Context) error {
	var cur *entryBatch
	next, prev := uint64(0), ""
	send := func() error {
		if cur == nil {
			return nil
		}
		putEntriesHead(cur.body, cur.first, len(cur.stats))
		select {
		case b.window.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := b.put(ctx, message{batch: cur})
		cur = nil
		return err
	}
	emit := func(s *Stat) error {
		if next == maxEntries {
			return fmt.Errorf("over %d entries", uint64(maxEntries))
		}
		if cur == nil {
			cur, prev = &entryBatch{first: next, body: make([]byte, entriesHead, 32<<10)}, ""
		}
		cur.body = appendStat(cur.body, prev, s)
		cur.stats = append(cur.stats, *s)
		prev = s.Dir
		next++
		if len(cur.stats) == maxBatch || len(cur.body) >= maxBatchBytes {
			return send()
		}
		return nil
	}
	w := newWalker(b.dirs, emit, func(path, reason string) error { return b.problem(ctx, path, reason) })
	w.page, w.keep, w.marks = b.set.page, b.set.keep, b.set.marks
	if err := w.run(ctx); err != nil {
		return err
	}
	if err := send(); err != nil {
		return err
	}
	return b.put(ctx, message{batch: &entryBatch{first: next}}) // the end of the batches
}

// feed hands out what is to be read, in order.
func (b *backup) feed(ctx context.Context) error {
	for {
		var ba *entryBatch
		select {
		case ba = <-b.window.answered:
		case <-ctx.Done():
			return ctx.Err()
		}
		if ba == nil {
			return nil
		}
		for i, a := range ba.answers {
			if !a.Read {
				continue
			}
			select {
			case b.tasks <- task{ba.first + uint64(i), &ba.stats[i], a.Old, ba}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (b *backup) read(ctx context.Context, r *reader) error {
	for t := range b.tasks {
		b.crew.busy.Add(1)
		f, err := r.read(ctx, t.n, t.stat, t.old)
		b.crew.busy.Add(-1)
		if err != nil {
			return err
		}
		if err := b.put(ctx, message{file: f, from: t.batch}); err != nil {
			return err
		}
	}
	return nil
}

// offer offers a blob once there is credit for it: a copy of data, or data itself
// if it is lent.
func (b *backup) offer(ctx context.Context, o Offer, data []byte, lent *semaphore.Weighted) error {
	if err := b.names.Acquire(ctx, 1); err != nil {
		return err
	}
	charge := b.conn.credits.charge(o.Ref.Length)
	if !b.bytes.TryAcquire(charge) {
		b.waiting.Add(1)
		select {
		case b.poke <- struct{}{}:
		default:
		}
		err := b.bytes.Acquire(ctx, charge)
		b.waiting.Add(-1)
		if err != nil {
			return err
		}
	}
	b.unanswered.Add(1)
	x := &blob{offer: o, data: data, lent: lent}
	if lent == nil {
		x.keep()
	} else if err := lent.Acquire(ctx, 1); err != nil {
		return err
	}
	return b.put(ctx, message{offer: x})
}

// group drops what is not wanted and puts the rest into groups.
func (b *backup) group(ctx context.Context) error {
	small := b.newGroup()
	send := func(g *bundle) error {
		select {
		case b.groups <- g:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	flush := func() error {
		if small.group.Count() == 0 {
			return nil
		}
		err := send(small)
		small = b.newGroup()
		return err
	}
	for open := true; open; {
		var x want
		select {
		case x, open = <-b.wants:
		case <-b.poke:
		case <-ctx.Done():
			return ctx.Err()
		}
		if x.blob != nil {
			b.unanswered.Add(-1)
			b.names.Release(1)
			ref := x.offer.Ref
			charge := b.conn.credits.charge(ref.Length)
			switch {
			case !x.wanted:
				b.bytes.Release(charge)
				x.drop()
			case ref.Length >= box.SmallBlob:
				if x.lent != nil {
					x.keep()
				}
				g := &bundle{large: x.blob}
				g.name(x.blob, charge)
				if err := send(g); err != nil {
					return err
				}
			default:
				small.group.Add(id.Data, x.data)
				small.name(x.blob, charge)
				x.drop()
			}
		}
		// A group that is not full waits for more, for that is what makes it
		// small; but not while a reader waits for the credit it holds and
		// there is no answer to come that could fill it.
		full := small.group.Raw() >= box.GroupRaw
		stuck := b.waiting.Load() > 0 && b.unanswered.Load() == 0
		if full || stuck {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// newGroup begins a group of small blobs.
func (b *backup) newGroup() *bundle {
	select {
	case used := <-b.builders:
		return &bundle{group: used}
	default:
		return &bundle{group: new(box.Builder)}
	}
}

// name says that x is in the bundle.
func (g *bundle) name(x *blob, charge int64) {
	g.blobs = append(g.blobs, BoxBlob{Name: x.offer.Ref.Name, Kind: id.Data, Length: uint32(len(x.data))})
	g.charge += charge
}

// pack shrinks groups.
func (b *backup) pack(ctx context.Context) error {
	e := box.NewEncoder()
	for {
		var g *bundle
		select {
		case g = <-b.groups:
		case <-ctx.Done():
			return ctx.Err()
		}
		if g == nil {
			return nil // closed
		}
		p := &packed{box: Box{Blobs: g.blobs}, charge: g.charge}
		b.crew.busy.Add(1)
		if g.large != nil {
			room := buffer(len(g.large.buf) + box.Slack)
			p.box.Codec, p.box.Raw, p.box.Payload = e.Wrap(id.Data, g.large.buf, room)
			if p.box.Codec == box.Stored { // then it is part of the blob's buffer
				room, g.large.buf = g.large.buf, room
			}
			p.box.frame = room
			recycle(g.large.buf)
		} else {
			p.box.Codec, p.box.Raw, p.box.Payload = g.group.Finish(e, buffer(g.group.Raw()+box.Slack))
			p.box.frame = p.box.Payload
			g.group.Reset()
			b.builders <- g.group // never full: it holds all there can be
		}
		b.crew.busy.Add(-1)
		if err := b.put(ctx, message{box: p}); err != nil {
			return err
		}
	}
}

// send sends a box, and lets go of its payload.
func (b *backup) send(ctx context.Context, x *Box) error {
	head := appendBoxHead(nil, x)
	if b.set.beside == nil {
		err := b.conn.write(frameBox, head, x.Payload)
		recycle(x.frame)
		return err
	}
	if err := b.conn.write(frameBox, head); err != nil {
		return err
	}
	p := payload{x.Payload, x.frame}
	select {
	case b.set.beside <- p:
		return nil
	default:
	}
	// It is full of payloads whose frames may be in the stream's buffer yet.
	if err := b.conn.flush(); err != nil {
		return err
	}
	select {
	case b.set.beside <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write is the only one that writes to the stream, beats and DONE apart.
func (b *backup) write(ctx context.Context) error {
	var scratch []byte
	var pending []*blob
	offers := func() error {
		if len(pending) == 0 {
			return nil
		}
		scratch = scratch[:0]
		list := make([]Offer, len(pending))
		for i, x := range pending {
			list[i] = x.offer
			b.asked <- x // never full: it holds all names
		}
		b.end.Offers += uint64(len(pending))
		pending = pending[:0]
		scratch = appendOffers(scratch, list)
		return b.conn.write(frameOffers, scratch)
	}
	handle := func(m message) error {
		if m.offer != nil {
			if pending = append(pending, m.offer); len(pending) < maxOffers {
				return nil
			}
			return offers()
		}
		// A file's offers go before it.
		if err := offers(); err != nil {
			return err
		}
		switch {
		case m.batch != nil:
			if len(m.batch.stats) == 0 {
				b.end.Entries = m.batch.first
				b.window.sent(nil)
				return nil
			}
			b.window.sent(m.batch)
			body := m.batch.body
			m.batch.body = nil
			return b.conn.write(frameEntries, body)
		case m.file != nil:
			b.end.Files++
			scratch = m.file.append(scratch[:0])
			if err := b.conn.write(frameFile, scratch); err != nil {
				return err
			}
			b.window.filed(m.from)
		case m.box != nil:
			b.end.Boxes++
			if err := b.send(ctx, &m.box.box); err != nil {
				return err
			}
			b.bytes.Release(m.box.charge)
		case m.problem != nil:
			b.end.Problems++
			scratch = appendProblem(scratch[:0], *m.problem)
			return b.conn.write(frameProblem, scratch)
		}
		return nil
	}
	for {
		var m message
		open := true
		select {
		case m, open = <-b.out:
		default:
			// Nothing to add to what is under way: let it go.
			if err := offers(); err != nil {
				return err
			}
			if err := b.conn.flush(); err != nil {
				return err
			}
			select {
			case m, open = <-b.out:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if !open {
			break
		}
		if err := handle(m); err != nil {
			return err
		}
	}
	if err := offers(); err != nil {
		return err
	}
	b.end.Sum = b.conn.writeSum.Sum()
	b.ended.Store(true)
	return b.conn.send(frameEnd, b.end.append(nil))
}
