package openqueue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

const (
	sqlNext = `select ` + leaseColumns + ` from ` + sqlNoWait + ` cross join lateral
		oq_next($1::text, $2::text, $3::int, $4::int, $5::bigint[], case when soon is not null then $6::bigint[] end)`
	// Nothing but a lease: should its commit be lost in a crash, the jobs are only done again.
	sqlLease = `select ` + leaseColumns + `
		from set_config('synchronous_commit', 'off', true) c, oq_lease($1::text, $2::text, $3::int, $4::int)`
	sqlAckMany = `select id from ` + sqlNoWait + ` cross join lateral
		oq_ack_many($1::bigint[], case when soon is not null then $2::bigint[] end) id`
	sqlResults = `select id from ` + sqlNoWait + ` cross join lateral
		oq_ack_many($1::bigint[], case when soon is not null then $2::bigint[] end, $3::jsonb[]) id`

	// A call waits so long for more jobs to end, while some still run and no handler would gain.
	lingerIdle = time.Millisecond
	lingerAck  = 5 * time.Millisecond

	// Once no handler runs any more, the calls of the end have so long, or Worker.Timeout if that is less: all together.
	endTime = 10 * time.Second
)

// lane is one connection that acks and leases, and the handlers that it feeds. Jobs are handed out in
// order under one lock; whoever ends one sees whether the connection has something to do.
type lane struct {
	w       *Worker
	s       *session
	slots   int // handlers
	batch   int
	most    int           // jobs held
	signal  chan struct{} // something to do, or woken
	workers sync.WaitGroup

	handlers sync.WaitGroup  // those that run
	calls    sync.WaitGroup  // beside the fetching goroutine
	last     context.Context // of all calls: it ends when what is left to tell the server is given up
	giveUp   context.CancelFunc

	mu      sync.Mutex
	more    *sync.Cond // jobs, or the end
	queue   []*Job     // leased; those before head were begun
	head    int
	running int
	held    []*Job // for heartbeats: what is not over, that is, also what is done and not acked
	acks    []*Job
	aside   int       // ended, and told to the server beside the lane until it takes it
	results bool      // one of acks has one
	ackAt   time.Time // the first of acks
	idleAt  time.Time // since when a handler has had nothing, while others run
	busy    bool      // in a call: it looks for itself afterwards
	asleep  bool      // the last lease was empty
	woken   bool
	closed  bool

	// Of the fetching goroutine alone.
	uses, again  bool // the listener; the lease before this one gave something as well
	ids, tokens  []byte
	everAnswered bool
	failures     int
	lastLook     time.Time
	sent         time.Time // the last call, once there was a connection
}

func newLane(w *Worker, slots, batch int) *lane {
	l := &lane{w: w, s: w.session("fetcher"), slots: slots, batch: batch, most: max(slots, batch),
		signal: make(chan struct{}, 1)}
	l.more = sync.NewCond(&l.mu)
	l.last, l.giveUp = context.WithCancel(context.WithoutCancel(w.jobs))
	return l
}

// nudge wakes a lane that sleeps.
func (l *lane) nudge() {
	l.mu.Lock()
	l.woken, l.asleep = true, false
	l.mu.Unlock()
	l.poke()
}

func (l *lane) poke() {
	select {
	case l.signal <- struct{}{}:
	default:
	}
}

// plan says what the connection should do now, or else when to look again. Called under the lock.
func (l *lane) plan(now time.Time) (fetch, ack bool, wait time.Duration) {
	unstarted := len(l.queue) - l.head
	active := unstarted + l.running
	want := l.most - active
	wait = time.Hour
	// What is unstarted here is begun in a moment, and nobody tells. And who can't tell how jobs end begins no more of them.
	hungry := active < l.slots && l.aside <= l.most
	if hungry && !l.closed {
		since := now.Sub(l.idleAt)
		switch {
		case l.asleep:
			if wait = l.pollTime() - now.Sub(l.lastLook); wait <= 0 {
				return true, true, 0
			}
		case active == 0 || want >= (l.batch+1)/2 && len(l.acks) > 0 || since >= lingerIdle:
			return true, true, 0
		default:
			wait = lingerIdle - since
		}
	}
	if n := len(l.acks); n > 0 {
		since := now.Sub(l.ackAt)
		if active == 0 || n >= l.batch || since >= lingerAck {
			return hungry && !l.closed, true, 0
		}
		wait = min(wait, lingerAck-since)
	}
	return false, false, wait
}

