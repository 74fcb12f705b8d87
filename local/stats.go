package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"orlop/id"
	"orlop/snapshot"
)

// ErrDamaged is returned by Next when the cache is not what was written. What
// Next returned before is right.
var ErrDamaged = errors.New("the stat cache is damaged")

// A Record is what a run has seen of an entry. Only entries that may be trusted
// are worth one: those whose times lie clearly before they were read.
type Record struct {
	Entry  snapshot.Entry
	CTime  snapshot.Time
	Inode  uint64
	Device uint64

	// If Entry.Content.Level is over 0, the data blobs of the content are, in
	// order, those of the Sheets and then Refs; else they are
	// Entry.Content.Refs.
	Sheets []Sheet
	Refs   []snapshot.Ref
}

// A Sheet is some refs of a large file, kept apart from its record: who reads
// records need not hold what may be millions of refs. It is a number, and says
// something to the cache only that it is of.
type Sheet uint64

// SheetRefs is how many refs a full sheet has.
const SheetRefs = 1024

// A Head says which snapshot a stat cache was made with.
type Head struct {
	Snapshot id.Snapshot
	Session  id.Session
	Sequence uint64
	Root     snapshot.Root
	Totals   snapshot.Totals
	Time     snapshot.Time
	Key      [32]byte // set by Commit
}

// A cache is a bbolt file with a footer. It is written once and renamed, never
// opened for writing under its own name: bbolt's lock is then always free.
//
// bbolt believes its pages. A flipped byte makes it panic, read beyond its
// mapping, follow a page to itself until the stack is full, which nothing
// recovers from, or return something else without a word. Hence three sums: the
// footer's over the whole file, cheap, which keeps damaged pages from bbolt;
// one over each block and one over the head, strong, which are what a record is
// believed by.
var (
	bucketName = []byte("stats")
	sheetsName = []byte("sheets")
	headKey    = []byte("head") // sorts behind every block: their keys start with a 0 byte
)

const (
	footerMagic = "orlopST1"
	footerSize  = len(footerMagic) + 8 + 4 // magic, u64 length of what is before, u32 sum

	blockSize = 64 << 10 // a block is full at
	maxBlock  = 96 << 20 // none is longer
	batchSize = 1 << 20  // bytes of blocks in one transaction, which bbolt keeps in memory
)

// How many there may be in a Record: of Refs, more than fit a sheet are not worth
// the memory of reading them; of Sheets, those of 128 TiB in the smallest blocks.
const (
	MaxRefs   = SheetRefs
	MaxSheets = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (d *Dir) statsPath(source string) string {
	h := id.NewHash()
	_, _ = io.WriteString(h, source)
	return d.Path(statsDir, fmt.Sprintf("%x", h.Sum()))
}

// blockKey is the key of the n-th block from 0.
func blockKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// ofSheet is added to the number of a sheet, so that no block passes for one.
const ofSheet = 1 << 63

// sumBlock binds a block to its file and its place in it.
func sumBlock(nonce [16]byte, n uint64, payload []byte) [32]byte {
	h := id.NewHash()
	_, _ = h.Write(append(nonce[:], blockKey(n)...))
	_, _ = h.Write(payload)
	return h.Sum()
}

func sumHead(body []byte) [32]byte {
	h := id.NewHash()
	_, _ = io.WriteString(h, "orlop stats head")
	_, _ = h.Write(body)
	return h.Sum()
}

// A Stats is a stat cache being read. It may not be used concurrently.
type Stats struct {
	db      *bolt.DB
	tx      *bolt.Tx
	cursor  *bolt.Cursor
	head    header
	sheets  *bolt.Bucket
	sheet   []byte         // copy of the sheet that was read last
	refs    []snapshot.Ref // what it says
	block   []byte         // copy of the block being read
	rest    []byte         // what is left of it
	size    int64          // of the file
	seen    int            // bytes that the mapping may hold
	dir     string         // of the record before
	blocks  uint64         // read so far
	records uint64         // likewise
	err     error          // what Next returns from now on
}

// OpenStats opens the stat cache of a source. It returns false if there is none
// that was made with this key and is undamaged. Close it after use.
func (d *Dir) OpenStats(source string, key [32]byte) (*Stats, bool) {
	s, err := openStats(d.statsPath(source))
	if err != nil {
		return nil, false
	}
	if s.head.source != source || s.head.Key != key {
		s.Close()
		return nil, false
	}
	return s, true
}

func openStats(path string) (s *Stats, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := checkFile(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	s = &Stats{size: info.Size()}
	err = guard(func() error {
		// bbolt is given the very file that was checked.
		s.db, err = bolt.Open(path, fileMode, &bolt.Options{
			ReadOnly:     true,
			Timeout:      time.Nanosecond, // try the lock once
			NoStatistics: true,
			OpenFile:     func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		})
		if err != nil {
			return err
		}
		if s.tx, err = s.db.Begin(false); err != nil {
			return err
		}
		b := s.tx.Bucket(bucketName)
		if b == nil {
			return ErrDamaged
		}
		if s.head, err = parseHeader(append([]byte(nil), b.Get(headKey)...)); err != nil {
			return err
		}
		s.cursor = b.Cursor()
		if s.sheets = s.tx.Bucket(sheetsName); s.sheets == nil {
			return ErrDamaged
		}
		return nil
	})
	if err != nil {
		s.fail(err)
		s.Close()
		return nil, err
	}
	return s, nil
}

// checkFile compares a file with its footer.
func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size() - int64(footerSize)
	if size < 0 || !info.Mode().IsRegular() {
		return ErrDamaged
	}
	got, err := footer(f, size)
	if err != nil {
		return err
	}
	want := make([]byte, footerSize)
	if _, err := f.ReadAt(want, size); err != nil {
		return err
	}
	if string(got) != string(want) {
		return ErrDamaged
	}
	return nil
}

// footer makes the footer for the first size bytes of f.
func footer(f *os.File, size int64) ([]byte, error) {
	sum := crc32.New(castagnoli)
	p := binary.LittleEndian.AppendUint64([]byte(footerMagic), uint64(size))
	if _, err := sum.Write(p); err != nil {
		return nil, err
	}
	// A large buffer: what bbolt maps it advises to be read at random, so this
	// is also what gets the file into memory at the speed of the disk.
	if n, err := io.CopyBuffer(struct{ io.Writer }{sum}, io.NewSectionReader(f, 0, size), make([]byte, min(size+1, 256<<10))); err != nil || n != size {
		return nil, errors.Join(err, ErrDamaged)
	}
	return binary.LittleEndian.AppendUint32(p, sum.Sum32()), nil
}

// A panicError is a panic of bbolt, after which its locks may be held for ever.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("%v: bbolt: %v", ErrDamaged, e.value) }
func (e *panicError) Unwrap() error { return ErrDamaged }

// guard makes a call into bbolt. Panics and reads of memory that is not mapped,
// or no longer backed by the file, are errors.
func guard(call func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p}
		}
	}()
	return call()
}

