//go:build linux && engine

package main

import (
	"strings"
	"testing"
)

func TestAVolumeIsMeasuredWithItsHelper(t *testing.T) {
	o := tinyOptions(t)
	o.ways = []string{"path", "volume"}
	o.steps = []step{first, unchanged, changed, check, restore}
	r, _ := o.bench(t)
	if len(r.Missing) > 0 {
		t.Fatalf("missing: %q\nThis test needs a Docker engine of this machine; \"make test\" finds or starts one.", r.Missing)
	}
	for _, st := range o.steps {
		c := find(r, "media", st, volumeWay)
		if c.Status != measured || len(c.Notes) > 0 {
			t.Errorf("%s: %s: %s%q", st, c.Status, c.Reason, c.Notes)
			continue
		}
		s := c.Samples[0]
		if st == check {
			if s.Helper != 0 {
				t.Errorf("%s: a helper of %d bytes, and it needs none", st, s.Helper)
			}
			continue
		}
		// A Go program is not smaller.
		if s.Helper < 5<<20 || s.Peak-s.Helper < 5<<20 {
			t.Errorf("%s: %d MiB, of which the helper had %d: one of the two is missing", st, s.Peak>>20, s.Helper>>20)
		}
	}

	e, err := findEngine(t.Context(), o.work)
	if err != nil {
		t.Fatal(err)
	}
	left, err := e.docker(t.Context(), "volume", "ls", "--quiet", "--filter", "label="+volumeLabel+"="+o.work)
	if err != nil || left != "" {
		t.Errorf("left: %s, %v", strings.Fields(left), err)
	}
}

func TestWhatAKilledRunLeftIsSwept(t *testing.T) {
	work := t.TempDir()
	e, err := findEngine(t.Context(), work)
	if err != nil {
		t.Fatal(err)
	}
	name, _, err := e.create(t.Context())
	must(t, err)
	other := &engine{work: work + "-other", n: 100}
	kept, _, err := other.create(t.Context())
	must(t, err)
	defer other.sweep(t.Context())
	e.sweep(t.Context())
	if _, err := e.directory(t.Context(), name); err == nil {
		t.Errorf("volume %s is still there", name)
	}
	if _, err := e.directory(t.Context(), kept); err != nil {
		t.Errorf("volume %s of another bench is gone: %v", kept, err)
	}
}
