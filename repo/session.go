package repo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"orlop/id"
	"orlop/store"
)

// Objects under ephemeral/ say who is at work and what is going. They are not
// sealed: nothing in them is secret, and nothing is deleted because of one
// alone. docs/format.md has their tables.
const ephemeralPrefix store.Name = "ephemeral/"

const (
	markMagic    = "orlop\x00E1" // all of an open, done, beat or fence object
	condemnMagic = "orlop\x00X1" // a condemn record: packs that will be deleted
)

func openName(s id.Session) store.Name  { return ephemeralPrefix + store.Name("open/"+s.String()) }
func doneName(s id.Session) store.Name  { return ephemeralPrefix + store.Name("done/"+s.String()) }
func fenceName(s id.Session) store.Name { return ephemeralPrefix + store.Name("fence/"+s.String()) }

func beatName(s id.Session, n int) store.Name {
	return ephemeralPrefix + store.Name(fmt.Sprintf("beat/%s/%d", s, n))
}

// ephemeral is one listing of ephemeral/.
type ephemeral struct {
	open, done, fenced map[id.Session]bool
	condemns           []store.Name
	unknown            []store.Name
}

func (r *Repo) listEphemeral(ctx context.Context) (*ephemeral, error) {
	e := &ephemeral{open: map[id.Session]bool{}, done: map[id.Session]bool{}, fenced: map[id.Session]bool{}}
	for o, err := range r.store.List(ctx, ephemeralPrefix) {
		if err != nil {
			return nil, err
		}
		kind, rest, _ := strings.Cut(strings.TrimPrefix(string(o.Name), string(ephemeralPrefix)), "/")
		owner, _, _ := strings.Cut(rest, "/")
		sid, err := id.ParseSession(owner)
		switch {
		case kind == "open" && err == nil:
			e.open[sid] = true
		case kind == "done" && err == nil:
			e.done[sid] = true
		case kind == "fence" && err == nil:
			e.fenced[sid] = true
		case kind == "condemn":
			e.condemns = append(e.condemns, o.Name)
		case kind == "beat" && err == nil, kind == "wait":
		default:
			e.unknown = append(e.unknown, o.Name)
		}
	}
	return e, nil
}

// condemned returns every pack that a condemn record names. A record that is
// gone by the time it is read has no pack left to protect from: it is deleted
// only when all its packs are.
func (r *Repo) condemned(ctx context.Context, e *ephemeral) (map[id.Pack]bool, error) {
	packs := map[id.Pack]bool{}
	for _, name := range e.condemns {
		data, err := r.store.Get(ctx, name, 0, -1)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		named, err := parseCondemn(data)
		if err != nil {
			// Without it nobody can say which packs are safe to rely on.
			return nil, &DamageError{Name: name, Err: err}
		}
		for _, p := range named {
			packs[p] = true
		}
	}
	return packs, nil
}

// encodeCondemn lays out a condemn record: magic, count, packs, sum of all
// that precedes it.
func encodeCondemn(packs []id.Pack) []byte {
	out := binary.LittleEndian.AppendUint32([]byte(condemnMagic), uint32(len(packs)))
	for _, p := range packs {
		out = append(out, p[:]...)
	}
	sum := id.Sum[id.Pack](out)
	return append(out, sum[:]...)
}

func parseCondemn(data []byte) ([]id.Pack, error) {
	const head = len(condemnMagic) + 4
	if len(data) < head+id.Size || string(data[:len(condemnMagic)]) != condemnMagic {
		return nil, fmt.Errorf("%w: not a condemn record", ErrFormat)
	}
	body, sum := data[:len(data)-id.Size], data[len(data)-id.Size:]
	if got := id.Sum[id.Pack](body); string(got[:]) != string(sum) {
		return nil, fmt.Errorf("%w: its sum is wrong", ErrFormat)
	}
	n := binary.LittleEndian.Uint32(body[len(condemnMagic):])
	if uint64(len(body)-head) != uint64(n)*id.Size {
		return nil, fmt.Errorf("%w: %d packs in %d bytes", ErrFormat, n, len(body)-head)
	}
	packs := make([]id.Pack, n)
	for i := range packs {
		copy(packs[i][:], body[head+i*id.Size:])
	}
	return packs, nil
}