// fail ends reading.
func (s *Stats) fail(err error) {
	s.err = err
	if p := (*panicError)(nil); errors.As(err, &p) {
		// Closing it could wait for a lock that the panic left held. What is
		// leaked is one mapping.
		s.db, s.tx = nil, nil
	}
}

// Head returns which snapshot the cache was made with.
func (s *Stats) Head() Head { return s.head.Head }

// Records returns how many records there are.
func (s *Stats) Records() uint64 { return s.head.records }

// Next returns the next record in walk order, and io.EOF behind the last. Any
// other error satisfies errors.Is(err, [ErrDamaged]), and is returned again by
// every later call.
func (s *Stats) Next() (*Record, error) {
	if s.err == nil && len(s.rest) == 0 {
		if err := s.nextBlock(); err != nil {
			s.fail(err)
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	r, rest, err := parseRecord(s.rest, s.dir)
	if err != nil {
		s.fail(fmt.Errorf("%w: %w", ErrDamaged, err))
		return nil, s.err
	}
	s.rest, s.dir = rest, r.Entry.Dir
	s.records++
	return r, nil
}

func (s *Stats) nextBlock() error {
	if s.blocks == s.head.blocks {
		if s.records != s.head.records {
			return fmt.Errorf("%w: it ends early", ErrDamaged)
		}
		return io.EOF
	}
	if s.tx == nil {
		return fmt.Errorf("%w: closed", ErrDamaged)
	}
	var sum [32]byte
	err := guard(func() error {
		var k, v []byte
		if s.blocks == 0 {
			k, v = s.cursor.First()
		} else {
			k, v = s.cursor.Next()
		}
		if string(k) != string(blockKey(s.blocks)) || len(v) <= len(sum) || len(v) > maxBlock {
			return fmt.Errorf("%w: block %d is missing", ErrDamaged, s.blocks)
		}
		// Copied before it is checked: the mapping shows what the file is now.
		s.block = append(s.block[:0], v[copy(sum[:], v):]...)
		if s.seen += len(v); s.seen >= letGoAfter {
			s.letGo()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if sumBlock(s.head.nonce, s.blocks, s.block) != sum {
		return fmt.Errorf("%w: block %d", ErrDamaged, s.blocks)
	}
	s.blocks++
	s.rest, s.dir = s.block, ""
	return nil
}

// Sheet returns the refs of a sheet, which are valid until the next call. An
// error satisfies errors.Is(err, [ErrDamaged]).
func (s *Stats) Sheet(n Sheet) ([]snapshot.Ref, error) {
	if s.tx == nil {
		return nil, fmt.Errorf("%w: closed", ErrDamaged)
	}
	var sum [32]byte
	err := guard(func() error {
		v := s.sheets.Get(blockKey(uint64(n)))
		if len(v) <= len(sum) {
			return fmt.Errorf("%w: sheet %d is missing", ErrDamaged, n)
		}
		s.sheet = append(s.sheet[:0], v[copy(sum[:], v):]...)
		if s.seen += len(v); s.seen >= letGoAfter {
			s.letGo()
		}
		return nil
	})
	if err != nil {
		s.fail(err)
		return nil, err
	}
	if sumBlock(s.head.nonce, uint64(n)|ofSheet, s.sheet) != sum {
		return nil, fmt.Errorf("%w: sheet %d", ErrDamaged, n)
	}
	r := reader{p: s.sheet}
	s.refs = r.refs(s.refs[:0], SheetRefs)
	if r.bad || len(r.p) > 0 {
		return nil, fmt.Errorf("%w: sheet %d", ErrDamaged, n)
	}
	return s.refs, nil
}

// letGoAfter is how much of a file may be resident as bbolt's mapping of it.
const letGoAfter = 1 << 20

// letGo takes the mapping's pages from this process, which is none the wiser: a
// page that it reads again is mapped again. Without this a run over the cache
// of a million files holds all of its 90 MB at the end.
func (s *Stats) letGo() {
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.db.Info().Data, uintptr(s.size), unix.MADV_DONTNEED)
	s.seen = 0
}

// Close frees the file. Next must not be called afterwards.
func (s *Stats) Close() {
	if s.err == nil {
		s.err = fmt.Errorf("%w: closed", ErrDamaged)
	}
	err := guard(func() error {
		if s.tx != nil {
			_ = s.tx.Rollback()
		}
		if s.db != nil {
			_ = s.db.Close()
		}
		return nil
	})
	_ = err // nobody is helped by it
	s.db, s.tx, s.cursor, s.sheets = nil, nil, nil, nil
}

// A StatsWriter makes a stat cache. It may not be used concurrently.
type StatsWriter struct {
	path string // the name to be
	file *os.File
	db   *bolt.DB
	head header

	dir, name string // of the record before
	front     string // dir, or "" at the start of a block: blocks can be read alone
	block     []byte // being filled, behind room for its sum
	blocks    batch  // full ones
	sheets    batch
	err       error // the first of the disk
}

// A batch is what is to be put into one bucket, in order.
type batch struct {
	next   uint64 // number of the first
	values [][]byte
	bytes  int
}

func (b *batch) add(value []byte) {
	b.values = append(b.values, value)
	b.bytes += len(value)
}

func (b *batch) put(bucket *bolt.Bucket) error {
	bucket.FillPercent = 1 // keys come in order
	for i, v := range b.values {
		if err := bucket.Put(blockKey(b.next+uint64(i)), v); err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) clear() {
	b.next += uint64(len(b.values))
	clear(b.values)
	b.values, b.bytes = b.values[:0], 0
}

// NewStats begins the stat cache of a source, to be believed with the same key
// only. End it with Commit or Abort. Readers see the one that was there until
// Commit returns.
func (d *Dir) NewStats(source string, key [32]byte) (*StatsWriter, error) {
	w, err := newStats(d, source, key)
	if err != nil {
		return nil, fmt.Errorf("begin the stat cache of %s: %w", source, err)
	}
	return w, nil
}

func newStats(d *Dir, source string, key [32]byte) (*StatsWriter, error) {
	f, err := createTemp(d.Path(statsDir))
	if err != nil {
		return nil, err
	}
	w := &StatsWriter{path: d.statsPath(source), file: f, head: newHeader(source, key)}
	w.db, err = bolt.Open(f.Name(), fileMode, &bolt.Options{
		Timeout: time.Nanosecond,
		// Nothing before Commit's fsync matters, and nobody will write to the
		// file after it, so its free pages need no list.
		NoSync: true, NoGrowSync: true, NoFreelistSync: true,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
		// Each time the mapping grows bbolt copies all that it points to.
		InitialMmapSize: 64 << 20,
	})
	if err == nil {
		err = w.db.Update(func(tx *bolt.Tx) error {
			_, err := tx.CreateBucket(bucketName)
			if err == nil {
				_, err = tx.CreateBucket(sheetsName)
			}
			return err
		})
	}
	if err != nil {
		w.Abort()
		return nil, err
	}
	w.startBlock()
	return w, nil
}

func (w *StatsWriter) startBlock() { w.block, w.front = make([]byte, 32, 32+blockSize+4096), "" }

// Add appends a record, of which it keeps nothing. Records come in walk order;
// one that does not, that has an invalid entry or more than [MaxRefs] refs is
// an error and not added. When the disk fails Add succeeds and Commit does not:
// a backup should not end for want of a cache.
func (w *StatsWriter) Add(r *Record) error {
	e := &r.Entry
	if w.head.records > 0 && snapshot.Compare(w.dir, w.name, e.Dir, e.Name) >= 0 {
		return fmt.Errorf("stat cache: %q comes after %q", e.Path(), w.name)
	}
	if len(r.Refs) > MaxRefs || len(r.Sheets) > MaxSheets {
		return fmt.Errorf("stat cache: %q has %d sheets and %d refs", e.Path(), len(r.Sheets), len(r.Refs))
	}
	block, err := appendRecord(w.block, w.front, r)
	if err != nil {
		return fmt.Errorf("stat cache: %w", err)
	}
	w.block, w.front, w.dir, w.name = block, e.Dir, e.Dir, e.Name
	w.head.records++
	if len(w.block) >= 32+blockSize {
		w.endBlock()
	}
	return nil
}

func (w *StatsWriter) endBlock() {
	sum := sumBlock(w.head.nonce, w.head.blocks, w.block[32:])
	copy(w.block, sum[:])
	w.blocks.add(w.block)
	w.head.blocks++
	w.startBlock()
	w.writeIfMuch()
}

// AddSheet adds a sheet of 1 to SheetRefs refs, of which it keeps nothing, for
// the record of a file that is added later. What no record names is never seen.
func (w *StatsWriter) AddSheet(refs []snapshot.Ref) Sheet {
	n := w.sheets.next + uint64(len(w.sheets.values))
	p := appendRefs(make([]byte, 32, 32+len(refs)*(id.Size+4)+4), refs)
	sum := sumBlock(w.head.nonce, n|ofSheet, p[32:])
	copy(p, sum[:])
	w.sheets.add(p)
	w.writeIfMuch()
	return Sheet(n)
}

func (w *StatsWriter) writeIfMuch() {
	if w.blocks.bytes+w.sheets.bytes >= batchSize {
		w.write(nil)
	}
}

// write puts what is complete, and the head if there is one, into the file.
func (w *StatsWriter) write(head []byte) {
	if w.err == nil {
		w.err = guard(func() error {
			return w.db.Update(func(tx *bolt.Tx) error {
				b := tx.Bucket(bucketName)
				if err := errors.Join(w.blocks.put(b), w.sheets.put(tx.Bucket(sheetsName))); err != nil || head == nil {
					return err
				}
				return b.Put(headKey, head)
			})
		})
	}
	w.blocks.clear()
	w.sheets.clear()
}

// Commit makes the cache the source's, durably; head.Key is not looked at. The
// snapshot that head names must be acknowledged: what the cache says is stored
// will not be read again.
func (w *StatsWriter) Commit(head Head) error {
	err := w.commit(head)
	w.Abort()
	if err != nil {
		return fmt.Errorf("write the stat cache of %s: %w", w.head.source, err)
	}
	return nil
}

func (w *StatsWriter) commit(head Head) error {
	if w.db == nil {
		return os.ErrClosed
	}
	if len(w.block) > 32 {
		w.endBlock()
	}
	w.write(nil)
	head.Key = w.head.Key
	w.head.Head = head
	w.write(w.head.append(nil))
	if w.err != nil {
		return w.err
	}
	var used int64
	err := guard(func() error {
		return w.db.View(func(tx *bolt.Tx) error { used = tx.Size(); return nil })
	})
	if err == nil {
		err = w.closeDB()
	}
	if err != nil {
		return err
	}
	// bbolt grows a file ahead of its needs.
	if err := w.file.Truncate(used); err != nil {
		return err
	}
	foot, err := footer(w.file, used)
	if err != nil {
		return err
	}
	if _, err := w.file.WriteAt(foot, used); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	return publish(w.file.Name(), w.path)
}

func (w *StatsWriter) closeDB() error {
	if w.db == nil {
		return nil
	}
	db := w.db
	w.db = nil
	if p := (*panicError)(nil); errors.As(w.err, &p) {
		return w.err // see Stats.fail
	}
	return db.Close()
}

// Abort throws the cache away. After Commit it does nothing.
func (w *StatsWriter) Abort() {
	if w.file == nil {
		return
	}
	_ = w.closeDB()
	_ = os.Remove(w.file.Name()) // not there after a rename
	_ = w.file.Close()
	w.file = nil
}
