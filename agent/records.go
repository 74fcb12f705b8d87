package agent

import (
	"encoding/binary"
	"hash/crc32"

	"orlop/id"
	"orlop/snapshot"
)

// The frames of a restore. docs/format.md has their tables.
const (
	frameReady   frameType = 65 // A to H: a Target
	frameRecords frameType = 66 // H to A: u32 how many, then that many records
	frameReport  frameType = 67 // A to H: a report
	frameClose   frameType = 68 // H to A: a closing; no more records follow
	frameTotals  frameType = 69 // A to H: RestoreTotals; the last frame
)

const (
	verbRestore = 0
	verbLook    = 1 // only ask what the root is like
	verbPlace   = 2 // over what is there
)

// MarkerName is the name of the file in the root of a target that says that a
// restore has begun there and not ended.
const MarkerName = ".orlop-restore-incomplete"

// MaxMarker is how many bytes may be in it.
const MaxMarker = 1024

// A Target is what a directory to restore to is like.
type Target struct {
	Empty  bool   // it holds nothing, or nothing but an empty lost+found
	Marker string // what a restore that did not end has left; "" if there is none
}

func (t Target) append(dst []byte) []byte { return appendBytes(appendBool(dst, t.Empty), t.Marker) }

func parseTarget(p []byte) (Target, error) {
	d := decoder{p: p}
	t := Target{Empty: d.bool(), Marker: d.string(MaxMarker)}
	return t, d.end()
}

// An order is the body of a RESTORE.
type order struct {
	verb             byte
	sync             bool
	keep, dry, tells bool // of verbPlace
	root, marker     string
	nameKey          [32]byte // of verbPlace
}

func (q *order) append(dst []byte) []byte {
	dst = appendBool(append(dst, q.verb), q.sync)
	dst = appendBool(appendBool(appendBool(dst, q.keep), q.dry), q.tells)
	dst = appendBytes(appendBytes(dst, q.root), q.marker)
	if q.verb == verbPlace {
		dst = append(dst, q.nameKey[:]...)
	}
	return dst
}

func parseOrder(p []byte) (*order, error) {
	d := decoder{p: p}
	q := &order{verb: d.u8(), sync: d.bool(), keep: d.bool(), dry: d.bool(), tells: d.bool()}
	q.root, q.marker = d.string(snapshot.MaxPath), d.string(MaxMarker)
	switch {
	case q.verb > verbPlace:
		d.fail("a restore of kind %d", q.verb)
	case q.verb == verbPlace:
		q.nameKey = d.sum()
	case q.keep || q.dry || q.tells:
		d.fail("a restore of kind %d that is one in place", q.verb)
	}
	return q, d.end()
}

// What a record asks for. MAKE and LINK are numbered from 0 in the order they
// are sent; N is that number. An entry is written against the directory of the
// entry before it in the same frame.
const (
	recordMake    = 1 // entry
	recordLink    = 2 // entry, bytes path of the entry it is another name of
	recordData    = 3 // uvarint N, uvarint offset, bytes data
	recordFinish  = 4 // uvarint N
	recordDiscard = 5 // uvarint N
	recordDress   = 6 // uvarint N of a directory, its entry
	recordXattrs  = 7 // bytes: encoded xattrs of the next MAKE or DRESS, or some of them
	recordExtents = 8 // bytes: encoded extents of the next MAKE, or some of them

	// Of a restore in place.
	recordCompare = 9  // uvarint N, uvarint count, refs: the next of the file's stream
	recordTidy    = 10 // bytes path of a directory: all that is in it was sent
	recordLeave   = 11 // bytes path: what is there stays as it is
	recordSpare   = 12 // from here on nothing is removed but what is in the way
)

