package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// chart is a picture of lines over evenly placed ticks.
type chart struct {
	file   string
	title  string
	xLabel string
	ticks  []string
	series []series
	log    bool // where factors matter and the values span many
}

type series struct {
	name   string
	values []float64 // one a tick, jobs/s
}

// String is the values for a line of text.
func (s series) String() string {
	var b strings.Builder
	for i, v := range s.values {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%.0f", v)
	}
	return b.String()
}

// Colours that can be told apart on white and on black, also by who sees no red.
var colours = []string{"#2f81f7", "#e3700d", "#8957e5", "#2da44e", "#bf3989", "#9a6700"}

const style = `<style>
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600; fill: #1f2328 }
.grid { stroke: #d0d7de; stroke-width: 1 }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 }
.title { fill: #f0f6fc }
.grid { stroke: #3d444d }
}
</style>
`

// svg draws the chart on no background, so that it lies well on a light and on a dark page.
func (c *chart) svg() string {
	const width, height, left, right, top, bottom = 760, 380, 64, 16, 36, 76
	most := 0.0
	for _, s := range c.series {
		most = max(most, slices.Max(append([]float64{0}, s.values...)))
	}
	grid := linearGrid(most)
	if c.log {
		grid = logGrid(c.series)
	}
	floor, ceiling := grid[0], grid[len(grid)-1]
	x := func(i int) float64 {
		return left + (width-left-right)*float64(i)/float64(max(1, len(c.ticks)-1))
	}
	y := func(v float64) float64 {
		part := v / ceiling
		if c.log {
			part = math.Log(max(v, floor)/floor) / math.Log(ceiling/floor)
		}
		return height - bottom - (height-top-bottom)*part
	}

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n",
		width, height, html.EscapeString(c.title))
	b.WriteString(style)
	fmt.Fprintf(&b, `<text class="title" x="%d" y="20">%s</text>`+"\n", left, html.EscapeString(c.title))
	for _, v := range grid {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, left, width-right, y(v), y(v))
		fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left-8, y(v)+4, thousands(v))
	}
	every := (len(c.ticks) + 14) / 15 // more labels would run into each other
	for i, tick := range c.ticks {
		if i%every == 0 || i == len(c.ticks)-1 && i%every > every/2 {
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(i), height-bottom+18,
				html.EscapeString(tick))
		}
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", width-right, height-bottom+36,
		html.EscapeString(c.xLabel))
	at := float64(left)
	for i, s := range c.series {
		colour := colours[i%len(colours)]
		var points []string
		for j, v := range s.values {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(j), y(v)))
		}
		fmt.Fprintf(&b, `<polyline class="line" stroke="%s" points="%s"/>`+"\n", colour, strings.Join(points, " "))
		if len(points) <= 15 {
			for j, v := range s.values {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"><title>%s, %s: %s jobs/s</title></circle>`+"\n",
					x(j), y(v), colour, html.EscapeString(s.name), html.EscapeString(c.ticks[j]), thousands(v))
			}
		}
		fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="%d" y2="%d" stroke="%s" stroke-width="3"/>`, at, at+18,
			height-16, height-16, colour)
		fmt.Fprintf(&b, `<text x="%.0f" y="%d">%s</text>`+"\n", at+24, height-12, html.EscapeString(s.name))
		at += 24 + 7*float64(len(s.name)) + 20
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// linearGrid are the lines from 0 to above most.
func linearGrid(most float64) []float64 {
	step := niceStep(most)
	grid := []float64{0}
	for grid[len(grid)-1] < most || len(grid) == 1 {
		grid = append(grid, float64(len(grid))*step)
	}
	return grid
}

// logGrid are 1, 2 and 5 times the powers of ten, from below the least value to above the largest.
func logGrid(all []series) []float64 {
	least, most := math.Inf(1), 1.0
	for _, s := range all {
		for _, v := range s.values {
			if v > 0 {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	least = min(least, most)
	var grid []float64
	for power := math.Pow(10, math.Floor(math.Log10(least))); ; power *= 10 {
		for _, k := range []float64{1, 2, 5} {
			if k*power <= least { // begin at the last of these
				grid = grid[:0]
			}
			if grid = append(grid, k*power); k*power >= most && len(grid) > 1 {
				return grid
			}
		}
	}
}

// niceStep gives about five grid lines at 1, 2 or 5 times a power of ten.
func niceStep(most float64) float64 {
	if most <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(most/5)))
	for _, k := range []float64{1, 2, 5} {
		if most/(k*power) <= 5 {
			return k * power
		}
	}
	return 10 * power
}

// thousands writes 12500 as 12,500.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
