package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"orlop/box"
	"orlop/id"
	"orlop/seal"
)

// The head of a run is one value in a bucket of its own, with a BLAKE3 at its
// end. It is written last: a file without it was never finished.
//
//	magic[8] repository[32] rows[tables]u64 boxes u64 segments u32 replaced u32
//	segment[32] writer u32 ...  replaced[32] by u32 ...  sum[32]
const (
	headMagic = "orlop\x00L2"
	headFixed = len(headMagic) + id.Size + 8*int(tables) + 8 + 4 + 4 + 32
	headRow   = id.Size + 4
)

var (
	headBucket = []byte("h")
	valueKey   = []byte("v")

	errForeign = errors.New("local index of another repository")
)

type head struct {
	rows  [tables]int
	boxes int // all, to end the last pack's
	cover
}

// A cover is for which segments a run speaks.
type cover struct {
	segments []id.Segment  // sorted
	writers  []seal.Writer // of each
	replaced []replaced    // sorted
}

// A replaced is a segment that one of the cover makes superfluous.
type replaced struct {
	old id.Segment
	by  uint32 // ordinal of that one
}

func (a replaced) compare(b replaced) int {
	return cmp.Or(a.old.Compare(b.old), cmp.Compare(a.by, b.by))
}

func (h *head) append(dst []byte, repo id.Repository) []byte {
	dst = append(dst, headMagic...)
	dst = append(dst, repo[:]...)
	for _, n := range h.rows {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(n))
	}
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.boxes))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(h.segments)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(h.replaced)))
	for i, s := range h.segments {
		dst = binary.LittleEndian.AppendUint32(append(dst, s[:]...), uint32(h.writers[i]))
	}
	for _, r := range h.replaced {
		dst = binary.LittleEndian.AppendUint32(append(dst, r.old[:]...), r.by)
	}
	sum := id.Sum[[32]byte](dst)
	return append(dst, sum[:]...)
}

func parseHead(p []byte, repo id.Repository) (*head, error) {
	if len(p) < headFixed || string(p[:len(headMagic)]) != headMagic {
		return nil, fmt.Errorf("%w: no head", ErrDamaged)
	}
	body, want := p[:len(p)-32], p[len(p)-32:]
	if sum := id.Sum[[32]byte](body); !bytes.Equal(sum[:], want) {
		return nil, fmt.Errorf("%w: head", ErrDamaged)
	}
	if body = body[len(headMagic):]; !bytes.Equal(body[:id.Size], repo[:]) {
		return nil, errForeign
	}
	body = body[id.Size:]
	h := new(head)
	for i := range h.rows {
		h.rows[i] = int(binary.LittleEndian.Uint64(body))
		body = body[8:]
	}
	h.boxes = int(binary.LittleEndian.Uint64(body))
	n, m := int(binary.LittleEndian.Uint32(body[8:])), int(binary.LittleEndian.Uint32(body[12:]))
	if body = body[16:]; len(body) != (n+m)*headRow {
		return nil, fmt.Errorf("%w: head of %d and %d segments", ErrDamaged, n, m)
	}
	for row := range slices.Chunk(body, headRow) {
		s, v := id.Segment(row[:id.Size]), binary.LittleEndian.Uint32(row[id.Size:])
		switch {
		case len(h.segments) < n:
			h.segments, h.writers = append(h.segments, s), append(h.writers, seal.Writer(v))
		case int64(v) < int64(n):
			h.replaced = append(h.replaced, replaced{s, v})
		default:
			return nil, fmt.Errorf("%w: replaced by segment %d of %d", ErrDamaged, v, n)
		}
	}
	return h, nil
}

// seedOf returns what the sums of a run of these segments begin with.
func seedOf(repo id.Repository, segments []id.Segment) uint32 {
	name := runName(repo, segments)
	return binary.LittleEndian.Uint32(name[:])
}

// runName returns the name of the run that covers segments, which are sorted.
// Two processes that make the same run give it the same name.
func runName(repo id.Repository, segments []id.Segment) (name [16]byte) {
	h := id.NewHash()
	_, _ = h.Write(repo[:])
	for _, s := range segments {
		_, _ = h.Write(s[:])
	}
	sum := h.Sum()
	copy(name[:], sum[:])
	return name
}

