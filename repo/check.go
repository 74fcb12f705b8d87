package repo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/box"
	"orlop/id"
	"orlop/index"
	"orlop/pack"
	"orlop/seal"
	"orlop/snapshot"
	"orlop/store"
)

// CheckOptions say how much Check does.
type CheckOptions struct {
	ReadData bool               // read, open and name every blob
	Found    func(*DamageError) // told of damage as it is found; may be nil
	Progress func(packs, of int)
}

// A CheckReport is what Check saw.
type CheckReport struct {
	Snapshots, Segments, Packs int
	Blobs                      uint64 // that were looked for: nodes and lists once, data once for each use
	BytesRead                  uint64 // of packs
	Orphans                    int    // packs that no segment lists, and no harm in it
	Missed                     int    // packs that are gone, and nothing needs them
	Damage                     []*DamageError
	Affected                   []Snapshot // snapshots that lead to something damaged
}

// Check reads the repository and says what in it is damaged, and which
// snapshots that touches. It believes nothing that this host remembers: every
// object but the packs is read whole and compared with its name and seal; of
// the packs the directories, or with ReadData all. Then every snapshot's tree
// is walked and each blob it leads to is looked for.
//
// Damage is in the report; an error means that the check did not come to an end.
func (r *Repo) Check(ctx context.Context, opt CheckOptions) (*CheckReport, error) {
	if _, err := r.Key(); err != nil {
		return nil, err
	}
	return (&check{r: r, opt: opt}).run(ctx)
}

