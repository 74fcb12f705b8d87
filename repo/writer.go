package repo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"orlop/box"
	"orlop/id"
	"orlop/index"
	"orlop/local"
	"orlop/pack"
	"orlop/seal"
	"orlop/snapshot"
	"orlop/store"
)

// ErrFenced means that a prune took this session for dead. Nothing it did was
// acknowledged; all it stored is there, so a new session repeats little.
var ErrFenced = errors.New("a prune took this backup for dead")

const (
	segmentPacks = 64              // packs a segment lists at most
	segmentAge   = 5 * time.Minute // and how old the first of them may get
	beatEvery    = 5 * time.Minute // how often a session shows that it lives
	mixedPack    = 1 << 20         // below this, data and metadata share a pack
	putsAtOnce   = 1               // packs on their way to the store, while the next is filled
	tierWidth    = 32              // own segments of a tier before they are merged
)

// A Writer is one session: it adds blobs and, at its end, one snapshot.
//
// It deletes nothing, so that the credential behind it need not be able to.
// It may be used concurrently until Commit or Leave.
type Writer struct {
	r       *Repo
	sid     id.Session
	session *seal.Session
	index   *seal.IndexKey
	namer   *id.Namer
	run     *local.Run

	condemned map[id.Pack]bool

	puts   *errgroup.Group // packs on their way
	putctx context.Context
	beats  func() // stops the heart

	// filling is held by who fills the next pack, also while that waits for
	// the one before it to be put. Who puts a pack takes only mu.
	filling  sync.Mutex
	data     *pack.Builder
	meta     []sealedBox
	metaSize int
	packs    int         // sent so far
	target   int         // bytes of a full pack
	metaBox  box.Builder // small blobs of metadata waiting for company
	encoder  *box.Encoder
	names    []pack.Blob // of metaBox

	mu      sync.Mutex
	claimed map[id.Blob]struct{} // promised in this session and not yet indexed
	stats   WriterStats
	spare   []byte // of a pack that was put, for the next

	segmu    sync.Mutex
	unlisted []index.PackInfo // put, and in no segment yet
	since    time.Time

	snapshotTried bool
	closed        bool
}

// WriterStats are what a session added.
type WriterStats struct {
	Blobs  uint64 // blobs that the repository did not have
	Raw    uint64 // their bytes
	Stored uint64 // bytes put: packs, segments, the snapshot
}

type sealedBox struct {
	bytes []byte
	codec box.Codec
	raw   int
	blobs []pack.Blob
}

// NewWriter opens a session. The numbers are those of the protocol in
// docs/design.md.
func (r *Repo) NewWriter(ctx context.Context) (_ *Writer, err error) {
	if f := r.config.Features; f.Write != 0 {
		return nil, fmt.Errorf("%w: writing needs feature bits %#x", ErrFormat, f.Write)
	}
	w := &Writer{
		r: r, namer: r.sealer.Namer(), encoder: box.NewEncoder(),
		claimed: map[id.Blob]struct{}{},
	}
	_, _ = rand.Read(w.sid[:]) // fresh each try: a fence on an old one must not hit this
	if w.session, err = r.sealer.NewSession(r.config.Repository, w.sid); err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	if w.index, err = r.indexKey(r.sealer.Writer()); err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	// The lock is held from before the session can be seen until it is over:
	// free, it tells this host's next run that the session is dead.
	if w.run, err = r.local.StartRun(w.sid); err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	defer func() {
		if err != nil {
			_ = w.run.Close()
		}
	}()
	// 1. From here on a prune that condemns a pack waits for this session.
	if err := r.put(ctx, openName(w.sid), []byte(markMagic)); err != nil {
		return nil, err
	}
	// 2. What was condemned before is not relied on.
	e, err := r.listEphemeral(ctx)
	if err != nil {
		return nil, err
	}
	if w.condemned, err = r.condemned(ctx, e); err != nil {
		return nil, err
	}
	// Nor what this host's last check found damaged: what is in it is stored
	// again, if the source still has it.
	for _, p := range r.distrusted() {
		w.condemned[p] = true
	}
	// 3., 4. Nor is what is not indexed, or not there.
	if err := r.refresh(ctx, w.condemned); err != nil {
		return nil, err
	}
	w.target = packTarget(r.packs.bytes())
	w.data = w.newPack()
	// The group's context ends with its first error: then no more is put.
	w.puts, w.putctx = errgroup.WithContext(ctx)
	w.puts.SetLimit(putsAtOnce)
	if err := w.takeOrphans(ctx); err != nil {
		return nil, err
	}
	w.beats = w.beat(ctx)
	return w, nil
}

