package openqueue

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// What a worker is told behind a pooler that knows no prepared statements leads to the setting for it, and is no
// judgment on a job.
func TestHintAtThePooler(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := &Worker{Pool: testdb.New(t).Pool, Timeout: time.Minute}
	for _, sql := range []string{"execute none", "prepare twice as select 1; prepare twice as select 1"} {
		s := w.session("test")
		defer s.close()
		run := func() error {
			return s.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, sql)
				return err
			})
		}
		err := run()
		if err == nil || !strings.Contains(err.Error(), "set Pooler?") || judged(err) || !refused(err) {
			t.Errorf("%s: %v, judged: %t", sql, err, judged(err))
		}
		if s.conn != nil {
			t.Errorf("%s: the session that is not what it was stays", sql)
		}
		s.pooler = true
		if err := run(); err == nil || strings.Contains(err.Error(), "Pooler") {
			t.Errorf("%s, with Pooler: %v", sql, err)
		}
	}
}
