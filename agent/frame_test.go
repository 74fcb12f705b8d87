package agent

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// A codec decodes the body of one type of frame and encodes what it got.
type codec func(body []byte) (again []byte, err error)

var codecs = map[frameType]codec{
	frameHello: func(p []byte) ([]byte, error) {
		c, err := parseHello(p)
		return appendHello(nil, c), err
	},
	frameError: func(p []byte) ([]byte, error) {
		f, err := parseFailure(p)
		return f.append(nil), err
	},
	frameBackup: func(p []byte) ([]byte, error) {
		q, err := parseBackupRequest(p)
		if err != nil {
			return nil, err
		}
		return q.append(nil), nil
	},
	frameEntries: func(p []byte) ([]byte, error) {
		first, batch, err := parseEntries(p)
		if err != nil {
			return nil, err
		}
		again := make([]byte, entriesHead)
		putEntriesHead(again, first, len(batch))
		prev := ""
		for i := range batch {
			again = appendStat(again, prev, &batch[i])
			prev = batch[i].Dir
		}
		return again, nil
	},
	frameAnswers: func(p []byte) ([]byte, error) {
		answers, err := parseAnswers(p, 1000)
		return appendAnswers(nil, answers), err
	},
	frameOffers: func(p []byte) ([]byte, error) {
		offers, err := parseOffers(p)
		return appendOffers(nil, offers), err
	},
	frameWants: func(p []byte) ([]byte, error) {
		want, err := parseWants(p)
		return appendWants(nil, want), err
	},
	frameBox: func(p []byte) ([]byte, error) {
		b, err := parseBox(p)
		return append(appendBoxHead(nil, &b), b.Payload...), err
	},
	frameFile: func(p []byte) ([]byte, error) {
		f, err := parseFile(p)
		if err != nil {
			return nil, err
		}
		return f.append(nil), nil
	},
	frameEnd: func(p []byte) ([]byte, error) {
		e, err := parseEnd(p)
		return e.append(nil), err
	},
	frameProblem: func(p []byte) ([]byte, error) {
		q, err := parseProblem(p)
		return appendProblem(nil, q), err
	},
}

// samples are bodies with every field set.
func samples() map[frameType][]byte {
	stat := Stat{
		Dir: "a/b", Name: "c", Type: snapshot.File, Mode: 0o4755, UID: 1, GID: 1 << 31,
		MTime: snapshot.Time{Sec: -1, Nsec: 999_999_999}, CTime: snapshot.Time{Sec: 1 << 33},
		Size: 600, Inode: 1 << 63, Device: 1 << 40, Links: 2, Problem: "why",
	}
	dev := Stat{Name: "z", Type: snapshot.Block, Rdev: 8<<32 | 1}
	entries := make([]byte, entriesHead)
	putEntriesHead(entries, 7, 2)
	entries = appendStat(appendStat(entries, "", &dev), "", &stat)
	ref := snapshot.Ref{Name: id.Blob{1, 2, 3}, Length: 600}
	b := Box{Codec: box.Zstd, Raw: 700, Payload: []byte("payload"), Blobs: []BoxBlob{{id.Blob{4}, id.Data, 600}}}
	q := BackupRequest{Root: "/v/0", Chunk: chunk.Config{Algorithm: chunk.Gear, Min: 1, Avg: 2, Max: 3}, NameKey: nameKey, ReadOnlyMount: true}
	f := File{
		N: 300, Attempt: 1, Stat: stat, Outcome: Torn, Reason: "it changed", Inline: []byte("in"), Sparse: true, Fresh: true, Class: chunk.Fixed,
		Extents: []snapshot.Extent{{Offset: 5, Length: 2}, {Offset: 9, Length: 1}},
		Xattrs:  []snapshot.Xattr{{Name: "user.a", Value: []byte("1")}}, Target: "t", BytesRead: 1 << 40, Refs: [roles]uint64{1, 2, 3},
	}
	e := end{Entries: 1, Files: 2, Offers: 3, Boxes: 4, Problems: 5, Sum: [32]byte{6}}
	return map[frameType][]byte{
		frameHello:   appendHello(nil, fullCredits),
		frameError:   failure{Final: true, Text: "no"}.append(nil),
		frameBackup:  q.append(nil),
		frameEntries: entries,
		frameAnswers: appendAnswers(nil, []Answer{{}, {Read: true}, {Read: true, Old: []snapshot.Ref{ref, ref}}}),
		frameOffers:  appendOffers(nil, []Offer{{N: 300, Attempt: 1, Role: Xattrs, Ref: ref}, {Ref: ref}}),
		frameWants:   appendWants(nil, []bool{true, false, true, true, false, false, false, false, true}),
		frameBox:     append(appendBoxHead(nil, &b), b.Payload...),
		frameFile:    f.append(nil),
		frameEnd:     e.append(nil),
		frameProblem: appendProblem(nil, snapshot.Problem{Path: "a/b", Reason: "gone"}),
	}
}

