package main

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestCleanTextCannotMoveACursor(t *testing.T) {
	tests := []struct{ in, text, name string }{
		{"plain ümläut 漢字", "plain ümläut 漢字", "plain ümläut 漢字"},
		{"a\nb\tc", "a\nb\tc", `a\nb\tc`},
		{"\x1b[31mred\x07", `\x1b[31mred\a`, `\x1b[31mred\a`},
		{"bad\xff\xc3", `bad\xff\xc3`, `bad\xff\xc3`},
		{"\u202eltr\u2028", `\u202eltr\u2028`, `\u202eltr\u2028`},
		{"\u009b31m", `\u009b31m`, `\u009b31m`},
		{"\ufffd", "\ufffd", "\ufffd"},
		{"'quoted'", "'quoted'", "'quoted'"},
		{"\x00\x7f\r", `\x00\x7f\r`, `\x00\x7f\r`},
	}
	for _, tt := range tests {
		if got := clean(tt.in); got != tt.text {
			t.Errorf("clean(%q) = %q, want %q", tt.in, got, tt.text)
		}
		if got := cleanName(tt.in); got != tt.name {
			t.Errorf("cleanName(%q) = %q, want %q", tt.in, got, tt.name)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	f.Add("a\nb\x1b[0m\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := cleanName(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("cleanName(%q) = %q", s, got)
		}
	})
}

func TestWordsForPeople(t *testing.T) {
	tests := []struct{ got, want string }{
		{plural(1, "file"), "1 file"},
		{plural(0, "file"), "0 files"},
		{plural(12345, "entry"), "12,345 entries"},
		{took(1234567 * time.Microsecond), "1.23s"},
		{took(59950 * time.Millisecond), "1m0s"},
		{took(3*time.Hour + 5*time.Second + 4), "3h0m5s"},
		{tookWith(2*time.Second, 999, "read"), "2s"},
		{tookWith(2*time.Second, 4e8, "read"), "2s, read at 200 MB/s"},
		{tookWith(0, 4e8, "read"), "1ms"},
		{short("volume:pgdata"), "volume:pgdata"},
		{short("path:/srv/" + strings.Repeat("x", 100) + "/end"), "path:/srv/xxxxx…xxxxxxxxxxxx/end"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestTheNearestFlagIsSuggested(t *testing.T) {
	c, _, err := (&app{}).command().Find([]string{"backup"})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.ParseFlags(nil) // merges the global flags in
	for typed, want := range map[string]string{"pth": "path", "jsno": "json", "read": "read-all", "taag=x": "tag", "nonsense": ""} {
		if got := nearestFlag(c, typed); got != want {
			t.Errorf("nearestFlag(%q) = %q, want %q", typed, got, want)
		}
	}
}
