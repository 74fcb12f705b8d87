package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"orlop/snapshot"
)

// ErrFull is wrapped by the error of a restore that ended because the file
// system of the target, or a quota of it, is full or read-only.
var ErrFull = errors.New("nothing more can be written there")

// ErrUnfinished is returned by Add when the files that are not finished take
// too much of the agent's memory: about 100,000 of them are too many.
var ErrUnfinished = errors.New("too many files are unfinished")

var errEnded = errors.New("the restore has ended")

// A RestoreRequest says where to restore to.
type RestoreRequest struct {
	// Root is the directory to fill, as the agent sees it. Symbolic links in
	// its own path are followed.
	Root string

	// Sync makes End wait until everything is on the disk.
	Sync bool

	// Marker, if not empty, is in the file [MarkerName] of the root from before
	// anything else is changed there until all is done.
	Marker string

	// InPlace, if not nil, restores over what is there: only what differs is
	// written, and what is not added goes away.
	InPlace *InPlace

	// Problem, if not nil, is told what could not be kept of the entry with
	// number n, or that it could not be made at all. Calls come one at a time
	// from a goroutine of the Restore, some time after what caused them, and
	// none after End has returned. It must not call methods of the Restore, nor
	// wait for somebody who does.
	Problem func(n uint64, path, what string)
}

// InPlace is what a restore over what is there needs besides. Its functions are
// called as [RestoreRequest].Problem is.
type InPlace struct {
	NameKey [32]byte // of what Compare is given
	Keep    bool     // nothing goes away but what is in the way
	Dry     bool     // nothing is changed, and no content is to be written; the totals say what would be

	// Verdict is told which of the refs of a Compare are not in the file n. The
	// verdicts on one file come in the order in which it was compared. An error
	// is the agent's fault, and the end of the restore.
	Verdict func(n uint64, missing []bool) error

	// Change, if not nil, is told what becomes different.
	Change func(kind ChangeKind, path string)
}

// A Restore writes a tree through an agent. Add, Link, Leave and Spare are called
// by one goroutine, in walk order ([snapshot.Compare]); Write, Compare, Finish and
// Discard by any, once Add has returned the number. All of them return before the thing is
// done, and wait only when too much is under way. An error of theirs says that
// the restore is lost, or, if errors.Is finds ErrUnfinished or
// [snapshot.ErrFormat], that this entry was not taken and others will be.
//
// What goes wrong with single entries is told to Problem, and the rest goes on.
type Restore struct {
	c   *Client
	req RestoreRequest
	end func(error) error // of the client's operation
	all sync.WaitGroup    // the goroutines below

	mu     sync.Mutex
	change sync.Cond // of anything below
	err    error     // why the restore is lost
	lost   chan struct{}
	totals *RestoreTotals

	// What is to be sent: whole frames, and the one being filled.
	queue  [][]byte
	queued int // bytes in queue
	w      recordWriter
	credit int      // left
	closed *closing // to be sent when nothing else is
	bytes  uint64   // of data given to Write

	// The tree.
	next  uint64
	last  struct{ dir, name string }
	began bool // there is a last
	rungs []*rung
	tidy  bool             // what is in a directory and was not added is to go away
	live  map[uint64]*node // entries that the agent is not done with, and the directory each holds up
	open  map[uint64]int   // files neither finished nor discarded, and what they weigh
	held  int              // sum of open
	asked map[uint64][]int // refs of the compares that there is no verdict on
}

// maxQueued is how many bytes may wait to be sent before Write and the others
// wait too.
const maxQueued = 4 << 20

// idle is how little may be under way for the agent to be soon without work.
const idle = 64 << 10

// A rung is a directory whose entries are being added, or one of those that
// lead to it.
type rung struct {
	path string
	node *node

	// The directories in it that the walk has not reached yet: the first, and
	// the others as uvarint number, entry, bytes xattrs. There may be millions,
	// and all of them are known before the first is done.
	first *node
	dirs  []byte
	read  int // bytes of dirs that are of no more use
}

// A node is a directory whose metadata is due: when the walk is past what is
// below it and the agent is done with all of that. Until then each change in it
// would move its time, and its mode might forbid them.
type node struct {
	parent *node
	waits  int // for so many entries, directories, and the walk
	n      uint64
	entry  *snapshot.Entry // nil if it was never added: it has no metadata to be set
	xattrs []snapshot.Xattr
}