// packTarget is how large a pack gets in a repository of so many bytes: 16 MiB
// up to a tebibyte, then doubling each time the repository is four times as
// large, so that there are never more packs than a listing can bear.
func packTarget(repository int64) int {
	target := pack.Target
	for limit := int64(1 << 40); repository > limit && target < pack.Target<<3; limit *= 4 {
		target *= 2
	}
	return target
}

// takeOrphans lists in a segment the packs that none lists: what a killed run
// had uploaded since its last segment, or what a lost segment listed. It is as
// if this session had put them.
func (w *Writer) takeOrphans(ctx context.Context) error {
	packs, err := w.r.directories(ctx, w.r.orphans, w.r.packs)
	if err != nil {
		return err
	}
	for len(packs) > 0 {
		n := min(len(packs), segmentPacks)
		if err := w.putSegment(ctx, 0, &index.Segment{Packs: packs[:n]}); err != nil {
			return err
		}
		packs = packs[n:]
	}
	return nil
}

// beat keeps telling that the session lives, until stop is called.
func (w *Writer) beat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error {
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			// A lost beat costs nothing: a prune looks for standstill over hours.
			if err := w.r.put(ctx, beatName(w.sid, n), []byte(markMagic)); err != nil {
				w.r.log.Warn("could not show that this backup is alive", "error", err)
			}
		}
	})
	return func() { cancel(); _ = g.Wait() }
}

// Session returns the session's name.
func (w *Writer) Session() id.Session { return w.sid }

// Stats returns what was added so far.
func (w *Writer) Stats() WriterStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Claim reports whether the caller must bring the blob called name: it is not
// in any pack that may be relied on, and nobody has promised it in this
// session. Whoever is told true has promised it.
func (w *Writer) Claim(ctx context.Context, name id.Blob) (bool, error) {
	w.mu.Lock()
	_, promised := w.claimed[name]
	if !promised {
		w.claimed[name] = struct{}{}
	}
	w.mu.Unlock()
	if promised {
		return false, nil
	}
	have, err := w.Has(ctx, name)
	if err != nil || have {
		w.mu.Lock()
		delete(w.claimed, name)
		w.mu.Unlock()
	}
	return err == nil && !have, err
}

// Has reports whether the blob called name is in a pack that is listed,
// indexed and not condemned.
func (w *Writer) Has(ctx context.Context, name id.Blob) (bool, error) {
	have, err := w.r.index.Has(name)
	if errors.Is(err, index.ErrDamaged) {
		// The index dropped the part of it that was damaged; fetch it again.
		// The condemned packs are those of step 2 still: a prune that condemned
		// others since is waiting for this session.
		if err = w.r.refresh(ctx, w.condemned); err == nil {
			have, err = w.r.index.Has(name)
		}
	}
	if err != nil {
		return false, fmt.Errorf("look up blob %s: %w", name.Short(), err)
	}
	return have, nil
}

