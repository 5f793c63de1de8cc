package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	libraryClients     = 4
	libraryBatch       = 100
	libraryConcurrency = 16
)

// L1: what is left of B4's speed where a library's worker does the calls and a handler takes each job?
func (b *bench) libraryThroughput(ctx context.Context) ([]row, error) {
	const work = "a library's worker, batches of 100, 4 connections"
	t, libraries, err := b.libraryTarget(ctx, "l1")
	if err != nil {
		return nil, err
	}
	window := b.size.window * 2 / 3 // as in B4: the backlog must last
	prepare := filled(t, b.size.bigBacklog, 1)
	entrants := []entrant{
		{who: "lease + ack (B4)", target: t, m: b.window(window), prepare: prepare,
			crews: []crew{leaseAck(t, libraryClients, libraryBatch, dry)}},
		{who: "oq_next (B4)", target: t, m: b.window(window), prepare: prepare,
			crews: []crew{leaseByNext(t, libraryClients, libraryBatch, dry)}},
	}
	for _, l := range libraries {
		entrants = append(entrants, entrant{who: l.name, target: t, prepare: prepare,
			measure: func(ctx context.Context) (result, error) { return l.workOff(ctx, t, b.size.warmup, window) }})
	}
	rows, err := b.rounds(ctx, "L1", work, b.size.rounds, entrants...)
	if err != nil {
		return nil, err
	}
	for i := range rows[1:] {
		g := goal{}
		if rows[i+1].who == "go" {
			g = atLeast(0.8)
		}
		rows[i+1] = rows[i+1].versus(rows[0], g)
	}
	return append(rows[2:], rows[1], rows[0]), nil
}

// libraryTarget is a target for the libraries that run here.
func (b *bench) libraryTarget(ctx context.Context, purpose string) (*target, []library, error) {
	t, err := b.fresh(ctx, ours, purpose)
	if err != nil {
		return nil, nil, err
	}
	libraries, err := b.findLibraries(ctx, t)
	return t, libraries, err
}

// workOff measures a library's worker over a backlog: so many jobs as take it about the window's time.
func (l library) workOff(ctx context.Context, t *target, warmup, window time.Duration) (res result, err error) {
	databaseURL, err := t.workerURL()
	if err != nil {
		return res, err
	}
	p, err := l.start(databaseURL)
	if err != nil {
		return res, err
	}
	defer p.kill()
	backlog, acked, calls := t.waiting(), int64(0), int64(0)
	work := func(n int64) (float64, error) {
		n = min(n, (backlog-acked)/2)
		err := p.send(map[string]any{"do": "bench", "queue": queue, "worker_id": "bench", "count": n,
			"concurrency": libraryConcurrency, "batch": libraryBatch, "fetchers": libraryClients, "lease_seconds": leaseSeconds})
		if err != nil {
			return 0, err
		}
		e, err := p.next(ctx, "benched", 10*window+libraryPatience)
		if err != nil {
			return 0, err
		}
		if e.Jobs != n || e.Seconds <= 0 {
			return 0, fmt.Errorf("%s: asked for %d jobs, it says %d in %g s", l.name, n, e.Jobs, e.Seconds)
		}
		acked, calls = acked+n, calls+1
		return float64(n) / e.Seconds, nil
	}
	rate, err := work(libraryBatch)
	for _, d := range []time.Duration{warmup / 2, warmup} {
		if err == nil {
			rate, err = work(max(libraryBatch, int64(rate*d.Seconds())))
		}
	}
	if err != nil {
		return res, err
	}
	cpu, began := p.cpu(), time.Now()
	if rate, err = work(max(libraryBatch, int64(rate*window.Seconds()))); err != nil {
		return res, err
	}
	res = result{rates: []float64{rate}, cpu: (p.cpu() - cpu).Seconds() / time.Since(began).Seconds()}
	if err := p.stop(); err != nil {
		return res, err
	}
	// At its end a worker acks what its handlers have done beyond the number asked for.
	var left int64
	if err := t.conn.QueryRow(ctx, t.contender.unfinished).Scan(&left); err != nil {
		return res, err
	}
	finished := backlog - left
	if beyond := finished - acked; beyond < 0 || beyond > calls*libraryClients*libraryBatch {
		return res, fmt.Errorf("%s says that it acked %d jobs; %d are finished", l.name, acked, finished)
	}
	t.finished += finished
	return res, nil
}

// L2: how long after its commit does a handler of a sleeping worker begin? To the moment when we have
// read the line that it prints.
func (b *bench) libraryLatency(ctx context.Context) ([]row, error) {
	const work = "commit to handler at 100 jobs/s, worker asleep"
	t, libraries, err := b.libraryTarget(ctx, "l2")
	if err != nil {
		return nil, err
	}
	t.body = `{"do": "return"}`
	quantiles := []struct {
		name string
		at   float64
		goal goal
	}{{"p50", 0.5, atMost(2)}, {"p99", 0.99, goal{}}}
	rows := make([][]row, len(quantiles))
	book := func(round int, who string, latencies []float64) {
		text := ""
		for j, q := range quantiles {
			v := quantile(latencies, q.at)
			i := slices.IndexFunc(rows[j], func(r row) bool { return r.who == who })
			if i < 0 {
				i = len(rows[j])
				rows[j] = append(rows[j], row{id: "L2", work: work + ", " + q.name, who: who, unit: "ms", goal: q.goal})
			}
			rows[j][i].values = append(rows[j][i].values, v)
			text += fmt.Sprintf(" %s %.2f ms", q.name, v)
		}
		b.progress("L2 %s: round %d, %s:%s", work, round+1, who, text)
	}
	const bareCalls = "bare calls (B7)"
	for round := range b.size.rounds {
		for _, l := range libraries {
			latencies, err := l.latencies(ctx, t, b.size.wakeJobs/2)
			if err != nil {
				return nil, err
			}
			book(round, l.name, latencies)
		}
		latencies, err := t.latencies(ctx, b.size.wakeJobs/2)
		if err != nil {
			return nil, err
		}
		book(round, bareCalls, latencies)
	}
	var all []row
	for _, of := range rows {
		of[len(of)-1].goal = goal{}
		all = append(all, of...)
	}
	return all, t.verify(ctx)
}

