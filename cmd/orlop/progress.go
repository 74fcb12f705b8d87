package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

const (
	drawEvery = 100 * time.Millisecond // on a terminal
	lineEvery = 30 * time.Second       // elsewhere
)

// A meter shows how far one source has come: a bar on a terminal, else a line
// now and then.
type meter struct {
	a       *app
	name    string
	thing   string // what is counted
	bars    *mpb.Progress
	bar     *mpb.Bar // from the first set on
	started time.Time

	// Not below mu: the bar asks for it while whoever holds mu waits for the bar.
	now atomic.Pointer[progress]

	mu    sync.Mutex
	shown time.Time
}

// A progress is what was done so far, and what there is in all; 0 if nobody
// knows.
type progress struct {
	things, bytes uint64
	total         uint64 // of bytes, or of things if bytes are not counted
	noBytes       bool
}

// meter starts to show the progress of name; stop ends it.
func (a *app) meter(name, thing string) *meter {
	m := &meter{a: a, name: short(cleanName(name)), thing: thing, started: time.Now(), shown: time.Now()}
	f, ok := a.err.(*os.File)
	if !a.quiet && !a.json && !a.noProgress && ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		m.bars = mpb.New(mpb.WithOutput(a.err), mpb.WithRefreshRate(drawEvery), mpb.WithWidth(30))
	}
	return m
}

// short leaves room on the line for the rest.
func short(name string) string {
	const most = 32
	if r := []rune(name); len(r) > most {
		return string(r[:most/2-1]) + "…" + string(r[len(r)-most/2:])
	}
	return name
}

// set says how much was done, and how many bytes there probably are.
func (m *meter) set(things, bytes, total uint64) {
	m.show(progress{things: things, bytes: bytes, total: total})
}

// count is set where bytes say nothing.
func (m *meter) count(things, total uint64) {
	m.show(progress{things: things, total: total, noBytes: true})
}

func (m *meter) show(p progress) {
	m.now.Store(&p)
	m.mu.Lock()
	defer m.mu.Unlock()
	every := lineEvery
	if m.bars != nil {
		every = drawEvery
	}
	if time.Since(m.shown) < every {
		return
	}
	m.shown = time.Now()
	done := p.bytes
	if p.noBytes {
		done = p.things
	}
	if m.bars == nil {
		if !m.a.noProgress {
			m.a.say("%s: %s%s%s", m.name, m.words(p), m.rate(p), m.left(done, p.total))
		}
		return
	}
	if m.bar == nil {
		m.draw(p.total > 0)
	}
	// More than there was before is no mistake: the source has grown.
	m.bar.SetTotal(int64(max(p.total, done+1)), false)
	m.bar.SetCurrent(int64(done))
}

// draw puts the bar on the terminal; where the end is not known only numbers.
func (m *meter) draw(bounded bool) {
	style := mpb.NopStyle()
	if bounded {
		style = mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]")
	}
	words := func(f func(p progress) string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string { return f(*m.now.Load()) })
	}
	m.bar = m.bars.New(0, style, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(m.name+": "), words(func(p progress) string { return m.words(p) + m.rate(p) + " " })),
		mpb.AppendDecorators(words(func(p progress) string {
			if p.noBytes {
				return strings.TrimPrefix(m.left(p.things, p.total), ", ")
			}
			return strings.TrimPrefix(m.left(p.bytes, p.total), ", ")
		})),
	)
}

func (m *meter) words(p progress) string {
	switch {
	case !p.noBytes:
		return plural(p.things, m.thing) + ", " + size(p.bytes)
	case p.total > 0:
		return number(p.things) + " of " + plural(p.total, m.thing)
	}
	return plural(p.things, m.thing)
}

func (m *meter) rate(p progress) string {
	if p.noBytes || p.bytes == 0 {
		return ""
	}
	return ", " + size(uint64(float64(p.bytes)/time.Since(m.started).Seconds())) + "/s"
}

// left guesses how long the rest takes.
func (m *meter) left(done, total uint64) string {
	so := time.Since(m.started)
	if done == 0 || total <= done || so < time.Second {
		return ""
	}
	rest := time.Duration(float64(so) * float64(total-done) / float64(done))
	return ", about " + took(rest.Round(time.Second)) + " left"
}

func (m *meter) stop() {
	if m.bars == nil {
		return
	}
	m.mu.Lock()
	bar := m.bar
	m.mu.Unlock()
	if bar != nil {
		bar.Abort(true)
	}
	m.bars.Wait()
	m.bars = nil
	if bar != nil {
		fmt.Fprint(m.a.err, "\r\x1b[K") // whatever the bar left on its line
	}
}
