package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A material is a file to be edited.
type material struct {
	name string
	make func() ([]byte, error)
}

// named returns the files at paths, which have commas between.
func named(paths string) (all []material) {
	for path := range strings.SplitSeq(paths, ",") {
		all = append(all, material{path, func() ([]byte, error) { return os.ReadFile(path) }})
	}
	return all
}

// made returns what can be made wherever there are Go and sqlite3.
func made() []material {
	return []material{
		{"database", database},
		{"text", func() ([]byte, error) {
			root, err := goroot()
			if err != nil {
				return nil, err
			}
			return sources(filepath.Join(root, "src"))
		}},
		{"archive", func() ([]byte, error) {
			root, err := goroot()
			if err != nil {
				return nil, err
			}
			return archive(root)
		}},
	}
}

// goroot returns the directory of the Go installation.
func goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	return strings.TrimSpace(string(out)), err
}

// database returns a database of orders, of some 90 MB, as sqlite3 makes it.
func database() ([]byte, error) {
	dir, err := os.MkdirTemp("", "cuts")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "database")
	const script = `
		PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;
		CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT);
		WITH w(n) AS (SELECT 0 UNION ALL SELECT n+1 FROM w WHERE n < 4095)
		INSERT INTO words SELECT n, substr('bakolumirenosati', 1 + n%15, 2) || substr('dafegihojukamene', 1 + n/15%15, 2) || substr('risotupavexanome', 1 + n/225%15, 2) FROM w;
		CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, total REAL, state TEXT, note TEXT, token BLOB);
		WITH o(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM o WHERE n < 700000)
		INSERT INTO orders SELECT n, n*7919 % 90001, (n*104729 % 1000003)/100.0,
			CASE n*31 % 5 WHEN 0 THEN 'open' WHEN 1 THEN 'paid' ELSE 'shipped' END,
			(SELECT group_concat(word, ' ') FROM words WHERE n BETWEEN o.n*613 % 4080 AND o.n*613 % 4080 + o.n % 12),
			CAST(printf('%08x%08x', n*2654435761 % 4294967296, n*40503*2654435761 % 4294967296) AS BLOB) FROM o;
		CREATE INDEX by_customer ON orders(customer, state);
		CREATE INDEX by_token ON orders(token);`
	cmd := exec.Command("sqlite3", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("sqlite3: %w: %s", err, out)
	}
	return os.ReadFile(path)
}

// sources returns all of Go's sources below dir as one text.
func sources(dir string) ([]byte, error) {
	var text bytes.Buffer
	err := walk(dir, func(path string, _ fs.FileInfo, data []byte) error {
		if filepath.Ext(path) == ".go" {
			text.Write(data)
		}
		return nil
	})
	return text.Bytes(), err
}

// archive returns a tar of the files below dir.
func archive(dir string) ([]byte, error) {
	var p bytes.Buffer
	w := tar.NewWriter(&p)
	err := walk(dir, func(path string, info fs.FileInfo, data []byte) error {
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name = path
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.Bytes(), w.Close()
}

// streams returns the contents of a file, or of all files below a directory
// that have more than is kept in an entry.
func streams(path string) (all [][]byte, err error) {
	return all, walk(path, func(_ string, _ fs.FileInfo, data []byte) error {
		if len(data) > 512 {
			all = append(all, data)
		}
		return nil
	})
}

// walk calls f for each file, in the order of the names.
func walk(dir string, f func(path string, info fs.FileInfo, data []byte) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return f(path, info, data)
	})
}