// A run is one local file, open: the blobs of some segments, sorted by name.
// Its methods may be called concurrently while it is not closed.
type run struct {
	path string
	size int64 // of the file, in bytes
	db   *bbolt.DB
	tx   *bbolt.Tx // for as long as the run is open: nobody ever writes
	cover
	t     [tables]table
	boxes int

	// Small columns, checked and copied when the run was opened.
	first []uint32 // first box of each pack
	fence []uint64 // first bytes of the first name of each block

	headers []atomic.Pointer[seal.Header]

	// Guarded by Index.mu, the slices never changed once set.
	use    bitset // packs that count; nil: all
	judged bool   // use is from a Restrict that came after the run
	broken error  // noticed where no error could be returned
	pins   int    // iterations and merges under way
	gone   bool   // to be closed with the last pin
}

// A bitset is a set of packs by their row; nil holds all.
type bitset []uint64

func (b bitset) has(i int) bool { return b == nil || b[i/64]&(1<<(i%64)) != 0 }

// openRun opens the file at path. Its errors are fs.ErrNotExist, errForeign,
// ErrDamaged (to be deleted), or others that say nothing of the file.
func openRun(path string, repo id.Repository) (*run, error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	r := &run{path: path}
	var file *os.File
	orderly := false
	err := func() (err error) {
		defer caught(&err)
		err = r.open(repo, &file)
		orderly = true
		return err
	}()
	switch {
	case err == nil:
		return r, nil
	case orderly:
		r.close()
	case file != nil:
		// bbolt panicked and may hold its own locks: only the descriptor, and
		// with it the lock on the file, can be given back.
		_ = file.Close()
	}
	return nil, err
}

func (r *run) open(repo id.Repository, file **os.File) (err error) {
	r.db, err = bbolt.Open(r.path, 0, &bbolt.Options{
		ReadOnly: true,
		// Nobody writes to a file of this name. If some program does all the
		// same, do without the file instead of waiting.
		Timeout:      time.Nanosecond,
		NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			*file = f
			if err != nil {
				return nil, err
			}
			// What bbolt believes is checked before it believes it.
			r.size, err = checkSkeleton(f)
			return f, err
		},
	})
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) || errors.Is(err, bberrors.ErrTimeout) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if r.tx, err = r.db.Begin(false); err != nil {
		return err
	}
	return r.load(repo)
}

func (r *run) value(bucket []byte) []byte {
	if b := r.tx.Bucket(bucket); b != nil {
		return b.Get(valueKey)
	}
	return nil
}

// load finds the tables and reads the small ones.
func (r *run) load(repo id.Repository) error {
	h, err := parseHead(r.value(headBucket), repo)
	if err != nil {
		return err
	}
	r.cover, r.boxes = h.cover, h.boxes
	seed := seedOf(repo, h.segments)
	for k := range tables {
		t := &r.t[k]
		*t = table{of: k, seed: seed, rows: h.rows[k]}
		for left, i := k.bytes(t.rows), 0; left > 0; i++ {
			c := r.value(k.bucket(i))
			if len(c) != min(left, chunkSize) {
				return fmt.Errorf("%w: table %d, chunk %d is of %d bytes", ErrDamaged, k, i, len(c))
			}
			t.chunks = append(t.chunks, c)
			left -= len(c)
		}
	}
	r.headers = make([]atomic.Pointer[seal.Header], h.rows[tSessions])
	r.first = make([]uint32, 0, h.rows[tFirst])
	for s := r.scan(tFirst); ; {
		p, err := s.row()
		if err != nil {
			return err
		}
		if p == nil {
			break
		}
		r.first = append(r.first, binary.LittleEndian.Uint32(p))
	}
	r.fence = make([]uint64, 0, h.rows[tFences])
	for s := r.scan(tFences); ; {
		p, err := s.row()
		if err != nil {
			return err
		}
		if p == nil {
			break
		}
		r.fence = append(r.fence, binary.BigEndian.Uint64(p))
	}
	return nil
}

