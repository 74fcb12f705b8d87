package backup

import (
	"fmt"
	"strings"
	"testing"

	"orlop/agent"
	"orlop/id"
	"orlop/snapshot"
)

// However long the paths of files that could not be kept: the snapshot is made,
// and names as many as it has room for.
func TestManySkippedFilesWithLongPathsAreNoReasonToFail(t *testing.T) {
	b := &run{}
	for i := range 3000 {
		b.skip(&slot{stat: agent.Stat{Dir: strings.Repeat("d/", 3000) + "d", Name: fmt.Sprint(i)}}, "it may not be read")
	}
	b.made.Source = snapshot.Source{Kind: snapshot.Directory, Name: "/src"}
	b.made.Sequence, b.made.Partial = 1, true
	b.made.Root = snapshot.Root{Name: id.Blob{1}, Length: 10, Entries: 1}
	if _, err := b.made.Marshal(); err != nil {
		t.Error(err)
	}
	if b.made.SkippedCount != 3000 || len(b.made.Skipped) == 0 {
		t.Errorf("%d skipped, %d named", b.made.SkippedCount, len(b.made.Skipped))
	}
}
