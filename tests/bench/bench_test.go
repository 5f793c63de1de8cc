package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Every row at a tiny size: the loops end, nothing is lost or doubled, no law is broken, and the
// databases are gone afterwards. The rows run in three groups at once; there is nothing to measure.
func TestSmoke(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	daemon, err := buildDaemon(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("rows", func(t *testing.T) {
		var groups [3][]string
		for i, w := range works {
			g := i % len(groups)
			if strings.HasPrefix(w.id, "L") {
				g = 0 // each run builds the libraries' programs anew
			}
			groups[g] = append(groups[g], w.id)
		}
		for _, names := range groups {
			t.Run(strings.Join(names, ","), func(t *testing.T) {
				t.Parallel()
				smoke(t, Config{URL: db.URL, Pick: strings.Join(names, ","), Holder: "reader", size: tiny, daemon: daemon}, names)
			})
		}
	})
	t.Run("soak", func(t *testing.T) {
		rep := smoke(t, Config{URL: db.URL, Soak: true, size: tiny, daemon: daemon}, nil)
		if len(rep.Rows) != len(soakColumns) || len(rep.Rows[0].Values) != tiny.soakCount || rep.Rows[0].Values[0] == 0 {
			t.Errorf("the soak's report: %+v", rep.Rows)
		}
	})
	var left int
	err = db.Pool.QueryRow(t.Context(),
		"select count(*) from pg_database where datname like 'oq\\_bench\\_' || $1 || '\\_%'", strconv.Itoa(os.Getpid())).Scan(&left)
	if err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%d databases were left behind", left)
	}
}

// smoke runs the benchmark and wants a row of each of these names in the table and in the JSON.
func smoke(t *testing.T, cfg Config, names []string) report {
	t.Helper()
	dir := t.TempDir()
	var out, log bytes.Buffer
	cfg.Out, cfg.Log, cfg.JSON, cfg.Pictures = &out, &log, filepath.Join(dir, "bench.json"), dir
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	text, err := os.ReadFile(cfg.JSON)
	if err != nil {
		t.Fatal(err)
	}
	var rep report
	if err := json.Unmarshal(text, &rep); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.Contains(out.String(), "\n"+name+" ") {
			t.Errorf("the table has no row %s:\n%s", name, out.String())
		}
		if !slices.ContainsFunc(rep.Rows, func(r reportRow) bool { return r.ID == name }) {
			t.Errorf("the JSON has no row %s", name)
		}
	}
	if rep.Server.Settings["wal_level"] == "" || !strings.Contains(rep.Server.Version, "PostgreSQL") {
		t.Errorf("the JSON does not name the server: %+v", rep.Server)
	}
	return rep
}

// A benchmark that can't see a lost job would call a queue fast that loses them.
func TestVerify(t *testing.T) {
	for name, c := range map[string]struct {
		harm string
		want string
	}{
		"right":  {"select", ""},
		"lost":   {"delete from textbook.job where id = 12", "11 unfinished"},
		"forged": {"insert into textbook.job (queue, payload) values ('bench', '{}')", "13 unfinished"},
		"undone": {"update textbook.job set state = 0 where state = 2", "15 unfinished"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := textbookTarget(t)
			if _, err := target.conn.Exec(t.Context(), c.harm); err != nil {
				t.Fatal(err)
			}
			wantError(t, target.verify(t.Context()), c.want)
		})
	}
	t.Run("leased twice", func(t *testing.T) {
		t.Parallel()
		target := textbookTarget(t)
		_, err := target.conn.Exec(t.Context(), `update textbook.job set state = 0 where id = (
			select max(id) from textbook.job where state = 2)`)
		if err != nil {
			t.Fatal(err)
		}
		if err := target.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantError(t, target.verify(t.Context()), "leased twice")
	})
	t.Run("late ack", func(t *testing.T) {
		t.Parallel()
		target := textbookTarget(t)
		w := testWorker(t, target)
		err := w.query(w.lease, w.take, []byte(queue), []byte("bench"), int4(leaseSeconds), int4(2))
		if err != nil {
			t.Fatal(err)
		}
		w.tokens[1]++
		wantError(t, w.ackHeld(2), "1 of 2 acks")
	})
}

// textbookTarget is a textbook queue with 15 jobs, 3 of them finished.
func textbookTarget(t *testing.T) *target {
	db := testdb.New(t)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.PgConn().Exec(ctx, textbookSQL).ReadAll(); err != nil {
		t.Fatal(err)
	}
	target := newTarget(textbook, "textbook", db.URL)
	target.conn = conn
	if err := target.fill(ctx, 12, 2); err != nil {
		t.Fatal(err)
	}
	w := testWorker(t, target)
	for range 3 {
		if err := enqueueOne(w); err != nil {
			t.Fatal(err)
		}
		if err := leaseAndAck(1, dry)(w); err != nil {
			t.Fatal(err)
		}
	}
	target.book(w)
	return target
}

