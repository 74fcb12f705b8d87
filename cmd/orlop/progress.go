package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

const (
	drawEvery = 100 * time.Millisecond // on a terminal
	lineEvery = 30 * time.Second       // elsewhere
)

// A meter shows how far one volume has come: a bar on a terminal, else a line
// now and then.
type meter struct {
	a    *app
	name string
	bars *mpb.Progress
	bar  *mpb.Bar

	mu      sync.Mutex
	started time.Time
	shown   time.Time
	files   uint64
}

// meter starts to show the progress of name; stop ends it.
func (a *app) meter(name string) *meter {
	m := &meter{a: a, name: cleanName(name), started: time.Now(), shown: time.Now()}
	f, ok := a.err.(*os.File)
	if !a.quiet && !a.json && !a.noProgress && ok && term.IsTerminal(int(f.Fd())) {
		m.bars = mpb.New(mpb.WithOutput(a.err), mpb.WithRefreshRate(drawEvery), mpb.WithWidth(40))
		m.bar = m.bars.New(0,
			mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(m.name+" "), decor.Any(func(decor.Statistics) string {
				m.mu.Lock()
				defer m.mu.Unlock()
				return plural(m.files, "file") + ", "
			}), decor.Current(decor.SizeB1000(0), "% .1f ")),
			mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1000(0), "% .1f"), decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "")),
		)
	}
	return m
}

// set says how much was done, and how much there probably is; 0 if nobody knows.
func (m *meter) set(files, bytes, total uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files = files
	every := lineEvery
	if m.bar != nil {
		every = drawEvery
	}
	if time.Since(m.shown) < every {
		return
	}
	m.shown = time.Now()
	switch {
	case m.bar != nil:
		m.bar.SetTotal(int64(max(total, bytes+1)), false)
		m.bar.SetCurrent(int64(bytes))
	case !m.a.noProgress:
		rate := float64(bytes) / time.Since(m.started).Seconds()
		left := ""
		if total > bytes && rate > 0 {
			left = ", about " + took(time.Duration(float64(total-bytes)/rate*float64(time.Second)).Round(time.Second)) + " left"
		}
		m.a.say("%s: %s, %s, %s/s%s", m.name, plural(files, "file"), size(bytes), size(uint64(rate)), left)
	}
}

func (m *meter) stop() {
	if m.bar != nil {
		m.bar.Abort(true)
		m.bars.Wait()
		m.bar = nil
		fmt.Fprint(m.a.err, "\r\x1b[K") // whatever the bar left on its line
	}
}