func (l *lane) pollTime() time.Duration {
	if !l.w.Pooler && !l.w.listener.listening() {
		return min(l.w.Poll, time.Second)
	}
	return l.w.Poll
}

// run leases, acks and waits until ctx ends, then drains. Only a refusal of the very first call ends it
// before.
func (l *lane) run(ctx context.Context) error {
	defer l.s.close()
	defer l.giveUp()
	for range l.slots {
		l.workers.Go(l.work)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failed error
	for ctx.Err() == nil {
		l.mu.Lock()
		fetch, ack, wait := l.plan(time.Now())
		l.busy = fetch || ack
		l.mu.Unlock()
		if !fetch && !ack {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
			case <-l.signal:
			case <-timer.C:
			}
			continue
		}
		err := l.turn(ctx, fetch)
		if err == nil {
			l.failures = 0
			continue
		}
		if !l.everAnswered && refused(err) && !locked(err) {
			failed = err
			break
		}
		if ctx.Err() == nil {
			l.w.Logger.Warn("the server did not take a call", "error", err)
			sleep(ctx, backoff(l.failures))
			l.failures++
		}
	}
	l.drain()
	return failed
}

// turn acks what is done and, with fetch, leases what there is room for: one round trip, one commit.
func (l *lane) turn(ctx context.Context, fetch bool) error {
	l.mu.Lock()
	acks, results := l.acks, l.results
	l.acks, l.results = nil, false
	want := 0
	if fetch {
		want = min(l.batch, l.most-(len(l.queue)-l.head)-l.running)
	}
	l.woken = false
	l.mu.Unlock()

	// A call that has begun is finished: what it leased must be known. The session's time-out bounds it.
	// To connect for it is not, where there is nothing to ack: with a server that is mute that may take all of its time.
	var got []*Job
	var lasts time.Duration
	var lost map[*Job]bool
	var err error
	if len(acks) == 0 {
		err = l.s.open(ctx)
	}
	if err == nil {
		got, lasts, lost, err = l.exchange(l.last, acks, results, want)
	}
	if err != nil {
		l.mu.Lock()
		l.busy = false
		l.mu.Unlock()
		if len(acks) > 0 && (judged(err) || locked(err)) {
			// One of them is at fault, most likely by its result, or held by another transaction: each for itself.
			l.setAside(len(acks))
			l.calls.Go(func() { l.ackSingly(acks) })
			return nil
		}
		l.keep(acks)
		return err
	}
	l.everAnswered = true
	for _, j := range acks {
		l.w.observe(j, ackState(j, lost), nil, j.took)
	}
	now := time.Now()
	l.mu.Lock()
	l.busy = false
	for _, j := range acks {
		j.hold.over = true
	}
	if fetch {
		l.lastLook = now
		l.admit(got, l.sent, now)
		if lasts > 0 {
			l.w.learn(lasts)
		}
		l.asleep = len(got) == 0 && !l.woken
	}
	full := len(l.queue)-l.head+l.running >= l.most
	l.mu.Unlock()
	if !fetch {
		return nil
	}
	// Listening is for the idle. One job now and then is taken without leaving off.
	if busy := len(got) > 0 && (l.again || full); l.uses && busy {
		l.uses = false
		l.w.listener.use(-1)
	} else if len(got) == 0 && !l.uses {
		l.uses = true
		l.w.listener.use(1)
	}
	l.again = len(got) > 0
	return nil
}

func ackState(j *Job, lost map[*Job]bool) string {
	if lost[j] {
		return "lost"
	}
	return "acked"
}

// keep puts acks back that the server did not answer, as long as there is hope.
func (l *lane) keep(acks []*Job) {
	var lost []*Job
	l.mu.Lock()
	for _, j := range acks {
		if j.hopeless() {
			lost = append(lost, j)
			continue
		}
		l.pushAck(j, time.Now())
	}
	l.mu.Unlock()
	for _, j := range lost {
		l.settled(j, "lost")
	}
}