func (r *run) close() {
	if r.tx != nil {
		_ = r.tx.Rollback()
	}
	if r.db != nil {
		_ = r.db.Close()
	}
}

// find calls use with each place of name, in order, until it returns false. A
// place is given only after the sum of its block was checked, and so is its
// absence.
func (r *run) find(name *id.Blob, use func(box, place uint32) (bool, error)) error {
	if len(r.fence) == 0 {
		return nil
	}
	line, err := r.t[tFilter].block(lineOf(name, r.t[tFilter].rows))
	if err != nil {
		return err
	}
	if !inLine(line, name) {
		return nil
	}
	const size = id.Size + 8
	prefix := binary.BigEndian.Uint64(name[:])
	// The block before the first fence that is not below may end in the name.
	guess, _ := bits.Mul64(prefix, uint64(len(r.fence)))
	b := max(search(r.fence, prefix, int(guess))-1, 0)
	for ; b < len(r.fence) && r.fence[b] <= prefix; b++ {
		rows, err := r.t[tNames].block(b)
		if err != nil {
			return err
		}
		lo, hi := 0, len(rows)/size
		for lo < hi {
			if m := int(uint(lo+hi) / 2); bytes.Compare(rows[m*size:][:id.Size], name[:]) < 0 {
				lo = m + 1
			} else {
				hi = m
			}
		}
		for rows = rows[lo*size:]; len(rows) > 0; rows = rows[size:] {
			if !bytes.Equal(rows[:id.Size], name[:]) {
				return nil
			}
			more, err := use(binary.LittleEndian.Uint32(rows[id.Size:]), binary.LittleEndian.Uint32(rows[id.Size+4:]))
			if !more || err != nil {
				return err
			}
		}
	}
	return nil
}

// search returns the first place in s, sorted, that is not below v. It looks
// near guess first, from there in steps that grow: what is spread evenly, as
// digests are, takes a few misses of the cache instead of a dozen.
func search[T cmp.Ordered](s []T, v T, guess int) int {
	lo, hi := 0, len(s) // s[lo-1] < v <= s[hi]
	for i, step := min(guess, hi-1), 4; i >= lo && i < hi; step *= 4 {
		if s[i] < v {
			lo = i + 1
			i += step
		} else {
			hi = i
			i -= step
		}
	}
	n, _ := slices.BinarySearch(s[lo:hi], v)
	return lo + n
}

// packOf returns the row of the pack that box lies in.
func (r *run) packOf(box uint32) (int, error) {
	if int64(box) >= int64(r.boxes) {
		return 0, fmt.Errorf("%w: box %d of %d", ErrDamaged, box, r.boxes)
	}
	// The last one that begins at or before box: those without boxes begin
	// where the next one does.
	guess := uint64(box) * uint64(len(r.first)) / uint64(r.boxes)
	i := search(r.first, box+1, int(guess))
	if i == 0 {
		return 0, fmt.Errorf("%w: box %d of no pack", ErrDamaged, box)
	}
	return i - 1, nil
}

// has reports whether name is in a pack that counts.
func (r *run) has(name *id.Blob) (ok bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	err = r.find(name, func(box, _ uint32) (bool, error) {
		p, err := r.packOf(box)
		ok = err == nil && r.use.has(p)
		return !ok, err
	})
	return ok && err == nil, err
}

// lookup returns the first location of name that counts.
func (r *run) lookup(name *id.Blob) (l Location, ok bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	err = r.find(name, func(box, place uint32) (bool, error) {
		p, err := r.packOf(box)
		if err != nil || !r.use.has(p) {
			return true, err
		}
		ok = true
		return false, r.locate(&l, p, box, place)
	})
	return l, ok && err == nil, err
}

// locations appends all locations of name that count.
func (r *run) locations(dst []Location, name *id.Blob) (_ []Location, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	err = r.find(name, func(box, place uint32) (bool, error) {
		p, err := r.packOf(box)
		if err != nil || !r.use.has(p) {
			return true, err
		}
		dst = append(dst, Location{})
		return true, r.locate(&dst[len(dst)-1], p, box, place)
	})
	return dst, err
}

