// Package repo is the engine room: what a store's objects mean together.
//
// A repository is opened with a key ([Open]). Whoever holds a [seal.Key] can
// read: [Repo.Snapshots], [Repo.Load], [Repo.Fetch], [Repo.Check]. Any key can
// add: [Repo.NewWriter]. Nothing in this package deletes or overwrites.
//
// # What may be believed
//
// The store is not trusted: every object is checked against its name or its
// seal, and every blob's name is computed again when it is read. The local
// index is a cache: what it says is checked by what is read because of it.
//
// The orders of operations in this package are the protocol of docs/design.md,
// "Writing and deleting without locks". Each is explained at its line.
package repo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"

	"orlop/chunk"
	"orlop/id"
	"orlop/index"
	"orlop/local"
	"orlop/seal"
	"orlop/store"
)

// Errors of opening and making repositories.
var (
	ErrNoRepository = errors.New("there is no repository here")
	ErrExists       = errors.New("there is a repository here already")
	ErrDamaged      = errors.New("damaged") // every DamageError is one
)

// A DamageError says that stored bytes are not what was written. It is final:
// trying again will not help, another copy of the object might.
type DamageError struct {
	Name store.Name // the object that is damaged or missing
	Blob id.Blob    // the blob within it, or zero
	Err  error      // what was noticed
}

// Error implements error.
func (e *DamageError) Error() string {
	what := string(e.Name)
	if what == "" {
		what = "the repository"
	}
	if e.Blob.IsZero() {
		return fmt.Sprintf("%s is damaged: %v", what, e.Err)
	}
	return fmt.Sprintf("%s is damaged at blob %s: %v", what, e.Blob.Short(), e.Err)
}

// Unwrap makes a DamageError an ErrDamaged as well as what caused it.
func (e *DamageError) Unwrap() []error { return []error{ErrDamaged, e.Err} }

// A Repo is an open repository. Its reading methods may be called
// concurrently; there is at most one Writer at a time.
type Repo struct {
	store  store.Store
	sealer seal.Sealer
	key    *seal.Key // nil when the key is put-only
	config Config
	local  *local.Dir
	index  *index.Index
	log    *slog.Logger

	boxes *boxCache

	mu sync.Mutex
	view
}

// Where the objects of each kind live.
const (
	configName     store.Name = "config"
	keyPrefix      store.Name = "keys/"
	packPrefix     store.Name = "packs/"
	indexPrefix    store.Name = "index/"
	snapshotPrefix store.Name = "snapshots/"
)

func slotName(i id.Slot) store.Name { return keyPrefix + store.Name(i.String()) }
func packName(i id.Pack) store.Name { return packPrefix + store.Name(i.String()) }

func segmentName(tier int, i id.Segment) store.Name {
	return indexPrefix + store.Name(fmt.Sprintf("%d-%s", tier, i))
}

func parseSegmentName(n store.Name) (tier int, i id.Segment, ok bool) {
	rest := strings.TrimPrefix(string(n), string(indexPrefix))
	if len(rest) < 2 || rest[1] != '-' || rest[0] < '0' || rest[0] > '9' {
		return 0, i, false
	}
	i, err := id.Parse[id.Segment](rest[2:])
	return int(rest[0] - '0'), i, err == nil
}

func snapshotName(sid id.Session, i id.Snapshot) store.Name {
	return snapshotPrefix + store.Name(sid.String()+"-"+i.String())
}

func parseSnapshotName(n store.Name) (sid id.Session, i id.Snapshot, ok bool) {
	left, right, found := strings.Cut(strings.TrimPrefix(string(n), string(snapshotPrefix)), "-")
	if !found {
		return sid, i, false
	}
	sid, err := id.ParseSession(left)
	if err != nil {
		return sid, i, false
	}
	i, err = id.Parse[id.Snapshot](right)
	return sid, i, err == nil
}

// Init makes a repository in an empty store and gives it one key slot.
//
// The slot is put before config, and config is what makes a repository: a
// crash in between leaves a slot from which config can be rebuilt.
func Init(ctx context.Context, st store.Store, k *seal.Key, secret seal.Secret, cut chunk.Config) (Config, error) {
	if err := cut.Validate(); err != nil {
		return Config{}, err
	}
	if err := vacant(ctx, st); err != nil {
		return Config{}, err
	}
	c := NewConfig(cut)
	return c, InitAs(ctx, st, c, k, secret)
}

