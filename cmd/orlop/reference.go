package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"orlop/repo"
	"orlop/snapshot"
)

// A snapshot is named as docs/operating.md says:
//
//	reference = "latest" | id-prefix | source [ "@" moment ]
//	source    = [ "volume:" | "path:" ] name | project "/" volume
//	moment    = "latest" | time | ago

// allSnapshots returns the snapshots, oldest first, and warns of those that
// cannot be read.
func (a *app) allSnapshots(ctx context.Context, r *repo.Repo) ([]repo.Snapshot, error) {
	all, broken, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range broken {
		a.warn("%v", d)
	}
	return all, nil
}

// find resolves a reference. now is what "3h ago" is counted from.
func find(all []repo.Snapshot, reference string, h here, now time.Time) (repo.Snapshot, error) {
	none := repo.Snapshot{}
	if len(all) == 0 {
		return none, hint(fmt.Errorf("%q: there are no snapshots yet", reference), `"orlop backup" makes one`)
	}
	source, moment, timed := reference, "", false
	// A directory may have an @ in its name; no moment has.
	if at := strings.LastIndex(reference, "@"); at >= 0 && len(ofSource(all, reference)) == 0 {
		source, moment, timed = reference[:at], reference[at+1:], true
	}
	if timed && source == "" {
		return none, usagef("%q: there is no source before the @", reference)
	}
	until, err := parseMoment(moment, timed, now)
	if err != nil {
		return none, hint(usagef("%q: %v", reference, err), "write a time as 2026-11-20T14:00, an age as 90m, 3h, 2d or 1w, or latest")
	}
	of := ofSource(all, source)
	var byID []repo.Snapshot
	if !timed && !explicit(source) {
		byID = withPrefix(all, reference)
	}
	switch {
	case reference == "latest" && len(of) > 0:
		return none, hint(fmt.Errorf("%q is also a source", reference), "write %s@latest for it, or an id", of[0].Source)
	case reference == "latest":
		s, _ := repo.Newest(all)
		return s, nil
	case len(of) > 0 && len(byID) > 0:
		return none, hint(fmt.Errorf("%q is the source %s and also the snapshot %s", reference, of[0].Source, byID[0].ID.Short()),
			"write %s, or more digits of the id", of[0].Source)
	case len(byID) > 1:
		return none, hint(fmt.Errorf("%q is the beginning of %d ids: %s and %s", reference, len(byID), byID[0].ID.String()[:16], byID[1].ID.String()[:16]), "write more digits")
	case len(byID) == 1:
		return byID[0], nil
	case len(of) == 0:
		return none, hint(fmt.Errorf("%q: no snapshot and no source of that name", reference), "%s", known(all))
	}
	if of, err = oneSource(of, reference, h); err != nil {
		return none, err
	}
	if s, ok := repo.Newest(of); ok && (!timed || moment == "latest") {
		return s, nil
	}
	for _, s := range slices.Backward(of) {
		if !timed || !s.Started.Go().After(until) {
			return s, nil
		}
	}
	return none, hint(fmt.Errorf("%q: the oldest snapshot of %s is of %s", reference, of[0].Source, of[0].Started.Go().In(now.Location()).Format(timeFormat)),
		"there is none that old")
}

func explicit(s string) bool {
	return strings.HasPrefix(s, string(snapshot.Volume)+":") || strings.HasPrefix(s, string(snapshot.Directory)+":") || strings.HasPrefix(s, string(snapshot.Dump)+":")
}

// ofSource returns the snapshots of a source: spelled out, by its own name, or
// as project/volume of compose.
func ofSource(all []repo.Snapshot, name string) []repo.Snapshot {
	var of []repo.Snapshot
	composed := func(s snapshot.Source) bool {
		return s.Project != "" && s.Project+"/"+s.Labels["com.docker.compose.volume"] == name
	}
	for _, match := range []func(s snapshot.Source) bool{
		func(s snapshot.Source) bool { return s.String() == name },
		func(s snapshot.Source) bool { return s.Name == name },
		// A copy that was restored has the labels too; compose's own has the name.
		func(s snapshot.Source) bool { return composed(s) && s.Name == strings.Replace(name, "/", "_", 1) },
		composed,
	} {
		for _, s := range all {
			if match(s.Source) {
				of = append(of, s)
			}
		}
		if len(of) > 0 {
			return of
		}
	}
	return nil
}

