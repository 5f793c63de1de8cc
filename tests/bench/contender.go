package main

import (
	_ "embed"
)

//go:embed textbook.sql
var textbookSQL string

//go:embed bare.sql
var bareSQL string

// contender is one way to build a queue: its schema and the SQL that its clients send. Statements
// take and return the same things for each of them, so that the loops in load.go are shared.
type contender struct {
	name   string
	schema string // run on an empty database; empty: openqueued migrate
	daemon bool   // openqueued runs beside it

	producer, consumer string // roles of its clients

	enqueue    string // $1 queue, $2 payload: one row with the id
	bulk       string // $1 queue, $2 payloads: one row a job with the id
	load       string // $1 queue, $2 payload, $3 how many, $4 priority: how many
	loadLater  string // the same, to run tomorrow
	lease      string // $1 queue, $2 worker, $3 seconds, $4 jobs: id, token, …
	ack        string // $1 id, $2 token: true
	ackMany    string // $1 ids, $2 tokens: one row a job acked
	next       string // lease, $5 ids and $6 tokens to ack before
	listen     string // $1 queue
	unlisten   string // $1 queue; empty: once is enough
	narrow     string // name and bytes of the tables that should stay small
	unfinished string // jobs that still wait for their end
	setup      string // a peer's queue, once its schema is there
	probe      string // a function that shows which version of a peer it is
	consume    step   // instead of lease and ack
	tick       string // what its clock calls
	settle     string // space and statistics as autovacuum would leave them after a while
}

var ours = contender{
	name:       "openqueue",
	daemon:     true,
	producer:   "oq_producer",
	consumer:   "oq_worker",
	enqueue:    "select oq_enqueue($1, $2)",
	bulk:       "select oq_enqueue_bulk($1, $2)",
	load:       "select count(*) from oq_enqueue_bulk($1, array_fill($2::jsonb, array[$3::int]), $4)",
	loadLater:  "select count(*) from oq_enqueue_bulk($1, array_fill($2::jsonb, array[$3::int]), $4, now() + interval '1 day')",
	lease:      "select * from oq_lease($1, $2, $3, $4)",
	ack:        "select oq_ack($1, $2)",
	ackMany:    "select oq_ack_many($1, $2)",
	next:       "select * from oq_next($1, $2, $3, $4, $5, $6)",
	listen:     "select oq_listen($1)",
	unlisten:   "select oq_unlisten($1)",
	narrow:     sizesOf("n.nspname = 'oq' and not c.relispartition"),
	unfinished: "select coalesce(sum(ready + scheduled + waiting + leased), 0)::bigint from oq_stats()",
	settle:     "vacuum analyze",
}

var textbook = contender{
	name:       "textbook",
	schema:     textbookSQL,
	enqueue:    "insert into textbook.job (queue, payload) values ($1, $2) returning id",
	bulk:       "select textbook.enqueue_bulk($1, $2)",
	load:       "with i as (insert into textbook.job (queue, payload, priority) select $1, $2::jsonb, $4 from generate_series(1, $3::int) returning 1) select count(*) from i",
	lease:      "select * from textbook.lease($1, $2, $3, $4)",
	ack:        "select textbook.ack($1, $2)",
	ackMany:    "select textbook.ack_many($1, $2)",
	narrow:     sizesOf("n.nspname = 'textbook'"),
	unfinished: "select count(*) from textbook.job where state <> 2",
	settle:     "vacuum analyze",
}

var bare = contender{
	name:       "bare",
	schema:     bareSQL,
	enqueue:    "insert into bare.job (queue, payload) values ($1, $2) returning id",
	unfinished: "select count(*) from bare.job",
	settle:     "vacuum analyze",
}

func sizesOf(which string) string {
	return "select c.relname::text, pg_total_relation_size(c.oid) from pg_class c" +
		" join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r' and " + which
}
