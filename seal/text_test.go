package seal

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestAKeySurvivesAsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var root, seed [32]byte
		copy(root[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "root"))
		copy(seed[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed"))
		k := must(newKey(root, seed))
		text := k.Text()
		for _, r := range text {
			if r <= ' ' || r > '~' {
				t.Fatalf("%q is not printable", r)
			}
		}
		for _, s := range []string{text, " " + text + "\n", strings.ToUpper(text), "orlop-key-1-" + strings.ReplaceAll(text[12:], "-", ""), text[:60] + "\n  " + text[60:]} {
			got, err := ParseText(s)
			if err != nil || !sameKey(got, k) {
				t.Fatalf("ParseText(%q) = %v, %v", s, got, err)
			}
		}
	})
}

func TestEveryTypoIsNoticed(t *testing.T) {
	for _, text := range []string{testKey.Text(), NewPutText()} {
		for i := range text {
			for _, c := range "a4-0!" {
				typo := text[:i] + string(c) + text[i+1:]
				_, err := Text(typo)
				same := strings.ReplaceAll(typo, "-", "") == strings.ReplaceAll(text, "-", "")
				if !same && !errors.Is(err, ErrWrongSecret) {
					t.Errorf("Text(%q) with %q at %d: %v", typo, c, i, err)
				}
			}
			if i > 0 && text[i-1] != text[i] && text[i] != '-' && text[i-1] != '-' {
				swapped := text[:i-1] + text[i:i+1] + text[i-1:i] + text[i+1:]
				if _, err := Text(swapped); !errors.Is(err, ErrWrongSecret) {
					t.Errorf("Text(%q): %v", swapped, err)
				}
			}
			if _, err := Text(text[:i]); !errors.Is(err, ErrWrongSecret) {
				t.Errorf("Text(%q): %v", text[:i], err)
			}
		}
	}
}

func TestAMistakeInATextIsExplained(t *testing.T) {
	key, put := testKey.Text(), NewPutText()
	tests := []struct {
		name, text, want string
	}{
		{"empty", " \n", "it is empty"},
		{"cut off at the end", key[:len(key)-3], "it is cut off: 106 of 109 characters"},
		{"cut off at the front", key[3:], "begins with neither orlop-key-1- nor orlop-putkey-1-"},
		{"only the front", "orlop-key-", "does not begin with orlop-key-1-"},
		{"twice", key + key[12:], "too long: 218 characters"},
		{"a wrong letter", key[:30] + "0" + key[31:], `character 17 after orlop-key-1- is '0', which is none of a-z and 2-7`},
		{"another letter", strings.Replace(key, "bifqydio", "bifqydip", 1), "checksum does not match"},
		{"a checksum with other spare bits", key[:len(key)-1] + sibling(key[len(key)-1]), "checksum does not match"},
		{"a later version", "orlop-key-2-" + key[12:], "version 2, and this program knows version 1"},
		{"a put-only text", put, "it is the text of a put-only key"},
		{"a put-only text called a key", "orlop-key-1-" + put[15:], "it is cut off"},
		{"a key of another program", "AGE-SECRET-KEY-1QQQ", "begins with neither"},
		{"a letter that folds to k", strings.Replace(key, "orlop-k", "orlop-\u212a", 1), "begins with neither"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseText(tt.text)
			if !errors.Is(err, ErrWrongSecret) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseText(%q): %v, want %q", tt.text, err, tt.want)
			}
		})
	}
}

// sibling returns the letter that differs from c in the lowest of its bits.
func sibling(c byte) string {
	i := strings.IndexByte(textAlphabet, c) ^ 1
	return textAlphabet[i : i+1]
}

func TestPutTextsDiffer(t *testing.T) {
	a, b := NewPutText(), NewPutText()
	if a == b || !strings.HasPrefix(a, "orlop-putkey-1-") {
		t.Errorf("%q and %q", a, b)
	}
	if _, err := Text(a); err != nil {
		t.Error(err)
	}
}

func FuzzParseText(f *testing.F) {
	key := testKey.Text()
	f.Add(key)
	f.Add(strings.ToUpper(key))
	f.Add(key[:40])
	f.Add(NewPutText())
	f.Add("orlop-key-2-" + key[12:])
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseText(s)
		if err != nil {
			if !errors.Is(err, ErrWrongSecret) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		bare := strings.NewReplacer("-", "", " ", "", "\n", "", "\r", "", "\t", "")
		if got := bare.Replace(k.Text()); got != bare.Replace(strings.ToLower(s)) {
			t.Fatalf("ParseText(%q).Text() = %q", s, got)
		}
	})
}
