//go:build linux

package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartWidth   = 1240
	chartLeft    = 70 // of the axis
	chartRight   = 52
	panelHeight  = 250
	panelGap     = 78
	headerHeight = 112
	footerHeight = 46
)

// colours are told apart also by those who see few; orlop's are the dark ones.
var colours = map[string]string{
	pathWay: "#0b3d91", volumeWay: "#4f86d9",
	"restic": "#e69f00", "kopia": "#009e73", "borg": "#cc79a7",
	"tar-gzip": "#8a8a8a", "tar-zstd": "#bdbdbd", "cp -a": "#222222", "cat": "#222222", "find": "#222222",
}

// spare are for further versions of peers, in the order in which they come.
var spare = []string{"#d55e00", "#7a5230", "#56b4e9", "#a6a600", "#7b3294"}

// chart draws a panel for each step: of each corpus a group of bars, one a tool,
// of how many times the floor's median wall time the tool's is, on a logarithmic
// axis. The floor itself is the line at 1.
func (r *results) chart() string {
	var panels []step
	for _, st := range steps {
		if len(r.bars(st)) > 0 {
			panels = append(panels, st)
		}
	}
	var tools []string
	colour := map[string]string{}
	n := 0
	for _, c := range r.Cells {
		if c.Role == floor || slices.Contains(tools, c.Tool) {
			continue
		}
		tools = append(tools, c.Tool)
		if colour[c.Tool] = colours[c.Tool]; colour[c.Tool] == "" {
			colour[c.Tool] = spare[n%len(spare)]
			n++
		}
	}
	height := headerHeight + len(panels)*(panelHeight+panelGap) + footerHeight
	var d drawing
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="DejaVu Sans, Verdana, Arial, sans-serif" font-size="12" fill="#222">`, chartWidth, height, chartWidth, height)
	d.add(`<rect width="%d" height="%d" fill="#ffffff"/>`, chartWidth, height)
	d.text(chartLeft, 28, 18, "start", "", "Wall time of each step, as a multiple of the floor's (lower is better)")
	d.text(chartLeft, 48, 11, "start", "", fmt.Sprintf("%s; commit %s; %s run, medians of up to %d", r.Date.Format("2006-01-02"), r.Commit, r.Scale, r.Runs))
	d.text(chartLeft, 64, 11, "start", "", r.Machine.String())
	x := chartLeft
	for _, t := range tools {
		d.add(`<rect x="%d" y="80" width="12" height="12" fill="%s"/>`, x, colour[t])
		d.text(float64(x+17), 91, 12, "start", "", t)
		x += 34 + 8*len(t)
	}
	for i, st := range panels {
		d.panel(headerHeight+i*(panelHeight+panelGap)+24, r, st, tools, colour)
	}
	var versions []string
	for _, t := range tools {
		versions = append(versions, r.Versions[t])
	}
	line, y := "", height-footerHeight+18
	for _, v := range append(slices.Compact(versions), "") {
		if line != "" && (v == "" || len(line)+len(v) > 190) {
			d.text(chartLeft, float64(y), 9.5, "start", "", line)
			line, y = "", y+14
		}
		if line != "" && v != "" {
			line += "; "
		}
		line += v
	}
	d.add(`</svg>`)
	return d.String()
}

// A bar is a tool's ratio to the floor, or NaN if the tool failed.
type bar struct {
	corpus, tool string
	ratio        float64
	blind        bool
}

// bars returns those of a step, in the order of corpora and tools.
func (r *results) bars(st step) (all []bar) {
	for _, c := range r.Cells {
		f := r.median(c.Corpus, st, st.floor(), wall)
		if c.Step != st || c.Role == floor || c.Status == notDone || f == 0 {
			continue
		}
		b := bar{c.Corpus, c.Tool, math.NaN(), c.Blind}
		if c.Status == measured && len(c.Samples) > 0 {
			b.ratio = c.of(wall).Median / f
		}
		all = append(all, b)
	}
	return all
}

// A drawing is SVG that is being written.
type drawing struct{ strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

func (d *drawing) text(x, y, size float64, anchor, more, s string) {
	var e strings.Builder
	_ = xml.EscapeText(&e, []byte(s))
	d.add(`<text x="%.1f" y="%.1f" font-size="%.1f" text-anchor="%s"%s>%s</text>`, x, y, size, anchor, more, e.String())
}

// panel draws a step with its top at y.
func (d *drawing) panel(y int, r *results, st step, tools []string, colour map[string]string) {
	bars := r.bars(st)
	low, high := 1.0, 1.0
	for _, b := range bars {
		if !math.IsNaN(b.ratio) {
			low, high = min(low, b.ratio), max(high, b.ratio)
		}
	}
	// Room above for the labels.
	low, high = below(low), above(high*1.25)
	if high/low < 10 {
		high = low * 10
	}
	at := func(v float64) float64 {
		return float64(y) + panelHeight*(1-math.Log(v/low)/math.Log(high/low))
	}
	right := float64(chartWidth - chartRight)
	d.text(chartLeft, float64(y)-12, 14, "start", ` font-weight="bold"`, fmt.Sprintf("%s: %s", st, aboutStep[st])+pales(bars))
	for p := math.Pow(10, math.Floor(math.Log10(low))); p <= high; p *= 10 {
		for _, k := range []float64{1, 2, 5} {
			v := p * k
			if v < low*0.999 || v > high*1.001 {
				continue
			}
			d.add(`<line x1="%d" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#e2e2e2"/>`, chartLeft, at(v), right, at(v))
			d.text(chartLeft-6, at(v)+4, 11, "end", "", fmt.Sprintf("%g", float64(int(v*1e6+0.5))/1e6))
		}
	}
	var corpora []string
	for _, b := range bars {
		if !slices.Contains(corpora, b.corpus) {
			corpora = append(corpora, b.corpus)
		}
	}
	group := (right - chartLeft) / float64(len(corpora))
	width := min(26, group*0.9/float64(len(tools)))
	for i, corpus := range corpora {
		left := chartLeft + group*float64(i) + (group-width*float64(len(tools)))/2
		for _, b := range bars {
			if b.corpus != corpus {
				continue
			}
			x := left + width*float64(slices.Index(tools, b.tool))
			label, top := fmt.Sprintf("%.2g", b.ratio), at(1)
			switch {
			case math.IsNaN(b.ratio):
				label = "failed"
			case b.ratio >= 100:
				label = fmt.Sprintf("%.0f", b.ratio)
			}
			pale := ""
			if b.blind {
				pale = ` opacity="0.4"`
			}
			if !math.IsNaN(b.ratio) {
				top = min(at(b.ratio), at(1))
				d.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"%s><title>%s, %s: %s times %s</title></rect>`,
					x+0.5, top, width-1, max(1, math.Abs(at(b.ratio)-at(1))), colour[b.tool], pale, corpus, b.tool, label, st.floor())
			}
			d.text(x+width/2+3.5, top-4, 9.5, "start", fmt.Sprintf(` transform="rotate(-90 %.1f %.1f)"`, x+width/2+3.5, top-4), label)
		}
		d.text(chartLeft+group*(float64(i)+0.5), float64(y+panelHeight)+18, 12, "middle", "",
			fmt.Sprintf("%s (%s: %s s)", corpus, st.floor(), seconds(r.median(corpus, st, st.floor(), wall))))
	}
	d.add(`<line x1="%d" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#222" stroke-width="1.4"/>`, chartLeft, at(1), right, at(1))
	d.text(right+6, at(1)+4, 11, "start", "", st.floor())
	d.text(16, float64(y)+panelHeight/2, 11, "middle", fmt.Sprintf(` transform="rotate(-90 16 %d)"`, y+panelHeight/2), "times "+st.floor())
}

// pales says what pale bars are, if there are any.
func pales(bars []bar) string {
	if slices.ContainsFunc(bars, func(b bar) bool { return b.blind }) {
		return " (pale: does not compare contents)"
	}
	return ""
}

// below and above return the nearest of 1, 2 and 5 times a power of ten.
func below(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{5, 2} {
		if p*m <= v {
			return p * m
		}
	}
	return p
}

func above(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if p*m >= v {
			return p * m
		}
	}
	return p * 10
}
