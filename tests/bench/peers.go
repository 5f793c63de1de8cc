package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Peers are other people's queues. None of their code is here: pgmq and PgQue come from a file or a
// database of the person who runs the benchmark, River from the Go module proxy.

// kind is what a row asks of a contender; not every peer can do everything.
type kind string

const (
	kindEnqueue kind = "enqueue" // one a transaction, 8 clients
	kindBulk    kind = "bulk"    // by 1000, 2 clients
	kindOne     kind = "one"     // work off a backlog one by one, 8 clients
	kindBatch   kind = "batch"   // by 100, 4 clients
	kindSteady  kind = "steady"  // 4 producers, 4 consumers by ≤ 10
)

var peerNames = []string{"pgmq", "pgque", "river"}

// pgmq: read sets a visibility timeout and delete is the ack. (archive, which keeps the job as
// openqueue and the textbook do, is slower.) It has neither tokens nor priorities.
var pgmq = contender{
	name:       "pgmq",
	setup:      "select pgmq.create('bench')",
	probe:      "pgmq.send(text, jsonb)",
	enqueue:    "select pgmq.send($1, $2)",
	bulk:       "select pgmq.send_batch($1, $2)",
	load:       "select count(*) from pgmq.send_batch($1, array_fill($2::jsonb, array[$3::int])) where $4::int is not null",
	lease:      "select msg_id, read_ct::bigint from pgmq.read($1, $3, $4) where $2::text is not null",
	ack:        "select pgmq.delete('bench', $1::bigint) where $2::bigint is not null",
	ackMany:    "select pgmq.delete('bench', $1::bigint[]) where $2::bigint[] is not null",
	narrow:     sizesOf("n.nspname = 'pgmq'"),
	unfinished: "select count(*) from pgmq.q_bench",
	settle:     "vacuum analyze",
}

// PgQue delivers what was sent between two ticks as one batch and acks it as one. So there are no
// leases of one job or of a hundred, and no B3 or B4; cooperative consumers share the batches.
var pgque = contender{
	name: "pgque",
	setup: `select pgque.create_queue('bench');
		select pgque.set_queue_config('bench', 'ticker_max_lag', '100 milliseconds');
		select pgque.register_subconsumer('bench', 'bench', 'w' || i) from generate_series(0, 4) i`,
	probe:   "pgque.receive_coop(text, text, text, integer, interval)",
	enqueue: "select pgque.send($1, $2::jsonb)",
	bulk:    "select unnest(pgque.send_batch($1, $2::jsonb[]))",
	tick:    "select pgque.ticker()",
	consume: pgqueConsume,
	narrow:  sizesOf("n.nspname = 'pgque'"),
	settle:  "vacuum analyze",
}

const pgqueTick = 100 * time.Millisecond // its default

// pgqueConsume takes a batch of any size and acks it.
func pgqueConsume(w *worker) error {
	var batch int64
	err := w.query("select msg_id, batch_id from pgque.receive_coop('bench', 'bench', $1, 2147483647)",
		func(row [][]byte) {
			w.leased = append(w.leased, readInt8(row[0]))
			w.jobs = append(w.jobs, readInt8(row[0]))
			batch = readInt8(row[1])
		}, fmt.Appendf(nil, "w%d", w.number))
	if err != nil {
		return err
	}
	n := w.took()
	if n == 0 {
		return pause(w)
	}
	w.drop()
	if err := w.query("select pgque.ack($1)", nil, int8(batch)); err != nil {
		return err
	}
	w.finished += int64(n)
	w.done.Add(int64(n))
	return nil
}

// tick is the clock of a contender that has no daemon.
func tick(w *worker) error {
	err := w.query(w.contender.tick, nil)
	time.Sleep(pgqueTick)
	return err
}

// can says whether a contender has what a row asks for.
func (c contender) can(k kind) bool {
	switch k {
	case kindEnqueue:
		return c.enqueue != ""
	case kindBulk:
		return c.bulk != ""
	case kindOne, kindBatch:
		return c.lease != ""
	default:
		return c.enqueue != "" && (c.lease != "" || c.consume != nil)
	}
}