const (
	recordsHead  = 4
	recordsFull  = 256 << 10 // a frame of records is sent when it has this many bytes
	maxData      = 256 << 10 // data in one record
	frameRoom    = 320 << 10 // memory of a frame, unless it has to be larger
	maxPieces    = 256 << 10 // xattrs or extents in one record, but for a single larger xattr
	frameCost    = 4096      // what a frame of records costs beside its length
	recordRoom   = 32        // the most that a record of data takes beside the data
	recordCost   = 256       // and what each of its records does
	maxProblems  = 16        // told of one entry
	maxReport    = 256 << 10 // a report is cut when it has this many bytes
	fileWeight   = 1024      // memory that a file which is not finished takes, beside its xattrs and extents
	maxHeld      = 128 << 20 // memory of all that are not finished; a single file may take more
	extentWeight = 16
	maxCompare   = 1024     // refs in one record
	compareBytes = 64 << 20 // of content that they are of, but for a single ref
	maxExtents   = 1 << 24  // of one file
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// cost is how much of the credit for writes a frame of records takes, from
// when it is sent to when a report gives it back.
func cost(body []byte) int {
	return frameCost + len(body) + recordCost*int(binary.LittleEndian.Uint32(body))
}

// held is how much memory a file takes from MAKE to FINISH.
func held(e *snapshot.Entry, xattrs []snapshot.Xattr, extents []snapshot.Extent) int {
	n := fileWeight + len(e.Dir) + extentWeight*len(extents)
	for _, x := range xattrs {
		n += 64 + len(x.Name) + len(x.Value)
	}
	return n
}

// A closing ends the stream of records, and says what was in it.
type closing struct {
	Abandon bool // the host gives up: half-made files may be left
	Entries uint64
	Bytes   uint64 // of data
	Sum     uint32 // CRC-32C of the bodies of all frames of records
}

func (c closing) append(dst []byte) []byte {
	dst = appendBool(dst, c.Abandon)
	dst = binary.LittleEndian.AppendUint64(dst, c.Entries)
	dst = binary.LittleEndian.AppendUint64(dst, c.Bytes)
	return binary.LittleEndian.AppendUint32(dst, c.Sum)
}

func parseClosing(p []byte) (closing, error) {
	d := decoder{p: p}
	c := closing{Abandon: d.bool(), Entries: d.u64(), Bytes: d.u64(), Sum: d.u32()}
	return c, d.end()
}

// RestoreTotals says what a restore made.
type RestoreTotals struct {
	Files, Dirs, Links uint64 // regular files; directories, the root too; additional names of hard links
	Others             uint64 // symbolic links, devices, fifos, sockets
	Bytes              uint64 // of content that were written
	Problems           uint64 // as told to RestoreRequest.Problem

	// Of a restore in place: of all but directories, those that were as they
	// should be, and those that were there and were not; and what went away.
	// A dry one says what would be.
	Unchanged, Changed uint64
	Removed            uint64 // all but directories
	RemovedDirs        uint64
}

func (t *RestoreTotals) fields() []*uint64 {
	return []*uint64{
		&t.Files, &t.Dirs, &t.Links, &t.Others, &t.Bytes, &t.Problems,
		&t.Unchanged, &t.Changed, &t.Removed, &t.RemovedDirs,
	}
}

func (t RestoreTotals) append(dst []byte) []byte {
	for _, v := range t.fields() {
		dst = binary.LittleEndian.AppendUint64(dst, *v)
	}
	return dst
}

func parseTotals(p []byte) (t RestoreTotals, err error) {
	d := decoder{p: p}
	for _, v := range t.fields() {
		*v = d.u64()
	}
	return t, d.end()
}

// A ChangeKind says what a restore in place does to something.
type ChangeKind uint8

// The kinds of change.
const (
	Created ChangeKind = 1
	Changed ChangeKind = 2 // content or metadata, or it was something else
	Removed ChangeKind = 3 // with all that is below it
)

// A change is one thing that a restore in place did, or would do.
type change struct {
	Kind ChangeKind
	Path string
}

// A verdict says which of the refs of one COMPARE the file has not.
type verdict struct {
	N       uint64
	Missing []bool
}

// A report says what has become of records.
type report struct {
	Credit   uint64 // to send that much more
	Problems []woe  // what could not be kept
	Verdicts []verdict
	Changes  []change
	Done     []uint64 // entries with which all is done, also if it went wrong
	Fatal    string   // why nothing more will be done, if so
	Full     bool     // because the file system is
}

// A woe is one thing that could not be kept of an entry.
type woe struct {
	N          uint64
	Path, What string
}

func (r *report) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, r.Credit)
	dst = binary.AppendUvarint(dst, uint64(len(r.Problems)))
	for _, w := range r.Problems {
		dst = binary.AppendUvarint(dst, w.N)
		dst = appendBytes(dst, w.Path)
		dst = appendBytes(dst, w.What)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Verdicts)))
	for _, v := range r.Verdicts {
		dst = binary.AppendUvarint(dst, v.N)
		dst = appendBits(dst, v.Missing)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Changes)))
	for _, c := range r.Changes {
		dst = appendBytes(append(dst, byte(c.Kind)), c.Path)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Done)))
	for _, n := range r.Done {
		dst = binary.AppendUvarint(dst, n)
	}
	dst = appendBytes(dst, r.Fatal)
	return appendBool(dst, r.Full)
}

