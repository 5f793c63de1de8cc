package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	queue        = "bench"
	payload      = `{"task": "send_mail", "to": "someone@example.com", "n": 12345}`
	leaseSeconds = 600 // no lease may expire within a run: a job leased twice is a finding
	idlePause    = 2 * time.Millisecond
)

// worker is one closed loop: a connection that sends its next call when the last was answered.
type worker struct {
	*client
	*contender
	run    *run
	number int      // in its crew
	queues [][]byte // served in turn
	turn   int
	empty  int      // leases in a row that gave nothing
	groups [][]byte // producers name these in turn; none: jobs without a group
	group  int
	body   []byte

	jobs, tokens       []int64 // held
	jobsBuf, tokensBuf []byte
	done               atomic.Int64 // jobs counted by this loop: enqueued, or finished
	_                  [64]byte     // done is read by the meter while its neighbours work
	made               []int64
	leased             []int64
	madeAt, leasedAt   []int64 // nanoseconds of the run's clock, where it is timed
	finished           int64
}

// step is one turn of a closed loop. It returns errDry when a backlog that should last is empty.
type step func(*worker) error

var errDry = errors.New("the backlog ran dry")

// crew is some workers of one kind.
type crew struct {
	size  int
	role  string
	step  step
	count bool // its jobs are the ones that the row counts
	last  step // after the run, untimed: what the worker still holds
}

// run is what the workers of one measurement share.
type run struct {
	stop    atomic.Bool
	dry     atomic.Bool
	backlog atomic.Int64 // enqueued less leased
	bound   int64        // producers wait above it
	timed   bool         // when each job was committed and leased
	start   time.Time
}

// measurement says how long to count.
type measurement struct {
	warmup time.Duration
	slice  time.Duration
	slices int
	jobs   int64 // stop after so many; 0: by time alone
	bound  int64
	timed  bool
	each   func(slice int, rate float64) error // what else to look at when a slice is over
}

type result struct {
	rates []float64 // jobs a second, one a slice
	cpu   float64   // cores that the load generator itself used
}

func (r result) rate() float64 {
	sum := 0.0
	for _, v := range r.rates {
		sum += v
	}
	return sum / float64(len(r.rates))
}

// measure runs the crews against a target and books what they did in its ledger.
func (t *target) measure(ctx context.Context, m measurement, crews ...crew) (result, error) {
	r := &run{bound: m.bound, timed: m.timed, start: t.born}
	r.backlog.Store(t.waiting())
	var workers, counted []*worker
	var loops []crew
	defer func() {
		for _, w := range workers {
			w.close()
		}
	}()
	for _, cr := range crews {
		for i := range cr.size {
			w, err := t.worker(ctx, cr.role, r)
			if err != nil {
				return result{}, err
			}
			// Each begins elsewhere, or all would stand in line at the same queue.
			w.number = i
			w.turn, w.group = i*len(w.queues)/cr.size, i*len(w.groups)/cr.size
			workers, loops = append(workers, w), append(loops, cr)
			if cr.count {
				counted = append(counted, w)
			}
		}
	}
	errs := make([]error, len(workers))
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			errs[i] = w.loop(loops[i])
		})
	}

	total := func() (n int64) {
		for _, w := range counted {
			n += w.done.Load()
		}
		return n
	}
	var res result
	var eachErr error
	// A backlog that must last is not spent on warming up.
	for warm := time.Now().Add(m.warmup); time.Now().Before(warm) && !r.stop.Load() && ctx.Err() == nil; {
		if m.jobs > 0 && total() >= m.jobs/4 {
			break
		}
		time.Sleep(min(2*time.Millisecond, time.Until(warm)))
	}
	dryEarly := r.dry.Load()
	first, cpu, begin := total(), clientCPU(), time.Now()
	for from, start := first, begin; len(res.rates) < m.slices && !r.stop.Load() && ctx.Err() == nil; {
		end := start.Add(m.slice)
		for time.Now().Before(end) && !r.stop.Load() && ctx.Err() == nil {
			if m.jobs > 0 && total()-first >= m.jobs {
				break
			}
			time.Sleep(min(5*time.Millisecond, time.Until(end)))
		}
		n, now := total(), time.Now()
		res.rates = append(res.rates, float64(n-from)/now.Sub(start).Seconds())
		from, start = n, now
		if m.each != nil {
			if eachErr = m.each(len(res.rates)-1, res.rates[len(res.rates)-1]); eachErr != nil {
				break
			}
		}
		if m.jobs > 0 && n-first >= m.jobs {
			break
		}
	}
	res.cpu = (clientCPU() - cpu).Seconds() / time.Since(begin).Seconds()
	r.stop.Store(true)
	wg.Wait()
	for _, w := range workers {
		t.book(w)
	}
	err := errors.Join(ctx.Err(), eachErr)
	for _, e := range errs { // the first stopped the others, or all say the same
		if e != nil {
			err = e
			break
		}
	}
	if err == nil && (dryEarly || len(res.rates) == 0) {
		err = fmt.Errorf("%s: %w before anything was measured", t.name, errDry)
	}
	return res, err
}

func (w *worker) loop(c crew) error {
	for !w.run.stop.Load() {
		switch err := c.step(w); {
		case errors.Is(err, errDry):
			w.run.dry.Store(true)
			w.run.stop.Store(true)
		case err != nil:
			w.run.stop.Store(true)
			return err
		}
	}
	if c.last != nil {
		return c.last(w)
	}
	return nil
}