// settled is the end of an ack that is not one of the many that a turn acks.
func (l *lane) settled(j *Job, state string) {
	l.mu.Lock()
	j.hold.over = true
	l.mu.Unlock()
	l.w.observe(j, state, nil, j.took)
}

func (l *lane) pushAck(j *Job, now time.Time) {
	if len(l.acks) == 0 {
		l.ackAt = now
	}
	l.acks = append(l.acks, j)
	l.results = l.results || j.result != nil
}

// exchange is the call: it acks and, with a want of 1 or more, leases. Where one of the acks is late or its lease older than
// the connection, and wherever else the acks are a call of their own, it says which are lost. Those that go with a lease are
// known to be the worker's: all that can have ended them is a cancel since the last heartbeat.
func (l *lane) exchange(ctx context.Context, acks []*Job, results bool, want int) (
	got []*Job, lasts time.Duration, lost map[*Job]bool, err error) {

	n := len(acks)
	var taken map[int64]bool // by the server's word
	if n > 0 {
		l.ids = int8Array(l.ids, n, func(i int) int64 { return acks[i].ID })
		l.tokens = int8Array(l.tokens, n, func(i int) int64 { return acks[i].Token })
	}
	err = l.s.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var b pgconn.Batch
		var err error
		lease := [][]byte{[]byte(l.w.Queue), []byte(l.w.ID), int4(l.w.leaseSeconds()), int4(want)}
		taken = nil
		l.mu.Lock()
		doubtful := slices.ContainsFunc(acks, func(j *Job) bool {
			// A server that crashed, or took over, may not know of a lease that was not waited for.
			return j.late() || j.hold.since.Before(l.s.since)
		})
		l.mu.Unlock()
		if results || doubtful || n > 0 && want == 0 {
			taken = make(map[int64]bool, n)
		}
		switch {
		case results:
			err = l.s.add(ctx, &b, sqlResults, l.ids, l.tokens,
				jsonbArray(n, func(i int) *string { return acks[i].result }))
		case taken != nil:
			err = l.s.add(ctx, &b, sqlAckMany, l.ids, l.tokens)
		}
		switch {
		case err != nil || want == 0:
		case taken != nil:
			err = l.s.add(ctx, &b, sqlNext, append(lease, nil, nil)...)
		case n > 0:
			err = l.s.add(ctx, &b, sqlNext, append(lease, l.ids, l.tokens)...)
		default:
			err = l.s.add(ctx, &b, sqlLease, lease...)
		}
		if err != nil {
			return err
		}
		l.sent = time.Now()
		answer := conn.PgConn().ExecBatch(ctx, &b)
		var unreadable error
		for answer.NextResult() {
			rows := answer.ResultReader()
			for rows.NextRow() {
				row := rows.Values()
				if len(row) == 1 {
					taken[readInt8(row[0])] = true
					continue
				}
				j, d, err := readJob(row, l.w.Queue)
				if err != nil {
					unreadable = err
					continue
				}
				j.lane, j.hold.lasts, lasts = l, d, d
				got = append(got, j)
			}
		}
		return errors.Join(answer.Close(), unreadable)
	})
	if err != nil {
		return nil, lasts, nil, err
	}
	if taken != nil && len(taken) < n {
		lost = notTaken(acks, taken)
	}
	return got, lasts, lost, nil
}

// notTaken are the acks whose ids are not among those that the server has taken. Where a job is among the acks by two
// leases, only the last one counts.
func notTaken(acks []*Job, taken map[int64]bool) map[*Job]bool {
	last := make(map[int64]int64, len(acks))
	for _, j := range acks {
		last[j.ID] = max(last[j.ID], j.Token)
	}
	lost := map[*Job]bool{}
	for _, j := range acks {
		if !taken[j.ID] || j.Token < last[j.ID] {
			lost[j] = true
		}
	}
	return lost
}

