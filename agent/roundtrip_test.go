package agent

import (
	"encoding/binary"
	"testing"

	"orlop/chunk"
	"orlop/snapshot"
	"orlop/treetest"
)

// pretend is a stream of n bytes under a name that nothing has.
func pretend(n int) snapshot.Content {
	if n == 0 {
		return snapshot.Content{}
	}
	return snapshot.Content{Level: 1, Refs: []snapshot.Ref{{Name: [32]byte{1}, Length: uint64(n)}}}
}

// What one half of the agent reads and the other writes is the same tree.
func TestWhatIsBackedUpIsRestored(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	treetest.Fill(t, from, false)
	t.Cleanup(func() { treetest.RemoveAll(t, to) })
	c := local(t)
	s := newShelf()
	q := request(from)
	var err error
	if q.Chunk, err = chunk.Default(chunk.Gear); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Backup(t.Context(), q, s); err != nil {
		t.Fatal(err)
	}

	r := fill(t, c, to)
	groups := make(map[[2]uint64]string)
	for i := range s.entries {
		stat := s.entries[i]
		e := &snapshot.Entry{
			Dir: stat.Dir, Name: stat.Name, Type: stat.Type, Mode: stat.Mode, UID: stat.UID, GID: stat.GID,
			MTime: stat.MTime, Size: stat.Size, Rdev: stat.Rdev,
		}
		f := s.files[stat.Path()]
		if f == nil {
			t.Fatalf("%s was not filed", stat.Path())
		}
		content := s.stream(f, Content)
		extents := f.Extents
		e.Target, e.Sparse, e.Extents, e.Xattrs = f.Target, f.Sparse, f.Extents, f.Xattrs
		if len(f.Inline) > 0 {
			e.Inline = f.Inline
		} else {
			e.Content = pretend(len(content))
		}
		if p := s.stream(f, Map); len(p) > 0 {
			e.Map = pretend(len(p))
			if extents, err = snapshot.DecodeExtents(p); err != nil {
				t.Fatal(err)
			}
		}
		var xattrs []snapshot.Xattr
		if p := s.stream(f, Xattrs); len(p) > 0 {
			e.XattrSet = pretend(len(p))
			if xattrs, err = snapshot.DecodeXattrs(p); err != nil {
				t.Fatal(err)
			}
		}
		if stat.Links > 1 && stat.Type != snapshot.Dir {
			ino := [2]uint64{stat.Device, stat.Inode}
			first, ok := groups[ino]
			if !ok {
				first = e.Path()
				groups[ino] = first
			}
			binary.LittleEndian.PutUint64(e.Group[:], stat.Inode)
			if ok {
				if _, err := r.Link(e, first); err != nil {
					t.Fatal(err)
				}
				continue
			}
		}
		n, err := r.Add(e, xattrs, extents)
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != snapshot.File {
			continue
		}
		if !e.Sparse {
			extents = []snapshot.Extent{{Length: e.Size}}
		}
		for _, x := range extents {
			if len(e.Inline) > 0 {
				break
			}
			if err := r.Write(n, int64(x.Offset), content[:x.Length]); err != nil {
				t.Fatal(err)
			}
			content = content[x.Length:]
		}
		if err := r.Finish(n); err != nil {
			t.Fatal(err)
		}
	}
	r.finish()
	treetest.Same(t, from, to)
}
