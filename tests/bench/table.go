package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is one line of the table: what one contender did in every round, and what that is beside the
// contender it is compared with, round by round.
type row struct {
	id, work, who string
	unit          string
	values        []float64
	cpu           []float64 // cores used by the load generator
	against       string
	ratios        []float64
	goal          goal
	absolute      bool // the goal is for the values although there are ratios
	hidden        bool // not in the table
}

// goal is what a row is to reach, for the median of a row's ratios, or of its values
// where there is nothing to compare with.
type goal struct {
	set    bool
	atMost bool
	number float64
}

func atLeast(x float64) goal { return goal{set: true, number: x} }
func atMost(x float64) goal  { return goal{set: true, number: x, atMost: true} }

func (g goal) met(x float64) bool {
	if g.atMost {
		return x <= g.number
	}
	return x >= g.number
}

func (g goal) String() string {
	if g.atMost {
		return fmt.Sprintf("≤ %g", g.number)
	}
	return fmt.Sprintf("≥ %g", g.number)
}

// versus fills a row's ratios from another contender's rounds.
func (r row) versus(base row, g goal) row {
	r.against, r.goal = base.who, g
	for i := range min(len(r.values), len(base.values)) {
		if base.values[i] == 0 { // a window too short to measure in
			continue
		}
		r.ratios = append(r.ratios, r.values[i]/base.values[i])
	}
	return r
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	if n == 0 {
		return 0
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}

// judged are the numbers that the goal is about.
func (r row) judged() []float64 {
	if len(r.ratios) > 0 && !r.absolute {
		return r.ratios
	}
	return r.values
}

func printTable(out io.Writer, rows []row, notes []string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tworkload\twho\tmedian (min–max)\tunit\tratio (min–max)\tgoal\tmet\tclient")
	last := ""
	for _, r := range rows {
		if r.hidden {
			continue
		}
		id, work := r.id, r.work
		if id+work == last {
			id, work = "", ""
		} else {
			last = id + work
		}
		ratio, goal, met := "", "", ""
		if len(r.ratios) > 0 {
			ratio = spread(r.ratios, 2) + " × " + r.against
		}
		if r.goal.set {
			goal, met = r.goal.String(), "no"
			if r.goal.met(median(r.judged())) {
				met = "yes"
			}
		}
		cpu := ""
		if len(r.cpu) > 0 {
			cpu = fmt.Sprintf("%.2f", median(r.cpu))
		}
		digits := 0
		if r.unit == "ms" || r.unit == "µs/job" || r.unit == "calls/s" {
			digits = 2
		}
		fmt.Fprintln(w, strings.Join([]string{id, work, r.who, spread(r.values, digits), r.unit,
			ratio, goal, met, cpu}, "\t"))
	}
	w.Flush()
	for _, n := range notes {
		fmt.Fprintln(out, n)
	}
}

func spread(values []float64, digits int) string {
	switch len(values) {
	case 0:
		return "–"
	case 1:
		return fmt.Sprintf("%.*f", digits, values[0])
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, median(values), digits, slices.Min(values), digits,
		slices.Max(values))
}