// latencies sends n jobs, one about every 10 ms, to a library's worker that sleeps in between, and gives
// the milliseconds from the return of COMMIT to its handler, sorted.
func (l library) latencies(ctx context.Context, t *target, n int) ([]float64, error) {
	databaseURL, err := t.workerURL()
	if err != nil {
		return nil, err
	}
	p, err := l.start(databaseURL)
	if err != nil {
		return nil, err
	}
	defer p.kill()
	in, err := t.worker(ctx, t.producer, &run{})
	if err != nil {
		return nil, err
	}
	defer in.close()
	if err := p.send(map[string]any{"do": "work", "queue": queue, "worker_id": "bench"}); err != nil {
		return nil, err
	}
	if _, err := p.next(ctx, "working", libraryPatience); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(n)*jobEvery+2*libraryPatience)
	defer cancel()
	const first = 10 // they find a worker that just begins
	committed, got := map[int64]time.Time{}, map[int64]time.Time{}
	var sendErr, workErr error
	up := make(chan struct{}) // the first job has arrived
	var wg sync.WaitGroup
	wg.Go(func() {
		due := time.Now()
		for i := range first + n {
			if sleep(ctx, time.Until(due)); ctx.Err() != nil {
				sendErr = ctx.Err()
				return
			}
			if sendErr = enqueueOne(in); sendErr != nil {
				cancel()
				return
			}
			if i >= first {
				committed[in.made[len(in.made)-1]] = time.Now()
			}
			if i == 0 {
				select {
				case <-up:
				case <-ctx.Done():
				}
				due = time.Now().Add(200 * time.Millisecond)
			}
			due = due.Add(jobEvery/2 + rand.N(jobEvery))
		}
	})
	wg.Go(func() {
		for len(got) < first+n && workErr == nil {
			var e event
			if e, workErr = p.next(ctx, "started", libraryPatience); workErr != nil {
				break
			}
			var id int64
			if id, workErr = strconv.ParseInt(e.JobID, 10, 64); workErr != nil {
				break
			}
			if len(got) == 0 {
				close(up)
			}
			if _, twice := got[id]; twice || e.Attempt != 1 {
				workErr = fmt.Errorf("%s: job %d came again", l.name, id)
			}
			got[id] = e.at
		}
		if workErr != nil {
			cancel()
		}
	})
	wg.Wait()
	t.book(in)
	if err := errors.Join(workErr, sendErr); err != nil {
		return nil, fmt.Errorf("%s: %d of %d jobs arrived: %w", l.name, len(got), first+n, err)
	}
	if err := p.stop(); err != nil { // what runs is finished and acked
		return nil, err
	}
	for id := range got {
		t.leased = append(t.leased, id)
	}
	t.finished += int64(len(got))
	var all []float64
	for id, at := range committed {
		started, ok := got[id]
		if !ok {
			return nil, fmt.Errorf("%s: job %d never came", l.name, id)
		}
		all = append(all, float64(started.Sub(at))/float64(time.Millisecond))
	}
	slices.Sort(all)
	return all, nil
}

// L3: what does a worker cost that has nothing to do? All libraries at once, each in a queue of its own.
func (b *bench) libraryIdle(ctx context.Context) ([]row, error) {
	t, libraries, err := b.libraryTarget(ctx, "l3")
	if err != nil {
		return nil, err
	}
	work := fmt.Sprintf("an idle worker, over %v", b.size.idle)
	databaseURL, err := t.workerURL()
	if err != nil {
		return nil, err
	}
	rows := make([]row, len(libraries))
	errs := make([]error, len(libraries))
	var wg sync.WaitGroup
	for i, l := range libraries {
		rows[i] = row{id: "L3", work: work, who: l.name, unit: "calls/s", goal: atMost(0.9)}
		wg.Go(func() {
			var n int64
			n, errs[i] = l.idleCalls(ctx, databaseURL, "idle."+l.name, b.size)
			rows[i].values = []float64{float64(n) / b.size.idle.Seconds()}
		})
	}
	wg.Wait()
	for _, r := range rows {
		b.progress("L3 %s, %s: %.1f a second", work, r.who, r.values[0])
	}
	return rows, errors.Join(append(errs, t.verify(ctx))...)
}

// idleCalls counts what a library's worker asks of the server while its queue is empty.
func (l library) idleCalls(ctx context.Context, databaseURL, queue string, size sizes) (int64, error) {
	p, proxy, err := l.startBehind(databaseURL)
	if err != nil {
		return 0, err
	}
	defer proxy.Close()
	defer p.kill()
	if err := p.send(map[string]any{"do": "work", "queue": queue, "worker_id": "bench"}); err != nil {
		return 0, err
	}
	if _, err := p.next(ctx, "working", libraryPatience); err != nil {
		return 0, err
	}
	for end := time.Now().Add(libraryPatience); proxy.Statements() == 0; sleep(ctx, 5*time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(end) {
			return 0, errors.Join(ctx.Err(), fmt.Errorf("%s sends nothing\n%s", l.name, p.errs.String()))
		}
	}
	sleep(ctx, size.settling)
	before := proxy.Statements()
	sleep(ctx, size.idle)
	n := proxy.Statements() - before
	return n, errors.Join(ctx.Err(), p.stop())
}