// admit takes what was leased. Under the lock.
func (l *lane) admit(got []*Job, sent, now time.Time) {
	kept := l.held[:0]
	for _, j := range l.held {
		if !j.hold.over {
			kept = append(kept, j)
		}
	}
	clear(l.held[len(kept):])
	l.held = append(kept, got...)
	rest := copy(l.queue, l.queue[l.head:])
	clear(l.queue[rest:])
	l.queue, l.head = append(l.queue[:rest], got...), 0
	for _, j := range got {
		j.hold.since = sent
	}
	l.idleAt = now
	if len(got) >= l.slots {
		l.more.Broadcast()
	} else {
		for range got {
			l.more.Signal()
		}
	}
}

// work is one handler's loop.
func (l *lane) work() {
	var begun *Job // then without the lock
	defer func() {
		if begun == nil {
			l.mu.Unlock()
			return
		}
		// The handler has ended the goroutine, as t.FailNow does. Another one goes on.
		l.workers.Go(func() {
			l.report(begun, errExit, errExit, true)
			l.mu.Lock()
			l.finish(begun, false, true)
			l.mu.Unlock()
			l.work()
		})
	}()
	l.mu.Lock()
	for {
		for l.head == len(l.queue) && !l.closed {
			l.more.Wait()
		}
		if l.closed {
			return
		}
		j := l.queue[l.head]
		l.head++
		if !j.hold.over && j.late() {
			l.end(j, ErrLeaseLost) // We stood still: somebody else may have it.
		}
		if j.hold.over {
			l.look()
			continue
		}
		ctx, cancel := context.WithCancelCause(l.w.jobs)
		j.hold.cancel = cancel
		l.running++
		begun = j
		l.handlers.Add(1)
		l.mu.Unlock()
		ack, told := l.do(ctx, j)
		l.mu.Lock()
		begun = nil
		l.finish(j, ack, told)
	}
}

var errExit = errors.New("the handler called runtime.Goexit")

// finish is the end of a job that was begun. Under the lock.
func (l *lane) finish(j *Job, ack, told bool) {
	j.hold.cancel(nil)
	l.running--
	j.hold.over = j.hold.over || told
	if ack {
		l.pushAck(j, time.Now())
	}
	l.look()
}

// look sees whether the connection has something to do now, after a job has ended. Under the lock.
func (l *lane) look() {
	idle := l.head == len(l.queue)
	if idle && l.running == l.slots-1 {
		l.idleAt = time.Now()
	}
	if l.closed || !l.busy && (idle || len(l.acks) == 1 || len(l.acks) >= l.batch) {
		l.poke()
	}
}

// do runs the handler and reports what it returned, but for an ack, which it leaves to the lane.
func (l *lane) do(ctx context.Context, j *Job) (ack, told bool) {
	began := time.Now()
	err := func() error {
		defer l.handlers.Done() // though it may end the goroutine
		return j.call(ctx, l.w.handler)
	}()
	j.took = time.Since(began)
	l.mu.Lock()
	gone, inTx := j.hold.gone, j.inTx
	l.mu.Unlock()
	switch {
	case gone == ErrCancelled:
		l.w.observe(j, "cancelled", err, j.took)
		return false, true
	case gone != nil:
		l.w.observe(j, "lost", err, j.took)
		return false, true
	case err == nil && inTx:
		l.w.observe(j, "acked", nil, j.took)
		return false, true
	case err == nil:
		return true, false
	}
	report := err
	if context.Cause(ctx) == ErrDraining {
		report = Snooze(0)
	}
	if l.report(j, report, err, false) {
		return false, true
	}
	l.setAside(1)
	l.workers.Go(func() {
		l.report(j, report, err, true)
		l.mu.Lock()
		j.hold.over = true
		l.mu.Unlock()
		l.setAside(-1)
	})
	return false, false
}

// setAside counts jobs whose end is told beside the lane: above the most that it holds it leases no more.
func (l *lane) setAside(n int) {
	l.mu.Lock()
	l.aside += n
	l.mu.Unlock()
	l.poke()
}