func (c *check) run(ctx context.Context) (*CheckReport, error) {
	c.badBoxes, c.known = map[boxKey]bool{}, map[store.Name]bool{}
	for _, step := range []func(context.Context) error{
		c.config, c.slots, c.ephemeral, c.unknown, c.snapshots, c.segments, c.packs, c.trees, c.remember,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return &c.report, nil
}

type check struct {
	r      *Repo
	opt    CheckOptions
	report CheckReport

	all    []Snapshot
	listed map[id.Pack][32]byte // packs that segments list, and what they say of each

	mu       sync.Mutex
	badBoxes map[boxKey]bool // boxes that do not open
	gone     []id.Pack       // listed by a segment, but not there
	known    map[store.Name]bool

	seen uint64 // data blobs looked for
}

// remember makes the next backup of this host not rely on packs that are
// damaged, and rely again on those that are not any more.
func (c *check) remember(context.Context) error {
	bad := map[id.Pack]bool{}
	for _, d := range c.report.Damage {
		p, err := id.Parse[id.Pack](strings.TrimPrefix(string(d.Name), string(packPrefix)))
		if _, listed := c.r.packs.size(p); err != nil || !listed {
			continue
		}
		bad[p] = true
		if err := c.r.local.SetMark(distrust + p.String()); err != nil {
			return err
		}
	}
	if !c.opt.ReadData {
		return nil
	}
	for _, p := range c.r.distrusted() {
		if bad[p] {
			continue
		}
		if err := c.r.local.ClearMark(distrust + p.String()); err != nil {
			return err
		}
	}
	return nil
}

// found notes damage, of one object once.
func (c *check) found(name store.Name, blob id.Blob, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[name] && blob.IsZero() {
		return
	}
	c.known[name] = true
	d, ok := err.(*DamageError)
	if !ok || d.Name != name {
		d = &DamageError{Name: name, Blob: blob, Err: err}
	}
	c.report.Damage = append(c.report.Damage, d)
	if c.opt.Found != nil {
		c.opt.Found(d)
	}
}

// config compares config with the key slot's copy of it.
func (c *check) config(ctx context.Context) error {
	object, err := c.r.store.Get(ctx, configName, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		c.found(configName, id.Blob{}, errors.New("it is missing"))
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.r.sameConfig(object); err != nil {
		c.found(configName, id.Blob{}, err)
	}
	return nil
}

// slots compares the key slots with their names: what is in one only its own
// secret can tell.
func (c *check) slots(ctx context.Context) error {
	n := 0
	for o, err := range c.r.store.List(ctx, keyPrefix) {
		if err != nil {
			return err
		}
		n++
		object, err := c.r.store.Get(ctx, o.Name, 0, -1)
		if err != nil {
			return err
		}
		if slotName(id.Sum[id.Slot](object)) != o.Name {
			c.found(o.Name, id.Blob{}, errors.New("its bytes do not have its name"))
		}
	}
	if n == 0 {
		c.found(keyPrefix, id.Blob{}, errors.New("all key slots are gone; the generated key still opens the repository"))
	}
	return nil
}

// ephemeral reads the marks of sessions and the condemn records.
func (c *check) ephemeral(ctx context.Context) error {
	for o, err := range c.r.store.List(ctx, ephemeralPrefix) {
		if err != nil {
			return err
		}
		data, err := c.r.store.Get(ctx, o.Name, 0, -1)
		if errors.Is(err, fs.ErrNotExist) {
			continue // ephemeral
		}
		if err != nil {
			return err
		}
		switch kind, _, _ := strings.Cut(strings.TrimPrefix(string(o.Name), string(ephemeralPrefix)), "/"); kind {
		case "open", "done", "beat", "fence":
			if string(data) != markMagic {
				c.found(o.Name, id.Blob{}, fmt.Errorf("%w: not a mark", ErrFormat))
			}
		case "condemn":
			if _, err := parseCondemn(data); err != nil {
				c.found(o.Name, id.Blob{}, err)
			}
		}
	}
	return nil
}

// unknown names the objects that do not belong to a repository.
func (c *check) unknown(ctx context.Context) error {
	for o, err := range c.r.store.List(ctx, "") {
		if err != nil {
			return err
		}
		prefix, rest, _ := strings.Cut(string(o.Name), "/")
		var ok bool
		switch prefix + "/" {
		case string(configName) + "/":
			ok = o.Name == configName
		case string(keyPrefix):
			_, err := id.Parse[id.Slot](rest)
			ok = err == nil
		case string(packPrefix):
			_, err := id.Parse[id.Pack](rest)
			ok = err == nil
		case string(indexPrefix):
			_, _, ok = parseSegmentName(o.Name)
		case string(snapshotPrefix):
			_, _, ok = parseSnapshotName(o.Name)
		case string(ephemeralPrefix):
			ok = true // looked at by themselves
		}
		if !ok {
			c.found(o.Name, id.Blob{}, errors.New("this is no object of a repository"))
		}
	}
	return nil
}

// snapshots are listed before the index is read, as by every reader.
func (c *check) snapshots(ctx context.Context) error {
	all, broken, err := c.r.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, d := range broken {
		c.found(d.Name, id.Blob{}, d)
	}
	c.all = all
	c.report.Snapshots = len(all) + len(broken)
	return nil
}

// segments reads every segment again, also those that the local index covers.
func (c *check) segments(ctx context.Context) error {
	if err := c.r.Refresh(ctx); err != nil {
		return err
	}
	v := c.r.view
	v.segments = maps.Clone(c.r.segments)
	c.listed = map[id.Pack][32]byte{}
	names := slices.SortedFunc(maps.Keys(v.segments), id.Segment.Compare)
	c.report.Segments = len(names) + len(v.broken)
	for len(names) > 0 {
		n := min(len(names), fetchAtOnce)
		got, _, err := c.r.fetchSegments(ctx, &v, names[:n])
		if err != nil {
			return err
		}
		names = names[n:]
		for _, s := range got {
			for _, p := range s.Packs {
				c.listed[p.ID] = sumBoxes(p)
			}
		}
	}
	for _, d := range v.broken {
		c.found(d.Name, id.Blob{}, d)
	}
	// What only a broken segment says does not count.
	v.orphans, v.loaded, v.strays = nil, false, nil
	return c.r.adopt(&v)
}

// sumBoxes hashes what a segment or a directory says of a pack.
func sumBoxes(p index.PackInfo) [32]byte {
	h := id.NewHash()
	var n [8]byte
	put := func(v uint64) {
		binary.LittleEndian.PutUint64(n[:], v)
		_, _ = h.Write(n[:])
	}
	put(uint64(p.Size))
	_, _ = h.Write(p.Header.Append(nil))
	for _, b := range p.Boxes {
		put(uint64(b.Offset))
		put(uint64(b.Length))
		put(uint64(b.Raw))
		put(uint64(b.Codec)<<32 | uint64(len(b.Blobs)))
		for _, x := range b.Blobs {
			_, _ = h.Write(x.Name[:])
			put(uint64(x.Kind))
		}
	}
	return h.Sum()
}

// maxReaders bounds how many packs are read at a time. Each reader holds a box
// of up to 4 MiB and what it decompresses to, and does over a gigabyte a second.
const maxReaders = 12

// packs reads every listed pack, or its directory.
func (c *check) packs(ctx context.Context) error {
	for p := range c.listed {
		if _, ok := c.r.packs.size(p); !ok {
			c.gone = append(c.gone, p)
		}
	}
	c.report.Packs = len(c.r.packs)
	g, gctx := errgroup.WithContext(ctx)
	todo := make(chan index.Pack)
	g.Go(func() error {
		defer close(todo)
		for _, p := range c.r.packs {
			select {
			case todo <- p:
			case <-gctx.Done():
				return gctx.Err()
			}
		}
		return nil
	})
	done := 0
	// One more than there are processors, for one may wait for the disk.
	for range min(runtime.GOMAXPROCS(0)+1, maxReaders) {
		g.Go(func() error {
			m := new(memory)
			for p := range todo {
				if err := c.pack(gctx, p.ID, int64(p.Size), m); err != nil {
					return err
				}
				c.mu.Lock()
				if done++; c.opt.Progress != nil {
					c.opt.Progress(done, c.report.Packs)
				}
				c.mu.Unlock()
			}
			return nil
		})
	}
	return g.Wait()
}

func (c *check) pack(ctx context.Context, p id.Pack, size int64, m *memory) error {
	name := packName(p)
	info, err := c.r.directory(ctx, p, size)
	switch {
	case errors.Is(err, ErrDamaged), errors.Is(err, fs.ErrNotExist):
		c.found(name, id.Blob{}, err)
	case err != nil:
		return err
	}
	said, listed := c.listed[p]
	c.mu.Lock()
	if !listed {
		c.report.Orphans++
	}
	c.mu.Unlock()
	if err == nil && listed && said != sumBoxes(info) {
		c.found(name, id.Blob{}, errors.New("its directory and its index segment contradict each other"))
	}
	if !c.opt.ReadData {
		return nil
	}
	var boxes []knownBox
	if err == nil {
		for _, b := range info.Boxes {
			boxes = append(boxes, knownBox{b, &info.Header})
		}
	} else if boxes, err = c.boxesByIndex(p); err != nil {
		return err
	}
	err = c.content(ctx, p, size, boxes, m)
	if errors.Is(err, fs.ErrNotExist) {
		c.found(name, id.Blob{}, errors.New("it is missing"))
		return nil
	}
	return err
}

// A knownBox is a box to be looked at. A blob without a name is not.
type knownBox struct {
	pack.Box
	header *seal.Header
}

// boxesByIndex returns the boxes of a pack whose directory is lost, as the
// index knows them: a reader would find them by it.
func (c *check) boxesByIndex(p id.Pack) ([]knownBox, error) {
	at := map[uint32]*knownBox{}
	for e, err := range c.r.index.All() {
		if err != nil {
			return nil, fmt.Errorf("read the local index: %w", err)
		}
		l := e.Location
		if l.Pack != p {
			continue
		}
		b := at[l.Offset]
		if b == nil {
			b = &knownBox{pack.Box{Offset: l.Offset, Length: l.Length, Codec: l.Codec, Raw: l.Raw}, l.Header}
			at[l.Offset] = b
		}
		for len(b.Blobs) <= l.Place {
			b.Blobs = append(b.Blobs, pack.Blob{})
		}
		b.Blobs[l.Place] = pack.Blob{Name: e.Name, Kind: l.Kind}
	}
	var boxes []knownBox
	for _, offset := range slices.Sorted(maps.Keys(at)) {
		boxes = append(boxes, *at[offset])
	}
	return boxes, nil
}

// A memory is what one worker reads packs into, used again for each box.
type memory struct{ sealed, plain []byte }

// pieceSize is how much is read at a time of what is in no box: padding, and
// the directory.
const pieceSize = 1 << 20

// content reads a pack from end to end. What is in the memory of the processor
// for the pack's name is opened and named while it is there.
func (c *check) content(ctx context.Context, p id.Pack, size int64, boxes []knownBox, m *memory) error {
	f, err := store.Open(ctx, c.r.store, packName(p))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum, at := id.NewHash(), 0
	// next reads n bytes, or as many as there are.
	next := func(n int) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m.sealed = slices.Grow(m.sealed[:0], n)[:n]
		n, err := io.ReadFull(f, m.sealed)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		_, _ = sum.Write(m.sealed[:n])
		at += n
		return m.sealed[:n], err
	}
	for _, b := range boxes {
		for gap := int(b.Offset) - at; gap > 0; gap = int(b.Offset) - at {
			if p, err := next(min(gap, pieceSize)); err != nil {
				return err
			} else if len(p) == 0 {
				break
			}
		}
		if at != int(b.Offset) {
			c.badBox(p, b, errors.New("it begins behind the pack, or within another box"))
			continue
		}
		sealed, err := next(int(b.Length))
		if err != nil {
			return err
		}
		if len(sealed) < int(b.Length) {
			c.badBox(p, b, errors.New("it ends behind the pack"))
			continue
		}
		if err := c.box(p, b, sealed, m); err != nil {
			c.badBox(p, b, err)
		}
	}
	for n := -1; n != 0; {
		// One byte more than there should be tells the end; what is behind that,
		// of a pack that became longer, is read as fast as all else.
		ask := pieceSize
		if left := int(size) - at; left >= 0 {
			ask = min(left+1, pieceSize)
		}
		rest, err := next(ask)
		if err != nil {
			return err
		}
		n = len(rest)
	}
	c.mu.Lock()
	c.report.BytesRead += uint64(at)
	c.mu.Unlock()
	if sum.Sum() != p {
		c.found(packName(p), id.Blob{}, errors.New("its bytes do not have its name"))
	}
	return nil
}

// box opens a box where its sealed bytes are, and names what is in it.
func (c *check) box(p id.Pack, b knownBox, sealed []byte, m *memory) error {
	key, err := c.r.Key()
	if err != nil {
		return err
	}
	reader, err := key.OpenSession(c.r.config.Repository, *b.header)
	if err != nil {
		return err
	}
	namer, err := key.NamerOf(b.header.Writer)
	if err != nil {
		return err
	}
	plain, err := reader.OpenBoxInPlace(sealed, uint8(b.Codec), int(b.Raw))
	if err != nil {
		return err
	}
	if b.Codec != box.Stored || len(plain) != int(b.Raw) {
		if m.plain, err = box.Decode(m.plain[:0], b.Codec, int(b.Raw), plain); err != nil {
			return err
		}
		plain = m.plain
	}
	blobs, err := box.Blobs(plain)
	if err != nil {
		return err
	}
	if len(blobs) < len(b.Blobs) {
		return fmt.Errorf("it holds %d blobs, not %d", len(blobs), len(b.Blobs))
	}
	for i, want := range b.Blobs {
		var wrong error
		switch got := blobs[i]; {
		case want.Name.IsZero():
		case got.Kind != want.Kind:
			wrong = fmt.Errorf("it is a %v blob, not a %v one", got.Kind, want.Kind)
		case namer.Blob(got.Kind, got.Data) != want.Name:
			wrong = errors.New("its bytes do not have its name")
		}
		if wrong != nil {
			return &DamageError{Name: packName(p), Blob: want.Name, Err: wrong}
		}
	}
	return nil
}

// badBox notes that nothing can be had of a box.
func (c *check) badBox(p id.Pack, b knownBox, err error) {
	c.mu.Lock()
	c.badBoxes[boxKey{p, b.Offset}] = true
	c.mu.Unlock()
	if _, ok := err.(*DamageError); !ok {
		err = fmt.Errorf("box at %d: %w", b.Offset, err)
	}
	c.found(packName(p), id.Blob{}, err)
}

// trees walks every snapshot and looks for what it needs. A node or list that
// several share is entered once; when there is damage, a second walk of each
// tells which snapshots it touches.
func (c *check) trees(ctx context.Context) error {
	entered := map[id.Blob]bool{}
	bad := map[id.Blob]bool{}
	for _, s := range c.all {
		if err := c.tree(ctx, s, entered, func(o snapshot.Object, err error) {
			bad[o.Name] = true
			c.foundBlob(s, o, err)
		}); err != nil {
			return err
		}
	}
	c.report.Blobs = c.seen + uint64(len(entered))
	if len(bad) == 0 {
		// A pack that was taken away, and whose blobs were stored again.
		c.report.Missed = len(c.gone)
		return nil
	}
	for _, p := range c.gone {
		c.found(packName(p), id.Blob{}, errors.New("it is missing"))
	}
	for _, s := range c.all {
		touched := false
		if err := c.tree(ctx, s, map[id.Blob]bool{}, func(snapshot.Object, error) { touched = true }); err != nil {
			return err
		}
		if touched {
			c.report.Affected = append(c.report.Affected, s)
		}
	}
	return nil
}

// tree walks one snapshot, but for the nodes and lists that were entered
// before, and calls lost for each blob that cannot be had.
func (c *check) tree(ctx context.Context, s Snapshot, entered map[id.Blob]bool, lost func(snapshot.Object, error)) error {
	skip := func(o snapshot.Object) bool { return o.Kind != id.Data && entered[o.Name] }
	for o, err := range snapshot.Reach(ctx, c.r, s.Root, skip) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, ErrDamaged), errors.Is(err, snapshot.ErrFormat):
			lost(o, err)
			continue
		case err != nil:
			return err
		case o.Kind != id.Data:
			entered[o.Name] = true
			continue
		}
		c.seen++
		if err := c.data(ctx, o.Name); errors.Is(err, ErrDamaged) {
			lost(o, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// data looks for a copy of a data blob in a pack that is there and in a box
// that was not found bad.
func (c *check) data(ctx context.Context, name id.Blob) error {
	at, err := c.r.locate(ctx, name)
	if err != nil {
		return err
	}
	for _, l := range at {
		if !c.badBoxes[boxKey{l.Pack, l.Offset}] && l.Kind == id.Data {
			return nil
		}
	}
	return &DamageError{Name: packName(at[0].Pack), Blob: name, Err: errors.New("no copy of it can be read")}
}

// foundBlob tells of a blob that a snapshot needs and that cannot be had.
func (c *check) foundBlob(s Snapshot, o snapshot.Object, err error) {
	what := fmt.Sprintf("%v of snapshot %s", o.Kind, s.ID.Short())
	if o.Entry != nil {
		what = fmt.Sprintf("/%s in snapshot %s", o.Entry.Path(), s.ID.Short())
	}
	var d *DamageError
	name := snapshotName(s.Session, s.ID)
	if errors.As(err, &d) && d.Name != "" {
		if name = d.Name; d.Blob == o.Name {
			err = d.Err // the rest is said by the error that this becomes
		}
	}
	c.found(name, o.Name, fmt.Errorf("%s needs it: %w", what, err))
}