// Restore begins to fill a directory, which is opened before it returns. End
// must be called at last, also after an error.
func (c *Client) Restore(ctx context.Context, req RestoreRequest) (*Restore, error) {
	end, err := c.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("restore to %s: %w", req.Root, err)
	}
	q := order{verb: verbRestore, sync: req.Sync, root: req.Root, marker: req.Marker}
	if p := req.InPlace; p != nil {
		q.verb, q.nameKey = verbPlace, p.NameKey
		q.keep, q.dry, q.tells = p.Keep, p.Dry, p.Change != nil
	}
	if _, err := c.openRoot(&q); err != nil {
		return nil, fmt.Errorf("restore to %s: %w", req.Root, end(err))
	}
	r := &Restore{
		c: c, req: req, end: end, credit: int(c.credits.Writes), lost: make(chan struct{}),
		live: make(map[uint64]*node), open: make(map[uint64]int), asked: make(map[uint64][]int),
	}
	r.change.L = &r.mu
	r.w.full = r.cut
	r.rungs = []*rung{{node: &node{waits: 1}}}
	r.tidy = q.verb == verbPlace && !q.keep
	r.all.Go(r.send)
	r.all.Go(r.receive)
	return r, nil
}

// Look says what the directory root is like.
func (c *Client) Look(ctx context.Context, root string) (Target, error) {
	end, err := c.begin(ctx)
	if err != nil {
		return Target{}, fmt.Errorf("look into %s: %w", root, err)
	}
	t, err := c.openRoot(&order{verb: verbLook, root: root})
	if err = end(err); err != nil {
		return Target{}, fmt.Errorf("look into %s: %w", root, err)
	}
	return t, nil
}

func (c *Client) openRoot(q *order) (Target, error) {
	if len(q.marker) > MaxMarker {
		return Target{}, fmt.Errorf("%w: a marker of %d bytes", ErrRefused, len(q.marker))
	}
	if err := c.conn.send(frameRestore, q.append(nil)); err != nil {
		return Target{}, err
	}
	t, body, err := c.conn.read()
	if err != nil {
		return Target{}, err
	}
	switch t {
	case frameReady:
		return parseTarget(body)
	case frameError:
		return Target{}, failed(body)
	}
	return Target{}, protocolError("frame %d where READY was due", t)
}