// NewConfig draws a repository's id and fixes how it will be written.
func NewConfig(cut chunk.Config) Config {
	c := Config{
		clearConfig{Version: Version},
		sealedConfig{Chunk: cut, ClassRules: classRules, Padding: paddingRule},
	}
	_, _ = rand.Read(c.Repository[:]) // crypto/rand never fails
	return c
}

// InitAs is Init for a Config that was drawn before, so that a key file named
// after the repository can be safe on disk before the repository exists.
func InitAs(ctx context.Context, st store.Store, c Config, k *seal.Key, secret seal.Secret) error {
	if err := vacant(ctx, st); err != nil {
		return err
	}
	slot, err := seal.SealSlot(k, secret, c.slotCopy())
	if err != nil {
		return fmt.Errorf("make a key slot: %w", err)
	}
	for _, o := range []struct {
		name store.Name
		data []byte
	}{
		{slotName(id.Sum[id.Slot](slot)), slot},
		{configName, c.object(k)},
	} {
		if err := st.Put(ctx, o.name, o.data); err != nil {
			return err
		}
	}
	return nil
}

// vacant refuses to make a repository where there are objects already.
func vacant(ctx context.Context, st store.Store) error {
	for o, err := range st.List(ctx, "") {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w (found %s)", ErrExists, o.Name)
	}
	return nil
}

// Peek returns the id of the repository in st without a key, or the zero id
// when config is gone. It returns [ErrNoRepository] if there is nothing at all.
func Peek(ctx context.Context, st store.Store) (id.Repository, error) {
	object, err := st.Get(ctx, configName, 0, -1)
	if err == nil {
		c, _, _, err := split(object)
		if err != nil && !errors.Is(err, ErrFormat) {
			return id.Repository{}, err
		}
		return c.Repository, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return id.Repository{}, err
	}
	for _, err := range st.List(ctx, keyPrefix) {
		if err != nil {
			return id.Repository{}, err
		}
		return id.Repository{}, nil
	}
	return id.Repository{}, ErrNoRepository
}

// A KeyText opens a repository that has lost all its slots. A [seal.Secret]
// alone cannot.
type KeyText = string

// Options are what Open needs beside the store and the secret.
type Options struct {
	Text  KeyText      // the generated key, if the secret is one; may be ""
	Cache string       // directory below which this host remembers
	Log   *slog.Logger // may be nil
}

