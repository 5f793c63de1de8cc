package testdb

import (
	"context"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestClonesAreApart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := New(t), New(t)
	if _, err := a.Pool.Exec(ctx, `select oq_enqueue('x')`); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := b.Pool.QueryRow(ctx, `select count(*) from oq_jobs`).Scan(&n); err != nil || n != 0 {
		t.Fatalf("%d jobs of another test's database, %v", n, err)
	}
}