// location returns where place in box is; it may be called outside of the
// methods above.
func (r *run) location(pack int, box, place uint32) (l Location, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	err = r.locate(&l, pack, box, place)
	return l, err
}

func (r *run) locate(l *Location, pack int, n, place uint32) error {
	warm(r.t[tBoxes].rawOf(int(n)), r.t[tPacks].rawOf(pack))
	row, err := r.t[tBoxes].row(int(n))
	if err != nil {
		return err
	}
	l.Offset = binary.LittleEndian.Uint32(row)
	l.Length = binary.LittleEndian.Uint32(row[4:])
	l.Raw = binary.LittleEndian.Uint32(row[8:])
	l.Codec = box.Codec(row[12])
	l.Place = int(place >> 2)
	l.Kind = id.Kind(place & 3)
	if row, err = r.t[tPacks].row(pack); err != nil {
		return err
	}
	l.Pack = id.Pack(row[:id.Size])
	l.Size = int64(binary.LittleEndian.Uint64(row[id.Size+8:]))
	l.Header, err = r.header(binary.LittleEndian.Uint32(row[id.Size+16:]))
	return err
}

// header returns session n, decoded once.
func (r *run) header(n uint32) (*seal.Header, error) {
	if int64(n) >= int64(len(r.headers)) {
		return nil, fmt.Errorf("%w: session %d of %d", ErrDamaged, n, len(r.headers))
	}
	if h := r.headers[n].Load(); h != nil {
		return h, nil
	}
	row, err := r.t[tSessions].row(int(n))
	if err != nil {
		return nil, err
	}
	h, err := seal.ParseHeader(row)
	if err != nil {
		return nil, fmt.Errorf("%w: session %d: %w", ErrDamaged, n, err)
	}
	// Whoever was first is right: all callers get one pointer.
	r.headers[n].CompareAndSwap(nil, &h)
	return r.headers[n].Load(), nil
}

// session returns session n; it may be called outside of the methods above.
func (r *run) session(n uint32) (h *seal.Header, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	return r.header(n)
}

// boxesOf returns where the boxes of a pack begin and end.
func (r *run) boxesOf(pack int) (from, to uint32) {
	if pack+1 < len(r.first) {
		return r.first[pack], r.first[pack+1]
	}
	return r.first[pack], uint32(r.boxes)
}

// judge sets which packs count from now on. Damage is kept for the next call
// that can return it.
func (r *run) judge(listed map[id.Segment]bool, usable []Pack) {
	if listed == nil && usable == nil {
		r.use = nil
		return
	}
	use, err := r.usable(listed, usable)
	if err != nil {
		// Nothing of it counts, but no caller hears of a miss.
		r.broken = err
		use = make(bitset, (len(r.first)+63)/64)
	}
	r.use = use
}

func (r *run) usable(listed map[id.Segment]bool, usable []Pack) (bitset, error) {
	use := make(bitset, (len(r.first)+63)/64)
	packs := r.scan(tPacks)
	var pack uint32
	var counts bool // whether the pack at hand is usable
	for s := r.scan(tMembers); ; {
		m, err := s.row()
		if m == nil || err != nil {
			return use, err
		}
		p, segment := binary.LittleEndian.Uint32(m), binary.LittleEndian.Uint32(m[4:])
		if int64(p) >= int64(len(r.first)) || int64(segment) >= int64(len(r.segments)) {
			return nil, r.damaged(fmt.Errorf("%w: pack %d in segment %d", ErrDamaged, p, segment))
		}
		if p != pack || packs.next == 0 {
			packs.next = int(p)
			row, err := packs.row()
			if err != nil {
				return nil, err
			}
			pack, counts = p, true
			if usable != nil { // in order, as the rows are
				name := id.Pack(row[:id.Size])
				for len(usable) > 0 && usable[0].ID.Compare(name) < 0 {
					usable = usable[1:]
				}
				counts = len(usable) > 0 && usable[0].ID == name
			}
		}
		if counts && (listed == nil || listed[r.segments[segment]]) {
			use[p/64] |= 1 << (p % 64)
		}
	}
}