// Add makes an entry and returns its number. A directory is made at once and
// given its metadata when all below it is finished; a file takes writes until
// it is finished. Content that is inline is written by Add. The sets of xattrs
// and extents are needed only if e does not hold them itself.
func (r *Restore) Add(e *snapshot.Entry, xattrs []snapshot.Xattr, extents []snapshot.Extent) (uint64, error) {
	if len(e.Xattrs) > 0 {
		xattrs = e.Xattrs
	}
	if err := e.Valid(); err != nil {
		return 0, fmt.Errorf("add: %w", err)
	}
	if err := snapshot.ValidXattrs(xattrs); err != nil {
		return 0, fmt.Errorf("add %s: %w: %w", e.Path(), snapshot.ErrFormat, err)
	}
	if e.Sparse && e.Map.IsZero() {
		extents = e.Extents
	}
	if e.Type == snapshot.File {
		if !e.Sparse {
			extents = nil
		} else if err := snapshot.ValidExtents(extents, e.Size, streamSize(e)); err != nil {
			return 0, fmt.Errorf("add %s: %w: %w", e.Path(), snapshot.ErrFormat, err)
		}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil {
		return 0, err
	}
	if err := r.follows(e); err != nil {
		return 0, fmt.Errorf("add %s: %w", e.Path(), err)
	}
	n := r.next
	if e.Type == snapshot.File {
		weight := held(e, xattrs, extents)
		if r.held > 0 && r.held+weight > maxHeld {
			return 0, fmt.Errorf("add %s: %w", e.Path(), ErrUnfinished)
		}
		r.held += weight
		r.open[n] = weight
	}
	r.next++
	if e.IsRoot() {
		top := r.rungs[0].node
		own := *e
		top.n, top.entry, top.xattrs = n, &own, xattrs
		r.began = true
	} else {
		r.move(e.Dir, e.Name)
		l := r.rungs[len(r.rungs)-1]
		if e.Type == snapshot.Dir {
			l.push(n, e, xattrs)
		} else {
			r.live[n] = l.node
			l.node.waits++
		}
	}

	if e.Type != snapshot.Dir && len(e.Xattrs) == 0 {
		r.w.xattrs(xattrs)
	}
	if !e.Map.IsZero() {
		r.w.extents(extents)
	}
	r.w.begin(recordMake)
	r.w.entry(e)
	if len(e.Inline) > 0 {
		r.inline(n, e, extents)
	}
	r.filled()
	return n, nil
}

// follows says whether e is in order after the entry before it.
func (r *Restore) follows(e *snapshot.Entry) error {
	if r.began && snapshot.Compare(r.last.dir, r.last.name, e.Dir, e.Name) >= 0 {
		return fmt.Errorf("%w: it belongs before %s/%s", snapshot.ErrFormat, r.last.dir, r.last.name)
	}
	return nil
}

// inline writes the content that an entry holds itself, which is that of its
// extents one after the other.
func (r *Restore) inline(n uint64, e *snapshot.Entry, extents []snapshot.Extent) {
	data := e.Inline
	r.bytes += uint64(len(data))
	if !e.Sparse {
		r.w.data(n, 0, data)
		return
	}
	for _, x := range extents {
		r.w.data(n, int64(x.Offset), data[:x.Length])
		data = data[x.Length:]
	}
}

// streamSize is the number of bytes in a file's extents.
func streamSize(e *snapshot.Entry) uint64 { return uint64(len(e.Inline)) + e.Content.Size() }

// Link gives the entry at the path first, which was added before and is of the
// same hard-link group, another name, and returns the number of that.
func (r *Restore) Link(e *snapshot.Entry, first string) (uint64, error) {
	if err := e.Valid(); err != nil {
		return 0, fmt.Errorf("link: %w", err)
	}
	if e.Group == [16]byte{} {
		return 0, fmt.Errorf("link %s: %w: it is in no group", e.Path(), snapshot.ErrFormat)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil {
		return 0, err
	}
	if err := r.follows(e); err != nil {
		return 0, fmt.Errorf("link %s: %w", e.Path(), err)
	}
	n := r.next
	r.next++
	r.move(e.Dir, e.Name)
	at := r.rungs[len(r.rungs)-1].node
	r.live[n] = at
	at.waits++
	r.w.begin(recordLink)
	r.w.entry(e)
	r.w.body = appendBytes(r.w.body, first)
	r.filled()
	return n, nil
}

// Leave says that what is at an entry's path, which is not added, is to stay as
// it is. It is of a restore in place.
func (r *Restore) Leave(e *snapshot.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil {
		return err
	}
	if err := r.follows(e); err != nil || e.IsRoot() || !r.tidy {
		return err
	}
	r.move(e.Dir, e.Name)
	r.w.path(recordLeave, e.Path())
	r.filled()
	return nil
}

// Spare says that from here on not all entries are added: nothing goes away any
// more but what is in the way. It is of a restore in place.
func (r *Restore) Spare() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil || !r.tidy {
		return err
	}
	r.tidy = false
	r.w.begin(recordSpare)
	r.filled()
	return nil
}

// Compare asks which of refs, the next of the content of file n, are not in the
// file that is there. Of a restore in place all content must be compared that is
// not inline, and what is missing be written, before the file is finished.
func (r *Restore) Compare(n uint64, refs []snapshot.Ref) error {
	for len(refs) > 0 {
		k, size := 0, uint64(0)
		for k < len(refs) && k < maxCompare && (k == 0 || size+refs[k].Length <= compareBytes) {
			size += refs[k].Length
			k++
		}
		if err := r.compare(n, refs[:k]); err != nil {
			return err
		}
		refs = refs[k:]
	}
	return nil
}

func (r *Restore) compare(n uint64, refs []snapshot.Ref) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil {
		return err
	}
	if _, ok := r.open[n]; !ok {
		return fmt.Errorf("compare: entry %d takes no content", n)
	}
	r.asked[n] = append(r.asked[n], len(refs))
	r.w.compare(n, refs)
	r.filled()
	return nil
}

// Write writes data, which is copied, at offset off of the file n. The data is
// inside one extent of a sparse file. Each byte is written once, in any order.
func (r *Restore) Write(n uint64, off int64, data []byte) error {
	for len(data) > 0 {
		piece := data[:min(len(data), maxData)]
		if err := r.write(n, off, piece); err != nil {
			return err
		}
		data = data[len(piece):]
		off += int64(len(piece))
	}
	return nil
}