// here is where a reference is read: what is of this machine, and of the engine
// that a volume is restored to, is meant rather than what is of others.
type here struct {
	machine string
	engine  string // "" if no engine was asked
}

func (h here) owns(s snapshot.Source) bool {
	if s.Kind == snapshot.Volume {
		return h.engine != "" && s.EngineID == h.engine
	}
	return h.machine != "" && s.MachineID == h.machine
}

// oneSource keeps the snapshots of one source of those that share its name:
// those of here, if there are any. Which of several others is meant it does
// not guess: that could give one host's data back to another's volume.
func oneSource(of []repo.Snapshot, reference string, h here) ([]repo.Snapshot, error) {
	first := of[0].Source
	for _, s := range of {
		if s.Source.String() != first.String() {
			return nil, hint(fmt.Errorf("%q is %s and also %s", reference, first, s.Source), "spell it out")
		}
	}
	ours := slices.DeleteFunc(slices.Clone(of), func(s repo.Snapshot) bool { return !h.owns(s.Source) })
	if len(ours) > 0 {
		return ours, nil
	}
	for _, s := range of {
		if s.Source.Host != first.Host || s.Source.EngineID != first.EngineID || s.Source.MachineID != first.MachineID {
			return nil, hint(fmt.Errorf("%q is on %s and also on %s", reference, whereabouts(first), whereabouts(s.Source)),
				`name the snapshot by its id; "orlop snapshots %s" lists them`, first)
		}
	}
	return of, nil
}

// whereabouts says where a source is so that two of one name can be told apart.
func whereabouts(s snapshot.Source) string {
	id := cmp.Or(s.EngineID, s.MachineID)
	if id == "" {
		return s.Host
	}
	return fmt.Sprintf("%s (%.12s)", s.Host, id)
}

// withPrefix returns the snapshots whose id begins with at least 4 hex digits.
func withPrefix(all []repo.Snapshot, prefix string) (of []repo.Snapshot) {
	if len(prefix) < 4 {
		return nil
	}
	for _, s := range all {
		if strings.HasPrefix(s.ID.String(), strings.ToLower(prefix)) {
			of = append(of, s)
		}
	}
	return of
}

// known lists the sources, for an error message.
func known(all []repo.Snapshot) string {
	var names []string
	for _, s := range all {
		if n := cleanName(s.Source.String()); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	if len(names) > 6 {
		names = append(names[:6], fmt.Sprintf("and %d more", len(names)-6))
	}
	return "there are snapshots of " + strings.Join(names, ", ")
}

const timeFormat = "2006-01-02 15:04:05"

// parseMoment reads what follows the @.
func parseMoment(s string, timed bool, now time.Time) (time.Time, error) {
	if !timed || s == "latest" {
		return now.AddDate(1000, 0, 0), nil
	}
	// A moment without seconds means all of its minute, a day all of the day:
	// "at or before 14:00" includes what was made in that minute's first second.
	for _, f := range []struct {
		layout string
		span   time.Duration
	}{
		{"2006-01-02", 24 * time.Hour},
		{"2006-01-02T15:04", time.Minute},
		{"2006-01-02 15:04", time.Minute},
		{"2006-01-02T15:04:05", time.Second},
		{timeFormat, time.Second},
	} {
		if t, err := time.ParseInLocation(f.layout, s, now.Location()); err == nil {
			return t.Add(f.span - 1), nil
		}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.Add(time.Second - 1), nil
	}
	ago, err := parseAge(s)
	if err != nil {
		return time.Time{}, err
	}
	return now.Add(-ago), nil
}

// parseAge reads 90m, 3h, 2d, 1w, or several of them one after the other.
func parseAge(s string) (time.Duration, error) {
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	var total time.Duration
	for rest := s; rest != "" || s == ""; {
		n := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if n <= 0 {
			return 0, fmt.Errorf("%q is neither a time nor an age", s)
		}
		count, err := strconv.ParseInt(rest[:n], 10, 32)
		unit, ok := units[rest[n]]
		if err != nil || !ok || total+time.Duration(count)*unit < total || count > int64((1<<62)/unit) {
			return 0, fmt.Errorf("%q is neither a time nor an age", s)
		}
		total += time.Duration(count) * unit
		rest = rest[n+1:]
	}
	return total, nil
}
