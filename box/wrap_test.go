package box

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"orlop/id"
)

// Wrap makes the very box that a Builder makes of the same blob.
func TestWrapIsABoxOfOneBlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "data"), rapid.IntRange(1, 2000).Draw(t, "times"))
		kind := rapid.SampledFrom([]id.Kind{id.Data, id.List, id.Node}).Draw(t, "kind")
		e := NewEncoder()
		var b Builder
		b.Add(kind, data)
		codec, raw, payload := b.Finish(e, nil)
		room := make([]byte, 0, Head+len(data)+Slack)
		codec2, raw2, payload2 := e.Wrap(kind, append(make([]byte, Head), data...), room)
		if codec != codec2 || raw != raw2 || !bytes.Equal(payload, payload2) {
			t.Fatalf("a box of codec %v, %d raw, %d bytes; the builder's is %v, %d, %d",
				codec2, raw2, len(payload2), codec, raw, len(payload))
		}
		if &payload2[0] != &room[:1][0] {
			t.Fatal("a payload with room for it was put elsewhere")
		}
	})
}