func (r *Restore) write(n uint64, off int64, piece []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil {
		return err
	}
	if _, ok := r.open[n]; !ok {
		return fmt.Errorf("write: entry %d takes no content", n)
	}
	r.bytes += uint64(len(piece))
	r.w.data(n, off, piece)
	r.filled()
	return nil
}

// Lost is closed when the restore is lost; Err then says why.
func (r *Restore) Lost() <-chan struct{} { return r.lost }

// Err returns why the restore is lost, or nil.
func (r *Restore) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Finish says that file n has been written. Its metadata is set next.
func (r *Restore) Finish(n uint64) error { return r.finish(recordFinish, n) }

// Discard says that the content of file n is not to be had. What was made of it
// is removed, under all its names.
func (r *Restore) Discard(n uint64) error { return r.finish(recordDiscard, n) }

func (r *Restore) finish(kind uint8, n uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wait(); err != nil {
		return err
	}
	weight, ok := r.open[n]
	if !ok {
		return fmt.Errorf("finish: entry %d takes no content", n)
	}
	delete(r.open, n)
	r.held -= weight
	r.w.number(kind, n)
	r.filled()
	return nil
}

// End waits until everything is done, and returns what that was. A file that
// was not finished is an error, and so is whatever made the restore end early.
func (r *Restore) End() (RestoreTotals, error) {
	totals, err := r.conclude()
	if err != nil {
		err = fmt.Errorf("restore to %s: %w", r.req.Root, err)
	}
	return totals, err
}

func (r *Restore) conclude() (RestoreTotals, error) {
	r.mu.Lock()
	if r.closed != nil {
		r.mu.Unlock()
		return RestoreTotals{}, errEnded
	}
	var unfinished error
	if len(r.open) > 0 && r.err == nil {
		unfinished = fmt.Errorf("%d files were not finished", len(r.open))
	}
	if r.err == nil && unfinished == nil {
		r.tidyUp(r.last.dir)
		for len(r.rungs) > 0 {
			r.leave()
		}
		r.filled()
		for len(r.live) > 0 && r.err == nil {
			r.change.Wait()
		}
	}
	// A full disk ends the restore, but not the stream: it can be closed in
	// an orderly way, and the agent used again.
	r.closed = &closing{Abandon: r.err != nil || unfinished != nil, Entries: r.next, Bytes: r.bytes}
	r.change.Broadcast()
	r.mu.Unlock()
	r.all.Wait()

	if r.totals == nil {
		return RestoreTotals{}, r.end(r.err)
	}
	err := r.end(nil)
	if err == nil {
		err = errors.Join(r.err, unfinished)
	}
	return *r.totals, err
}

// tidyUp says that all that is in dir was sent.
func (r *Restore) tidyUp(dir string) {
	if r.tidy && r.began {
		r.w.path(recordTidy, dir)
		r.filled()
	}
}

// passed is told of a directory that the walk has passed: it is empty.
func (r *Restore) passed(d *node) {
	r.tidyUp(d.entry.Path())
	r.dress(d)
}

// move makes dir the directory whose entries are being added, name being the
// next of them.
func (r *Restore) move(dir, name string) {
	if dir != r.last.dir {
		r.tidyUp(r.last.dir)
	}
	r.last.dir, r.last.name, r.began = dir, name, true
	for !snapshot.Below(dir, r.rungs[len(r.rungs)-1].path) {
		r.leave()
	}
	for {
		top := r.rungs[len(r.rungs)-1]
		if len(top.path) == len(dir) {
			return
		}
		start := len(top.path)
		if start > 0 {
			start++
		}
		end := start
		for end < len(dir) && dir[end] != '/' {
			end++
		}
		next := &node{parent: top.node}
		for top.first != nil && top.first.entry.Name <= dir[start:end] {
			if d := top.pop(); d.entry.Name == dir[start:end] {
				next = d
			} else {
				r.passed(d)
			}
		}
		next.waits = 1
		top.node.waits++
		r.rungs = append(r.rungs, &rung{path: dir[:end], node: next})
	}
}

// leave ends the innermost rung.
func (r *Restore) leave() {
	top := r.rungs[len(r.rungs)-1]
	r.rungs = r.rungs[:len(r.rungs)-1]
	for top.first != nil {
		r.passed(top.pop())
	}
	r.release(top.node)
}

