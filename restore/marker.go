package restore

import (
	"fmt"
	"strings"

	"orlop/agent"
	"orlop/id"
)

const markerLine = "snapshot "

// Marker returns what is in [agent.MarkerName] while a snapshot is being
// restored: words for whoever finds it, and the snapshot for [ParseMarker].
func Marker(s id.Snapshot) string {
	return fmt.Sprintf(`A restore with orlop did not end: what is here is not all of the snapshot,
and may be mixed with what was here before. Restore it again to finish it;
%s then goes away.
%s%s
`, agent.MarkerName, markerLine, s)
}

// ParseMarker returns which snapshot was being restored, or a zero id if that
// cannot be told.
func ParseMarker(text string) id.Snapshot {
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), markerLine); ok {
			if s, err := id.Parse[id.Snapshot](name); err == nil {
				return s
			}
		}
	}
	return id.Snapshot{}
}