// Save stores a blob of metadata unless the repository has it. It implements
// [snapshot.Sink].
func (w *Writer) Save(ctx context.Context, kind id.Kind, plaintext []byte) (id.Blob, error) {
	name := w.namer.Blob(kind, plaintext)
	want, err := w.Claim(ctx, name)
	if err != nil || !want {
		return name, err
	}
	w.filling.Lock()
	defer w.filling.Unlock()
	if w.metaBox.Count() > 0 && w.metaBox.Raw()+len(plaintext) > box.GroupRaw {
		w.closeMetaBox()
	}
	w.metaBox.Add(kind, plaintext)
	w.names = append(w.names, pack.Blob{Name: name, Kind: kind, Length: uint32(len(plaintext))})
	if w.metaSize < w.target {
		return name, context.Cause(w.putctx)
	}
	return name, w.sendMeta()
}

// closeMetaBox seals the box of metadata. w.filling is held.
func (w *Writer) closeMetaBox() {
	if w.metaBox.Count() == 0 {
		return
	}
	codec, raw, payload := w.metaBox.Finish(w.encoder, nil)
	b := sealedBox{w.session.SealBox(nil, payload, uint8(codec), raw), codec, raw, w.names}
	w.meta = append(w.meta, b)
	w.metaSize += len(b.bytes)
	w.count(b.blobs)
	w.metaBox.Reset()
	w.names = nil
}

// AddBox stores a box of claimed data blobs. The caller has made sure that the
// blobs have their names. It waits while the store is slower than the caller.
func (w *Writer) AddBox(codec box.Codec, raw int, payload []byte, blobs []pack.Blob) error {
	w.filling.Lock()
	defer w.filling.Unlock()
	// Sealing is many times faster than what brings the boxes, so it may hold
	// the lock, and needs no memory of its own.
	w.data.Add(payload, codec, raw, blobs)
	w.count(blobs)
	if w.data.Len() < w.target {
		return context.Cause(w.putctx)
	}
	return w.sendData()
}

// sendData sends the pack of data, and begins another where the one before it
// was: two packs' worth of memory serve all. w.filling is held.
func (w *Writer) sendData() error {
	full := w.data
	w.data = w.newPack()
	err := w.send(full)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.data.Reuse(w.spare)
	w.spare = nil
	return err
}

func (w *Writer) count(blobs []pack.Blob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range blobs {
		w.stats.Blobs++
		w.stats.Raw += uint64(b.Length)
	}
}

// newPack begins a pack.
func (w *Writer) newPack() *pack.Builder {
	return pack.NewBuilder(w.r.config.Repository, w.session, w.index)
}

// sendMeta sends the metadata gathered so far as a pack of its own. w.filling is held.
func (w *Writer) sendMeta() error {
	b := w.newPack()
	w.moveMeta(b)
	return w.send(b)
}

func (w *Writer) moveMeta(b *pack.Builder) {
	for _, m := range w.meta {
		b.AddSealed(m.bytes, m.codec, m.raw, m.blobs)
	}
	w.meta, w.metaSize = nil, 0
}

// send puts a pack in the background. w.filling is held, so that everybody who
// would fill the next pack waits when too many are on their way.
func (w *Writer) send(b *pack.Builder) error {
	w.packs++
	w.puts.Go(func() error { return w.putPack(w.putctx, b) })
	return context.Cause(w.putctx)
}

func (w *Writer) putPack(ctx context.Context, b *pack.Builder) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := b.Finish()
	if err := w.r.put(ctx, packName(p.ID), p.Data); err != nil {
		return err
	}
	size := int64(len(p.Data))
	w.mu.Lock()
	w.stats.Stored += uint64(size)
	w.spare = p.Data
	w.mu.Unlock()

	w.segmu.Lock()
	defer w.segmu.Unlock()
	if len(w.unlisted) == 0 {
		w.since = time.Now()
	}
	w.unlisted = append(w.unlisted, index.PackInfo{ID: p.ID, Size: size, Header: p.Header, Boxes: p.Boxes})
	if len(w.unlisted) < segmentPacks && time.Since(w.since) < segmentAge {
		return nil
	}
	return w.listPacks(ctx)
}