// push adds a directory to those not reached yet.
func (l *rung) push(n uint64, e *snapshot.Entry, xattrs []snapshot.Xattr) {
	if len(e.Xattrs) > 0 {
		xattrs = nil
	}
	l.dirs = binary.AppendUvarint(l.dirs, n)
	l.dirs, _ = snapshot.AppendEntry(l.dirs, l.path, e) // valid, as Add saw
	l.dirs = appendBytes(l.dirs, snapshot.EncodeXattrs(xattrs))
	if l.first == nil {
		l.shift()
	}
}

// pop takes the first of the directories not reached yet, and there is one.
func (l *rung) pop() *node {
	d := l.first
	l.shift()
	return d
}

func (l *rung) shift() {
	l.first = nil
	if l.read > len(l.dirs)/2 {
		l.dirs = append(l.dirs[:0], l.dirs[l.read:]...)
		l.read = 0
	}
	p := l.dirs[l.read:]
	if len(p) == 0 {
		return
	}
	d := decoder{p: p}
	n := d.uvarint(1<<64 - 1)
	e, rest, err := snapshot.ParseEntry(d.p, l.path)
	d.p = rest
	xattrs, err2 := snapshot.DecodeXattrs(d.bytes(2 * snapshot.MaxXattrSet))
	if err := errors.Join(err, err2, d.err); err != nil {
		panic(err) // we wrote it
	}
	l.read = len(l.dirs) - len(d.p)
	l.first = &node{parent: l.node, n: n, entry: e, xattrs: xattrs}
}

// release takes away one thing that n waits for, and sets its metadata if that
// was the last; its parent's too, then.
func (r *Restore) release(n *node) {
	for ; n != nil; n = n.parent {
		n.waits--
		if n.waits > 0 {
			return
		}
		if n.entry != nil {
			r.dress(n)
		}
	}
}

// dress asks for the metadata of a directory to be set. The agent keeps the
// order, so a parent may be asked for before its children are done.
func (r *Restore) dress(d *node) {
	r.live[d.n] = nil
	if len(d.entry.Xattrs) == 0 {
		r.w.xattrs(d.xattrs)
	}
	r.w.number(recordDress, d.n)
	r.w.entry(d.entry)
	r.filled()
}

// wait waits until there is room in the queue.
func (r *Restore) wait() error {
	for r.queued >= maxQueued && r.err == nil && r.closed == nil {
		r.change.Wait()
	}
	if r.closed != nil {
		return errEnded
	}
	return r.err
}

// filled looks after the frame that something was put into.
func (r *Restore) filled() {
	if len(r.w.body) >= recordsFull {
		r.cut()
	} else if len(r.queue) == 0 {
		r.change.Broadcast()
	}
}

// cut puts the frame that is being filled into the queue.
func (r *Restore) cut() {
	if len(r.w.body) == 0 {
		return
	}
	body := r.w.take()
	r.queue = append(r.queue, body)
	r.queued += len(body)
	r.change.Broadcast()
}

// send sends frames while there is credit. One that is not full waits for as
// long as the agent has something to do.
func (r *Restore) send() {
	sum := uint32(0)
	full := int(r.c.credits.Writes)
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if len(r.queue) == 0 && (r.closed != nil || full-r.credit < idle) {
			r.cut()
		}
		var t frameType
		var body []byte
		switch {
		case r.totals != nil || r.err != nil && !r.orderly():
			return
		case r.err != nil && r.closed != nil, len(r.queue) == 0 && r.closed != nil:
			r.closed.Sum = sum
			t, body = frameClose, r.closed.append(nil)
		case r.err == nil && len(r.queue) > 0 && (r.credit == full || cost(r.queue[0]) <= r.credit):
			// With all credit at hand a frame that is larger goes too, or
			// it would wait for ever.
			t, body = frameRecords, r.queue[0]
			r.queue[0] = nil
			r.queue = r.queue[1:]
			r.queued -= len(body)
			r.credit -= cost(body)
			r.change.Broadcast()
		default:
			r.change.Wait()
			continue
		}
		more := len(r.queue) > 0
		r.mu.Unlock()
		var err error
		if t == frameRecords {
			sum = crc32.Update(sum, castagnoli, body)
		}
		if err = r.c.conn.write(t, body); err == nil && (!more || t == frameClose) {
			err = r.c.conn.flush()
		}
		r.mu.Lock()
		if err != nil {
			r.fail(err)
			r.c.conn.close() // the agent would wait for the rest, and we for it
			return
		}
		if t == frameClose {
			return
		}
		recycle(body)
	}
}

