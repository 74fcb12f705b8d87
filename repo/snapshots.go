package repo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/id"
	"orlop/seal"
	"orlop/snapshot"
	"orlop/store"
)

// snapshotMagic opens a snapshot object.
const snapshotMagic = "orlop\x00S1"

// maxSnapshot bounds a snapshot object: it holds no tree, only its root.
const maxSnapshot = 16 << 20

// A Snapshot is a snapshot and its name.
type Snapshot struct {
	ID      id.Snapshot
	Session id.Session
	Writer  seal.Writer // whose it is, and all its blobs
	*snapshot.Snapshot
}

// NameKey returns the key that names the blobs of s.
func (r *Repo) NameKey(s Snapshot) ([32]byte, error) {
	key, err := r.Key()
	if err != nil {
		return [32]byte{}, err
	}
	return key.NameKeyOf(s.Writer), nil
}

// sealSnapshot lays out a snapshot object: magic, session header, sealed CBOR.
func (r *Repo) sealSnapshot(session *seal.Session, s *snapshot.Snapshot) ([]byte, error) {
	plain, err := s.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode the snapshot: %w", err)
	}
	return session.SealSnapshot(session.Header().Append([]byte(snapshotMagic)), plain), nil
}

func (r *Repo) openSnapshot(object []byte, sid id.Session) (*snapshot.Snapshot, seal.Writer, error) {
	key, err := r.Key()
	if err != nil {
		return nil, 0, err
	}
	const head = len(snapshotMagic) + seal.HeaderSize
	if len(object) < head || !bytes.HasPrefix(object, []byte(snapshotMagic)) {
		return nil, 0, fmt.Errorf("%w: no %q at its start", ErrFormat, snapshotMagic)
	}
	header, err := seal.ParseHeader(object[len(snapshotMagic):head])
	if err != nil {
		return nil, 0, err
	}
	if header.SID != sid {
		return nil, 0, fmt.Errorf("%w: it is of session %s", ErrFormat, header.SID)
	}
	reader, err := key.OpenSession(r.config.Repository, header)
	if err != nil {
		return nil, 0, err
	}
	plain, err := reader.OpenSnapshot(nil, object[head:])
	if err != nil {
		return nil, 0, err
	}
	opened, err := snapshot.Unmarshal(plain)
	return opened, header.Writer, err
}

// Snapshots returns the snapshots that are listed now, oldest first, and what
// is wrong with those that cannot be read. One that was put by a session that
// was given up before it was acknowledged is not shown.
func (r *Repo) Snapshots(ctx context.Context) ([]Snapshot, []*DamageError, error) {
	if _, err := r.Key(); err != nil {
		return nil, nil, err
	}
	var names []store.Info
	for o, err := range r.store.List(ctx, snapshotPrefix) {
		if err != nil {
			return nil, nil, err
		}
		names = append(names, o)
	}
	e, err := r.listEphemeral(ctx)
	if err != nil {
		return nil, nil, err
	}
	var (
		mu     sync.Mutex
		got    []Snapshot
		broken []*DamageError
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchAtOnce)
	for _, o := range names {
		g.Go(func() error {
			s, err := r.readSnapshot(gctx, o)
			var d *DamageError
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && e.fenced[s.Session] && !e.done[s.Session]:
			case err == nil:
				got = append(got, s)
			case errors.As(err, &d):
				broken = append(broken, d)
			case errors.Is(err, fs.ErrNotExist): // forgotten meanwhile
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(got, func(a, b Snapshot) int {
		return cmp.Or(a.Started.Compare(b.Started), a.Finished.Compare(b.Finished), a.ID.Compare(b.ID))
	})
	slices.SortFunc(broken, func(a, b *DamageError) int { return cmp.Compare(a.Name, b.Name) })
	return got, broken, nil
}

func (r *Repo) readSnapshot(ctx context.Context, o store.Info) (Snapshot, error) {
	sid, want, ok := parseSnapshotName(o.Name)
	if !ok {
		return Snapshot{}, &DamageError{Name: o.Name, Err: errors.New("this is not a snapshot's name")}
	}
	if o.Size > maxSnapshot {
		return Snapshot{}, &DamageError{Name: o.Name, Err: fmt.Errorf("%d bytes are too many for a snapshot", o.Size)}
	}
	object, err := r.store.Get(ctx, o.Name, 0, -1)
	if err != nil {
		return Snapshot{}, err
	}
	if id.Sum[id.Snapshot](object) != want {
		return Snapshot{}, &DamageError{Name: o.Name, Err: errors.New("its bytes do not have its name")}
	}
	s, w, err := r.openSnapshot(object, sid)
	if err != nil {
		return Snapshot{}, &DamageError{Name: o.Name, Err: err}
	}
	return Snapshot{ID: want, Session: sid, Writer: w, Snapshot: s}, nil
}

// Newest returns the newest of snapshots that are in order of time. One that
// another names as its previous is not the newest, whatever the clock of the
// host said when it was made.
func Newest(all []Snapshot) (newest Snapshot, ok bool) {
	previous := make(map[id.Snapshot]bool, len(all))
	for _, s := range all {
		previous[s.Previous] = true
	}
	for _, s := range slices.Backward(all) {
		if !previous[s.ID] {
			return s, true
		}
	}
	return Snapshot{}, false
}

// HasSnapshot reports whether a snapshot is still listed.
func (r *Repo) HasSnapshot(ctx context.Context, sid id.Session, s id.Snapshot) (bool, error) {
	want := snapshotName(sid, s)
	for o, err := range r.store.List(ctx, want) {
		if err != nil {
			return false, err
		}
		if o.Name == want {
			return true, nil
		}
	}
	return false, nil
}
