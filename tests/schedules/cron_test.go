package schedules

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // The same zones on every machine.

	"github.com/jackc/pgx/v5"
	"github.com/robfig/cron/v3"

	"github.com/openqueue/openqueue/tests/testdb"
)

// parser knows what oq_schedule knows, but for 7 as Sunday and for intervals in words.
var parser = cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow |
	cron.Descriptor)

// change is an instant at which a zone's clocks change.
type change struct {
	at            time.Time
	before, after int // seconds east of UTC
}

// changes of a zone in some years; two within an hour would be one.
func changes(loc *time.Location, from, to int) []change {
	var all []change
	offset := func(t time.Time) int { _, o := t.In(loc).Zone(); return o }
	end := time.Date(to, 1, 1, 0, 0, 0, 0, time.UTC)
	for t := time.Date(from, 1, 1, 0, 0, 0, 0, time.UTC); t.Before(end); t = t.Add(time.Hour) {
		low, high := t, t.Add(time.Hour)
		before, after := offset(low), offset(high)
		if before == after {
			continue
		}
		for high.Sub(low) > time.Second {
			if mid := low.Add(high.Sub(low) / 2).Truncate(time.Second); offset(mid) == after {
				high = mid
			} else {
				low = mid
			}
		}
		all = append(all, change{high, before, after})
	}
	return all
}

