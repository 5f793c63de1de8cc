package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestConfigure(t *testing.T) {
	cfg, err := configure(env("BENCH_ROUNDS", "5", "BENCH_SECONDS", "7", "BENCH_B6_SECONDS", "600", "BENCH_DEPTH", "10000000",
		"BENCH_HOLDER", "prepared", "BENCH_PEERS", "PGMQ, river", "BENCH_PGMQ_SQL", "/pgmq.sql", "SOAK_MINUTES", "3"), full)
	if err != nil {
		t.Fatal(err)
	}
	s := cfg.size
	if s.rounds != 5 || s.heldRounds != 5 || s.window != 7*time.Second || s.heldSlices != 60 || s.deep != 10_000_000 ||
		s.soakCount != 3 || cfg.Holder != "prepared" || strings.Join(cfg.Peers, "+") != "pgmq+river" ||
		cfg.PeerSQL["pgmq"] != "/pgmq.sql" {
		t.Errorf("configured as %+v", cfg)
	}
	if cfg, err = configure(env("BENCH_B6_SECONDS", "600"), full); err != nil || cfg.size.heldRounds != 1 || cfg.size.rounds != 3 {
		t.Errorf("ten minutes of B6 run %d rounds of three, %v", cfg.size.heldRounds, err)
	}
	if full.rounds != 3 || full.heldRounds != 3 {
		t.Error("what one run configures reached the defaults")
	}
	if cfg, err = configure(env("BENCH_PG_MAJOR", "18"), full); err != nil || cfg.Major != 18 {
		t.Errorf("BENCH_PG_MAJOR=18 gave %d, %v", cfg.Major, err)
	}
	if _, err = configure(env("BENCH_PG_MAJOR", "18", "BENCH_DATABASE_URL", "postgres://x"), full); err == nil {
		t.Error("a version was asked of somebody else's server")
	}
	for name, value := range map[string]string{
		"BENCH_ROUNDS": "0", "BENCH_SECONDS": "x", "BENCH_B6_SECONDS": "25", "BENCH_HOLDER": "nobody",
		"BENCH_PEERS": "pgmq,mine", "BENCH_DEPTH": "-1", "SOAK_MINUTES": "1", "BENCH_PG_MAJOR": "13",
	} {
		if _, err := configure(env(name, value), full); err == nil || !strings.Contains(err.Error(), name+"="+value) {
			t.Errorf("%s=%s gave %v", name, value, err)
		}
	}
}

// A picture has to be well-formed, hold all values inside its frame and name what it shows.
func TestSVG(t *testing.T) {
	c := &chart{title: "a < b", xLabel: "seconds", series: []series{
		{name: "up & away", values: []float64{0, 5000, 11000}}, {name: "flat", values: []float64{3000, 3000}}}}
	for range 60 {
		c.ticks = append(c.ticks, "10")
	}
	text := c.svg()
	decoder := xml.NewDecoder(strings.NewReader(text))
	lines, labels := 0, 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		element, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		switch element.Name.Local {
		case "polyline":
			lines++
		case "text":
			labels++
		}
		for _, a := range element.Attr {
			if a.Name.Local == "y1" || a.Name.Local == "cy" {
				var y float64
				if json.Unmarshal([]byte(a.Value), &y) != nil || y < 0 || y > 380 {
					t.Errorf("%s lies outside: %s", element.Name.Local, a.Value)
				}
			}
		}
	}
	if lines != 2 || labels > 35 {
		t.Errorf("%d lines and %d labels", lines, labels)
	}
	for _, want := range []string{"a &lt; b", "up &amp; away", "15,000", "seconds", "prefers-color-scheme: dark"} {
		if !strings.Contains(text, want) {
			t.Errorf("the picture lacks %q", want)
		}
	}
	if (&chart{}).svg() == "" || strings.Contains((&chart{ticks: []string{"1"}, series: []series{{values: []float64{0}}}}).svg(), "NaN") {
		t.Error("an empty chart")
	}
}

func TestLogGrid(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{[]float64{4600, 130000}, "2000 5000 10000 20000 50000 100000 200000"},
		{[]float64{1000, 0, 2000}, "1000 2000"}, {[]float64{7, 7}, "5 10"}, {nil, "1 2"},
	} {
		if got := (series{values: logGrid([]series{{values: c.values}})}).String(); got != c.want {
			t.Errorf("the grid of %v is %s, want %s", c.values, got, c.want)
		}
	}
	text := (&chart{log: true, ticks: []string{"1", "2"}, series: []series{{values: []float64{0, 4600}}}}).svg()
	if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Error("a value of zero has no place on a logarithmic axis, and must not break it")
	}
}

