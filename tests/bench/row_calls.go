package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// One session's turn of n jobs, each call with its commit, nothing waiting for the disk: what the calls
// themselves cost, with far less noise than crowds of clients have, and where to look when one of them
// grows. The loop runs in the server, so no client has a part in it.
var calls = []struct {
	work         string
	jobs         int64
	stock        bool   // a turn uses up as many ready jobs
	mine, theirs string // $jobs, $queue and $payload are filled in
	against      contender
}{
	{"enqueue", 5000, false,
		`do $$ begin for k in 1..$jobs loop perform oq_enqueue('$queue', '$payload'); commit; end loop; end $$`,
		`do $$ begin for k in 1..$jobs loop insert into bare.job (queue, payload) values ('$queue', '$payload'); commit; end loop; end $$`, bare},
	{"bulk enqueue by 1000", 50000, false,
		`do $$ declare p jsonb[] := array_fill('$payload'::jsonb, array[1000]); begin
			for k in 1..$jobs / 1000 loop perform count(*) from oq_enqueue_bulk('$queue', p); commit; end loop; end $$`,
		`do $$ declare p jsonb[] := array_fill('$payload'::jsonb, array[1000]); begin
			for k in 1..$jobs / 1000 loop perform count(*) from textbook.enqueue_bulk('$queue', p); commit; end loop; end $$`, textbook},
	{"lease + ack one by one", 3000, true,
		`do $$ declare r record; begin for k in 1..$jobs loop
			select * into r from oq_lease('$queue', 'w'); commit; perform oq_ack(r.job_id, r.lease_token); commit;
			end loop; end $$`,
		`do $$ declare r record; begin for k in 1..$jobs loop
			select * into r from textbook.lease('$queue', 'w', 30, 1); commit; perform textbook.ack(r.id, r.token); commit;
			end loop; end $$`, textbook},
	{"oq_next one by one", 3000, true,
		`do $$ declare r record; i bigint := 0; t bigint := 0; begin for k in 1..$jobs loop
			select * into r from oq_next('$queue', 'w', null, 1, array[i], array[t]); commit; i := r.job_id; t := r.lease_token;
			end loop; perform oq_ack(i, t); end $$`,
		`do $$ declare r record; begin for k in 1..$jobs loop
			select * into r from textbook.lease('$queue', 'w', 30, 1); commit; perform textbook.ack(r.id, r.token); commit;
			end loop; end $$`, textbook},
	{"lease + ack by 100", 20000, true,
		`do $$ declare i bigint[]; t bigint[]; begin for k in 1..$jobs / 100 loop
			select array_agg(job_id), array_agg(lease_token) into i, t from oq_lease('$queue', 'w', null, 100); commit;
			perform count(*) from oq_ack_many(i, t); commit; end loop; end $$`,
		`do $$ declare i bigint[]; t bigint[]; begin for k in 1..$jobs / 100 loop
			select array_agg(id), array_agg(token) into i, t from textbook.lease('$queue', 'w', 30, 100); commit;
			perform count(*) from textbook.ack_many(i, t); commit; end loop; end $$`, textbook},
	{"oq_next by 100", 20000, true,
		`do $$ declare i bigint[]; t bigint[]; begin for k in 1..$jobs / 100 loop
			select array_agg(job_id), array_agg(lease_token) into i, t from oq_next('$queue', 'w', null, 100, i, t); commit;
			end loop; perform count(*) from oq_ack_many(i, t); end $$`,
		`do $$ declare i bigint[]; t bigint[]; begin for k in 1..$jobs / 100 loop
			select array_agg(id), array_agg(token) into i, t from textbook.lease('$queue', 'w', 30, 100); commit;
			perform count(*) from textbook.ack_many(i, t); commit; end loop; end $$`, textbook},
	{"poll of an empty queue", 3000, false,
		`do $$ begin for k in 1..$jobs loop perform job_id from oq_lease('none', 'w'); commit; end loop; end $$`,
		`do $$ begin for k in 1..$jobs loop perform id from textbook.lease('none', 'w', 30, 1); commit; end loop; end $$`, textbook},
}

// C: the calls themselves, µs a job.
func (b *bench) calls(ctx context.Context) (rows []row, err error) {
	for n, call := range calls {
		jobs := min(call.jobs, max(b.size.backlog/20, 1000))
		turn := func(who string, c contender) (*target, row, error) {
			t, err := b.fresh(ctx, c, fmt.Sprint("c", n))
			if err == nil {
				_, err = t.conn.Exec(ctx, "set synchronous_commit = off")
			}
			if err == nil && c.daemon {
				_, err = t.conn.Exec(ctx, "select oq_create_queue($1), oq_create_queue('none')", queue)
			}
			return t, row{id: "C", work: "one session: " + call.work, who: who, unit: "µs/job"}, err
		}
		mine, ourRow, err := turn("openqueue", ours)
		if err != nil {
			return nil, err
		}
		base, theirRow, err := turn(call.against.name, call.against)
		if err != nil {
			return nil, err
		}
		for range b.size.rounds + 1 { // the first makes the plans
			for _, e := range []struct {
				t   *target
				row *row
				sql string
			}{{mine, &ourRow, call.mine}, {base, &theirRow, call.theirs}} {
				if call.stock {
					e.t.loaded = 0 // the turn before used it up
					if err := e.t.fill(ctx, jobs, 1); err != nil {
						return nil, err
					}
					// A tick may have passed over some of so large a transaction, and takes a moment to make them good.
					time.Sleep(b.size.settling / 2)
				}
				begin := time.Now()
				if _, err := e.t.conn.Exec(ctx, fillIn(e.sql, jobs)); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", call.work, e.row.who, err)
				}
				e.row.values = append(e.row.values, float64(time.Since(begin).Microseconds())/float64(jobs))
			}
		}
		ourRow.values, theirRow.values = ourRow.values[1:], theirRow.values[1:]
		b.progress("C %s: %.1f µs, %s %.1f µs", call.work, median(ourRow.values), call.against.name, median(theirRow.values))
		rows = append(rows, ourRow.versus(theirRow, goal{}), theirRow)
		if err := b.dropOpen(ctx); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func fillIn(sql string, jobs int64) string {
	return strings.NewReplacer("$jobs", fmt.Sprint(jobs), "$queue", queue, "$payload", payload).Replace(sql)
}
