package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// The soak asks what an hour does to a queue: a steady load well below what the server can do, with
// everything in it that a real one has, and per minute what its clients feel and what it takes on
// disk. Of a hundred jobs five are scheduled a few seconds ahead and five fail once and come back
// after a second; every twentieth lease is extended before its acks. openqueued runs beside it, and
// retention is two minutes, so that generations are truncated several times.
const (
	soakShare     = 0.6 // of the capacity
	soakRetention = "2 minutes"
	soakClients   = 4 // producers, and as many consumers
)

var failing = []byte(`"fail"`)

// soaker is what producers and consumers share.
type soaker struct {
	pace  time.Duration // between two jobs of one producer; 0: as fast as the bound lets it
	later time.Duration // a scheduled job comes one to three of these later, a failed one after one

	mu     sync.Mutex
	due    map[int64]due       // jobs that nobody has leased, by id
	early  map[int64]time.Time // leased before their enqueue had returned
	minute latencies
}

type due struct {
	at        time.Time
	scheduled bool
}

// latencies of one minute, in milliseconds.
type latencies struct {
	enqueue, lease, late []float64
	behind               float64 // how late the latest enqueue began: what a stall does to a paced load
}

func newSoaker(pace, later time.Duration) *soaker {
	return &soaker{pace: pace, later: later, due: map[int64]due{}, early: map[int64]time.Time{}}
}

// enqueued notes when a job may be leased.
func (s *soaker) enqueued(id int64, planned, began, returned time.Time, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pace > 0 {
		s.minute.behind = max(s.minute.behind, milliseconds(began.Sub(planned)))
	}
	s.minute.enqueue = append(s.minute.enqueue, milliseconds(returned.Sub(began)))
	d := due{at: returned.Add(delay), scheduled: delay > 0}
	if at, ok := s.early[id]; ok {
		delete(s.early, id)
		s.book(d, at)
		return
	}
	s.due[id] = d
}

func (s *soaker) leased(ids []int64, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if d, ok := s.due[id]; ok {
			delete(s.due, id)
			s.book(d, at)
		} else {
			s.early[id] = at
		}
	}
}

func (s *soaker) book(d due, at time.Time) {
	ms := max(0, milliseconds(at.Sub(d.at)))
	if d.scheduled {
		s.minute.late = append(s.minute.late, ms)
	} else {
		s.minute.lease = append(s.minute.lease, ms)
	}
}

