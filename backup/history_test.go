package backup_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"orlop/backup"
	"orlop/chunk"
	"orlop/repo"
	"orlop/seal"
	"orlop/store"
	"orlop/store/storetest"
	"orlop/treetest"
)

// A key that is the same at every run, so that cuts, names and with them all
// sizes are.
const fixedKey = "orlop-key-1-wixwb5qy-x2d466rx-x463bwdy-2bzikpam-t7nhs5ja-gnckdkpd-fsp4d6il-gbzf263z-aoedgrcv-z63lpib7-q3rgjumr-ifewutvr-g5rlrm37-7mkky"

// A spent is what one backup cost.
type spent struct {
	Puts, Gets, Lists int
	Put, Got          int64 // bytes; the snapshot object is not among those put
	snapshot          int64 // its bytes
	index             int64 // bytes written into the local index
	merge             merge // of segments, not among those above
}

// A merge made one segment of some.
type merge struct {
	segments    int
	read, wrote int64 // bytes
}

// A host that keeps backing up pays for what changed, not for how often it did
// so before: neither at the store, to the byte, nor on its own disk.
//
// Once in 33 backups the 33 segments since the last time become one: each is
// read once more, and that one is put. So a backup costs one get and a 33rd of
// a put more than what is asserted of it, however many there were. List pages
// are counted apart: a list has as many entries as there are objects.
func TestBackup500CostsWhatBackup5Did(t *testing.T) {
	const backups, files, segments = 500, 20, 33
	key, err := seal.ParseText(fixedKey)
	must(t, err)
	g := &rig{st: store.NewMem(), key: key, cache: fast(t), src: t.TempDir()}
	_, err = repo.Init(t.Context(), g.st, key, text(key), cut(t, chunk.Gear))
	must(t, err)
	path := func(i int) string { return filepath.Join(g.src, fmt.Sprint("file-", i%files)) }
	put := func(i int, data []byte) {
		write(t, path(i), data)
		must(t, os.Chmod(path(i), 0o644))
		must(t, os.Chtimes(path(i), time.Time{}, time.Unix(1_700_000_000, 0)))
	}
	for i := range files {
		put(i, treetest.Bytes(fmt.Sprint(i), 3000))
	}
	must(t, os.Chtimes(g.src, time.Time{}, time.Unix(1_700_000_000, 0)))

	var index int64
	g.log = slog.New(slog.NewTextHandler(lines(func(line string) {
		if _, n, ok := strings.Cut(line, " bytes="); ok && strings.Contains(line, "local index file") {
			bytes, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			must(t, err)
			index += bytes
		}
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))
	log := &storetest.Log{Store: g.st}
	all := make([]spent, 0, backups)
	for i := range backups {
		put(i, treetest.Bytes(fmt.Sprint("change ", i), 3000))
		log.Reset()
		index = 0
		_, err := g.try(t.Context(), log, backup.Options{})
		must(t, err)
		s := spent{
			Puts: len(log.Ops(storetest.Put, "")), Gets: len(log.Ops(storetest.Get, "")), Lists: len(log.Ops(storetest.List, "")),
			Put: log.Bytes(storetest.Put), Got: log.Bytes(storetest.Get), index: index,
		}
		s.snapshot = size(t, log.Ops(storetest.Put, "snapshots/")...)
		s.Put -= s.snapshot
		if wrote := log.Ops(storetest.Put, "index/1-"); len(wrote) > 0 {
			read := log.Ops(storetest.Get, "index/")
			s.merge.segments, s.merge.read, s.merge.wrote = len(read), size(t, read...), size(t, wrote...)
			s.Puts, s.Gets = s.Puts-len(wrote), s.Gets-len(read)
			s.Put, s.Got = s.Put-s.merge.wrote, s.Got-s.merge.read
		}
		all = append(all, s)
	}

	for i, s := range all[2:] { // the first two find no parent, and no old cuts
		i, like := i+2, all[4]
		if s.Puts != like.Puts || s.Gets != like.Gets || s.Lists != like.Lists || s.Put != like.Put || s.Got != like.Got {
			t.Errorf("backup %d cost %+v, backup 5 %+v", i+1, s, like)
		}
		// Its number in the series, and nanoseconds, are as long as they are.
		if d := s.snapshot - like.snapshot; d < -12 || d > 12 {
			t.Errorf("backup %d put a snapshot of %d bytes, backup 5 one of %d", i+1, s.snapshot, like.snapshot)
		}
		want := merge{}
		if (i+1)%segments == 0 {
			want = all[2*segments-1].merge
		}
		if i >= segments && s.merge != want || s.merge.segments != want.segments || want.segments%segments != 0 {
			t.Errorf("backup %d merged %+v, backup 66 %+v", i+1, s.merge, all[2*segments-1].merge)
		}
	}
	// The local index is a few sorted runs. To merge them costs more the more
	// they hold, by as much as a logarithm grows.
	early, late := mean(all[50:150]), mean(all[400:])
	if late > early*5/4 {
		t.Errorf("backups 401 to 500 wrote %d bytes each into the local index, 51 to 150 %d", late, early)
	}
	t.Logf("backup 5 %+v; backup 500 %+v; merged %+v; local index %d and %d bytes a backup", all[4], all[backups-1], all[2*segments-1].merge, early, late)
	if n := g.check(t); n != backups {
		t.Errorf("%d snapshots", n)
	}
}

// size adds up the bytes that lines of a store's log say were moved.
func size(t testing.TB, lines ...string) (sum int64) {
	t.Helper()
	for _, l := range lines {
		n, err := strconv.ParseInt(l[strings.LastIndexByte(l, ' ')+1:], 10, 64)
		must(t, err)
		sum += n
	}
	return sum
}

func mean(all []spent) (n int64) {
	for _, s := range all {
		n += s.index
	}
	return n / int64(len(all))
}

// lines is a writer that calls itself with each line of a log.
type lines func(line string)

func (f lines) Write(p []byte) (int, error) {
	f(string(p))
	return len(p), nil
}
