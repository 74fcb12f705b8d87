package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"orlop/id"
	"orlop/pack"
	"orlop/seal"
)

const (
	runSuffix  = ".run"
	tempPrefix = "tmp-"

	smallPage = 4 << 10
	bigPage   = 32 << 10
	bigRun    = 128 << 20 // bytes from which on pages are big
)

// errTooMany is returned for more boxes or blobs than 32 bits count.
var errTooMany = errors.New("too many boxes for one local index")

// A builder writes a run: first all packs in order, each with its boxes, then
// all names in order. It holds one chunk a table and the filter in memory.
type builder struct {
	repo id.Repository
	db   *bbolt.DB
	t    [tables]tableWriter
	cover
	boxes  uint32
	filter filter
	last   record

	waiting []pair // to be written in one transaction
	bytes   int    // of them
}

// A tableWriter makes a table of rows that come in order.
type tableWriter struct {
	b     *builder
	of    kind
	seed  uint32
	rows  int
	start int // of the block at hand, in chunk
	chunk []byte
	n     int // chunks written
}

func (w *tableWriter) append(row []byte) error {
	w.chunk = append(w.chunk, row...)
	if w.rows++; w.rows%w.of.rowsPerBlock() == 0 {
		return w.endBlock(true)
	}
	return nil
}

func (w *tableWriter) endBlock(full bool) error {
	if full {
		slack := w.start + w.of.blockSize() - sumSize - len(w.chunk)
		w.chunk = append(w.chunk, make([]byte, slack)...)
	}
	block := (w.rows - 1) / w.of.rowsPerBlock()
	w.chunk = binary.LittleEndian.AppendUint32(w.chunk, sum(w.seed, w.of, block, w.chunk[w.start:]))
	if w.start = len(w.chunk); w.start == chunkSize {
		return w.flush()
	}
	return nil
}

// flush gives away the chunk at hand. A whole one is written at once, so that
// bbolt holds little more than that in memory.
func (w *tableWriter) flush() error {
	err := w.b.put(w.of.bucket(w.n), w.chunk)
	w.chunk, w.start = w.chunk[:0], 0
	w.n++
	return err
}

func (w *tableWriter) finish() error {
	if len(w.chunk) > w.start {
		if err := w.endBlock(false); err != nil {
			return err
		}
	}
	if len(w.chunk) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.chunk = nil
	return nil
}

// put writes a value into a bucket of its own. So each lies in one piece on
// pages of its own or, if small, beside its bucket, and no page but the root
// points to others: no damage can make bbolt walk in circles. What is small
// waits for more of it; the value must not be changed unless it is a whole
// chunk.
func (b *builder) put(bucket, value []byte) error {
	b.waiting = append(b.waiting, pair{bucket, value})
	if b.bytes += len(value); b.bytes < chunkSize {
		return nil
	}
	return b.commit()
}

type pair struct{ bucket, value []byte }

func (b *builder) commit() error {
	err := b.db.Update(func(tx *bbolt.Tx) error {
		for _, p := range b.waiting {
			u, err := tx.CreateBucket(p.bucket)
			if err != nil {
				return err
			}
			if err := u.Put(valueKey, p.value); err != nil {
				return err
			}
		}
		return nil
	})
	b.waiting, b.bytes = nil, 0
	return err
}