// turn gives the minute that ends, sorted, and begins the next.
func (s *soaker) turn() latencies {
	s.mu.Lock()
	l := s.minute
	s.minute = latencies{}
	s.mu.Unlock()
	slices.Sort(l.enqueue)
	slices.Sort(l.lease)
	slices.Sort(l.late)
	return l
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// producer is one paced loop of its own.
func (s *soaker) producer() step {
	const later = "select oq_enqueue($1, $2, run_at => clock_timestamp() + $3::int * interval '1 ms')"
	fails := jsonb(`{"task": "send_mail", "to": "someone@example.com", "fail": true}`)
	n, next := 0, time.Now()
	return func(w *worker) error {
		if s.pace == 0 {
			if w.run.backlog.Load() >= w.run.bound {
				time.Sleep(time.Millisecond)
				return nil
			}
		} else if wait := time.Until(next); wait > 0 {
			time.Sleep(min(wait, 10*time.Millisecond))
			return nil
		}
		planned := next
		next = next.Add(s.pace)
		n++
		w.run.backlog.Add(1)
		var id int64
		made := func(row [][]byte) { id = readInt8(row[0]) }
		var delay time.Duration
		var err error
		began := time.Now()
		switch {
		case n%20 == 0:
			delay = time.Duration(1+n/20%3) * s.later
			err = w.query(later, made, w.queue(), w.body, int4(int(delay.Milliseconds())))
		case n%20 == 10:
			err = w.query(w.contender.enqueue, made, w.queue(), fails)
		default:
			err = w.query(w.contender.enqueue, made, w.queue(), w.body)
		}
		if err != nil {
			return err
		}
		s.enqueued(id, planned, began, time.Now(), delay)
		w.made = append(w.made, id)
		return nil
	}
}

// consumer leases up to ten jobs, fails those that ask for it and acks the others.
func (s *soaker) consumer() step {
	const nack = "select oq_nack($1, $2, 'soak', retry_after => $3::int * interval '1 ms')"
	const heartbeat = "select status from oq_heartbeat_many($1, $2)"
	leases := 0
	var first, failed, failedTokens []int64
	return func(w *worker) error {
		w.drop()
		first, failed, failedTokens = first[:0], failed[:0], failedTokens[:0]
		err := w.query(w.lease, func(row [][]byte) {
			id, token, attempt := readInt8(row[0]), readInt8(row[1]), readInt4(row[6])
			if attempt == 1 {
				first = append(first, id)
			}
			if attempt == 1 && bytes.Contains(row[3], failing) {
				failed, failedTokens = append(failed, id), append(failedTokens, token)
			} else {
				w.jobs, w.tokens = append(w.jobs, id), append(w.tokens, token)
			}
		}, w.queue(), []byte("soak"), int4(leaseSeconds), int4(10))
		if err != nil {
			return err
		}
		s.leased(first, time.Now())
		w.run.backlog.Add(-int64(len(first)))
		for i, id := range failed {
			state := ""
			err := w.query(nack, func(row [][]byte) { state = string(row[0]) }, int8(id), int8(failedTokens[i]),
				int4(int(s.later.Milliseconds())))
			if err != nil {
				return err
			}
			if state != "scheduled" {
				return fmt.Errorf("job %d failed once and is %q", id, state)
			}
		}
		if len(w.jobs) == 0 {
			if len(failed) == 0 {
				return pause(w)
			}
			return nil
		}
		if leases++; leases%20 == 0 {
			ok := 0
			w.jobsBuf, w.tokensBuf = int8Array(w.jobsBuf, w.jobs), int8Array(w.tokensBuf, w.tokens)
			err := w.query(heartbeat, func(row [][]byte) {
				if string(row[0]) == "ok" {
					ok++
				}
			}, w.jobsBuf, w.tokensBuf)
			if err != nil {
				return err
			}
			if ok != len(w.jobs) {
				return fmt.Errorf("%d of %d heartbeats were accepted", ok, len(w.jobs))
			}
		}
		return w.ackHeld(10)
	}
}

// crews are loops with a state each.
func (s *soaker) crews(t *target) []crew {
	var crews []crew
	for range soakClients {
		crews = append(crews, crew{size: 1, role: t.producer, step: s.producer()},
			crew{size: 1, role: t.consumer, step: s.consumer(), count: true})
	}
	return crews
}

// soakColumns are what a minute is judged by.
var soakColumns = []struct {
	name, unit string
	digits     int
}{
	{"finished", "jobs/s", 0}, {"enqueue p50", "ms", 2}, {"enqueue p99", "ms", 2}, {"commit to lease p50", "ms", 2},
	{"commit to lease p99", "ms", 2}, {"due to lease p99", "ms", 1}, {"producers behind", "ms", 0},
	{"backlog", "jobs", 0},
	{"narrow tables", "MB", 1}, {"history", "MB", 1},
}

func (b *bench) soak(ctx context.Context, out io.Writer) ([]row, error) {
	t, err := b.fresh(ctx, ours, "soak")
	if err != nil {
		return nil, err
	}
	if _, err := t.conn.Exec(ctx, "select oq_create_queue($1, jsonb_build_object('retention', $2::text))",
		queue, soakRetention); err != nil {
		return nil, err
	}
	if err := t.prime(ctx); err != nil {
		return nil, err
	}
	probe := newSoaker(0, b.size.soakLater)
	res, err := t.measure(ctx, measurement{warmup: b.size.warmup, slice: b.size.soakProbe, slices: 1, bound: 1000},
		probe.crews(t)...)
	if err != nil {
		return nil, err
	}
	if err := t.rest(ctx); err != nil {
		return nil, err
	}
	capacity := res.rate()
	rate := soakShare * capacity
	b.progress("soak: capacity %.0f jobs/s, so %.0f jobs/s for %v", capacity, rate,
		b.size.soakMinute*time.Duration(b.size.soakCount))

	s := newSoaker(time.Duration(soakClients*float64(time.Second)/rate), b.size.soakLater)
	rows := make([]row, len(soakColumns))
	table := tabwriter.NewWriter(out, 10, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "minute\t")
	for i, c := range soakColumns {
		rows[i] = row{id: "SOAK", work: c.name, who: "openqueue", unit: c.unit}
		fmt.Fprintf(table, "%s %s\t", c.name, c.unit)
	}
	fmt.Fprintln(table)
	table.Flush()
	m := measurement{warmup: b.size.warmup, slice: b.size.soakMinute, slices: b.size.soakCount}
	m.each = func(minute int, rate float64) error {
		l := s.turn()
		narrow, history, err := t.space(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		backlog := len(s.due)
		s.mu.Unlock()
		fmt.Fprintf(table, "%d\t", minute+1)
		for i, v := range []float64{rate, quantile(l.enqueue, 0.5), quantile(l.enqueue, 0.99), quantile(l.lease, 0.5),
			quantile(l.lease, 0.99), quantile(l.late, 0.99), l.behind, float64(backlog), narrow, history} {
			rows[i].values = append(rows[i].values, v)
			fmt.Fprintf(table, "%.*f\t", soakColumns[i].digits, v)
		}
		fmt.Fprintln(table)
		return table.Flush()
	}
	s.turn()
	if _, err := t.measure(ctx, m, s.crews(t)...); err != nil {
		return nil, err
	}
	if err := t.drain(ctx); err != nil {
		return nil, err
	}
	if err := t.verify(ctx); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "Load: %.0f jobs/s, %.0f %% of %.0f. oq_audit: 0 violations; %d jobs enqueued, none lost, none twice.\n",
		rate, 100*soakShare, capacity, t.loaded+int64(len(t.made)))
	fmt.Fprint(out, "Last minute × first:")
	for i, r := range rows {
		first, last := r.values[0], r.values[len(r.values)-1]
		if first > 0 {
			rows[i] = r.versus(row{who: "its first", values: slices.Repeat([]float64{first}, len(r.values))}, goal{})
			fmt.Fprintf(out, "  %s %.2f", r.work, last/first)
		}
	}
	fmt.Fprintln(out)
	return rows, nil
}

// space is how many megabytes the narrow tables and the history take.
func (t *target) space(ctx context.Context) (narrow, history float64, err error) {
	err = t.conn.QueryRow(ctx, `
		select coalesce(sum(pg_total_relation_size(c.oid)) filter (where not c.relispartition), 0)::float8 / 1048576,
		       coalesce(sum(pg_total_relation_size(c.oid)) filter (where c.relispartition), 0)::float8 / 1048576
		  from pg_class c join pg_namespace n on n.oid = c.relnamespace
		 where c.relkind = 'r' and n.nspname = 'oq'`).Scan(&narrow, &history)
	return narrow, history, err
}