// findPeers makes a template of each peer that was asked for, or says how to get it.
func (b *bench) findPeers(ctx context.Context, cfg Config) error {
	for _, name := range cfg.Peers {
		var err error
		switch name {
		case "river":
			err = b.buildRiver(ctx)
		case "pgmq":
			err = b.installPeer(ctx, pgmq, cfg.PeerSQL[name])
		case "pgque":
			err = b.installPeer(ctx, pgque, cfg.PeerSQL[name])
		}
		if err != nil {
			return fmt.Errorf("BENCH_PEERS: %s: %w", name, err)
		}
	}
	return nil
}

// installPeer takes the peer from the file that was named, else from the database bench_<peer>,
// else from the server's extensions.
func (b *bench) installPeer(ctx context.Context, c contender, file string) error {
	from, template := "bench_"+c.name, b.prefix+"_"+c.name
	var inDatabase, asExtension bool
	err := b.admin.QueryRow(ctx, `select exists (select from pg_database where datname = $1),
		exists (select from pg_available_extensions where name = $2)`, from, c.name).Scan(&inDatabase, &asExtension)
	if err != nil {
		return err
	}
	schema := ""
	switch {
	case file != "":
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		schema, from = string(text), "template0"
	case inDatabase:
	case asExtension:
		schema, from = "create extension "+c.name+" cascade", "template0"
	default:
		return fmt.Errorf("set BENCH_%s_SQL to the file that installs it, or install it in a database %s",
			strings.ToUpper(c.name), from)
	}
	if err := b.createDatabase(ctx, template, from); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.databaseURL(template))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range []string{schema, c.setup} {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	var found bool
	if err := conn.QueryRow(ctx, "select to_regprocedure($1) is not null", c.probe).Scan(&found); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("there is no function %s: another version than the benchmark knows", c.probe)
	}
	b.templates[c.name] = true
	b.peers = append(b.peers, c)
	return nil
}

// sqlPeers are those that can do what a row asks, by SQL.
func (b *bench) sqlPeers(k kind) []contender {
	return slices.DeleteFunc(slices.Clone(b.peers), func(c contender) bool { return !c.can(k) })
}

// peerEntrants are the peers' turns in a row, behind openqueue's and the baseline's.
func (b *bench) peerEntrants(ctx context.Context, id string, k kind, window time.Duration,
	turn func(*target) entrant) ([]entrant, error) {

	var entrants []entrant
	for _, c := range b.sqlPeers(k) {
		t, err := b.fresh(ctx, c, id)
		if err != nil {
			return nil, err
		}
		entrants = append(entrants, turn(t))
	}
	if b.river != "" {
		e, err := b.riverEntrant(ctx, id, k, window)
		if err != nil {
			return nil, err
		}
		entrants = append(entrants, e)
	}
	return entrants, nil
}

// buildRiver builds the Go module beside this one, for which the module proxy is needed.
func (b *bench) buildRiver(ctx context.Context) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "github.com/openqueue/openqueue/tests/bench").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	b.progress("building tests/bench/river")
	river := filepath.Join(b.dir, "river")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", river, ".")
	cmd.Dir = filepath.Join(strings.TrimSpace(string(root)), "river")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", cmd.Dir, err, out)
	}
	b.river = river
	return nil
}

// riverEntrant runs River's own client as a process of its own.
func (b *bench) riverEntrant(ctx context.Context, id string, k kind, window time.Duration) (entrant, error) {
	name := fmt.Sprintf("%s_%s_river", b.prefix, id)
	if err := b.createDatabase(ctx, name, "template0"); err != nil {
		return entrant{}, err
	}
	backlog := map[kind]int64{kindOne: b.size.backlog, kindBatch: b.size.bigBacklog}[k]
	return entrant{who: "river", measure: func(ctx context.Context) (result, error) {
		cmd := exec.CommandContext(ctx, b.river, "-url", b.databaseURL(name), "-kind", string(k),
			"-backlog", fmt.Sprint(backlog), "-warmup", b.size.warmup.String(), "-window", window.String())
		var errText strings.Builder
		cmd.Stderr = &errText
		out, err := cmd.Output()
		if err != nil {
			return result{}, fmt.Errorf("%w\n%s", err, errText.String())
		}
		var got struct{ Rate, CPU float64 }
		if err := json.Unmarshal(out, &got); err != nil {
			return result{}, errors.Join(err, errors.New(string(out)))
		}
		return result{rates: []float64{got.Rate}, cpu: got.CPU}, nil
	}}, nil
}