func parseReport(p []byte) (*report, error) {
	d := decoder{p: p}
	r := &report{Credit: d.uvarint(1 << 62)}
	for range d.count(maxFrame, 3) {
		r.Problems = append(r.Problems, woe{d.uvarint(1<<64 - 1), d.string(snapshot.MaxPath), d.string(maxText)})
	}
	for range d.count(maxFrame, 3) {
		r.Verdicts = append(r.Verdicts, verdict{d.uvarint(1<<64 - 1), d.bits(maxCompare)})
	}
	for range d.count(maxFrame, 2) {
		c := change{ChangeKind(d.u8()), d.string(snapshot.MaxPath)}
		if c.Kind < Created || c.Kind > Removed {
			d.fail("a change of kind %d", c.Kind)
		}
		r.Changes = append(r.Changes, c)
	}
	for range d.count(maxFrame, 1) {
		r.Done = append(r.Done, d.uvarint(1<<64-1))
	}
	r.Fatal = d.string(maxText)
	r.Full = d.bool()
	return r, d.end()
}

// A record is one record of a frame, read but not judged. Its slices lie in
// the frame.
type record struct {
	kind  uint8
	n     uint64
	off   uint64
	data  []byte // also pieces of xattrs and extents
	entry *snapshot.Entry
	path  string // of LINK the first, of others their own
	refs  []snapshot.Ref
}

// A recordReader reads the records of a frame.
type recordReader struct {
	d    decoder
	dir  string // of the entry before
	left int
}

func readRecords(body []byte) recordReader {
	r := recordReader{d: decoder{p: body}}
	n := r.d.u32()
	if uint64(n) > uint64(len(r.d.p)) {
		r.d.fail("%d records in %d bytes", n, len(r.d.p))
		n = 0
	}
	r.left = int(n)
	return r
}

// next reads the next record into rec and tells whether there was one; err
// says why not.
func (r *recordReader) next(rec *record) bool {
	if r.left == 0 || r.d.err != nil {
		return false
	}
	r.left--
	*rec = record{kind: r.d.u8()}
	switch rec.kind {
	case recordMake:
		rec.entry = r.entry()
	case recordLink:
		rec.entry = r.entry()
		rec.path = r.d.string(snapshot.MaxPath)
	case recordData:
		rec.n = r.d.uvarint(1<<64 - 1)
		rec.off = r.d.uvarint(snapshot.MaxSize)
		rec.data = r.d.bytes(maxData)
	case recordFinish, recordDiscard:
		rec.n = r.d.uvarint(1<<64 - 1)
	case recordDress:
		rec.n = r.d.uvarint(1<<64 - 1)
		rec.entry = r.entry()
	case recordXattrs, recordExtents:
		rec.data = r.d.bytes(maxPieces + snapshot.MaxName + snapshot.MaxXattr + 8)
	case recordCompare:
		rec.n = r.d.uvarint(1<<64 - 1)
		rec.refs = make([]snapshot.Ref, r.d.count(maxCompare, id.Size+1))
		for i := range rec.refs {
			rec.refs[i] = snapshot.Ref{Name: r.d.sum(), Length: r.d.uvarint(snapshot.MaxData)}
		}
	case recordTidy, recordLeave:
		rec.path = r.d.string(snapshot.MaxPath)
	case recordSpare:
	default:
		r.d.fail("a record of kind %d", rec.kind)
	}
	return r.d.err == nil
}