// report tells the server of a failed attempt, again and again while the lease lasts; where another transaction holds the
// job only with wait.
func (l *lane) report(j *Job, report, err error, wait bool) (told bool) {
	for try := 0; ; try++ {
		ctx, cancel := context.WithTimeout(l.last, l.w.Timeout)
		state, failed := j.fail(ctx, l.w.Pool, report)
		if errors.Is(failed, puddle.ErrClosedPool) {
			l.w.giveUp(fmt.Errorf("Worker.Pool was closed before the worker had ended: %w", failed))
			failed = l.w.reports.do(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
				state, err = j.fail(ctx, conn, report)
				return err
			})
		}
		cancel()
		if failed == nil {
			if state == "" {
				state = "lost"
			}
			l.w.observe(j, state, err, j.took)
			return true
		}
		l.mu.Lock()
		over := j.late()
		l.mu.Unlock()
		if judged(failed) || over || l.last.Err() != nil {
			l.w.Logger.Error("a failed attempt could not be reported", "job_id", j.ID, "error", failed, "failure", err)
			l.w.observe(j, "lost", err, j.took)
			return true
		}
		pause := backoff(try)
		if locked(failed) {
			if !wait {
				return false
			}
			pause = backoff(min(try, 3)) // The lease may be about to end: see ackSingly.
		}
		sleep(l.last, pause)
	}
}

// ackSingly acks one by one what was not acked together, beside the fetching goroutine. Whose ack is unfit has failed by
// it. All else is tried again and again, what another transaction holds soon: heartbeats can't extend its lease, so that it
// may be reaped a moment after that has ended.
func (l *lane) ackSingly(acks []*Job) {
	for try := 0; ; try++ {
		var left []*Job
		var refusal error
		wait := strconv.Itoa(max(200/len(acks), 10)) // The others wait for it, and a drain has an end.
		for _, j := range acks {
			var acked bool
			err := l.w.reports.do(l.last, func(ctx context.Context, conn *pgx.Conn) error {
				return conn.QueryRow(ctx, sqlAck+" from set_config('lock_timeout', $4, true)", j.ID, j.Token, j.result, wait).Scan(&acked)
			})
			l.mu.Lock()
			hopeless := j.hopeless() || l.last.Err() != nil
			l.mu.Unlock()
			switch {
			case acked:
				l.settled(j, "acked")
			case unfit(err):
				l.report(j, err, err, true)
				l.lose(j, err)
			case err == nil || hopeless:
				l.settled(j, "lost")
			default:
				left = append(left, j)
				if judged(err) {
					refusal = err
				}
			}
		}
		l.setAside(len(left) - len(acks))
		if acks = left; len(acks) == 0 {
			return
		}
		if refusal != nil {
			l.w.Logger.Error("the server refuses acks", "jobs", len(left), "error", refusal)
			sleep(l.last, backoff(try))
			continue
		}
		sleep(l.last, backoff(min(try, 3)))
	}
}

// due appends what needs a heartbeat: not over, not acked in a transaction, and a third of its lease gone. Where all of it
// is, the job is lost.
func (l *lane) due(to []*Job, now time.Time) []*Job {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.held {
		age := now.Sub(j.hold.since)
		switch {
		case j.hold.over || j.inTx || age < j.hold.lasts/3:
		case age > j.hold.lasts:
			l.end(j, ErrLeaseLost)
		default:
			to = append(to, j)
		}
	}
	return to
}

func (l *lane) extended(j *Job, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	j.hold.since, j.hold.lasts = at, l.w.leaseLasts()
}

// standing says whether the handler is acking the job in a transaction, and why it is not the worker's any more.
func (l *lane) standing(j *Job) (inTx bool, gone error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return j.inTx, j.hold.gone
}

// shortest is the shortest lease that is held, or most.
func (l *lane) shortest(most time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.held {
		if !j.hold.over {
			most = min(most, j.hold.lasts)
		}
	}
	return most
}

// lose ends a job that is not the worker's any more.
func (l *lane) lose(j *Job, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !j.hold.over {
		l.end(j, why)
	}
}

// end is lose under the lock.
func (l *lane) end(j *Job, why error) {
	j.hold.over, j.hold.gone = true, why
	if j.hold.cancel != nil {
		j.hold.cancel(why)
	}
}

