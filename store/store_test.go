package store_test

import (
	"os"
	"syscall"
	"testing"

	"orlop/store"
	"orlop/store/storetest"
)

func TestMain(m *testing.M) {
	if child := os.Getenv("ORLOP_STORE_TEST_CHILD"); child != "" {
		os.Exit(children[child]())
	}
	os.Exit(m.Run())
}

// children are the parts of tests that need a process of their own.
var children = map[string]func() int{
	"writer": writerToKill,
	"limit":  fillBelowLimit,
	"tmpfs":  fillSmallDisks,
}

func TestMemKeepsTheContract(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Deleter { return store.NewMem() })
}

// hooks are file systems that lack something.
var hooks = map[string]func(op, name string) error{
	"a file system with everything": nil,
	"without O_TMPFILE": func(op, _ string) error {
		if op == "tmpfile" {
			return syscall.EOPNOTSUPP
		}
		return nil
	},
	"without hard links": func(op, _ string) error {
		if op == "link" {
			return syscall.EPERM
		}
		return nil
	},
	"without either": func(op, _ string) error {
		switch op {
		case "tmpfile":
			return syscall.EOPNOTSUPP
		case "link":
			return syscall.ENOTSUP
		}
		return nil
	},
}

func TestDirKeepsTheContract(t *testing.T) {
	for name, hook := range hooks {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits for the disk
			storetest.Test(t, func(t *testing.T) store.Deleter { return openDir(t, t.TempDir(), hook) })
		})
	}
}

// The stores that make trouble make none unless they are told to.
func TestFaultyAndLogKeepTheContract(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Deleter {
		return &storetest.Log{Store: &storetest.Faulty{Store: store.NewMem(), At: -1}}
	})
}

func openDir(t testing.TB, path string, hook func(op, name string) error) *store.Dir {
	t.Helper()
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	d.SetHook(hook)
	return d
}
