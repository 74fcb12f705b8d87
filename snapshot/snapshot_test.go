package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"orlop/id"
	"pgregory.net/rapid"
)

func whole() *Snapshot {
	return &Snapshot{
		Source: Source{
			Kind: Volume, Name: "pgdata", Host: "alpha", EngineName: "alpha", EngineID: "ABCD:EFGH", Driver: "local",
			Options: map[string]string{"type": "none", "device": "/srv/\xff"},
			Labels:  map[string]string{"com.docker.compose.project": "wiki", "a": "", "\xfe": "b"},
			Project: "wiki", Service: "db", MachineID: "0123",
		},
		Started: Time{1_700_000_000, 1}, Finished: Time{-5, maxNsec},
		Root:     Root{id.Blob{1}, 16_000, 2, 100, 90, 1 << 40},
		Previous: id.Snapshot{2}, Sequence: 7, Tags: []string{"daily", "é"},
		Totals: Totals{Files: 90, Dirs: 5, Others: 5, Bytes: 1 << 40, Devices: 2}, Consistency: "paused",
		Skipped: []Problem{{"a/\xff\xfe", "it vanished"}}, SkippedCount: 1,
		Torn: []Problem{{"b", "it grew"}}, TornCount: 4000,
		ClassRules: 1, Version: "0.1.0", Partial: true,
	}
}

func least() *Snapshot {
	return &Snapshot{Source: Source{Kind: Directory, Name: "/srv"}, Root: Root{Name: id.Blob{1}, Length: 9, Entries: 1}}
}

func TestASnapshotComesBackAsItWas(t *testing.T) {
	for _, want := range []*Snapshot{whole(), least()} {
		p, err := want.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(want, got); d != "" {
			t.Error(d)
		}
		for range 20 {
			if again, _ := want.Marshal(); !bytes.Equal(again, p) {
				t.Fatal("the same snapshot has two encodings")
			}
		}
		for n := range p {
			if _, err := Unmarshal(p[:n]); !errors.Is(err, ErrFormat) {
				t.Errorf("the first %d bytes: %v", n, err)
			}
		}
		if _, err := Unmarshal(append(p, 0)); !errors.Is(err, ErrFormat) {
			t.Errorf("a byte too many: %v", err)
		}
	}
	if p, _ := least().Marshal(); len(p) > 160 {
		t.Errorf("the least snapshot takes %d bytes", len(p))
	}
}

func TestAnUnknownKeyIsRefused(t *testing.T) {
	p, err := encMode.Marshal(map[int]any{1: map[int]string{1: "path", 2: "/srv"}, 99: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unmarshal(p); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNoSnapshotIsNeitherWrittenNorRead(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Snapshot)
	}{
		{"another kind of source", func(s *Snapshot) { s.Source.Kind = "tape" }},
		{"no source", func(s *Snapshot) { s.Source.Name = "" }},
		{"no tree", func(s *Snapshot) { s.Root = Root{} }},
		{"a tree of level 9", func(s *Snapshot) { s.Root.Level = 9 }},
		{"a second of nanoseconds", func(s *Snapshot) { s.Started.Nsec = 1e9 }},
		{"more skipped files than were counted", func(s *Snapshot) { s.SkippedCount = 0 }},
		{"too many skipped files", func(s *Snapshot) { s.Skipped = make([]Problem, 1001); s.SkippedCount = 2000 }},
		{"too many torn files", func(s *Snapshot) { s.Torn = make([]Problem, 1001) }},
		{"too many tags", func(s *Snapshot) { s.Tags = make([]string, 1001) }},
		{"too many bytes", func(s *Snapshot) { s.Source.Labels["x"] = strings.Repeat("x", MaxSnapshot) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := whole()
			tt.change(s)
			if _, err := s.Marshal(); !errors.Is(err, ErrFormat) {
				t.Errorf("Marshal() = %v", err)
			}
			p, err := encMode.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Unmarshal(p); !errors.Is(err, ErrFormat) {
				t.Errorf("Unmarshal() = %v", err)
			}
		})
	}
}

func TestProblemsAreCountedAndBounded(t *testing.T) {
	s := least()
	for i := range 1500 {
		s.Skip(fmt.Sprint(i), "why")
		s.Tear(strings.Repeat("p", MaxPath), strings.Repeat("r", 1000))
	}
	if s.SkippedCount != 1500 || len(s.Skipped) != MaxProblems || s.Skipped[999] != (Problem{"999", "why"}) {
		t.Errorf("%d of %d skipped", len(s.Skipped), s.SkippedCount)
	}
	if s.TornCount != 1500 || len(s.Torn) != 1 || len(s.Torn[0].Reason) != 256 {
		t.Errorf("%d of %d torn", len(s.Torn), s.TornCount)
	}
	if p, err := s.Marshal(); err != nil || len(p) > 300<<10 {
		t.Errorf("%d bytes: %v", len(p), err)
	}
}

func TestTimesAreThoseOfGo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Time{rapid.Int64Range(-1<<40, 1<<40).Draw(t, "sec"), rapid.Uint32Range(0, maxNsec).Draw(t, "nsec")}
		if got := FromGo(want.Go()); got != want {
			t.Fatalf("%v, want %v", got, want)
		}
		later := FromGo(want.Go().Add(time.Nanosecond))
		if want.Compare(later) >= 0 || later.Compare(want) <= 0 || want.Compare(want) != 0 {
			t.Fatalf("%v and %v are out of order", want, later)
		}
	})
}

func TestASourceIsSpeltAsAtTheCommandLine(t *testing.T) {
	for want, s := range map[string]Source{
		"volume:pgdata":  {Kind: Volume, Name: "pgdata"},
		"path:/srv/wiki": {Kind: Directory, Name: "/srv/wiki"},
	} {
		if got := s.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	for _, s := range []*Snapshot{whole(), least()} {
		p, err := s.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := Unmarshal(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if again, err := s.Marshal(); err != nil || !bytes.Equal(again, p) {
			t.Fatalf("%x was read and is written as %x: %v", p, again, err)
		}
	})
}