// listPacks puts a segment of the packs that were put since the last one. A
// segment comes after its packs: what is indexed is there. w.segmu is held.
func (w *Writer) listPacks(ctx context.Context) error {
	if len(w.unlisted) == 0 {
		return nil
	}
	if err := w.putSegment(ctx, 0, &index.Segment{Packs: w.unlisted}); err != nil {
		return err
	}
	w.unlisted = nil
	return nil
}

// putSegment puts a segment and lets the local index answer from it.
func (w *Writer) putSegment(ctx context.Context, tier int, s *index.Segment) error {
	s.Writer = w.r.sealer.Writer()
	data := index.SealSegment(w.r.config.Repository, s, w.index)
	sum := id.Sum[id.Segment](data)
	if err := w.r.put(ctx, segmentName(tier, sum), data); err != nil {
		return err
	}
	w.mu.Lock()
	w.stats.Stored += uint64(len(data))
	w.mu.Unlock()
	if err := w.r.index.Add(map[id.Segment]*index.Segment{sum: s}); err != nil {
		return fmt.Errorf("add to the local index: %w", err)
	}
	r := w.r
	r.mu.Lock()
	r.segments[sum] = tier
	r.packs = r.packs.with(s.Packs)
	r.restrict(&r.view)
	r.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range s.Packs {
		for _, b := range p.Boxes {
			for _, x := range b.Blobs {
				delete(w.claimed, x.Name) // the index knows it now
			}
		}
	}
	return nil
}

// mergeSegments puts one segment of tier 1 that says what many of tier 0 say,
// so that a new host reads few. Deleting those is for a prune.
//
// The local index knows whose a segment is and whether it was merged before,
// so all that is read is what is merged: each segment once, however many there
// are.
func (w *Writer) mergeSegments(ctx context.Context) error {
	writers, replaced := w.r.index.Writers(), w.r.replaced(&w.r.view)
	var own []id.Segment
	for s, tier := range w.r.segments {
		by, known := writers[s]
		if tier == 0 && known && by == w.r.sealer.Writer() && !replaced[s] {
			own = append(own, s)
		}
	}
	if len(own) <= tierWidth {
		return nil
	}
	slices.SortFunc(own, id.Segment.Compare)
	sum := &index.Segment{}
	packs, bytes := map[id.Pack]bool{}, 0
	for _, name := range own {
		if bytes > addBatch {
			break
		}
		s, err := w.segment(ctx, name)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if slices.ContainsFunc(s.Packs, func(p index.PackInfo) bool { return w.condemned[p.ID] }) {
			// It stays what says where in those packs its blobs are, until they
			// are gone.
			continue
		}
		for _, p := range s.Packs {
			if _, listed := w.r.packs.size(p.ID); listed && !packs[p.ID] {
				packs[p.ID] = true
				sum.Packs = append(sum.Packs, p)
				for _, b := range p.Boxes {
					bytes += len(b.Blobs) * id.Size
				}
			}
		}
		sum.Replaces = append(sum.Replaces, name)
	}
	if len(sum.Replaces) <= tierWidth && bytes <= addBatch {
		return nil
	}
	slices.SortFunc(sum.Packs, func(a, b index.PackInfo) int { return a.ID.Compare(b.ID) })
	return w.putSegment(ctx, 1, sum)
}