func TestNiceStep(t *testing.T) {
	for most, want := range map[float64]float64{0: 1, 4: 1, 9: 2, 11000: 5000, 99000: 20000, 100: 20} {
		if got := niceStep(most); math.Abs(got-want) > 1e-9 {
			t.Errorf("steps to %g are %g, want %g", most, got, want)
		}
	}
}

func TestReportOf(t *testing.T) {
	mine := row{id: "B1", work: "w", who: "mine", unit: "ms", values: []float64{1, 2, 4}, cpu: []float64{0.5}}
	base := row{who: "base", values: []float64{2, 0, 2}}
	r := mine.versus(base, atMost(3))
	if len(r.ratios) != 2 { // nothing can be held against a round that gave nothing
		t.Fatalf("ratios %v", r.ratios)
	}
	out := reportOf(r)
	if *out.Ratio != (summary{1.25, 0.5, 2}) || *out.Summary != (summary{2, 1, 4}) || !*out.Met || out.Goal != "≤ 3" {
		t.Errorf("%+v", out)
	}
	r.goal = atMost(1.5)
	if !*reportOf(r).Met {
		t.Error("the goal was not held against the ratios")
	}
	r.absolute = true
	if *reportOf(r).Met {
		t.Error("an absolute goal was not held against the values")
	}
	if _, err := json.Marshal(reportOf(row{unit: "not supported by this schema"})); err != nil {
		t.Error(err)
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[int64]string{1_000_000: "1M", 2_500_000: "2.5M", 10_000: "10k", 2500: "2.5k", 999: "999", 1234: "1234"} {
		if got := short(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

// Every job of a timed run has a delay, whichever of the two replies came first, and one that
// nobody leased is an error.
func TestDelays(t *testing.T) {
	ms := int64(time.Millisecond)
	target := &target{name: "t", made: []int64{1, 12, 10, 11}, madeAt: []int64{20 * ms, 5 * ms, 10 * ms},
		leased: []int64{1, 10, 11, 12}, leasedAt: []int64{6 * ms, 9 * ms, 60 * ms}}
	got, err := target.delays()
	if err != nil || len(got) != 3 || got[0] != 0 || got[1] != 1 || got[2] != 40 {
		t.Errorf("delays %v, %v", got, err)
	}
	if quantile(got, 0.5) != 1 || quantile(got, 1) != 40 || quantile(nil, 0.5) != 0 {
		t.Error("quantiles")
	}
	target.leased[3] = 13
	if _, err := target.delays(); err == nil || !strings.Contains(err.Error(), "job 12 was never leased") {
		t.Errorf("a lost job gave %v", err)
	}
}

// Each holder holds what its name says, and lets go of it.
func TestHolders(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	b, target := testBench(t, db), textbookTarget(t)
	for _, holder := range holders {
		b.holder, b.notes = holder, nil
		release, err := b.hold(t.Context(), target)
		if err != nil {
			t.Fatalf("%s: %v", holder, err)
		}
		want := "does not hold back"
		if holder != "slot" {
			want = "holds back"
		}
		if len(b.notes) != 1 || !strings.Contains(b.notes[0], want) {
			t.Errorf("%s: %v", holder, b.notes)
		}
		if err := release(); err != nil {
			t.Fatalf("%s: %v", holder, err)
		}
		if held, err := target.vacuumIsHeld(t.Context()); err != nil || held {
			t.Errorf("%s: held %v after its end, %v", holder, held, err)
		}
	}
}

// A peer that is not there, or is another than the benchmark knows, is an error that says so.
func TestPeers(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	b := testBench(t, db)
	err := b.findPeers(t.Context(), Config{Peers: []string{"pgmq"}, PeerSQL: map[string]string{}})
	wantError(t, err, "BENCH_PGMQ_SQL")
	file := filepath.Join(t.TempDir(), "pgmq.sql")
	write := func(sql string) {
		if err := os.WriteFile(file, []byte(sql), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("create schema pgmq; create function pgmq.create(text) returns void language sql as ''")
	err = b.findPeers(t.Context(), Config{Peers: []string{"pgmq"}, PeerSQL: map[string]string{"pgmq": file}})
	wantError(t, err, "another version")
	if len(b.peers) != 0 {
		t.Error("it takes part nevertheless")
	}
	if pgque.can(kindOne) || !pgque.can(kindSteady) || !pgmq.can(kindBatch) || bare.can(kindSteady) {
		t.Error("who can do what")
	}
}

func testBench(t *testing.T, db *testdb.DB) *bench {
	b := &bench{size: tiny, log: io.Discard, start: time.Now(), templates: map[string]bool{}, dir: t.TempDir(),
		prefix: "oq_bench_test_" + strings.ToLower(t.Name())}
	if err := b.connect(t.Context(), db.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.cleanUp(); err != nil {
			t.Error(err)
		}
	})
	return b
}