// build writes a run into dir with what fill gives to the builder,
// and opens it. names and size are about how many names and bytes it will
// have; the number of names may not be less than that of those given.
func build(dir string, repo id.Repository, of cover, names, size int, fill func(*builder) error) (r *run, err error) {
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return nil, err
	}
	temp := f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	defer func() {
		// Not ErrDamaged: nothing that was there is.
		if p := recover(); p != nil {
			err = fmt.Errorf("write %s: %v", temp, p)
		}
	}()
	if err := f.Close(); err != nil {
		return nil, err
	}
	page := smallPage
	if size >= bigRun {
		page = bigPage // one root page holds the chunks of 3 GB
	}
	db, err := bbolt.Open(temp, 0o600, &bbolt.Options{
		PageSize:        page,
		InitialMmapSize: size,
		NoFreelistSync:  true,
		NoGrowSync:      true,
		NoSync:          true, // once, by appendSkeleton
		NoStatistics:    true,
		Timeout:         time.Nanosecond, // nobody else knows the name
	})
	if err != nil {
		return nil, err
	}
	b := &builder{repo: repo, db: db, cover: of, filter: newFilter(names)}
	for k := range tables {
		b.t[k] = tableWriter{b: b, of: k, seed: seedOf(repo, of.segments)}
	}
	if err = fill(b); err == nil {
		err = b.finish()
	}
	if err = cmp.Or(err, db.Close()); err != nil {
		return nil, err
	}
	if err := appendSkeleton(temp, page); err != nil {
		return nil, err
	}
	// Opened before it has its name: from then on another process may merge it
	// into another and delete it.
	if r, err = openRun(temp, repo); err != nil {
		return nil, fmt.Errorf("%s was just written: %v", temp, err)
	}
	name := runName(repo, of.segments)
	r.path = filepath.Join(dir, fmt.Sprintf("%x%s", name, runSuffix))
	if err := os.Rename(temp, r.path); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// header adds a session.
func (b *builder) header(h seal.Header) error { return b.t[tSessions].append(h.Append(nil)) }

// pack adds a pack of the given session, found in the segments at the given
// positions, and returns the number of its first box. Its boxes follow.
func (b *builder) pack(p *packKey, session uint32, segments []uint32) (uint32, error) {
	n := uint32(b.t[tPacks].rows)
	row := make([]byte, 0, 64)
	row = append(row, p.id[:]...)
	row = append(row, p.digest[:]...)
	row = binary.LittleEndian.AppendUint64(row, uint64(p.size))
	row = binary.LittleEndian.AppendUint32(row, session)
	if err := b.t[tPacks].append(row); err != nil {
		return 0, err
	}
	if err := b.t[tFirst].append(binary.LittleEndian.AppendUint32(row[:0], b.boxes)); err != nil {
		return 0, err
	}
	for _, s := range segments {
		row = binary.LittleEndian.AppendUint32(row[:0], n)
		row = binary.LittleEndian.AppendUint32(row, s)
		if err := b.t[tMembers].append(row); err != nil {
			return 0, err
		}
	}
	return b.boxes, nil
}

// box adds an encoded box to the pack that was added last.
func (b *builder) box(row []byte) error {
	if b.boxes == math.MaxUint32 {
		return errTooMany
	}
	b.boxes++
	return b.t[tBoxes].append(row)
}

// record adds a name; its place has the kind in the low two bits. What was
// just added is not added again.
func (b *builder) record(r *record) error {
	w := &b.t[tNames]
	if w.rows > 0 && *r == b.last {
		return nil
	}
	b.last = *r
	if w.rows == 0 { // the packs are complete: their memory can go
		for k := range tNames {
			if err := b.t[k].finish(); err != nil {
				return err
			}
		}
	}
	if w.rows%tNames.rowsPerBlock() == 0 {
		if err := b.t[tFences].append(r.name[:8]); err != nil {
			return err
		}
	}
	b.filter.add(&r.name)
	var row [id.Size + 8]byte
	copy(row[:], r.name[:])
	binary.LittleEndian.PutUint32(row[id.Size:], r.box)
	binary.LittleEndian.PutUint32(row[id.Size+4:], r.place)
	return w.append(row[:])
}

func (b *builder) finish() error {
	for line := range slices.Chunk(b.filter, lineSize) {
		if err := b.t[tFilter].append(line); err != nil {
			return err
		}
	}
	h := head{boxes: int(b.boxes), cover: b.cover}
	for k := range tables {
		if err := b.t[k].finish(); err != nil {
			return err
		}
		h.rows[k] = b.t[k].rows
	}
	if err := b.put(headBucket, h.append(nil, b.repo)); err != nil {
		return err
	}
	return b.commit()
}

// packKey is a row of the pack table. Packs are told apart by their digest too:
// a segment that says of a pack what is not so does not hide one that is
// right.
type packKey struct {
	id     id.Pack
	digest [8]byte // of all that is said of it
	size   int64
}