func TestEveryFrameComesBackAsItWas(t *testing.T) {
	all := samples()
	for kind, code := range codecs {
		again, err := code(all[kind])
		if err != nil || !bytes.Equal(again, all[kind]) {
			t.Errorf("frame %d: %v\n%x\n%x", kind, err, all[kind], again)
		}
		for n := range all[kind] {
			if kind == frameBox && n >= len(all[kind])-len("payload") {
				continue // a payload may be of any length
			}
			if _, err := code(all[kind][:n]); !errors.Is(err, ErrProtocol) {
				t.Errorf("frame %d cut off after %d bytes: %v", kind, n, err)
			}
		}
		if _, err := code(append(bytes.Clone(all[kind]), 0)); err == nil && kind != frameBox {
			t.Errorf("frame %d with a byte too many was read", kind)
		}
	}
}

func TestAFieldLostOnTheWayIsSeen(t *testing.T) {
	for kind, body := range samples() {
		switch kind {
		case frameFile:
			f, _ := parseFile(body)
			g, _ := parseFile(f.append(nil))
			if d := cmp.Diff(f, g); d != "" || f.Refs != [roles]uint64{1, 2, 3} || !f.Fresh || !f.Sparse || f.Class != chunk.Fixed || len(f.Extents) != 2 ||
				len(f.Xattrs) != 1 || f.Target != "t" || f.BytesRead != 1<<40 || f.Outcome != Torn || f.Attempt != 1 || f.N != 300 {
				t.Errorf("%+v\n%s", f, d)
			}
		case frameEntries:
			_, batch, err := parseEntries(body)
			if err != nil || batch[1].Dir != "a/b" || batch[1].MTime != (snapshot.Time{Sec: -1, Nsec: 999_999_999}) ||
				batch[1].Inode != 1<<63 || batch[1].Problem != "why" || batch[0].Rdev != 8<<32|1 {
				t.Errorf("%+v, %v", batch, err)
			}
		}
	}
}

// What is decoded without an error is what its encoding says, byte for byte:
// there is one way to write each frame.
func FuzzFrames(f *testing.F) {
	for kind, body := range samples() {
		f.Add(byte(kind), body)
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		code := codecs[frameType(kind)]
		if code == nil {
			return
		}
		again, err := code(body)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if frameType(kind) == frameHello {
			// Credits are cut to what there is.
			more, err := code(again)
			if err != nil || !bytes.Equal(more, again) {
				t.Fatalf("%x\n%x, %v", again, more, err)
			}
			return
		}
		if !bytes.Equal(again, body) {
			t.Fatalf("%x\n%x", body, again)
		}
	})
}

// A stream of any bytes is frames or an error, and never more memory than a
// frame may take.
func FuzzStream(f *testing.F) {
	var whole bytes.Buffer
	c := newConn(&whole, usual())
	for kind, body := range samples() {
		_ = c.send(kind, body)
	}
	_ = c.send(frameBeat)
	f.Add(whole.Bytes())
	f.Add([]byte{byte(frameBox), 255, 255, 255, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		c := newConn(&readOnly{bytes.NewReader(p)}, usual())
		for {
			_, body, err := c.read()
			if errors.Is(err, io.EOF) || errors.Is(err, ErrProtocol) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(body) > len(p) {
				t.Fatalf("%d bytes out of %d", len(body), len(p))
			}
		}
	})
}

type readOnly struct{ io.Reader }

func (readOnly) Write(p []byte) (int, error) { return len(p), nil }