// drain releases what was not begun, waits for what runs, and acks it.
func (l *lane) drain() {
	if l.uses {
		l.uses = false
		l.w.listener.use(-1)
	}
	l.mu.Lock()
	l.closed, l.asleep, l.busy = true, true, false
	unstarted := slices.DeleteFunc(slices.Clone(l.queue[l.head:]), func(j *Job) bool { return j.hold.over })
	l.head = len(l.queue)
	l.more.Broadcast()
	l.mu.Unlock()

	returned, ended := make(chan struct{}), make(chan struct{})
	enough := func() {
		l.giveUp()
		l.poke()
	}
	// The time for the last calls begins when no handler runs. One that does not even return has stopGrace to.
	go func() {
		l.handlers.Wait()
		close(returned)
		time.AfterFunc(min(l.w.Timeout, endTime), enough)
		l.workers.Wait()
		close(ended)
		l.poke()
	}()
	defer context.AfterFunc(l.w.jobs, func() {
		time.AfterFunc(stopGrace, func() {
			select {
			case <-returned:
			default:
				enough()
			}
		})
	})()
	l.calls.Go(func() { l.release(unstarted) })
	defer l.calls.Wait()

	for failures := 0; ; {
		l.mu.Lock()
		acks, running := len(l.acks), l.running
		_, ack, wait := l.plan(time.Now())
		l.mu.Unlock()
		if l.last.Err() != nil {
			select {
			case <-returned:
				<-ended
			default:
				l.w.abandoned.Add(int64(running))
			}
			l.forgetAcks()
			return
		}
		if acks == 0 && running == 0 {
			<-ended
			return
		}
		if ack {
			if err := l.turn(l.last, false); err != nil {
				l.w.Logger.Warn("the server did not take the last acks", "error", err)
				if failures++; failures > 8 {
					l.forgetAcks() // Handlers may still run.
					continue
				}
				sleep(l.last, backoff(failures))
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-l.signal:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// forgetAcks leaves the leases of what is done and not acked to run out.
func (l *lane) forgetAcks() {
	l.mu.Lock()
	acks := l.acks
	l.acks, l.results = nil, false
	l.mu.Unlock()
	for _, j := range acks {
		l.settled(j, "lost")
	}
}

const releaseMany = 500

// release gives jobs back that no handler has seen, ids ascending, many in one round trip. What another transaction holds
// is tried again and again, so that the others don't wait for it.
func (l *lane) release(jobs []*Job) {
	slices.SortFunc(jobs, func(a, b *Job) int { return cmp.Compare(a.ID, b.ID) })
	most := releaseMany
	var held []*Job
	for failures := 0; len(jobs)+len(held) > 0 && failures < 8 && l.last.Err() == nil; {
		if len(jobs) == 0 {
			jobs, held = held, nil
			sleep(l.last, backoff(1))
		}
		n := min(len(jobs), most)
		err := l.s.do(l.last, func(ctx context.Context, conn *pgx.Conn) error {
			var b pgconn.Batch
			for _, j := range jobs[:n] {
				err := l.s.add(ctx, &b, sqlGiveBack, int8(j.ID), int8(j.Token))
				if err != nil {
					return err
				}
			}
			return conn.PgConn().ExecBatch(ctx, &b).Close()
		})
		if locked(err) {
			if n == 1 {
				held, jobs = append(held, jobs[0]), jobs[1:]
			}
			most = 1
			continue
		}
		if err != nil {
			failures++
			l.w.Logger.Warn("unstarted jobs could not be released", "jobs", len(jobs)+len(held), "error", err)
			sleep(l.last, backoff(failures))
			continue
		}
		l.mu.Lock()
		for _, j := range jobs[:n] {
			j.hold.over = true
		}
		l.mu.Unlock()
		for _, j := range jobs[:n] {
			l.w.observe(j, "released", nil, 0)
		}
		jobs = jobs[n:]
	}
	for _, j := range held {
		l.w.Logger.Warn("an unstarted job could not be released: another transaction holds it", "job_id", j.ID)
	}
}

const sqlGiveBack = `select oq_release($1::bigint, $2::bigint) from set_config('lock_timeout', '10', true)`
