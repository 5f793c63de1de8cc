package watches

import (
	"math/rand"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// matches is AMQP's rule, word by word.
func matches(pattern, topic []string) bool {
	switch {
	case len(pattern) == 0:
		return len(topic) == 0
	case pattern[0] == "#":
		return matches(pattern[1:], topic) || len(topic) > 0 && matches(pattern, topic[1:])
	default:
		return len(topic) > 0 && (pattern[0] == "*" || pattern[0] == topic[0]) && matches(pattern[1:], topic[1:])
	}
}

func words(r *rand.Rand, from []string) string {
	chosen := make([]string, 1+r.Intn(6))
	for i := range chosen {
		chosen[i] = from[r.Intn(len(from))]
	}
	return strings.Join(chosen, ".")
}

// Thousands of random patterns and topics against a matcher of the test's own; each queue gets one job.
func TestTopicsAgainstAnotherMatcher(t *testing.T) {
	t.Parallel()
	seed := time.Now().UnixNano()
	if v := os.Getenv("OQ_TEST_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseInt(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("OQ_TEST_SEED=%d", seed)
	r := rand.New(rand.NewSource(seed))
	db := testdb.New(t)
	c := db.Conn(t)
	patterns := map[string][]string{}
	var texts, queues []string
	for range 1500 {
		p, q := words(r, []string{"a", "b", "ab", "*", "#"}), "q"+strconv.Itoa(r.Intn(200))
		patterns[q] = append(patterns[q], p)
		texts, queues = append(texts, p), append(queues, q)
	}
	exec(t, c, "select oq_subscribe(p, q) from unnest($1::text[], $2::text[]) u(p, q)", texts, queues)
	for range 300 {
		topic := words(r, []string{"a", "b", "ab", "c"})
		var want []string
		for q, all := range patterns {
			if slices.ContainsFunc(all, func(p string) bool {
				return matches(strings.Split(p, "."), strings.Split(topic, "."))
			}) {
				want = append(want, q)
			}
		}
		slices.Sort(want)
		exec(t, c, "begin")
		n := get[int](t, c, "select oq_publish($1)", topic)
		got := list[string](t, c, `select q.queue_name from oq.ready r join oq.queue q on q.queue_id = r.lane >> 16
			order by q.queue_name collate "C"`)
		exec(t, c, "rollback")
		if !slices.Equal(got, want) || n != len(want) {
			t.Fatalf("topic %s: %d jobs in %v, want %v", topic, n, got, want)
		}
	}
}