// Producers name queues and groups in turn, workers serve all queues, and a backlog is dry when none
// of them gives anything.
func TestTurns(t *testing.T) {
	t.Parallel()
	target := textbookTarget(t)
	ctx := t.Context()
	if err := target.drain(ctx); err != nil {
		t.Fatal(err)
	}
	target.queues, target.groups = []string{"a", "b", "c"}, 2
	target.contender.enqueue = "insert into textbook.job (queue, payload, leased_by) values ($1, $2, $3) returning id"
	w := testWorker(t, target)
	for range 6 {
		if err := enqueueOne(w); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.fill(ctx, target.waiting()+7, 1); err != nil {
		t.Fatal(err)
	}
	var made string
	err := target.conn.QueryRow(ctx, `select string_agg(n, ' ' order by n) from (
		select queue || ':' || coalesce(leased_by, 'none') || ':' || count(*) as n
		  from textbook.job where state = 0 group by queue, leased_by) x`).Scan(&made)
	if err != nil {
		t.Fatal(err)
	}
	if want := "a:g0:1 a:g1:1 a:none:3 b:g0:1 b:g1:1 b:none:2 c:g0:1 c:g1:1 c:none:2"; made != want {
		t.Errorf("made %s, want %s", made, want)
	}
	w.turn = 1
	work, order := leaseAndAck(2, dry), ""
	for {
		order += string(w.queue())
		if err := work(w); err == errDry {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if want := "bcabca" + "bca" + "bca"; order != want || w.finished != 13 {
		t.Errorf("served %s and finished %d, want %s and 13", order, w.finished, want)
	}
}

func testWorker(t *testing.T, target *target) *worker {
	w, err := target.worker(t.Context(), "", &run{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("unexpected: %v", err)
	case text != "" && (err == nil || !strings.Contains(err.Error(), text)):
		t.Errorf("got %v, want an error that says %q", err, text)
	}
}

func TestPick(t *testing.T) {
	got, err := pick("b8, B3", false)
	if err != nil || len(got) != 2 || got[0].id != "B8" || got[1].id != "B3" {
		t.Errorf("pick gave %v, %v", got, err)
	}
	if _, err := pick("B3,B99", false); err == nil || !strings.Contains(err.Error(), `"B99"`) {
		t.Errorf("pick of an unknown row gave %v", err)
	}
}

// The ratio is taken round by round, so that a machine which slows down for one round moves both.
func TestVersus(t *testing.T) {
	mine := row{who: "mine", values: []float64{100, 50, 120}}
	base := row{who: "base", values: []float64{200, 100, 100}}
	r := mine.versus(base, atLeast(0.6))
	if median(r.ratios) != 0.5 || r.goal.met(median(r.ratios)) {
		t.Errorf("ratios %v, met %v", r.ratios, r.goal.met(median(r.ratios)))
	}
	var out bytes.Buffer
	printTable(&out, []row{r, base}, []string{"a note"})
	for _, want := range []string{"100 (50–120)", "0.50 (0.50–1.20) × base", "≥ 0.6", "no", "a note"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if !atMost(1.5).met(1.5) || atMost(1.5).met(1.6) {
		t.Error("a goal of at most 1.5 is met by 1.5 and not by 1.6")
	}
}

// A baseline whose plan has flipped to a scan of the table would make every ratio look good. Plans
// are cached while the table is tiny, as a worker's are that starts before its queue fills.
func TestTextbookUsesItsIndexes(t *testing.T) {
	t.Parallel()
	target := textbookTarget(t)
	ctx := t.Context()
	work := func() int64 {
		tx, err := target.conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Commit(ctx)
		scans := func() (n int64) {
			err := tx.QueryRow(ctx, "select seq_scan from pg_stat_xact_user_tables where relname = 'job'").Scan(&n)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		before := scans()
		var acked int
		err = tx.QueryRow(ctx, `select count(*) from (
			select array_agg(id) as ids, array_agg(token) as tokens
			from textbook.lease('bench', 'w', 60, 10)) l, textbook.ack_many(ids, tokens)`).Scan(&acked)
		if err != nil {
			t.Fatal(err)
		}
		if acked == 0 {
			t.Fatal("nothing was acked")
		}
		return scans() - before
	}
	work()
	if err := target.fill(ctx, 50_000, 1); err != nil {
		t.Fatal(err)
	}
	if err := target.settle(ctx); err != nil {
		t.Fatal(err)
	}
	if scans := work(); scans != 0 {
		t.Errorf("%d scans of the whole table in a lease and an ack", scans)
	}
}
