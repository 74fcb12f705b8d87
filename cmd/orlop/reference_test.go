package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"orlop/id"
	"orlop/repo"
	"orlop/snapshot"
)

// now is when the references of these tests are read.
var now = time.Date(2026, 11, 22, 12, 0, 30, 0, time.FixedZone("", 3600))

// taken makes a snapshot whose id begins with prefix.
func taken(prefix, source, when string) repo.Snapshot {
	kind, name, _ := strings.Cut(source, ":")
	s := repo.Snapshot{Snapshot: &snapshot.Snapshot{Source: snapshot.Source{Kind: snapshot.SourceKind(kind), Name: name, Host: "here"}}}
	if name, s.Source.Host, _ = strings.Cut(name, " on "); s.Source.Host == "" {
		s.Source.Host = "here"
	}
	s.Source.Name = name
	t, err := time.ParseInLocation("2006-01-02T15:04:05", when, now.Location())
	if err != nil {
		panic(err)
	}
	s.Started = snapshot.FromGo(t)
	for i := range s.ID {
		c := byte('0')
		if 2*i < len(prefix) {
			c = prefix[2*i]
		}
		d := byte('0')
		if 2*i+1 < len(prefix) {
			d = prefix[2*i+1]
		}
		if _, err := fmt.Sscanf(string([]byte{c, d}), "%02x", &s.ID[i]); err != nil {
			panic(err)
		}
	}
	return s
}

func TestASnapshotIsFoundByWhatItIsCalled(t *testing.T) {
	compose := taken("c0de", "volume:shop_db", "2026-11-21T10:00:00")
	compose.Source.Project = "shop"
	compose.Source.Labels = map[string]string{"com.docker.compose.volume": "db"}
	copied := taken("c0d1", "volume:copy", "2026-11-21T10:00:00")
	copied.Source.Project, copied.Source.Labels = compose.Source.Project, compose.Source.Labels
	all := []repo.Snapshot{
		copied,
		taken("aaaa1", "volume:pgdata", "2026-11-18T09:00:00"),
		taken("aaaa2", "volume:pgdata", "2026-11-20T13:59:59"),
		taken("bbbb", "volume:pgdata", "2026-11-20T14:00:30"),
		compose,
		taken("dddd", "path:/srv/wiki", "2026-11-21T11:00:00"),
		taken("d00d", "path:/srv/me@home", "2026-11-21T11:30:00"),
		taken("e0e0", "volume:both", "2026-11-21T12:00:00"),
		taken("e1e1", "dump:both", "2026-11-21T12:00:00"),
		taken("f0f0", "volume:two", "2026-11-21T12:00:00"),
		taken("f1f1", "volume:two on another", "2026-11-21T12:00:00"),
		taken("abcd", "volume:c0de", "2026-11-21T12:00:00"),
		taken("ffff", "volume:pgdata", "2026-11-22T12:00:00"),
	}
	tests := []struct{ reference, want string }{
		{"latest", "ffff"},
		{"pgdata", "ffff"},
		{"volume:pgdata", "ffff"},
		{"pgdata@latest", "ffff"},
		{"pgdata@1h", "bbbb"},
		{"pgdata@0s", "ffff"},
		{"pgdata@2d", "aaaa1"},
		{"pgdata@1d22h", "bbbb"},
		{"pgdata@1d22h1s", "aaaa2"},
		{"pgdata@2026-11-20", "bbbb"},
		{"pgdata@2026-11-20T14:00", "bbbb"},
		{"pgdata@2026-11-20 14:00", "bbbb"},
		{"pgdata@2026-11-20T13:59", "aaaa2"},
		{"pgdata@2026-11-20T14:00:29", "aaaa2"},
		{"pgdata@2026-11-20T14:00:30", "bbbb"},
		{"pgdata@2026-11-20T13:00:30Z", "bbbb"},
		{"pgdata@2026-11-20T13:00:29Z", "aaaa2"},
		{"volume:pgdata@2026-11-19", "aaaa1"},
		{"shop/db", "c0de"},
		{"shop/db@1h", "c0de"},
		{"shop_db", "c0de"},
		{"/srv/wiki", "dddd"},
		{"path:/srv/wiki", "dddd"},
		{"path:/srv/wiki@1h", "dddd"},
		{"/srv/me@home", "d00d"},
		{"path:/srv/me@home@latest", "d00d"},
		{"bbbb", "bbbb"},
		{"BBBB", "bbbb"},
		{"aaaa1", "aaaa1"},
		{"bbbb" + strings.Repeat("0", 60), "bbbb"},
		{"volume:both", "e0e0"},
		{"volume:c0de", "abcd"},
	}
	for _, tt := range tests {
		got, err := find(all, tt.reference, here{}, now)
		if err != nil {
			t.Errorf("find(%q): %v", tt.reference, err)
		} else if !strings.HasPrefix(got.ID.String(), tt.want) {
			t.Errorf("find(%q) = %s, want %s", tt.reference, got.ID.Short(), tt.want)
		}
	}

	refused := []struct {
		reference string
		code      int
		want      string // of the error
		hint      string
	}{
		{"aaaa", exitFailed, `"aaaa" is the beginning of 2 ids: aaaa100000000000 and aaaa200000000000`, "more digits"},
		{"bbb", exitFailed, "no snapshot and no source", "volume:both"},
		{"c0de", exitFailed, `"c0de" is the source volume:c0de and also the snapshot c0de0000`, "write volume:c0de"},
		{"both", exitFailed, `"both" is volume:both and also dump:both`, "spell it out"},
		{"two", exitFailed, `"two" is on here and also on another`, "by its id"},
		{"volume:bbbb", exitFailed, "no snapshot and no source", ""},
		{"bbbb@1h", exitFailed, "no snapshot and no source", ""},
		{"latest@1h", exitFailed, "no snapshot and no source", ""},
		{"pgdata@2026-11-17", exitFailed, "the oldest snapshot of volume:pgdata is of 2026-11-18 09:00:00", "none that old"},
		{"pgdata@52w", exitFailed, "the oldest snapshot", ""},
		{"pgdata@", exitUsage, "neither a time nor an age", "3h"},
		{"pgdata@yesterday", exitUsage, "neither a time nor an age", "2026-11-20T14:00"},
		{"pgdata@3", exitUsage, "neither a time nor an age", ""},
		{"pgdata@2026-13-01", exitUsage, "neither a time nor an age", ""},
		{"@3h", exitUsage, "no source before the @", ""},
		{"", exitFailed, "no snapshot and no source", ""},
	}
	for _, tt := range refused {
		got, err := find(all, tt.reference, here{}, now)
		if err == nil {
			t.Errorf("find(%q) = %s, want an error", tt.reference, got.ID.Short())
			continue
		}
		if code := exitCode(t.Context(), err); code != tt.code || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("find(%q): %v (exit code %d); want %q (%d)", tt.reference, err, code, tt.want, tt.code)
		}
		if h := hintFor(err); !strings.Contains(h, tt.hint) {
			t.Errorf("find(%q): hint %q; want %q", tt.reference, h, tt.hint)
		}
	}
}

