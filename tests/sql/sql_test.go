// Package sql runs the files of this folder, each in a database of its own, through psql, and reads
// the TAP that they print.
package sql

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

var result = regexp.MustCompile(`^(not )?ok (\d+) - `)

// failures are the tests that failed in what a file printed. A file that ends before its plan, loses
// a result, or warns has failed too.
func failures(out string) (bad []string, passed int) {
	last, planned := 0, -1
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		m := result.FindStringSubmatch(line)
		switch {
		case m != nil:
			n, err := strconv.Atoi(m[2])
			if err != nil || n != last+1 {
				bad = append(bad, fmt.Sprintf("test %d is followed by: %s", last, line))
			}
			last = n
			if m[1] == "" {
				passed++
			} else {
				bad = append(bad, line)
			}
		case strings.HasPrefix(line, "#") && len(bad) > 0:
			bad[len(bad)-1] += "\n" + line
		case strings.HasPrefix(line, "1.."):
			n, err := strconv.Atoi(line[3:])
			if err != nil {
				bad = append(bad, line)
			}
			planned = n
		case strings.Contains(line, "WARNING:"):
			bad = append(bad, line)
		}
	}
	if planned != last || last == 0 {
		bad = append(bad, fmt.Sprintf("%d tests ran, %d were planned", last, planned))
	}
	return bad, passed
}

func files(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("*.sql")
	if err != nil || len(all) == 0 {
		t.Fatalf("no files: %v", err)
	}
	return all
}

func TestSQL(t *testing.T) {
	t.Parallel()
	for _, file := range files(t) {
		t.Run(strings.TrimSuffix(file, ".sql"), func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			bad, passed := failures(db.Psql(t, "-f", "_setup.psql", "-f", file))
			for _, b := range bad {
				t.Error(b)
			}
			t.Logf("%d passed", passed)
		})
	}
}

// What fails must say so, or nothing above means anything.
func TestAssertionsCanFail(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	out := db.Psql(t, "-f", "_setup.psql", "-f", "testdata/failing.psql")
	if bad, passed := failures(out); passed != 0 || len(bad) != strings.Count(out, "not ok") || len(bad) < 10 {
		t.Errorf("%d passed, %d failed of\n%s", passed, len(bad), out)
	}
	for _, broken := range []string{"", "ok 1 - a\n1..2\n", "ok 1 - a\n", "ok 2 - a\n1..2\n", "ok 1 - a\nWARNING:  b\n1..1\n"} {
		if bad, _ := failures(broken); len(bad) == 0 {
			t.Errorf("%q passes", broken)
		}
	}
}

// Every function and view has a file, or stands in the first lines of the one that tests it too.
func TestEveryFunctionIsTested(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	tested := map[string]bool{}
	name := regexp.MustCompile(`oq_[a-z_]+`)
	for _, file := range files(t) {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(raw), "\n")
		for _, n := range append(name.FindAllString(head, -1), strings.TrimSuffix(file, ".sql")) {
			tested[n] = strings.Contains(string(raw), n)
		}
	}
	rows, err := db.Pool.Query(context.Background(), `
		select p.proname::text from pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname like 'oq\_%'
		union select c.relname::text from pg_class c
		 where c.relnamespace = 'public'::regnamespace and c.relkind = 'v' and c.relname like 'oq\_%'`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !tested[n] {
			t.Errorf("no file tests %s", n)
		}
	}
}