func load(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// question is one call of oq_next_runs, and how robfig/cron writes the same expression.
type question struct {
	cron, robfig, zone string
	after              time.Time
	repeating          bool // its hours are given by * or a step: it runs as the clock shows them
}

// choice of a field: low to high, with names.
func field(r *rand.Rand, low, high int, names []string) string {
	name := func(v int) string {
		if len(names) > 0 && r.IntN(3) == 0 {
			s := names[v-low]
			if r.IntN(2) == 0 {
				s = strings.ToUpper(s)
			}
			return s
		}
		if r.IntN(8) == 0 {
			return fmt.Sprintf("%02d", v)
		}
		return strconv.Itoa(v)
	}
	one := func() string {
		a := low + r.IntN(high-low+1)
		b := a + r.IntN(high-a+1)
		step := 1 + r.IntN(high-low+1)
		switch r.IntN(8) {
		case 0:
			return fmt.Sprintf("*/%d", step)
		case 1:
			return name(a) + "-" + name(b)
		case 2:
			return fmt.Sprintf("%s-%s/%d", name(a), name(b), step)
		case 3:
			return fmt.Sprintf("%s/%d", name(a), step)
		default:
			return name(a)
		}
	}
	parts := []string{one()}
	for r.IntN(3) == 0 && len(parts) < 4 {
		parts = append(parts, one())
	}
	return strings.Join(parts, ",")
}

var (
	months = strings.Fields("jan feb mar apr may jun jul aug sep oct nov dec")
	days   = strings.Fields("sun mon tue wed thu fri sat")
)

// expression is random, but it comes in some year.
func expression(r *rand.Rand) (text, robfig string, repeating bool) {
	for {
		star := func(odds int, s string) string {
			if r.IntN(odds) > 0 {
				return "*"
			}
			return s
		}
		f := []string{
			star(6, field(r, 0, 59, nil)),
			star(3, field(r, 0, 23, nil)),
			star(2, field(r, 1, 31, nil)),
			star(2, field(r, 1, 12, months)),
			star(2, field(r, 0, 6, days)),
		}
		if r.IntN(2) == 0 { // Mostly a night hour, when clocks change.
			f[0] = field(r, 0, 59, nil)
			f[1] = strconv.Itoa(r.IntN(5))
			if r.IntN(3) == 0 {
				f[1] += "," + strconv.Itoa(r.IntN(5))
			}
			if r.IntN(2) == 0 {
				f[2], f[3], f[4] = "*", "*", "*"
			}
		}
		if r.IntN(4) == 0 {
			f = slices.Insert(f, 0, field(r, 0, 59, nil))
		}
		n := len(f)
		hour := f[n-4]
		repeating = strings.ContainsAny(hour, "*/")
		robfig = strings.Join(f, " ")
		s, err := parser.Parse(robfig)
		if err != nil {
			panic(fmt.Sprintf("%s: %v", robfig, err))
		}
		spec := s.(*cron.SpecSchedule)
		repeating = repeating || spec.Hour&(1<<24-1) == 1<<24-1
		if never(spec) {
			continue
		}
		if f[n-1] == "0" && r.IntN(2) == 0 {
			f[n-1] = "7"
		}
		if f[n-3] == "*" && r.IntN(10) == 0 {
			f[n-3] = "?"
		}
		return strings.Join(f, " "), robfig, repeating
	}
}

const starBit = 1 << 63

// never says whether no month has such a day.
func never(s *cron.SpecSchedule) bool {
	if s.Dow&starBit == 0 {
		return false
	}
	for m := 1; m <= 12; m++ {
		last := time.Date(2024, time.Month(m)+1, 0, 0, 0, 0, 0, time.UTC).Day()
		for d := 1; d <= last; d++ {
			if s.Month>>m&1 == 1 && s.Dom>>d&1 == 1 {
				return false
			}
		}
	}
	return true
}

func seed(t testing.TB) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("OQ_TEST_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("OQ_TEST_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

// ask has the answers of oq_next_runs, count for each question.
func ask(t testing.TB, db *testdb.DB, questions []question, count int) [][]time.Time {
	t.Helper()
	crons, zones, afters := make([]string, len(questions)), make([]string, len(questions)), make([]time.Time, len(questions))
	for i, q := range questions {
		crons[i], zones[i], afters[i] = q.cron, q.zone, q.after
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	rows, err := db.Pool.Query(ctx, `
		select e.i::int, r.at
		  from unnest($1::text[], $2::text[], $3::timestamptz[]) with ordinality e(cron, zone, after, i)
		 cross join lateral oq_next_runs(e.cron, e.zone, $4, e.after) with ordinality r(at, n)
		 order by e.i, r.n`, crons, zones, afters, count)
	if err != nil {
		t.Fatal(err)
	}
	answers := make([][]time.Time, len(questions))
	var i int
	var at time.Time
	if _, err = pgx.ForEachRow(rows, []any{&i, &at}, func() error {
		answers[i-1] = append(answers[i-1], at)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return answers
}

// zone has its changes.
type zone struct {
	name    string
	loc     *time.Location
	changes []change
}

func zones(t testing.TB, names ...string) []zone {
	t.Helper()
	var all []zone
	for _, name := range names {
		loc := load(t, name)
		all = append(all, zone{name, loc, changes(loc, 2000, 2036)})
	}
	return all
}

// when is a time to ask from: mostly the day before the clocks change.
func when(r *rand.Rand, z zone) time.Time {
	if len(z.changes) > 0 && r.IntN(3) > 0 {
		c := z.changes[r.IntN(len(z.changes))]
		if c.at.Year() < 2026 { // Later changes may be made otherwise by a newer law, on one side only.
			return c.at.Add(time.Duration(r.IntN(36*3600)-30*3600) * time.Second)
		}
	}
	t := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(r.IntN(26*365*86400)) * time.Second)
	return t.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
}

// robfig's next run, made to keep our rules for fixed hours where they differ from its own:
//   - an hour that the clock shows twice: it runs both times, we run the first;
//   - an hour that the clock leaves out: it does not run, we run when the clock goes on.
//
// Repeating hours need nothing: both run as the clock shows.
func (q question) next(s cron.Schedule, z zone, after time.Time) time.Time {
	next := s.Next(after.In(z.loc))
	if _, every := s.(cron.ConstantDelaySchedule); every || q.repeating {
		return next
	}
	again := func(t time.Time) bool {
		for _, c := range z.changes {
			if c.after < c.before && !t.Before(c.at) && t.Before(c.at.Add(time.Duration(c.before-c.after)*time.Second)) {
				return true
			}
		}
		return false
	}
	for !next.IsZero() && again(next) {
		next = s.Next(next)
	}
	for _, c := range z.changes {
		if c.after <= c.before || !c.at.After(after) || !next.IsZero() && !c.at.Before(next) {
			continue
		}
		// The hour that is left out, as a clock in UTC shows it.
		from, to := c.at.Add(time.Duration(c.before)*time.Second), c.at.Add(time.Duration(c.after)*time.Second)
		spec := *s.(*cron.SpecSchedule)
		spec.Location = time.UTC
		if t := spec.Next(from.UTC().Add(-time.Second)); !t.IsZero() && t.Before(to) {
			return c.at
		}
	}
	return next
}

// The expressions of thousands of random schedules, mostly in the nights when clocks change, against robfig/cron.
// Its zones here change by whole hours, away from midnight: TestEveryTimeOfTheClock has the others, where
// robfig/cron leaves runs out.
func TestAgainstRobfig(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := seed(t)
	all := zones(t, "UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/Los_Angeles",
		"Australia/Sydney", "Pacific/Auckland", "Asia/Kolkata", "Europe/Dublin")
	const count = 3
	var questions []question
	var where []zone
	for range 5000 {
		z := all[r.IntN(len(all))]
		q := question{zone: z.name, after: when(r, z)}
		switch r.IntN(40) {
		case 0:
			q.cron = []string{"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}[r.IntN(7)]
			q.robfig, q.repeating = q.cron, q.cron == "@hourly"
		case 1:
			d := time.Duration(1+r.IntN(200000)) * time.Second
			q.robfig = "@every " + d.String()
			q.cron = []string{q.robfig, "every " + d.String(), fmt.Sprintf("every %d seconds", int(d.Seconds()))}[r.IntN(3)]
		default:
			q.cron, q.robfig, q.repeating = expression(r)
		}
		questions, where = append(questions, q), append(where, z)
	}
	compared, differ := 0, 0
	for i, got := range ask(t, db, questions, count) {
		q, z := questions[i], where[i]
		s, err := parser.Parse(q.robfig)
		if err != nil {
			t.Fatal(err)
		}
		if spec, ok := s.(*cron.SpecSchedule); ok {
			spec.Location = z.loc
		}
		after := q.after
		for n := range count {
			want := q.next(s, z, after)
			if want.IsZero() { // It looks five years ahead.
				break
			}
			if n >= len(got) || !got[n].Equal(want) {
				t.Errorf("%q (%q) in %s after %v, run %d:\n got %v\nwant %v", q.cron, q.robfig, q.zone, after.In(z.loc), n,
					got, want)
				break
			}
			if plain := s.Next(after.In(z.loc)); !plain.Equal(want) {
				differ++
			}
			compared++
			after = want
		}
	}
	t.Logf("%d runs compared, of which %d by a rule that differs from robfig/cron's", compared, differ)
	if compared < 12000 || differ < 30 || differ > compared/10 {
		t.Errorf("%d runs compared, %d by another rule", compared, differ)
	}
}

// The rules, written down as a walk through every instant around a change of the clocks: robfig/cron only says
// what the fields are. Zones whose clocks change by half an hour, at midnight or by a day are here.
func TestEveryTimeOfTheClock(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	r := seed(t)
	all := zones(t, "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "America/Havana",
		"Pacific/Apia", "Pacific/Chatham", "Asia/Beirut", "America/St_Johns", "Africa/Cairo")
	const span = 4 * 24 * time.Hour
	const count = 1000
	var questions []question
	var where []zone
	for range 400 {
		z := all[r.IntN(len(all))]
		c := z.changes[r.IntN(len(z.changes))]
		if c.at.Year() > 2023 {
			continue
		}
		q := question{zone: z.name, after: c.at.Add(-time.Duration(r.IntN(2*86400)) * time.Second)}
		for q.cron == "" || len(strings.Fields(q.robfig)) == 6 {
			q.cron, q.robfig, q.repeating = expression(r)
		}
		questions, where = append(questions, q), append(where, z)
	}
	runs := 0
	for i, got := range ask(t, db, questions, count) {
		q, z := questions[i], where[i]
		s, err := parser.Parse(q.robfig)
		if err != nil {
			t.Fatal(err)
		}
		spec := s.(*cron.SpecSchedule)
		matches := func(w time.Time) bool {
			dom, dow := spec.Dom>>w.Day()&1 == 1, spec.Dow>>int(w.Weekday())&1 == 1
			day := dom || dow
			if (spec.Dom|spec.Dow)&starBit != 0 {
				day = dom && dow
			}
			return day && spec.Month>>int(w.Month())&1 == 1 && spec.Hour>>w.Hour()&1 == 1 && spec.Minute>>w.Minute()&1 == 1
		}
		wall := func(at time.Time) time.Time {
			_, o := at.In(z.loc).Zone()
			return at.UTC().Add(time.Duration(o) * time.Second)
		}
		var want []time.Time
		seen := map[time.Time]bool{}
		for at := q.after.Truncate(time.Minute).Add(-26 * time.Hour); at.Before(q.after.Add(span)); at = at.Add(time.Minute) {
			w, last := wall(at), wall(at.Add(-time.Minute))
			run := false
			// What the clock has left out since the last minute.
			for m := last.Add(time.Minute); !q.repeating && m.Before(w); m = m.Add(time.Minute) {
				run = run || matches(m)
			}
			run = run || matches(w) && (q.repeating || !seen[w])
			seen[w] = true
			if run && at.After(q.after) && len(want) < count {
				want = append(want, at)
			}
		}
		for n := range got {
			if !got[n].Before(q.after.Add(span)) {
				got = got[:n]
				break
			}
		}
		runs += len(want)
		if !slices.EqualFunc(got, want, time.Time.Equal) {
			n := 0
			for n < len(got) && n < len(want) && got[n].Equal(want[n]) {
				n++
			}
			t.Errorf("%q in %s after %v: %d and %d runs, the first different:\n got %v\nwant %v", q.cron, q.zone,
				q.after.In(z.loc), len(got), len(want), got[n:min(n+2, len(got))], want[n:min(n+2, len(want))])
		}
	}
	t.Logf("%d expressions, %d runs", len(questions), runs)
	if runs < 5000 {
		t.Errorf("only %d runs", runs)
	}
}

// Sparse expressions are found by jumps, not by a walk.
func TestSparseIsFast(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx := context.Background()
	c := db.Conn(t)
	for _, q := range []struct{ cron, zone string }{
		{"0 0 29 2 *", "UTC"}, {"30 2 29 2 *", "America/New_York"}, {"59 59 23 31 12 *", "Australia/Lord_Howe"},
		{"0 0 13 * fri", "Europe/Berlin"}, {"1 1 1 1 *", "Pacific/Apia"},
	} {
		best := time.Hour
		for range 5 {
			began := time.Now()
			if _, err := c.Exec(ctx, "select count(*) from oq_next_runs($1, $2, 1, '2096-03-01')", q.cron, q.zone); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(began))
		}
		t.Logf("%s in %s: %v", q.cron, q.zone, best)
		if best > 50*time.Millisecond {
			t.Errorf("%s in %s takes %v", q.cron, q.zone, best)
		}
	}
}