func TestASourceCalledLatestIsNotGuessedAt(t *testing.T) {
	all := []repo.Snapshot{taken("aaaa", "volume:latest", "2026-11-20T10:00:00"), taken("bbbb", "volume:x", "2026-11-21T10:00:00")}
	_, err := find(all, "latest", here{}, now)
	if err == nil || !strings.Contains(err.Error(), "also a source") || !strings.Contains(hintFor(err), "volume:latest@latest") {
		t.Errorf("find(latest): %v, hint %q", err, hintFor(err))
	}
	if s, err := find(all, "volume:latest", here{}, now); err != nil || s.ID != all[0].ID {
		t.Errorf("find(volume:latest) = %v, %v", s.ID.Short(), err)
	}
}

func TestWithoutSnapshotsTheWayForwardIsToMakeOne(t *testing.T) {
	_, err := find(nil, "pgdata", here{}, now)
	if err == nil || !strings.Contains(hintFor(err), "orlop backup") {
		t.Errorf("find in nothing: %v, hint %q", err, hintFor(err))
	}
}

func TestAnAgeIsCountsOfUnits(t *testing.T) {
	tests := []struct {
		age  string
		want time.Duration // 0: an error
	}{
		{"1s", time.Second},
		{"90m", 90 * time.Minute},
		{"3h", 3 * time.Hour},
		{"2d", 48 * time.Hour},
		{"1w", 7 * 24 * time.Hour},
		{"1d12h", 36 * time.Hour},
		{"", 0},
		{"h", 0},
		{"3", 0},
		{"3h2", 0},
		{"3x", 0},
		{"-3h", 0},
		{"3 h", 0},
		{"1.5h", 0},
		{"1y", 0},
		{"99999999w", 0},
		{"2147483647h", 0},
		{"15000w15000w", 0},
		{"99999999999999999999s", 0},
	}
	for _, tt := range tests {
		got, err := parseAge(tt.age)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("parseAge(%q) = %v, %v; want %v", tt.age, got, err, tt.want)
		}
	}
}

