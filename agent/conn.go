package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"orlop/id"
)

// ErrSilent is returned when the other side was not heard for too long, or did
// not take what it was sent.
var ErrSilent = errors.New("nothing was heard from the other side for too long")

const (
	version = 1
	// A beat is sent after this share of the silence without a frame.
	beatsPerSilence = 12
)

// Credits bound what may be under way, so that each side's queues can hold
// every answer and neither ever waits for the other to read. The host says in
// its HELLO what it grants the agent, the agent in its own what it can hold.
type credits struct {
	Batches uint32 // batches of entries that are not yet answered and all filed
	Names   uint32 // names offered and not yet answered
	Bytes   uint32 // bytes (see charge) of blobs offered and neither refused nor sent
	Old     uint32 // old cuts (Answer.Old) of entries that are not yet filed
	Writes  uint32 // bytes of restore data sent and not yet acknowledged
}

// The largest credits, and those that are used outside tests. More of them make
// nothing faster: a round trip is a millisecond. They cost memory on both sides.
var fullCredits = credits{Batches: 16, Names: 1024, Bytes: 6 << 20, Old: 128 << 10, Writes: 8 << 20}

func (c credits) least(o credits) credits {
	return credits{
		Batches: min(c.Batches, o.Batches), Names: min(c.Names, o.Names), Bytes: min(c.Bytes, o.Bytes),
		Old: min(c.Old, o.Old), Writes: min(c.Writes, o.Writes),
	}
}

const helloMagic = "orlop"

