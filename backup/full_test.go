package backup_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"orlop/backup"
)

// Wherever the disk of the repository is full, the backup says so, the
// snapshots that were there restore, and with room again the next one succeeds.
func TestABackupSurvivesAFullDisk(t *testing.T) {
	disk := t.TempDir()
	path := filepath.Join(disk, "repo")
	const page = 4096
	if !mount(t, "tmpfs", disk, "size=64m") {
		fullByLimit(t, path)
		return
	}
	resize := func(options string) {
		t.Helper()
		must(t, syscall.Mount("", disk, "", syscall.MS_REMOUNT, options))
	}
	g := newDirRig(t, path, small)
	tiny(t, g.src)
	old := g.settle(t)
	before := g.restore(t, old.Snapshot)
	fired := 0
	try := func(what string, shrink func(free int) string) bool {
		t.Helper()
		change(t, g.src, what)
		var fs syscall.Statfs_t
		must(t, syscall.Statfs(disk, &fs))
		resize(shrink(int(fs.Blocks - fs.Bfree)))
		s, err := g.try(t.Context(), g.st, backup.Options{})
		if err == nil {
			g.holds(t, s.Snapshot, g.src)
		} else {
			fired++
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "put ") {
				t.Errorf("%s: %v", what, err)
			}
		}
		g.holds(t, old.Snapshot, before)
		resize("size=64m,nr_inodes=0")
		g.holds(t, g.whole(t).Snapshot, g.src)
		g.check(t)
		if t.Failed() {
			t.Fatalf("after %s", what)
		}
		return err == nil
	}
	for free := 1; !try(fmt.Sprint("pages", free), func(used int) string {
		return fmt.Sprintf("size=%d,nr_inodes=0", (used+free)*page)
	}); free++ {
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 8 {
		t.Errorf("only %d faults fired", fired)
	}
}

// fullByLimit is for who may not mount: no file may grow beyond a limit.
func fullByLimit(t *testing.T, path string) {
	g := newDirRig(t, path, small)
	tiny(t, g.src)
	old := g.settle(t)
	before := g.restore(t, old.Snapshot)
	o := order{Store: path, Key: g.key.Text(), Cache: g.cache, Src: g.src, At: -1}
	fired := 0
	for o.FileSize = 1; ; o.FileSize *= 2 {
		change(t, g.src, fmt.Sprint(o.FileSize))
		s, _, err := send(t, o)
		if err == nil {
			g.holds(t, s, g.src)
			break
		}
		fired++
		if !strings.Contains(err.Error(), "file too large") {
			t.Errorf("files of %d bytes: %v", o.FileSize, err)
		}
		g.holds(t, old.Snapshot, before)
		g.holds(t, g.whole(t).Snapshot, g.src)
		g.check(t)
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 8 {
		t.Errorf("only %d faults fired", fired)
	}
}

// The same without the right to mount.
func TestABackupSurvivesFilesThatMayNotGrow(t *testing.T) {
	fullByLimit(t, filepath.Join(fast(t), "repo"))
}

// Nothing that this host remembers is worth more than a backup: with a full
// disk there the backup fails or succeeds, and the next one is right.
func TestAFullDiskUnderTheLocalStateHarmsNothing(t *testing.T) {
	g := newRig(t, small)
	tiny(t, g.src)
	disk := t.TempDir()
	// Without the right to mount, a directory that cannot be written to.
	mounted := mount(t, "tmpfs", disk, "size=64m")
	g.cache = disk
	shrink := func(free int) {
		var fs syscall.Statfs_t
		must(t, syscall.Statfs(disk, &fs))
		must(t, syscall.Mount("", disk, "", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", (int(fs.Blocks-fs.Bfree)+free)*4096)))
	}
	grow := func() { must(t, syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=64m")) }
	if !mounted {
		part := func(free int) string { return g.mustOpen(t).Local().Path([]string{"stats", "index", "runs"}[free/2%3]) }
		last := ""
		shrink = func(free int) { last = part(free); must(t, os.Chmod(last, 0o500)) }
		grow = func() { must(t, os.Chmod(last, 0o700)) }
	}
	old := g.settle(t)
	before := g.restore(t, old.Snapshot)
	fired := 0
	for free := 0; free < 40; free += 2 {
		change(t, g.src, fmt.Sprint(free))
		shrink(free)
		s, err := g.try(t.Context(), g.st, backup.Options{})
		if err == nil {
			g.holds(t, s.Snapshot, g.src)
		} else {
			fired++
		}
		grow()
		g.holds(t, g.whole(t).Snapshot, g.src)
	}
	g.holds(t, old.Snapshot, before)
	g.check(t)
	t.Logf("%d faults fired, 0 violations", fired)
	if fired == 0 {
		t.Error("the disk was never full")
	}
}
