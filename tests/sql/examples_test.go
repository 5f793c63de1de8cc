package sql

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// example is a section of EXAMPLES.md: its SQL, each block with what psql is said to print.
type example struct {
	name   string
	blocks []block
}

type block struct {
	sql  string
	want string // "" where the text does not say
}

var fence = regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```")

func parseExamples(text string) (all []example) {
	for _, section := range strings.Split(text, "\n## ")[1:] {
		name, body, _ := strings.Cut(section, "\n")
		e := example{name: name}
		for _, m := range fence.FindAllStringSubmatch(body, -1) {
			switch m[1] {
			case "sql":
				e.blocks = append(e.blocks, block{sql: m[2]})
			case "text":
				e.blocks[len(e.blocks)-1].want = m[2]
			}
		}
		if len(e.blocks) > 0 {
			all = append(all, e)
		}
	}
	return all
}

// matches compares line by line; … stands for anything within a line, and blank ends don't count.
func matches(want, got string) bool {
	var pattern strings.Builder
	pattern.WriteString(`\A`)
	for line := range strings.Lines(strings.TrimSpace(want)) {
		parts := strings.Split(strings.TrimRight(line, " \n"), "…")
		for i, p := range parts {
			parts[i] = regexp.QuoteMeta(p)
		}
		pattern.WriteString(strings.Join(parts, ".*") + `[ ]*\n?`)
	}
	pattern.WriteString(`\z`)
	return regexp.MustCompile(pattern.String()).MatchString(strings.TrimSpace(got))
}

// What the examples say is what a psql that is given them prints.
func TestExamples(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../sql/EXAMPLES.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := parseExamples(string(raw))
	if len(examples) < 5 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			var script strings.Builder
			for i, b := range e.blocks {
				fmt.Fprintf(&script, "%s\n\\echo <<<%d>>>\n", b.sql, i)
			}
			file := filepath.Join(t.TempDir(), "example.sql")
			if err := os.WriteFile(file, []byte("\\pset format aligned\n\\pset tuples_only off\n\\pset pager off\nset time zone 'UTC';\n"+script.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			out := db.Psql(t, "-f", file) + "\n"
			said := 0
			for i, b := range e.blocks {
				var got string
				got, out, _ = strings.Cut(out, fmt.Sprintf("<<<%d>>>\n", i))
				if b.want == "" {
					continue
				}
				said++
				if !matches(b.want, got) {
					t.Errorf("after\n%s\npsql prints\n%s\nand the text says\n%s", b.sql, got, b.want)
				}
			}
			if said == 0 {
				t.Error("it says nothing of what is printed")
			}
		})
	}
}

func TestMatchesCanFail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want, got string
		is        bool
	}{
		{"a | 1\n", " a | 1 \n\n", true},
		{"a | …\nb", "a | 17\nb\n", true},
		{"a | …\nb", "a | 17\nc\n", false},
		{"a", "a\nb", false},
		{"a.c", "abc", false},
	} {
		if matches(c.want, c.got) != c.is {
			t.Errorf("%q against %q", c.want, c.got)
		}
	}
}
