package sql

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// The examples of the reference do what it says.
func TestReadmeExamples(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../sql/README.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		// The last query of each: its rows.
		"imports":  "(acme,1)|(acme,2)|(acme,3)|(globex,1)|(initech,1)",
		"webhooks": "(b.example,1)|(b.example,2)|(b.example,3)",
	}
	found := regexp.MustCompile("(?s)<!-- example: ([a-z]+) -->\n```sql\n(.*?)```").FindAllStringSubmatch(string(raw), -1)
	for _, m := range found {
		t.Run(m[1], func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			statements := strings.Split(strings.TrimSpace(m[2]), "\n\n")
			for _, s := range statements[:len(statements)-1] {
				if _, err := db.Pool.Exec(t.Context(), s); err != nil {
					t.Fatalf("%s: %v", s, err)
				}
			}
			last := strings.TrimSuffix(strings.TrimSpace(statements[len(statements)-1]), ";")
			last = regexp.MustCompile(`(?m)^--.*$`).ReplaceAllString(last, "")
			var got string
			if err := db.Pool.QueryRow(t.Context(), "select string_agg(r::text, '|' order by r::text) from ("+
				last+") r").Scan(&got); err != nil {
				t.Fatal(err)
			}
			if got != want[m[1]] {
				t.Errorf("gives %q, want %q", got, want[m[1]])
			}
		})
	}
	if len(found) != len(want) {
		t.Errorf("%d examples, want %d", len(found), len(want))
	}
}