// segment reads a segment of tier 0, or returns nil if it cannot be read: then
// it stays as it is.
func (w *Writer) segment(ctx context.Context, name id.Segment) (*index.Segment, error) {
	object := segmentName(0, name)
	data, err := w.r.store.Get(ctx, object, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	wrong := errors.New("its bytes do not have its name")
	if id.Sum[id.Segment](data) == name {
		var s *index.Segment
		if s, wrong = index.OpenSegment(w.r.config.Repository, data, w.r.indexKey); wrong == nil {
			return s, nil
		}
	}
	w.r.log.Warn("an index segment is damaged", "segment", object, "error", wrong)
	return nil, nil
}

// flush puts everything that is still in memory, and the segment that lists it.
func (w *Writer) flush(ctx context.Context) error {
	w.filling.Lock()
	w.closeMetaBox()
	// One small pack instead of two, when that is all there is.
	if w.packs == 0 && w.data.Len()+w.metaSize < mixedPack {
		w.moveMeta(w.data)
	}
	if w.data.Count() > 0 {
		_ = w.sendData()
	}
	if len(w.meta) > 0 {
		_ = w.sendMeta()
	}
	w.filling.Unlock()
	if err := w.puts.Wait(); err != nil {
		return err
	}
	w.segmu.Lock()
	defer w.segmu.Unlock()
	return w.listPacks(ctx)
}

// Commit publishes s and returns its name. When it returns nil the snapshot is
// acknowledged: no prune will ever take anything it needs.
//
// It returns [ErrFenced] when the session was taken for dead; begin again.
func (w *Writer) Commit(ctx context.Context, s *snapshot.Snapshot) (id.Snapshot, error) {
	none := id.Snapshot{}
	// 5. Every pack, then the segment that lists it. A crash up to here leaves
	// packs that the next run finds and uses.
	if err := w.flush(ctx); err != nil {
		return none, err
	}
	if err := w.mergeSegments(ctx); err != nil {
		return none, err
	}
	// The snapshot is what readers start from, so it comes when all that it
	// leads to is durable: it is whole or it is not there.
	object, err := w.r.sealSnapshot(w.session, s)
	if err != nil {
		return none, err
	}
	name := id.Sum[id.Snapshot](object)
	w.snapshotTried = true
	if err := w.r.put(ctx, snapshotName(w.sid, name), object); err != nil {
		return none, err
	}
	w.mu.Lock()
	w.stats.Stored += uint64(len(object))
	w.mu.Unlock()
	// 6. Did a prune give this session up while it worked? Then it may already
	// have looked for this snapshot and not found it.
	e, err := w.r.listEphemeral(ctx)
	if err != nil {
		return none, err
	}
	if e.fenced[w.sid] || !e.open[w.sid] {
		return none, ErrFenced
	}
	// 7. Only now may anybody be told.
	if err := w.r.put(ctx, doneName(w.sid), []byte(markMagic)); err != nil {
		return none, err
	}
	w.close(w.run.Done)
	return name, nil
}

// Leave ends a session that did not commit. It keeps what was uploaded: packs
// in memory are put and listed, so that the next run need not send them again.
// After Commit it does nothing.
func (w *Writer) Leave(ctx context.Context) {
	if w.closed {
		return
	}
	end := w.run.Close // not done: the lock file tells the next run of this host
	defer func() { w.close(end) }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	_ = w.puts.Wait() // those on their way were told by their context
	if err := w.rescue(ctx); err != nil {
		w.r.log.Warn("what this run had read is partly lost; the next one reads it again", "error", err)
		return
	}
	// Nothing waits for a session that is done. But done also acknowledges: it
	// must not be said when a snapshot of it may lie in the store.
	if !w.snapshotTried {
		if err := w.r.put(ctx, doneName(w.sid), []byte(markMagic)); err != nil {
			w.r.log.Warn("the session could not be ended", "error", err)
			return
		}
		end = w.run.Done
	}
}

// leaveTimeout bounds how long an interrupted run goes on saving its work.
const leaveTimeout = 30 * time.Second

// rescue puts what is in memory, under a fresh context: the run's own is over.
func (w *Writer) rescue(ctx context.Context) error {
	w.puts, w.putctx = errgroup.WithContext(ctx)
	return w.flush(ctx)
}

func (w *Writer) close(end func() error) {
	if w.closed {
		return
	}
	w.closed = true
	w.beats()
	if err := end(); err != nil {
		w.r.log.Warn("the lock of this run could not be put away", "error", err)
	}
}

// put stores an object that only this session, or its content, could have
// named. That it is there already is success: an earlier attempt got further
// than its answer did.
func (r *Repo) put(ctx context.Context, name store.Name, data []byte) error {
	err := r.store.Put(ctx, name, data)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