// fail ends the restore, unless it has ended.
func (r *Restore) fail(err error) {
	if r.err == nil {
		r.err = err
		select {
		case <-r.lost:
		default:
			close(r.lost)
		}
	}
	r.change.Broadcast()
}

// orderly tells whether the stream is still in order in spite of r.err.
func (r *Restore) orderly() bool {
	var no refusal
	return errors.As(r.err, &no)
}

// receive takes what the agent says until it has said the last.
func (r *Restore) receive() {
	err := func() error {
		for {
			t, body, err := r.c.conn.read()
			if err != nil {
				return err
			}
			switch t {
			case frameReport:
				rep, err := parseReport(body)
				if err == nil {
					err = r.take(rep)
				}
				if err != nil {
					return err
				}
			case frameTotals:
				return r.takeTotals(body)
			case frameError:
				return failed(body)
			default:
				return protocolError("frame %d during a restore", t)
			}
		}
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, os.ErrClosed) && r.err != nil {
		err = r.err // why send closed it
	}
	if err != nil {
		var no refusal
		if errors.As(err, &no) { // not now: the stream is not at rest
			err = errors.New(err.Error())
		}
		r.err = nil
		r.fail(err)
	}
	r.change.Broadcast()
}

func (r *Restore) take(rep *report) error {
	// Before the credit is given back: a slow Problem slows the agent down
	// and does not fill our memory.
	if r.req.Problem != nil {
		for _, w := range rep.Problems {
			r.req.Problem(w.N, w.Path, w.What)
		}
	}
	if err := r.judge(rep); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rep.Credit > uint64(int(r.c.credits.Writes)-r.credit) {
		return protocolError("%d bytes acknowledged of %d", rep.Credit, int(r.c.credits.Writes)-r.credit)
	}
	r.credit += int(rep.Credit)
	for _, n := range rep.Done {
		dir, ok := r.live[n]
		if !ok {
			return protocolError("entry %d is said to be done and was not asked for", n)
		}
		if _, open := r.open[n]; open || len(r.asked[n]) > 0 {
			return protocolError("entry %d is said to be done and is not finished", n)
		}
		delete(r.live, n)
		r.release(dir)
	}
	if rep.Fatal != "" {
		err := error(refusal{rep.Fatal})
		if rep.Full {
			err = fmt.Errorf("%w: %w", err, ErrFull)
		}
		r.fail(err)
	}
	r.change.Broadcast()
	return nil
}

// judge hands on what a restore in place is told.
func (r *Restore) judge(rep *report) error {
	p := r.req.InPlace
	if p == nil {
		if len(rep.Verdicts) > 0 || len(rep.Changes) > 0 {
			return protocolError("a verdict on nothing")
		}
		return nil
	}
	for _, v := range rep.Verdicts {
		r.mu.Lock()
		asked := r.asked[v.N]
		if len(asked) > 1 {
			r.asked[v.N] = asked[1:]
		} else {
			delete(r.asked, v.N)
		}
		r.mu.Unlock()
		if len(asked) == 0 || asked[0] != len(v.Missing) {
			return protocolError("a verdict on %d refs of entry %d, which were not asked for", len(v.Missing), v.N)
		}
		if err := p.Verdict(v.N, v.Missing); err != nil {
			return err
		}
	}
	if p.Change == nil {
		if len(rep.Changes) > 0 {
			return protocolError("changes that nobody wants to know")
		}
		return nil
	}
	for _, c := range rep.Changes {
		p.Change(c.Kind, c.Path)
	}
	return nil
}

func (r *Restore) takeTotals(body []byte) error {
	t, err := parseTotals(body)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed == nil {
		return protocolError("totals before the end")
	}
	// Each number for itself, for together they could run over.
	left := r.next
	for _, n := range []uint64{t.Files, t.Dirs, t.Links, t.Others} {
		if n > left && r.err == nil && !r.closed.Abandon {
			return protocolError("more was made than asked for")
		}
		left -= min(n, left)
	}
	if made := t.Files + t.Links + t.Others; t.Unchanged > made || t.Changed > made-t.Unchanged {
		return protocolError("more was kept than there is")
	}
	r.totals = &t
	return nil
}