func (p *packKey) compare(q *packKey) int {
	return cmp.Or(p.id.Compare(q.id), bytes.Compare(p.digest[:], q.digest[:]))
}

func appendBox(dst []byte, x *pack.Box) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, x.Offset)
	dst = binary.LittleEndian.AppendUint32(dst, x.Length)
	dst = binary.LittleEndian.AppendUint32(dst, x.Raw)
	return append(dst, byte(x.Codec))
}

// digest returns a short digest of all that p says.
func digest(p *PackInfo, buf []byte) (short [8]byte, _ []byte) {
	h := id.NewHash()
	buf = binary.LittleEndian.AppendUint64(p.Header.Append(buf[:0]), uint64(p.Size))
	for i := range p.Boxes {
		x := &p.Boxes[i]
		buf = binary.LittleEndian.AppendUint32(appendBox(buf, x), uint32(len(x.Blobs)))
		for j := range x.Blobs {
			buf = append(buf, x.Blobs[j].Name[:]...)
			buf = append(buf, byte(x.Blobs[j].Kind))
		}
		_, _ = h.Write(buf)
		buf = buf[:0]
	}
	_, _ = h.Write(buf)
	sum := h.Sum()
	return [8]byte(sum[:8]), buf
}

// buildSegments writes a run that says what segments say. It needs about as
// much memory as they do.
func buildSegments(dir string, repo id.Repository, segments map[id.Segment]*Segment) (*run, error) {
	of := cover{segments: slices.SortedFunc(maps.Keys(segments), id.Segment.Compare)}
	for i, s := range of.segments {
		of.writers = append(of.writers, segments[s].Writer)
		for _, old := range segments[s].Replaces {
			of.replaced = append(of.replaced, replaced{old, uint32(i)})
		}
	}
	slices.SortFunc(of.replaced, replaced.compare)

	type source struct {
		packKey
		info    *PackInfo
		segment uint32
	}
	var packs []source
	var buf []byte
	for i, s := range of.segments {
		for j := range segments[s].Packs {
			p := &segments[s].Packs[j]
			v := source{packKey{id: p.ID, size: p.Size}, p, uint32(i)}
			v.digest, buf = digest(p, buf)
			packs = append(packs, v)
		}
	}
	slices.SortFunc(packs, func(a, b source) int {
		return cmp.Or(a.compare(&b.packKey), cmp.Compare(a.segment, b.segment))
	})
	same := func(a, b source) bool { return a.compare(&b.packKey) == 0 }

	var blobs, size int
	for i := range packs {
		if i > 0 && same(packs[i-1], packs[i]) {
			continue
		}
		for _, x := range packs[i].info.Boxes {
			blobs += len(x.Blobs)
		}
		size += len(packs[i].info.Boxes) * rowSize[tBoxes]
	}
	size += blobs * (rowSize[tNames] + 2)
	return build(dir, repo, of, blobs, size, func(b *builder) error {
		var sessions sessionTable
		records := make([]record, 0, blobs)
		for i := 0; i < len(packs); {
			p := &packs[i]
			var in []uint32
			for ; i < len(packs) && same(*p, packs[i]); i++ {
				if n := packs[i].segment; len(in) == 0 || in[len(in)-1] != n {
					in = append(in, n)
				}
			}
			session := sessions.number(p.info.Header)
			if int(session) == b.t[tSessions].rows {
				if err := b.header(p.info.Header); err != nil {
					return err
				}
			}
			n, err := b.pack(&p.packKey, session, in)
			if err != nil {
				return err
			}
			for j := range p.info.Boxes {
				x := &p.info.Boxes[j]
				buf = appendBox(buf[:0], x)
				if err := b.box(buf); err != nil {
					return err
				}
				for k, v := range x.Blobs {
					if k >= 1<<30 {
						return errTooMany
					}
					records = append(records, record{v.Name, n + uint32(j), uint32(k)<<2 | uint32(v.Kind)&3})
				}
			}
		}
		sortRecords(records)
		for i := range records {
			if err := b.record(&records[i]); err != nil {
				return err
			}
		}
		return nil
	})
}
