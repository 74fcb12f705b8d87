package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// words is a log handler for people: one line a record, on stderr.
type words struct {
	mu    sync.Mutex
	w     io.Writer
	level slog.Level
	quiet bool
}

func (h *words) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }
func (h *words) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h *words) WithGroup(string) slog.Handler                { return h }

func (h *words) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if r.Level >= slog.LevelWarn {
		b.WriteString("warning: ")
	}
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, ", %s: %s", a.Key, clean(a.Value.String()))
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := fmt.Fprintln(h.w, b.String())
	return err
}

// clean makes text harmless to a terminal: what a file is called may not move
// the cursor or ring the bell. Bytes that are no text are shown as \x escapes.
func clean(s string) string {
	plain := func(r rune, n int) bool {
		return (r != utf8.RuneError || n > 1) && (unicode.IsPrint(r) || r == '\n' || r == '\t')
	}
	safe := true
	for i, r := range s {
		_, n := utf8.DecodeRuneInString(s[i:])
		safe = safe && plain(r, n)
	}
	if safe {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if plain(r, n) {
			b.WriteString(s[:n])
		} else if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		s = s[n:]
	}
	return b.String()
}

// cleanName is clean for a name on a line of its own: a newline is escaped too.
func cleanName(s string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(clean(s))
}

// size is a number of bytes for people.
func size(n uint64) string { return humanize.Bytes(n) }

// number is a count for people.
func number(n uint64) string { return humanize.Comma(int64(min(n, 1<<63-1))) }

// plural is a count of things for people.
func plural(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if strings.HasSuffix(thing, "y") {
		return number(n) + " " + strings.TrimSuffix(thing, "y") + "ies"
	}
	return number(n) + " " + thing + "s"
}

// took is a duration for people.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return max(d.Round(time.Millisecond), time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// tookWith is how long something took, and how fast it was if that says
// anything.
func tookWith(d time.Duration, bytes uint64, done string) string {
	s := took(d)
	if bytes >= 1e6 && d > 0 {
		s += fmt.Sprintf(", %s at %s/s", done, size(uint64(float64(bytes)/d.Seconds())))
	}
	return s
}

// nearestFlag finds the flag of c that typed is a misspelling of, or "".
func nearestFlag(c *cobra.Command, typed string) string {
	typed, _, _ = strings.Cut(typed, "=")
	best, least := "", 3
	c.Flags().VisitAll(func(f *pflag.Flag) {
		d := distance(typed, f.Name)
		if strings.HasPrefix(f.Name, typed) {
			d = 1
		}
		if d < least && !f.Hidden {
			best, least = f.Name, d
		}
	})
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