func (r *recordReader) entry() *snapshot.Entry {
	if r.d.err != nil {
		return nil
	}
	e, rest, err := snapshot.ParseEntry(r.d.p, r.dir)
	if err != nil {
		r.d.fail("%v", err)
		return nil
	}
	r.d.p, r.dir = rest, e.Dir
	return e
}

// end returns why the frame is not one of records, or nil.
func (r *recordReader) end() error { return r.d.end() }

// A recordWriter fills frames of records.
type recordWriter struct {
	body  []byte // of the frame that is being filled
	count uint32
	dir   string
	full  func() // takes the frame when it is full between two pieces of a set; may be nil
}

// piece ends a piece of a set. All of a set may be larger than a frame.
func (w *recordWriter) piece() {
	if w.full != nil && len(w.body) >= recordsFull {
		w.full()
	}
}

func (w *recordWriter) begin(kind uint8) {
	if len(w.body) == 0 {
		w.body = append(buffer(frameRoom), 0, 0, 0, 0)
		w.dir = ""
		w.count = 0
	}
	w.body = append(w.body, kind)
	w.count++
}

// take returns the finished frame's body, in memory to be recycled, and begins
// another.
func (w *recordWriter) take() []byte {
	body := w.body
	binary.LittleEndian.PutUint32(body, w.count)
	w.body = nil
	return body
}

// entry appends e, which is valid.
func (w *recordWriter) entry(e *snapshot.Entry) {
	w.body, _ = snapshot.AppendEntry(w.body, w.dir, e)
	w.dir = e.Dir
}

func (w *recordWriter) number(kind uint8, n uint64) {
	w.begin(kind)
	w.body = binary.AppendUvarint(w.body, n)
}

func (w *recordWriter) data(n uint64, off int64, data []byte) {
	if w.full != nil && len(w.body) > 0 && len(w.body)+len(data)+recordRoom > frameRoom {
		w.full()
	}
	w.number(recordData, n)
	w.body = binary.AppendUvarint(w.body, uint64(off))
	w.body = appendBytes(w.body, data)
}

func (w *recordWriter) compare(n uint64, refs []snapshot.Ref) {
	w.number(recordCompare, n)
	w.body = binary.AppendUvarint(w.body, uint64(len(refs)))
	for _, r := range refs {
		w.body = binary.AppendUvarint(append(w.body, r.Name[:]...), r.Length)
	}
}

func (w *recordWriter) path(kind uint8, path string) {
	w.begin(kind)
	w.body = appendBytes(w.body, path)
}

func (w *recordWriter) xattrs(set []snapshot.Xattr) {
	for len(set) > 0 {
		n, size := 0, 0
		for n < len(set) && (n == 0 || size+len(set[n].Value) < maxPieces) {
			size += len(set[n].Name) + len(set[n].Value) + 8
			n++
		}
		w.begin(recordXattrs)
		w.body = appendBytes(w.body, snapshot.EncodeXattrs(set[:n]))
		set = set[n:]
		w.piece()
	}
}

func (w *recordWriter) extents(list []snapshot.Extent) {
	var end uint64
	var piece []byte
	for i, x := range list {
		piece = snapshot.AppendExtent(piece, end, x)
		end = x.End()
		if len(piece) >= maxPieces-20 || i == len(list)-1 {
			w.begin(recordExtents)
			w.body = appendBytes(w.body, piece)
			piece = piece[:0]
			w.piece()
		}
	}
}