// enqueueOne is a producer with one job a transaction.
func enqueueOne(w *worker) error {
	if w.run.bound > 0 && w.run.backlog.Load() >= w.run.bound {
		time.Sleep(time.Millisecond)
		return nil
	}
	w.run.backlog.Add(1)
	made := func(row [][]byte) { w.made = append(w.made, readInt8(row[0])) }
	var err error
	if len(w.groups) > 0 {
		w.group = (w.group + 1) % len(w.groups)
		err = w.query(w.contender.enqueue, made, w.queue(), w.body, w.groups[w.group])
	} else {
		err = w.query(w.contender.enqueue, made, w.queue(), w.body)
	}
	w.nextQueue()
	w.stamp(&w.madeAt, 1)
	w.done.Add(1)
	return err
}

// enqueueBulk is a producer of n jobs a transaction.
func enqueueBulk(n int) step {
	var payloads []byte
	var once sync.Once
	return func(w *worker) error {
		once.Do(func() { payloads = jsonbArray(w.body, n) })
		before := len(w.made)
		err := w.query(w.bulk, func(row [][]byte) {
			w.made = append(w.made, readInt8(row[0]))
		}, w.queue(), payloads)
		if made := len(w.made) - before; err == nil && made != n {
			return fmt.Errorf("bulk enqueue of %d gave %d ids", n, made)
		}
		w.nextQueue()
		w.stamp(&w.madeAt, n)
		w.done.Add(int64(n))
		return err
	}
}

// leaseAndAck is a worker that leases n jobs and acks them, in two transactions.
func leaseAndAck(n int, empty step) step {
	max := int4(n)
	return func(w *worker) error {
		w.drop()
		err := w.query(w.lease, w.take, w.queue(), []byte("bench"), int4(leaseSeconds), max)
		if err != nil {
			return err
		}
		if w.took() == 0 {
			return w.nothing(empty)
		}
		return w.ackHeld(n)
	}
}

// leaseNext is a worker that acks its last n jobs with the lease of the next, in one transaction.
func leaseNext(n int, empty step) step {
	max := int4(n)
	return func(w *worker) error {
		held := len(w.jobs)
		w.jobsBuf, w.tokensBuf = int8Array(w.jobsBuf, w.jobs), int8Array(w.tokensBuf, w.tokens)
		w.drop()
		err := w.query(w.next, w.take, w.queue(), []byte("bench"), int4(leaseSeconds), max,
			w.jobsBuf, w.tokensBuf)
		if err != nil {
			return err
		}
		w.finished += int64(held)
		w.done.Add(int64(held))
		if w.took() == 0 {
			return w.nothing(empty)
		}
		return nil
	}
}

// queue is the one whose turn it is.
func (w *worker) queue() []byte { return w.queues[w.turn] }

func (w *worker) nextQueue() {
	if w.turn++; w.turn == len(w.queues) {
		w.turn = 0
	}
}

// took books a lease and says how many jobs it gave.
func (w *worker) took() int {
	w.run.backlog.Add(-int64(len(w.jobs)))
	w.stamp(&w.leasedAt, len(w.jobs))
	w.nextQueue()
	if len(w.jobs) > 0 {
		w.empty = 0
	}
	return len(w.jobs)
}

// nothing is done about an empty lease while other queues may still have jobs.
func (w *worker) nothing(empty step) error {
	if w.empty++; w.empty < len(w.queues) {
		return nil
	}
	w.empty = 0
	return empty(w)
}

// stamp dates the last n jobs made or leased.
func (w *worker) stamp(at *[]int64, n int) {
	if !w.run.timed {
		return
	}
	now := int64(time.Since(w.run.start))
	for range n {
		*at = append(*at, now)
	}
}

// dry ends a run over a backlog. In groups, jobs that nobody can lease yet follow those that others
// hold: there a backlog is dry when all of it has been leased.
func dry(w *worker) error {
	if len(w.groups) > 0 && w.run.backlog.Load() > 0 {
		return pause(w)
	}
	return errDry
}

// pause is an idle poll, the same for every contender.
func pause(*worker) error {
	time.Sleep(idlePause)
	return nil
}

func (w *worker) drop() { w.jobs, w.tokens = w.jobs[:0], w.tokens[:0] }

func (w *worker) take(row [][]byte) {
	w.jobs = append(w.jobs, readInt8(row[0]))
	w.tokens = append(w.tokens, readInt8(row[1]))
	w.leased = append(w.leased, readInt8(row[0]))
}

// ackHeld finishes what the worker holds; n is how many it asks for at a time.
func (w *worker) ackHeld(n int) error {
	acked := 0
	var err error
	if n == 1 {
		err = w.query(w.contender.ack, func(row [][]byte) {
			if row[0][0] == 1 {
				acked++
			}
		}, int8(w.jobs[0]), int8(w.tokens[0]))
	} else {
		w.jobsBuf, w.tokensBuf = int8Array(w.jobsBuf, w.jobs), int8Array(w.tokensBuf, w.tokens)
		err = w.query(w.ackMany, func([][]byte) { acked++ }, w.jobsBuf, w.tokensBuf)
	}
	if err == nil && acked != len(w.jobs) {
		return fmt.Errorf("%s: %d of %d acks were accepted", w.name, acked, len(w.jobs))
	}
	w.finished += int64(acked)
	w.done.Add(int64(acked))
	w.drop()
	return err
}

// ackRest finishes what leaseNext left in the worker's hands.
func ackRest(w *worker) error {
	if len(w.jobs) == 0 {
		return nil
	}
	return w.ackHeld(2)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func clientCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
