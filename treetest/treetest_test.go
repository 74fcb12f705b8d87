//go:build linux

package treetest

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func isRoot() bool { return os.Geteuid() == 0 }

// fill makes the fixture that the user may make.
func fill(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if isRoot() {
		Fill(t, dir, false)
	} else {
		Small(t, dir)
	}
	return dir
}

func TestTwoFillsAreTheSame(t *testing.T) {
	Same(t, fill(t), fill(t))
}

func TestTwoBigFillsAreTheSameToTheEndOfTheDeepChain(t *testing.T) {
	if !isRoot() {
		return // Fill needs root, and Small is the test above
	}
	a, b := t.TempDir(), t.TempDir()
	Fill(t, a, true)
	Fill(t, b, true)
	Same(t, a, b)

	fd, err := openDir(unix.AT_FDCWD, b+"/big/deep")
	for range Deep {
		if err != nil {
			t.Fatal(err)
		}
		above := fd
		fd, err = openDir(above, "d")
		_ = unix.Close(above)
	}
	if err := errors.Join(err, unix.Fchmodat(fd, "end", 0o600, 0), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	diffs, err := Diff(a, b)
	if err != nil || len(diffs) != 1 || !strings.HasSuffix(diffs[0], `d/end": mode is 0600, want 0644`) {
		t.Errorf("differences %q, %v", diffs, err)
	}
}

// Each change of one thing is reported, by the name of what changed and of what
// is different about it, and nothing else is.
func TestEachKindOfDifferenceIsNoticed(t *testing.T) {
	tests := []struct {
		name   string
		root   bool // needs root
		change func(f *filler)
		want   []string
	}{
		{"a mode", false, func(f *filler) {
			f.must("", os.Chmod(f.path("sizes/1"), 0o600))
		}, []string{`"sizes/1": mode is 0600, want 0644`}},
		{"a set-user-ID bit", false, func(f *filler) {
			f.must("", unix.Chmod(f.path("modes/4755"), 0o755))
		}, []string{`"modes/4755": mode is 0755, want 4755`}},
		{"a sticky directory", false, func(f *filler) {
			f.must("", unix.Chmod(f.path("modes/dir-1777"), 0o777))
		}, []string{`"modes/dir-1777": mode is 0777, want 1777`}},
		{"the root's mode", false, func(f *filler) {
			f.must("", unix.Chmod(f.dir, 0o755))
		}, []string{`".": mode is 0755, want `}},
		{"an owner", true, func(f *filler) {
			f.must("", os.Lchown(f.path("kinds/fifo"), 5, -1))
		}, []string{`"kinds/fifo": uid is 5, want 0`}},
		{"a group", true, func(f *filler) {
			f.must("", os.Lchown(f.path("sizes/1"), -1, 5))
		}, []string{`"sizes/1": gid is 5, want 0`}},
		{"a symlink's owner", true, func(f *filler) {
			f.must("", os.Lchown(f.path("root/link"), 1, -1))
		}, []string{`"root/link": uid is 1, want 65534`}},
		{"the root's owner", true, func(f *filler) {
			f.must("", os.Chown(f.dir, 0, -1))
			f.must("", unix.Chmod(f.dir, 0o3751))
		}, []string{`".": uid is 0, want 70`}},
		{"a nanosecond", false, func(f *filler) {
			f.mtime("times/after-2038", unix.Timespec{Sec: 2_208_988_800, Nsec: 2})
		}, []string{`"times/after-2038": mtime is 2208988800.000000002, want 2208988800.000000001`}},
		{"a century", false, func(f *filler) {
			f.mtime("times/dir-before-1970", unix.Timespec{Sec: 4_280_784_356, Nsec: 987_654_321})
		}, []string{`"times/dir-before-1970": mtime is 4280784356.987654321, want -14182940.987654321`}},
		{"a symlink's time", false, func(f *filler) {
			f.mtime("times/link-epoch", unix.Timespec{Sec: 1})
		}, []string{`"times/link-epoch": mtime is 1.000000000, want 0.000000000`}},
		{"the root's time", false, func(f *filler) {
			f.mtime(".", unix.Timespec{Sec: 1})
		}, []string{`".": mtime is 1.000000000, want 1234567890.123456789`}},
		{"one byte", false, keep("sizes/random", func(f *filler) {
			f.write("sizes/random", 345_678, []byte{^Bytes("random", 700_000)[345_678]})
		}), []string{`"sizes/random": bytes differ`}},
		{"the last byte of a file with holes", false, keep("holes/tiny", func(f *filler) {
			f.write("holes/tiny", 99_999, []byte{2})
		}), []string{`"holes/tiny": bytes differ`}},
		{"a byte more", false, keep("sizes/513", func(f *filler) {
			f.write("sizes/513", 513, []byte{0})
		}), []string{`"sizes/513": size is 514, want 513`, `"sizes/513": bytes differ`}},
		{"a byte less", false, keep("sizes/1", func(f *filler) {
			f.must("", os.Truncate(f.path("sizes/1"), 0))
		}), []string{
			`"sizes/1": size is 0, want 1`, `"sizes/1": bytes differ`,
			`"sizes/1": data between holes is at [], want [[0 4096]]`,
		}},
		{"a hole filled with zeros", false, keep("holes/middle", func(f *filler) {
			f.write("holes/middle", 1<<20, make([]byte, 1<<20))
		}), []string{`"holes/middle": data between holes is at [[0 3145728]], want [[0 1048576] [2097152 3145728]]`}},
		{"zeros turned to a hole", false, keep("holes/zeros-kept", func(f *filler) {
			w, err := os.OpenFile(f.path("holes/zeros-kept"), os.O_RDWR, 0)
			f.must("", err)
			f.must("", unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 64<<10))
			f.must("", w.Close())
		}), []string{`"holes/zeros-kept": data between holes is at [], want [[1048576 1114112]]`}},
		{"data elsewhere in a tebibyte", true, keep("root/1TiB", func(f *filler) {
			f.must("", os.Truncate(f.path("root/1TiB"), 0))
			f.must("", os.Truncate(f.path("root/1TiB"), Sparse))
			f.write("root/1TiB", Sparse/2, Bytes("needle", 1<<20))
		}), []string{
			`"root/1TiB": bytes differ`,
			`"root/1TiB": data between holes is at [[549755813888 549756862464]], want [[366503874560 366504923136]]`,
		}},
		{"a link target", false, keep("links", func(f *filler) {
			f.must("", os.Symlink("../..", f.path("links/up2")))
			f.copyTime("links/up", "links/up2")
			f.must("", os.Rename(f.path("links/up2"), f.path("links/up")))
		}), []string{`"links/up": link target is "../..", want ".."`}},
		{"a hard link broken", false, keep("names", keep("links/one", func(f *filler) {
			f.must("", os.Remove(f.path("names/three")))
			f.must("", os.WriteFile(f.path("names/three"), Text("linked", 5000), 0o644))
			f.must("", unix.Chmod(f.path("names/three"), 0o644))
			f.copyTime("links/one", "names/three")
		})), []string{`"names/three": hard link is of "names/three", want "links/one"`}},
		{"a hard link that was none", false, keep("same", func(f *filler) {
			f.must("", os.Remove(f.path("same/1")))
			f.link("same/0", "same/1")
		}), []string{`"same/1": mtime is `, `"same/1": hard link is of "same/0", want "same/1"`}},
		{"a hard link between symlinks broken", false, keep("links/sub", func(f *filler) {
			f.must("", os.Remove(f.path("links/sub/hard-2")))
			f.must("", os.Symlink("a hard-linked symlink", f.path("links/sub/hard-2")))
			f.copyTime("links/hard-1", "links/sub/hard-2")
		}), []string{`"links/sub/hard-2": hard link is of "links/sub/hard-2", want "links/hard-1"`}},
		{"an xattr gone", false, func(f *filler) {
			f.must("", unix.Lremovexattr(f.path("xattrs/file"), "user.empty"))
		}, []string{`"xattrs/file": xattr "user.empty" is missing`}},
		{"an xattr more", false, func(f *filler) {
			f.xattr("xattrs/dir", "user.more", nil)
		}, []string{`"xattrs/dir": xattr "user.more" should not be there`}},
		{"an xattr's last byte", false, func(f *filler) {
			f.xattr("xattrs/file", "user.binary", []byte("\x00\xff\n\x01"))
		}, []string{`"xattrs/file": xattr "user.binary" is "\x00\xff\n\x01" (4 bytes), want "\x00\xff\n\x00" (4 bytes)`}},
		{"the root's xattr", false, func(f *filler) {
			f.must("", unix.Lremovexattr(f.dir, "user.root"))
		}, []string{`".": xattr "user.root" is missing`}},
		{"an access list", false, func(f *filler) {
			f.xattr("acls/file", "system.posix_acl_access", acl(1235))
		}, []string{`"acls/file": xattr "system.posix_acl_access" is `}},
		{"a default access list", false, func(f *filler) {
			f.must("", unix.Lremovexattr(f.path("acls/dir"), "system.posix_acl_default"))
		}, []string{`"acls/dir": xattr "system.posix_acl_default" is missing`}},
		{"a capability", true, func(f *filler) {
			f.xattr("root/ping", "security.capability", capability(1<<12))
		}, []string{`"root/ping": xattr "security.capability" is `}},
		{"a device", true, keep("root", func(f *filler) {
			f.node("root/five", unix.S_IFCHR|0o666, unix.Mkdev(1, 5))
			f.copyTime("root/null", "root/five")
			f.must("", os.Rename(f.path("root/five"), f.path("root/null")))
		}), []string{`"root/null": device is 1:5, want 1:3`}},
		{"a block device that became a character device", true, keep("root", func(f *filler) {
			f.must("", os.Remove(f.path("root/block")))
			f.node("root/block", unix.S_IFCHR|0o660, unix.Mkdev(259, 70_000))
		}), []string{`"root/block": type is character device, want block device`}},
		{"a fifo that became a socket", false, keep("kinds", func(f *filler) {
			f.must("", os.Remove(f.path("kinds/fifo")))
			f.node("kinds/fifo", unix.S_IFSOCK|0o622, 0)
		}), []string{`"kinds/fifo": type is socket, want fifo`}},
		{"a file that became a directory", false, keep("order/a.d", func(f *filler) {
			f.must("", os.Remove(f.path("order/a.d/x")))
			f.must("", os.Mkdir(f.path("order/a.d/x"), 0o755))
		}), []string{`"order/a.d/x": type is directory, want file`}},
		{"a file gone", false, keep("names", func(f *filler) {
			f.must("", os.Remove(f.path("names/new\nline")))
		}), []string{`"names/new\nline": is missing`}},
		{"an empty directory gone", false, keep("empty/er", func(f *filler) {
			f.must("", os.Remove(f.path("empty/er/est")))
		}), []string{`"empty/er/est": is missing`}},
		{"a file more", false, keep("many", func(f *filler) {
			f.file("many/there", nil)
		}), []string{`"many/there": should not be there`}},
		{"a name that differs in its normal form", false, keep("names", func(f *filler) {
			f.must("", os.Remove(f.path("names/\u00e9")))
		}), []string{"\"names/\u00e9\": is missing"}},
	}
	root := fill(t)
	read := func(t *testing.T, dir string) []*file {
		t.Helper()
		files, err := scan(dir)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	want := read(t, fill(t))
	before := compare(want, read(t, root))
	for _, tt := range tests {
		if tt.root && !isRoot() {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			// The changes add up, for making the fixture is what takes time.
			tt.change(&filler{t: t, dir: root})
			after := compare(want, read(t, root))
			fresh := slices.DeleteFunc(slices.Clone(after), func(d string) bool { return slices.Contains(before, d) })
			before = after
			if len(fresh) != len(tt.want) {
				t.Fatalf("differences\n%s\nwant\n%s", strings.Join(fresh, "\n"), strings.Join(tt.want, "\n"))
			}
			for i, d := range fresh {
				if !strings.HasPrefix(d, tt.want[i]) {
					t.Errorf("difference %s\nwant       %s", d, tt.want[i])
				}
			}
		})
	}
}

func TestRemoveAllLeavesAnEmptyDirectory(t *testing.T) {
	dir := fill(t)
	RemoveAll(t, dir)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// keep makes a change without moving the time of name.
func keep(name string, change func(*filler)) func(*filler) {
	return func(f *filler) {
		var st unix.Stat_t
		f.must(name, unix.Lstat(f.path(name), &st))
		change(f)
		f.mtime(name, st.Mtim)
	}
}

func (f *filler) write(name string, at int64, p []byte) {
	w, err := os.OpenFile(f.path(name), os.O_WRONLY, 0)
	f.must(name, err)
	_, err = w.WriteAt(p, at)
	f.must(name, err)
	f.must(name, w.Close())
}

func (f *filler) copyTime(from, to string) {
	var st unix.Stat_t
	f.must(from, unix.Lstat(f.path(from), &st))
	f.mtime(to, st.Mtim)
}
