package local

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"orlop/id"
	"orlop/snapshot"
)

const version = 2

// A header is what the cache says of itself: a Head and what its blocks are
// checked with.
type header struct {
	Head
	source  string
	nonce   [16]byte // of this file: no block of another one fits
	blocks  uint64
	records uint64
}

func newHeader(source string, key [32]byte) header {
	h := header{Head: Head{Key: key}, source: source}
	_, _ = rand.Read(h.nonce[:])
	return h
}

// append appends the sum of the header and the header.
func (h *header) append(dst []byte) []byte {
	p := []byte{version}
	p = append(p, h.Key[:]...)
	p = append(p, h.nonce[:]...)
	p = binary.AppendUvarint(p, h.blocks)
	p = binary.AppendUvarint(p, h.records)
	p = append(p, h.Snapshot[:]...)
	p = append(p, h.Session[:]...)
	p = binary.AppendUvarint(p, h.Sequence)
	p = append(p, h.Root.Name[:]...)
	p = binary.AppendUvarint(p, uint64(h.Root.Length))
	p = append(p, h.Root.Level)
	for _, v := range []uint64{h.Root.Entries, h.Root.Files, h.Root.Bytes, h.Totals.Files, h.Totals.Dirs, h.Totals.Others, h.Totals.Bytes, h.Totals.Devices} {
		p = binary.AppendUvarint(p, v)
	}
	p = appendTime(p, h.Time)
	p = append(p, h.source...)
	sum := sumHead(p)
	return append(append(dst, sum[:]...), p...)
}

// parseHeader reads what append wrote; the header does not alias p.
func parseHeader(p []byte) (header, error) {
	r := reader{p: p}
	var sum [32]byte
	r.fixed(sum[:])
	if r.bad || sumHead(r.p) != sum {
		return header{}, fmt.Errorf("%w: its head", ErrDamaged)
	}
	var h header
	if v := r.u8(); v != version {
		return header{}, fmt.Errorf("%w: version %d", ErrDamaged, v)
	}
	r.fixed(h.Key[:])
	r.fixed(h.nonce[:])
	h.blocks = r.uvarint()
	h.records = r.uvarint()
	r.fixed(h.Snapshot[:])
	r.fixed(h.Session[:])
	h.Sequence = r.uvarint()
	r.fixed(h.Root.Name[:])
	h.Root.Length = r.u32()
	h.Root.Level = r.u8()
	for _, v := range []*uint64{&h.Root.Entries, &h.Root.Files, &h.Root.Bytes, &h.Totals.Files, &h.Totals.Dirs, &h.Totals.Others, &h.Totals.Bytes, &h.Totals.Devices} {
		*v = r.uvarint()
	}
	h.Time = r.time()
	h.source = string(r.p)
	if r.bad {
		return header{}, fmt.Errorf("%w: its head is too short", ErrDamaged)
	}
	return h, nil
}

// appendRecord appends r, its directory front-coded against prevDir. After an
// error dst is as it was.
func appendRecord(dst []byte, prevDir string, r *Record) ([]byte, error) {
	e := &r.Entry
	if (e.Content.Level > 0) != (len(r.Sheets)+len(r.Refs) > 0) {
		return dst, fmt.Errorf("%q has content of level %d, %d sheets and %d refs", e.Path(), e.Content.Level, len(r.Sheets), len(r.Refs))
	}
	p, err := snapshot.AppendEntry(dst, prevDir, e)
	if err != nil {
		return dst, err
	}
	p = appendTime(p, r.CTime)
	p = binary.AppendUvarint(p, r.Inode)
	p = binary.AppendUvarint(p, r.Device)
	if e.Content.Level > 0 {
		p = binary.AppendUvarint(p, uint64(len(r.Sheets)))
		before := Sheet(0)
		for _, n := range r.Sheets {
			p = binary.AppendUvarint(p, uint64(n-before))
			before = n
		}
		p = appendRefs(p, r.Refs)
	}
	return p, nil
}

func appendRefs(dst []byte, refs []snapshot.Ref) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(refs)))
	for _, ref := range refs {
		dst = append(dst, ref.Name[:]...)
		dst = binary.AppendUvarint(dst, ref.Length)
	}
	return dst
}

// parseRecord reads the record at the front of p, which it does not alias, and
// returns what follows it.
func parseRecord(p []byte, prevDir string) (*Record, []byte, error) {
	e, p, err := snapshot.ParseEntry(p, prevDir)
	if err != nil {
		return nil, nil, err
	}
	r := reader{p: p}
	rec := &Record{Entry: *e, CTime: r.time(), Inode: r.uvarint(), Device: r.uvarint()}
	if e.Content.Level > 0 {
		n := r.uvarint()
		if n > MaxSheets || n > uint64(len(r.p)) {
			return nil, nil, fmt.Errorf("%q has %d sheets", e.Path(), n)
		}
		if n > 0 {
			rec.Sheets = make([]Sheet, n)
		}
		before := Sheet(0)
		for i := range rec.Sheets {
			rec.Sheets[i] = before + Sheet(r.uvarint())
			before = rec.Sheets[i]
		}
		if rec.Refs = r.refs(nil, MaxRefs); len(rec.Sheets)+len(rec.Refs) == 0 {
			return nil, nil, fmt.Errorf("%q has no refs", e.Path())
		}
	}
	if r.bad {
		return nil, nil, errors.New("a record that ends early")
	}
	return rec, r.p, nil
}

func appendTime(dst []byte, t snapshot.Time) []byte {
	return binary.AppendUvarint(binary.AppendVarint(dst, t.Sec), uint64(t.Nsec))
}

// A reader takes values off the front of p. Once something is wrong it is bad,
// and everything reads as zero. Numbers are minimal: what was read is written
// again as the same bytes.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) fixed(dst []byte) {
	if len(r.p) < len(dst) {
		r.p, r.bad = nil, true
		return
	}
	r.p = r.p[copy(dst, r.p):]
}

// refs appends the refs that come next, at most as many as said.
func (r *reader) refs(dst []snapshot.Ref, most uint64) []snapshot.Ref {
	n := r.uvarint()
	if n > most || n > uint64(len(r.p)/(id.Size+1)) {
		r.p, r.bad = nil, true
		return dst
	}
	dst = slices.Grow(dst, int(n))
	for range n {
		var ref snapshot.Ref
		r.fixed(ref.Name[:])
		ref.Length = r.uvarint()
		dst = append(dst, ref)
	}
	return dst
}

func (r *reader) u8() uint8 {
	var b [1]byte
	r.fixed(b[:])
	return b[0]
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 || n > 1 && r.p[n-1] == 0 {
		r.p, r.bad = nil, true
		return 0
	}
	r.p = r.p[n:]
	return v
}

func (r *reader) u32() uint32 {
	v := r.uvarint()
	if v>>32 != 0 {
		r.p, r.bad = nil, true
	}
	return uint32(v)
}

func (r *reader) time() snapshot.Time {
	u := r.uvarint()
	return snapshot.Time{Sec: int64(u>>1) ^ -int64(u&1), Nsec: r.u32()}
}