func appendHello(dst []byte, c credits) []byte {
	dst = append(dst, helloMagic...)
	dst = binary.LittleEndian.AppendUint16(dst, version)
	for _, v := range []uint32{c.Batches, c.Names, c.Bytes, c.Old, c.Writes} {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	return dst
}

func parseHello(p []byte) (credits, error) {
	d := decoder{p: p}
	if string(d.take(len(helloMagic))) != helloMagic {
		d.fail("not a greeting of orlop")
	}
	if v := d.u16(); v != version {
		d.fail("the other side speaks version %d and this one version %d", v, version)
	}
	c := credits{Batches: d.u32(), Names: d.u32(), Bytes: d.u32(), Old: d.u32(), Writes: d.u32()}
	if c.Batches == 0 || c.Names == 0 || c.Bytes == 0 || c.Writes == 0 {
		d.fail("a greeting without credit")
	}
	return c.least(fullCredits), d.end()
}

// settings are the numbers of one side that tests change.
type settings struct {
	silence time.Duration // the other side is given up after
	credits credits       // granted, or taken

	cores             int // that the agent may use
	readers, packers  int
	large             int // buffers for large files
	queue             int // length of queues that may be full
	page, keep, marks int // see walker
	hook              func(moment, path string) error

	boxes int // workers of the host that check boxes

	// beside carries the payloads of boxes, in the order of their frames, if
	// both sides are in one process. The kernel need not copy them twice.
	beside chan payload
}

// A payload is a box's, and the buffer it is part of, which the receiver
// recycles.
type payload struct{ bytes, buffer []byte }

// The memory of a walk, whatever it walks over.
const (
	pageBytes = 16 << 20 // names of one directory that are sorted at a time, up to twice that while reading
	keepBytes = 8 << 20  // names of directories still to be walked, of all levels
	keepMarks = 4 << 20  // hashes of such names where that is not enough; 8 bytes each
)

func usual() settings {
	n := runtime.GOMAXPROCS(0)
	return settings{
		silence: time.Minute, credits: fullCredits,
		cores: n, readers: min(n+1, 8), packers: min(n, 4), large: 2, queue: 64,
		page: pageBytes, keep: keepBytes, marks: keepMarks,
		boxes: min(n, 8),
	}
}

// A conn carries frames over a byte stream, both ways at once. One goroutine
// reads; any may write.
type conn struct {
	rw      io.ReadWriter
	set     settings
	credits credits // agreed in the greeting
	r       *bufio.Reader
	header  [headerSize]byte
	body    []byte
	readSum *id.Hash // of the frames since sumReads

	wmu      sync.Mutex
	w        *bufio.Writer
	whead    [headerSize]byte
	writeSum *id.Hash
	wrote    atomic.Bool // since the last look of the beat

	// watchWrites: a write that is stuck is silence too. Not for the agent:
	// there it means that the host's store is slow.
	watchWrites bool
	stopBeat    chan struct{}
	beatDone    chan struct{}
	closeOnce   sync.Once
	silent      atomic.Bool
}

func newConn(rw io.ReadWriter, set settings) *conn {
	c := &conn{rw: rw, set: set, stopBeat: make(chan struct{}), beatDone: make(chan struct{})}
	c.r = bufio.NewReaderSize(watched{c, rw.Read}, 64<<10)
	c.w = bufio.NewWriterSize(watched{c, rw.Write}, 64<<10)
	return c
}

// watched gives up the stream when one call of do takes longer than a silence
// may last. Time spent between calls does not count: a host that waits for its
// store is not waiting for the agent.
type watched struct {
	c  *conn
	do func([]byte) (int, error)
}

func (w watched) call(p []byte) (int, error) {
	t := time.AfterFunc(w.c.set.silence, func() {
		w.c.silent.Store(true)
		w.c.close()
	})
	n, err := w.do(p)
	t.Stop()
	if err != nil && w.c.silent.Load() {
		err = ErrSilent
	}
	return n, err
}

func (w watched) Read(p []byte) (int, error) { return w.call(p) }

func (w watched) Write(p []byte) (int, error) {
	if !w.c.watchWrites {
		return w.do(p)
	}
	return w.call(p)
}

// close makes every read and write fail, if the stream is one that can be
// closed. It may be called more than once.
func (c *conn) close() {
	c.closeOnce.Do(func() {
		if cl, ok := c.rw.(io.Closer); ok {
			_ = cl.Close()
		}
	})
}

// beat keeps the other side from thinking this one is dead, until stop.
func (c *conn) beat() {
	go func() {
		defer close(c.beatDone)
		tick := time.NewTicker(max(c.set.silence/beatsPerSilence, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-c.stopBeat:
				return
			case <-tick.C:
			}
			// Somebody who holds the lock is writing, which is beat enough.
			if c.wrote.Swap(false) || !c.wmu.TryLock() {
				continue
			}
			_ = c.writeLocked(frameBeat, nil)
			_ = c.w.Flush()
			c.wrote.Store(false)
			c.wmu.Unlock()
		}
	}()
}

// stop closes the stream and waits for the beat.
func (c *conn) stop() {
	close(c.stopBeat)
	c.close()
	<-c.beatDone
}

// sumReads begins the sum of an operation's frames, on the side that reads
// them and by its reader, before the first. sumWrites is its counterpart.
func (c *conn) sumReads() { h := id.NewHash(); c.readSum = &h }

func (c *conn) sumWrites() {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	h := id.NewHash()
	c.writeSum = &h
}

// addFrame adds a frame to a sum: its header, and its body unless that is a
// box, whose names are sum enough. Beats are not part of any operation, and an
// END cannot hold its own sum.
func addFrame(h *id.Hash, header []byte, t frameType, body ...[]byte) {
	if h == nil || t == frameBeat || t == frameEnd {
		return
	}
	_, _ = h.Write(header)
	if t == frameBox {
		return
	}
	for _, p := range body {
		_, _ = h.Write(p)
	}
}

// read returns the next frame that is not a beat. The body is the caller's
// until the next read; that of a box for ever. At the end of the stream
// between two frames the error is io.EOF.
func (c *conn) read() (frameType, []byte, error) {
	for {
		if _, err := io.ReadFull(c.r, c.header[:]); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = protocolError("the stream ends inside a header")
			}
			return 0, nil, err
		}
		t := frameType(c.header[0])
		n := binary.LittleEndian.Uint32(c.header[1:])
		if n > maxFrame {
			return 0, nil, protocolError("a frame of %d bytes", n)
		}
		var body []byte
		if t == frameBox {
			body = buffer(int(n))[:n]
		} else {
			if cap(c.body) < int(n) {
				c.body = make([]byte, n)
			}
			body = c.body[:n]
		}
		if _, err := io.ReadFull(c.r, body); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				err = protocolError("the stream ends inside a frame")
			}
			return 0, nil, err
		}
		if t == frameBeat {
			if n != 0 {
				return 0, nil, protocolError("a beat of %d bytes", n)
			}
			continue
		}
		addFrame(c.readSum, c.header[:], t, body)
		return t, body, nil
	}
}

// write puts one frame, its body in parts, into the stream's buffer. What is
// buffered leaves with flush, or when the buffer is full.
func (c *conn) write(t frameType, body ...[]byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.wrote.Store(true)
	return c.writeLocked(t, body)
}

func (c *conn) writeLocked(t frameType, body [][]byte) error {
	n := 0
	for _, p := range body {
		n += len(p)
	}
	if n > maxFrame {
		return protocolError("a frame of %d bytes", n)
	}
	putHeader(c.whead[:], t, n)
	addFrame(c.writeSum, c.whead[:], t, body...)
	if _, err := c.w.Write(c.whead[:]); err != nil {
		return err
	}
	for _, p := range body {
		if _, err := c.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) flush() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.wrote.Store(true)
	return c.w.Flush()
}

// send is write and flush.
func (c *conn) send(t frameType, body ...[]byte) error {
	if err := c.write(t, body...); err != nil {
		return err
	}
	return c.flush()
}

// A failure is the body of an ERROR.
type failure struct {
	Final bool // the stream is of no more use
	Text  string
}

const maxText = 4096 // longest error text or reason

func (f failure) append(dst []byte) []byte {
	return appendBytes(appendBool(dst, f.Final), f.Text[:min(len(f.Text), maxText)])
}

func parseFailure(p []byte) (failure, error) {
	d := decoder{p: p}
	f := failure{Final: d.bool(), Text: d.string(maxText)}
	return f, d.end()
}