// Open opens a repository with a secret. It returns [ErrNoRepository],
// [seal.ErrWrongSecret], a *[DamageError] or what the store returned.
func Open(ctx context.Context, st store.Store, secret seal.Secret, opt Options) (*Repo, error) {
	r := &Repo{store: st, log: opt.Log, boxes: newBoxCache(boxCacheBytes)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if err := r.unlock(ctx, secret, opt.Text); err != nil {
		return nil, err
	}
	r.key, _ = r.sealer.(*seal.Key)
	var err error
	if r.local, err = local.Open(opt.Cache, r.config.Repository); err != nil {
		return nil, fmt.Errorf("open the local state: %w", err)
	}
	if r.index, err = index.Open(r.local.Index(), r.config.Repository, r.log); err != nil {
		return nil, fmt.Errorf("open the local index: %w", err)
	}
	return r, nil
}

// Close releases the local files.
func (r *Repo) Close() error { return r.index.Close() }

// ID returns the repository's id.
func (r *Repo) ID() id.Repository { return r.config.Repository }

// Config returns what was decided when the repository was made.
func (r *Repo) Config() Config { return r.config }

// Sealer returns the key the repository was opened with, as a writer sees it.
func (r *Repo) Sealer() seal.Sealer { return r.sealer }

// Log returns the log that Open was given.
func (r *Repo) Log() *slog.Logger { return r.log }

// Local returns what this host remembers of the repository.
func (r *Repo) Local() *local.Dir { return r.local }

// Key returns the key that reads, or [seal.ErrPutOnly].
func (r *Repo) Key() (*seal.Key, error) {
	if r.key == nil {
		return nil, seal.ErrPutOnly
	}
	return r.key, nil
}

// unlock finds a slot that the secret opens, and the config that belongs to
// it. Config and slots repair each other: config is rebuilt from a slot, and a
// generated key needs no slot at all.
func (r *Repo) unlock(ctx context.Context, secret seal.Secret, text KeyText) error {
	object, err := r.store.Get(ctx, configName, 0, -1)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	var damage error // a slot that might have been the right one
	slots := 0
	for o, err := range r.store.List(ctx, keyPrefix) {
		if err != nil {
			return err
		}
		slots++
		config, err := r.trySlot(ctx, o.Name, secret)
		switch {
		case err == nil:
			return r.settle(ctx, config, object, missing)
		case errors.Is(err, seal.ErrWrongSecret):
		case errors.Is(err, ErrDamaged):
			r.log.Warn("a key slot is damaged", "slot", o.Name, "error", err)
			damage = err
		default:
			return err
		}
	}
	if text != "" && !missing {
		if config, err := r.withoutSlots(text, object); err == nil {
			r.log.Warn("no key slot opens with this key; it was used by itself")
			r.config = config
			return nil
		}
	}
	switch {
	case missing && slots == 0:
		return ErrNoRepository
	case damage != nil:
		return damage
	case slots == 0:
		return &DamageError{Name: keyPrefix, Err: errors.New("all key slots are gone")}
	}
	return seal.ErrWrongSecret
}

// trySlot opens one slot and sets the key.
func (r *Repo) trySlot(ctx context.Context, name store.Name, secret seal.Secret) (Config, error) {
	object, err := r.store.Get(ctx, name, 0, -1)
	if err != nil {
		return Config{}, err
	}
	if slotName(id.Sum[id.Slot](object)) != name {
		return Config{}, &DamageError{Name: name, Err: errors.New("its bytes do not have its name")}
	}
	sealer, copied, err := seal.OpenSlot(object, secret)
	if errors.Is(err, seal.ErrWrongSecret) {
		return Config{}, err
	}
	if err != nil {
		return Config{}, &DamageError{Name: name, Err: err}
	}
	config, err := parseSlotCopy(copied)
	if err != nil {
		return Config{}, fmt.Errorf("config in %s: %w", name, err)
	}
	r.sealer = sealer
	return config, nil
}

// settle compares config with the slot's copy of it, and puts it back when it
// is gone. The slot is believed: its bytes have the name and the seal of one.
func (r *Repo) settle(ctx context.Context, config Config, object []byte, missing bool) error {
	r.config = config
	key, reads := r.sealer.(*seal.Key)
	if missing {
		if !reads {
			return nil
		}
		r.log.Warn("config was missing; it is rebuilt from a key slot")
		if err := r.store.Put(ctx, configName, config.object(key)); err != nil && !errors.Is(err, fs.ErrExist) {
			r.log.Warn("config could not be put back", "error", err)
		}
		return nil
	}
	if err := r.sameConfig(object); err != nil {
		r.log.Warn("config is damaged; the copy in a key slot is used", "error", err)
	}
	return nil
}

// sameConfig says what is wrong with the object `config`.
func (r *Repo) sameConfig(object []byte) error {
	c, clear, _, err := split(object)
	if err != nil {
		return err
	}
	if c != r.config.clearConfig {
		return fmt.Errorf("%w: it is another repository's, or changed", ErrFormat)
	}
	if want, _ := r.config.encode(); string(want) != string(clear) {
		return fmt.Errorf("%w: its clear part is not canonical", ErrFormat)
	}
	if key, ok := r.sealer.(*seal.Key); ok {
		got, err := openConfig(object, key)
		if err != nil {
			return err
		}
		if got != r.config {
			return fmt.Errorf("%w: it differs from the key slot's copy", ErrFormat)
		}
	}
	return nil
}

func (r *Repo) withoutSlots(text KeyText, object []byte) (Config, error) {
	key, err := seal.ParseText(text)
	if err != nil {
		return Config{}, err
	}
	config, err := openConfig(object, key)
	if err != nil {
		return Config{}, err
	}
	r.sealer = key
	return config, nil
}
