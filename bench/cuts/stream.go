package main

import (
	"math"
	"slices"
	"syscall"
	"time"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
)

// What a blob takes in a repository besides its bytes, and a box besides its
// payload (docs/format.md, "Packs", "Index segments", "List blobs").
const (
	blobCost = 36 + 40 // in a pack's directory, in an index segment
	refCost  = 35      // in a list
	boxCost  = 32 + 15 // salt and tag; in the directory, in the segment
)

// A cutter cuts, names and boxes one way.
type cutter struct {
	splitter chunk.Splitter
	namer    *id.Namer
	encoder  *box.Encoder
}

func newCutter(c chunk.Config) *cutter {
	s, err := chunk.New(c, secret)
	if err != nil {
		panic(err) // it was validated
	}
	return &cutter{s, id.NewNamer(secret), box.NewEncoder()}
}

// A stream is a file that was cut.
type stream struct {
	data  []byte
	ends  []int // of its chunks
	names []id.Blob
}

func (c *cutter) cut(data []byte) *stream {
	s := &stream{data: data}
	for at := 0; at < len(data); {
		n := c.splitter.Next(data[at:], false)
		s.ends = append(s.ends, at+n)
		s.names = append(s.names, c.namer.Blob(id.Data, data[at:at+n]))
		at += n
	}
	return s
}

func (c *cutter) cutAll(files [][]byte) (all []*stream) {
	for _, data := range files {
		all = append(all, c.cut(data))
	}
	return all
}

// speed returns at how many bytes a second of CPU data is cut.
func (c *cutter) speed(data []byte) float64 {
	best := time.Duration(math.MaxInt64)
	for range 3 {
		before := cpu()
		for at := 0; at < len(data); {
			at += c.splitter.Next(data[at:], false)
		}
		best = min(best, cpu()-before)
	}
	return float64(len(data)) / best.Seconds()
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A sum is what is added to a repository.
type sum struct {
	blobs  int
	raw    int // bytes of blobs
	stored int // bytes in the store
}

func (s *sum) add(o sum) {
	s.blobs += o.blobs
	s.raw += o.raw
	s.stored += o.stored
}

// store returns what blobs take, boxed as a backup boxes them.
func (c *cutter) store(blobs [][]byte) sum {
	s := sum{blobs: len(blobs)}
	var group box.Builder
	finish := func() {
		if group.Count() > 0 {
			_, _, payload := group.Finish(c.encoder, nil)
			s.stored += len(payload) + boxCost
			group.Reset()
		}
	}
	for _, p := range blobs {
		s.raw += len(p)
		s.stored += blobCost
		if len(p) >= box.SmallBlob {
			_, _, payload := c.encoder.Wrap(id.Data, append(make([]byte, box.Head), p...), nil)
			s.stored += len(payload) + boxCost
			continue
		}
		if group.Add(id.Data, p); group.Raw() >= box.GroupRaw {
			finish()
		}
	}
	finish()
	return s
}

// lists returns what the lists of names take in which names[i] is new, for each
// i of fresh: a list ends after a name that begins with a zero byte. Up to 8
// names are in the entry, which is written anew whatever the cuts are.
func lists(names []id.Blob, fresh []int) (total sum) {
	if len(names) <= 8 {
		return sum{}
	}
	to := 0
	for _, i := range fresh {
		if i < to {
			continue // in the list before
		}
		from := i
		for from > 0 && names[from-1][0] != 0 {
			from--
		}
		for to = i + 1; to < len(names) && names[to-1][0] != 0; {
			to++
		}
		n := refCost * (to - from)
		total.add(sum{blobs: 1, raw: n, stored: n + blobCost})
	}
	return total
}

func (s *stream) chunk(i int) []byte { return s.data[s.start(i):s.ends[i]] }

func (s *stream) start(i int) int {
	if i == 0 {
		return 0
	}
	return s.ends[i-1]
}

// An edit takes bytes away and puts others in their place.
type edit struct {
	kind   string
	at     int
	remove int
	insert []byte
}

// edited returns data after the edits, which must be in order and apart.
func edited(data []byte, edits []edit) []byte {
	var p []byte
	from := 0
	for _, e := range edits {
		p = append(append(p, data[from:e.at]...), e.insert...)
		from = e.at + e.remove
	}
	return append(p, data[from:]...)
}

// after returns what a backup adds after one edit of s, which has the blobs
// that are known. It cuts from the last cut before the edit to where the cuts
// fall into step again, as what is before and after that cannot differ.
func (c *cutter) after(s *stream, known map[id.Blob]bool, e edit) sum {
	// The first chunk that can differ. One that ends where the edit begins
	// cannot, unless it ends there only because the file did.
	first, ends := slices.BinarySearch(s.ends, e.at)
	if ends && first < len(s.ends)-1 {
		first++
	}
	begin := s.start(first)
	moved := len(e.insert) - e.remove
	names := slices.Clone(s.names[:first])
	var chunks [][]byte
	var fresh []int
	taken := map[id.Blob]bool{}
	rest := len(s.ends) // the first old chunk after those that were cut anew
	room := 4 * c.splitter.Max()
	var buf []byte
	read := func() (more bool) {
		end := min(e.at+e.remove+room, len(s.data))
		buf = append(append(append([]byte(nil), s.data[begin:e.at]...), e.insert...), s.data[e.at+e.remove:end]...)
		return end < len(s.data)
	}
	more := read()
	for at := 0; at < len(buf); {
		n := c.splitter.Next(buf[at:], more)
		if n == 0 {
			room *= 2
			more = read()
			continue
		}
		p := buf[at : at+n]
		name := c.namer.Blob(id.Data, p)
		if !known[name] && !taken[name] {
			taken[name] = true
			chunks = append(chunks, p)
			fresh = append(fresh, len(names))
		}
		names = append(names, name)
		at += n
		if old := begin + at - moved; old >= e.at+e.remove {
			if i, found := slices.BinarySearch(s.ends, old); found {
				rest = i + 1
				break
			}
		}
	}
	total := c.store(chunks)
	total.add(lists(append(names, s.names[rest:]...), fresh))
	return total
}

// adds returns what a backup of all streams adds to what is known, and is known
// from then on.
func (c *cutter) adds(known map[id.Blob]bool, all ...*stream) (total sum) {
	var chunks [][]byte
	for _, s := range all {
		var fresh []int
		for i, name := range s.names {
			if !known[name] {
				known[name] = true
				chunks = append(chunks, s.chunk(i))
				fresh = append(fresh, i)
			}
		}
		total.add(lists(s.names, fresh))
	}
	total.add(c.store(chunks))
	return total
}