// A reference is typed by people and by scripts: whatever it is, the answer is
// one of the snapshots or an error with a code of ours.
func FuzzFind(f *testing.F) {
	all := []repo.Snapshot{
		taken("aaaa1", "volume:pgdata", "2026-11-18T09:00:00"),
		taken("aaaa2", "path:/srv/a@b", "2026-11-20T13:59:59"),
	}
	for _, s := range []string{"latest", "pgdata@3h", "aaaa1", "path:/srv/a@b@1w", "@", "pgdata@2026-11-20T14:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reference string) {
		s, err := find(all, reference, here{}, now)
		if err == nil && s.ID != all[0].ID && s.ID != all[1].ID {
			t.Errorf("find(%q) = %v", reference, s.ID)
		}
		if err != nil && (s.ID != id.Snapshot{} || errors.Is(err, errPartial) || exitCode(t.Context(), err) > exitUsage) {
			t.Errorf("find(%q): %v, and %v", reference, err, s.ID)
		}
	})
}

// Hosts and engines of one name are told apart; what is of here comes first.
func TestOneSource(t *testing.T) {
	of := func(kind snapshot.SourceKind, host, id string) repo.Snapshot {
		s := snapshot.Source{Kind: kind, Name: "/v", Host: host, EngineID: id}
		if kind == snapshot.Directory {
			s.EngineID, s.MachineID = "", id
		}
		return repo.Snapshot{Snapshot: &snapshot.Snapshot{Source: s}}
	}
	volume := func(host, engine string) repo.Snapshot { return of(snapshot.Volume, host, engine) }
	path := func(host, machine string) repo.Snapshot { return of(snapshot.Directory, host, machine) }
	tests := []struct {
		name string
		of   []repo.Snapshot
		h    here
		want int // snapshots kept; 0: refused
	}{
		{"one engine", []repo.Snapshot{volume("a", "e"), volume("a", "e")}, here{}, 2},
		{"one engine that is gone", []repo.Snapshot{volume("a", "e"), volume("a", "e")}, here{engine: "new"}, 2},
		{"two engines of one host", []repo.Snapshot{volume("a", "e"), volume("a", "f")}, here{machine: "m"}, 0},
		{"the engine that is restored to", []repo.Snapshot{volume("a", "e"), volume("a", "f"), volume("b", "g")}, here{engine: "f"}, 1},
		{"two engines, neither the one that is restored to", []repo.Snapshot{volume("a", "e"), volume("a", "f")}, here{engine: "g"}, 0},
		{"two hosts", []repo.Snapshot{path("a", "m"), path("b", "n")}, here{}, 0},
		{"two hosts of one name", []repo.Snapshot{path("a", "m"), path("a", "n")}, here{machine: "o"}, 0},
		{"this machine's", []repo.Snapshot{path("a", "m"), path("a", "n"), path("b", "o")}, here{machine: "m"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := oneSource(tt.of, "v", tt.h)
			if len(got) != tt.want || (err == nil) != (tt.want > 0) {
				t.Errorf("%d kept, want %d: %v", len(got), tt.want, err)
			}
		})
	}
}

// A clock that was wrong for one backup does not make that the newest for ever.
func TestTheNewestIsTheLastOfItsChain(t *testing.T) {
	first := taken("aaaa", "volume:v", "2026-11-18T09:00:00")
	ahead := taken("bbbb", "volume:v", "2031-01-01T00:00:00")
	last := taken("cccc", "volume:v", "2026-11-19T09:00:00")
	ahead.Previous, last.Previous = first.ID, ahead.ID
	for _, reference := range []string{"v", "v@latest", "latest"} {
		got, err := find([]repo.Snapshot{first, last, ahead}, reference, here{}, now)
		if err != nil || got.ID != last.ID {
			t.Errorf("%s is %s, %v", reference, got.ID.Short(), err)
		}
	}
}
