package agent

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// smallChunks make trees of a few KiB have many blobs.
var smallChunks = chunk.Config{Algorithm: chunk.Gear, Min: 64, Avg: 256, Max: 1024}

var nameKey = [32]byte{1}

func request(root string) BackupRequest {
	return BackupRequest{Root: root, Chunk: smallChunks, ChunkSecret: [32]byte{2}, NameKey: nameKey}
}

// A shelf is a receiver that keeps everything in memory.
type shelf struct {
	wantNone bool
	noRead   bool
	olds     map[string][]snapshot.Ref // by path

	entries []Stat
	refs    map[uint64]map[uint8][roles][]snapshot.Ref
	files   map[string]*File

	mu    sync.Mutex
	blobs map[id.Blob][]byte
	boxes int
}

func newShelf() *shelf {
	return &shelf{
		refs: make(map[uint64]map[uint8][roles][]snapshot.Ref), files: make(map[string]*File),
		blobs: make(map[id.Blob][]byte),
	}
}

func (s *shelf) Entries(_ context.Context, first uint64, batch []Stat) ([]Answer, error) {
	if int(first) != len(s.entries) {
		return nil, fmt.Errorf("entry %d after %d", first, len(s.entries))
	}
	s.entries = append(s.entries, batch...)
	answers := make([]Answer, len(batch))
	for i := range answers {
		answers[i] = Answer{Read: !s.noRead, Old: s.olds[batch[i].Path()]}
	}
	return answers, nil
}

func (s *shelf) Offers(_ context.Context, offers []Offer) ([]bool, error) {
	want := make([]bool, len(offers))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range offers {
		if s.refs[o.N] == nil {
			s.refs[o.N] = make(map[uint8][roles][]snapshot.Ref)
		}
		all := s.refs[o.N][o.Attempt]
		all[o.Role] = append(all[o.Role], o.Ref)
		s.refs[o.N][o.Attempt] = all
		_, have := s.blobs[o.Ref.Name]
		want[i] = !have && !s.wantNone
	}
	return want, nil
}

func (s *shelf) Box(_ context.Context, b Box) error {
	plain, err := box.Decode(nil, b.Codec, b.Raw, b.Payload)
	if err != nil {
		return err
	}
	blobs, err := box.Blobs(plain)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes++
	for i, x := range b.Blobs {
		if _, twice := s.blobs[x.Name]; twice {
			return fmt.Errorf("blob %s came twice", x.Name)
		}
		s.blobs[x.Name] = blobs[i].Data
	}
	return nil
}

func (s *shelf) File(_ context.Context, f *File) error {
	if s.files[f.Stat.Path()] != nil {
		return fmt.Errorf("%s was filed twice", f.Stat.Path())
	}
	s.files[f.Stat.Path()] = f
	return nil
}

func (s *shelf) stream(f *File, role Role) []byte {
	if role == Content && len(f.Inline) > 0 {
		return f.Inline
	}
	var all []byte
	for _, ref := range s.refs[f.N][f.Attempt][role] {
		all = append(all, s.blobs[ref.Name]...)
	}
	return all
}

// bytes returns a file as it was backed up, holes and all.
func (s *shelf) bytes(t *testing.T, path string) []byte {
	t.Helper()
	f := s.files[path]
	if f == nil {
		t.Fatalf("%s was not backed up", path)
	}
	if f.Outcome > Torn {
		t.Fatalf("%s: %v: %s", path, f.Outcome, f.Reason)
	}
	content := s.stream(f, Content)
	if !f.Sparse {
		return content
	}
	extents := f.Extents
	if f.Refs[Map] > 0 {
		var err error
		if extents, err = snapshot.DecodeExtents(s.stream(f, Map)); err != nil {
			t.Fatal(err)
		}
	}
	if err := snapshot.ValidExtents(extents, f.Stat.Size, uint64(len(content))); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	all := make([]byte, f.Stat.Size)
	for _, x := range extents {
		content = content[copy(all[x.Offset:x.End()], content):]
	}
	return all
}

// pair joins a client and an agent by a socket pair.
func pair(t testing.TB, host, agent settings) *Client {
	t.Helper()
	h, a := socketPair(t)
	return joined(t, host, agent, h, a)
}

func socketPair(t testing.TB) (host, agent *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "agent")
}

func joined(t testing.TB, host, agent settings, h, a io.ReadWriteCloser) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	served := make(chan error, 1)
	go func() { served <- serve(ctx, a, agent) }()
	c, err := newClient(ctx, h, TransportSocket, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-served
		cancel()
	})
	return c
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// noise returns n bytes that depend on seed.
func noise(n int, seed byte) []byte {
	p := make([]byte, n)
	x := uint64(seed) + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x)
	}
	return p
}

func TestABackupHasEveryByte(t *testing.T) {
	root := t.TempDir()
	want := map[string][]byte{
		"empty": nil, "inline": []byte("x"), "blob": noise(600, 1), "big": noise(300_000, 2), "same": noise(300_000, 2),
		"dir/a": noise(5000, 3), "dir-b/c": noise(100, 4), "dir/sub/z": noise(513, 5), "limit": noise(512, 6),
	}
	for path, data := range want {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, path), data)
	}
	for _, transport := range []string{"pair", "local"} {
		t.Run(transport, func(t *testing.T) {
			var c *Client
			if transport == "local" {
				var err error
				if c, err = Local(t.Context()); err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			} else {
				c = pair(t, usual(), usual())
			}
			for range 2 { // one client, several backups
				s := newShelf()
				totals, err := c.Backup(t.Context(), request(root), s)
				if err != nil {
					t.Fatal(err)
				}
				for path, data := range want {
					if got := s.bytes(t, path); string(got) != string(data) {
						t.Errorf("%s: %d bytes, want %d", path, len(got), len(data))
					}
				}
				if totals.Entries != 13 || totals.Files != 13 || totals.ProblemCount != 0 {
					t.Errorf("%+v, want 13 entries", totals)
				}
				if !slices.IsSortedFunc(s.entries, func(a, b Stat) int {
					return snapshot.Compare(a.Dir, a.Name, b.Dir, b.Name)
				}) {
					t.Error("entries are not in order")
				}
				if len(maps.Collect(maps.All(s.files))) != 13 {
					t.Errorf("%d files, want 13", len(s.files))
				}
			}
		})
	}
}

// cuts returns the content refs of all files by path.
func (s *shelf) cuts() map[string][]snapshot.Ref {
	cuts := make(map[string][]snapshot.Ref)
	for path, f := range s.files {
		cuts[path] = s.refs[f.N][f.Attempt][Content]
	}
	return cuts
}

// drop is a receiver that keeps nothing.
type drop struct{ read, want bool }

func (d drop) Entries(_ context.Context, _ uint64, batch []Stat) ([]Answer, error) {
	answers := make([]Answer, len(batch))
	for i := range answers {
		answers[i].Read = d.read
	}
	return answers, nil
}

func (d drop) Offers(_ context.Context, offers []Offer) ([]bool, error) {
	want := make([]bool, len(offers))
	for i := range want {
		want[i] = d.want
	}
	return want, nil
}

func (drop) Box(context.Context, Box) error    { return nil }
func (drop) File(context.Context, *File) error { return nil }
