package openqueue

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DB is what a *pgxpool.Pool, a *pgx.Conn, a *pgxpool.Conn and a pgx.Tx have in common.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The casts let every query mode of pgx use these, those without prepared statements as well.
const (
	sqlEnqueue = `select oq_enqueue($1::text, $2::jsonb, $3::int, $4::timestamptz, $5::int,
		$6::text, $7::text, $8::jsonb, $9::jsonb)`
	sqlBulk   = `select oq_enqueue_bulk($1::text, $2::jsonb[], $3::int, $4::timestamptz, $5::int)`
	sqlMany   = `select job_id, inserted from oq_enqueue_many($1::jsonb) order by idx`
	sqlUpdate = `select oq_update($1::bigint, $2::jsonb)`
	sqlCancel = `select oq_cancel($1::bigint, $2::text)`
)

// Options are the arguments and options of oq_enqueue. The zero value of each is the server's default.
type Options struct {
	Priority   int           // higher first
	RunAt      time.Time     // not before
	Delay      time.Duration // the same, from now
	MaxRetries *int          // nil: the queue's; see Retries
	TTL        time.Duration // not leased any more after it
	ExpiresAt  time.Time     // the same as a time
	Retry      *Retry        // nil: the queue's
	Tags       []string
	Headers    Headers // for the worker, beside the payload

	UniqueKey   string        // at most one unfinished job of the queue has it
	UniqueMode  UniqueMode    // what happens to a second one
	UniqueFor   time.Duration // how long the key is taken; 0: while the job is unfinished
	DebounceMax time.Duration // with Debounce: put off no longer than this
	GroupKey    string        // jobs of a group run one at a time, in their order

	DependsOn       []int64   // jobs that must be completed before
	OnParentFailure OnFailure // what happens to this one when they are not
	BatchID         int64
}

// UniqueMode says what an enqueue does where the unique key is taken.
type UniqueMode string

const (
	Skip     UniqueMode = "skip" // the default: the other job's id is returned
	Replace  UniqueMode = "replace"
	Debounce UniqueMode = "debounce"
	Reject   UniqueMode = "reject" // ErrDuplicate
)

// OnFailure says what becomes of a job whose parent failed.
type OnFailure string

const (
	CancelJob OnFailure = "cancel" // the default
	RunJob    OnFailure = "run"
)

// Retry is a retry policy. Fields left zero take the server's defaults.
type Retry struct {
	Kind   string        // exponential, linear, fixed
	Base   time.Duration // the first pause
	Factor float64
	Max    time.Duration
	Jitter *float64 // part of the pause, up and down
}

// MarshalJSON gives the policy as oq_enqueue and oq_create_queue read it.
func (r Retry) MarshalJSON() ([]byte, error) {
	m := map[string]any{}
	put(m, "kind", r.Kind)
	putInterval(m, "base", r.Base)
	put(m, "factor", r.Factor)
	putInterval(m, "max", r.Max)
	if r.Jitter != nil {
		m["jitter"] = *r.Jitter
	}
	return json.Marshal(m)
}

// Retries is for Options.MaxRetries.
func Retries(n int) *int { return &n }

// Headers travel with a job. They have the methods of an OpenTelemetry TextMapCarrier. A number that came with a job is a
// float64 where that is the same number, else (as beyond 2^53) a json.Number, which is its text.
type Headers map[string]any

// UnmarshalJSON reads an object, and null as none.
func (h *Headers) UnmarshalJSON(text []byte) error {
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return err
	}
	for k, v := range m {
		m[k] = number(v)
	}
	*h = m
	return nil
}

// number is v with a float64 for each json.Number that is one.
func number(v any) any {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		text := string(v)
		if strings.Contains(text, ".") {
			text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
		}
		if err == nil && (strings.ContainsAny(text, "eE") || strconv.FormatFloat(f, 'f', -1, 64) == text) {
			return f
		}
	case []any:
		for i := range v {
			v[i] = number(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = number(v[k])
		}
	}
	return v
}

// Get is a header that is text, or "".
func (h Headers) Get(key string) string { s, _ := h[key].(string); return s }

// Set sets a header.
func (h Headers) Set(key, value string) { h[key] = value }

// Keys lists the headers' names.
func (h Headers) Keys() []string { return slices.Collect(maps.Keys(h)) }

func put[T comparable](m map[string]any, key string, value T) {
	var zero T
	if value != zero {
		m[key] = value
	}
}

func putInterval(m map[string]any, key string, d time.Duration) {
	if d != 0 {
		m[key] = interval(d)
	}
}

// interval is d as PostgreSQL reads it, to the microsecond. Before version 15 it takes no field beyond 2^31.
func interval(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', 6, 64) + " seconds"
}

func putTime(m map[string]any, key string, t time.Time) {
	if !t.IsZero() {
		m[key] = t.Format(time.RFC3339Nano)
	}
}

// rest are the options that are no arguments of oq_enqueue.
func (o *Options) rest() map[string]any {
	m := map[string]any{}
	putInterval(m, "delay", o.Delay)
	putInterval(m, "ttl", o.TTL)
	putTime(m, "expires_at", o.ExpiresAt)
	if o.Retry != nil {
		m["retry"] = o.Retry
	}
	if len(o.Tags) > 0 {
		m["tags"] = o.Tags
	}
	put(m, "unique_mode", o.UniqueMode)
	putInterval(m, "unique_for", o.UniqueFor)
	putInterval(m, "debounce_max", o.DebounceMax)
	if len(o.DependsOn) > 0 {
		m["depends_on"] = o.DependsOn
	}
	put(m, "on_parent_failure", o.OnParentFailure)
	put(m, "batch_id", o.BatchID)
	return m
}

// Client enqueues; the zero value does. Inject puts a trace's context into the headers of each job:
// see Worker.Extract.
type Client struct {
	Inject func(ctx context.Context, headers Headers)
}

func (c Client) headers(ctx context.Context, own Headers) Headers {
	h := Headers{}
	if c.Inject != nil {
		c.Inject(ctx, h)
	} else {
		injectTrace(ctx, h)
	}
	maps.Copy(h, own)
	return h
}

// Enqueue enqueues one job and returns its id. db is a pool, a connection or a transaction, which is
// not committed here. The payload is what encoding/json makes of it. opts may be nil.
func Enqueue(ctx context.Context, db DB, queue string, payload any, opts *Options) (int64, error) {
	return Client{}.Enqueue(ctx, db, queue, payload, opts)
}

// Enqueue is the package's Enqueue with the client's trace.
func (c Client) Enqueue(ctx context.Context, db DB, queue string, payload any, opts *Options) (int64, error) {
	body, err := encode(payload)
	if err != nil {
		return 0, err
	}
	if opts == nil {
		opts = &Options{}
	}
	if err := opts.check(); err != nil {
		return 0, err
	}
	headers, err := object(c.headers(ctx, opts.Headers))
	if err != nil {
		return 0, err
	}
	rest, err := object(opts.rest())
	if err != nil {
		return 0, err
	}
	var id int64
	err = db.QueryRow(ctx, sqlEnqueue, queue, body, opts.Priority, nullable(opts.RunAt), opts.MaxRetries,
		nullable(opts.UniqueKey), nullable(opts.GroupKey), headers, rest).Scan(&id)
	return id, wrap(err)
}

// EnqueueBulk enqueues many jobs of one queue by one call, all with the same priority, run_at and
// max_retries; opts may set no more than these. It is the fastest way in. The ids come in the order
// of the payloads. The jobs have no headers, and so no trace of ctx: EnqueueMany's have it.
func EnqueueBulk[T any](ctx context.Context, db DB, queue string, payloads []T, opts *Options) ([]int64, error) {
	if opts == nil {
		opts = &Options{}
	}
	if len(opts.Headers) > 0 || opts.UniqueKey != "" || opts.GroupKey != "" || len(opts.rest()) > 0 {
		return nil, fmt.Errorf("%w: EnqueueBulk takes Priority, RunAt and MaxRetries alone: see EnqueueMany", ErrArgument)
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	bodies := make([]string, len(payloads))
	for i, p := range payloads {
		var err error
		if bodies[i], err = encode(p); err != nil {
			return nil, fmt.Errorf("payload %d: %w", i, err)
		}
	}
	rows, err := db.Query(ctx, sqlBulk, queue, bodies, opts.Priority, nullable(opts.RunAt), opts.MaxRetries)
	if err != nil {
		return nil, wrap(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	return ids, wrap(err)
}

// NewJob is a job to be made by EnqueueMany.
type NewJob struct {
	Queue         string
	Payload       any
	Options       Options
	Ref           string   // a name within the call, for
	DependsOnRefs []string // those that depend on it
}

// Made is what became of a NewJob. Inserted is false where its unique key was taken: ID is the other's.
type Made struct {
	ID       int64 `db:"job_id"`
	Inserted bool
}

// EnqueueMany enqueues jobs of their own queues and options by one call: all of them or, with an error
// that names the element, none. Each has the trace of ctx.
func EnqueueMany(ctx context.Context, db DB, jobs []NewJob) ([]Made, error) {
	return Client{}.EnqueueMany(ctx, db, jobs)
}

// EnqueueMany is the package's EnqueueMany with the client's trace.
func (c Client) EnqueueMany(ctx context.Context, db DB, jobs []NewJob) ([]Made, error) {
	all := make([]map[string]any, len(jobs))
	for i, j := range jobs {
		body, err := encode(j.Payload)
		if err == nil {
			err = j.Options.check()
		}
		if err != nil {
			return nil, fmt.Errorf("job %d: %w", i, err)
		}
		m := j.Options.rest()
		m["queue_name"], m["payload"] = j.Queue, json.RawMessage(body)
		put(m, "priority", j.Options.Priority)
		putTime(m, "run_at", j.Options.RunAt)
		if j.Options.MaxRetries != nil {
			m["max_retries"] = *j.Options.MaxRetries
		}
		put(m, "unique_key", j.Options.UniqueKey)
		put(m, "group_key", j.Options.GroupKey)
		if h := c.headers(ctx, j.Options.Headers); len(h) > 0 {
			m["headers"] = h
		}
		put(m, "ref", j.Ref)
		if len(j.DependsOnRefs) > 0 {
			m["depends_on_refs"] = j.DependsOnRefs
		}
		all[i] = m
	}
	arg, err := encode(all)
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, sqlMany, arg)
	if err != nil {
		return nil, wrap(err)
	}
	made, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Made])
	return made, wrap(err)
}

// Cancel ends a job in any unfinished state. False where it is finished or unknown.
func Cancel(ctx context.Context, db DB, jobID int64, reason string) (cancelled bool, err error) {
	err = wrap(db.QueryRow(ctx, sqlCancel, jobID, nullable(reason)).Scan(&cancelled))
	return cancelled, err
}

// Update changes a job that nobody holds: the patch has priority, run_at, max_retries, payload,
// headers. False where it is held or over.
func Update(ctx context.Context, db DB, jobID int64, patch map[string]any) (changed bool, err error) {
	arg, err := encode(patch)
	if err != nil {
		return false, err
	}
	err = wrap(db.QueryRow(ctx, sqlUpdate, jobID, arg).Scan(&changed))
	return changed, err
}

// Queue ties the name of a queue to the type of its payloads, for its producers and its workers.
type Queue[T any] struct {
	Name   string
	Client Client
}

// Enqueue enqueues one job: see the package's Enqueue.
func (q Queue[T]) Enqueue(ctx context.Context, db DB, payload T, opts *Options) (int64, error) {
	return q.Client.Enqueue(ctx, db, q.Name, payload, opts)
}

// EnqueueBulk enqueues many, without the trace of ctx or of the client: see the package's EnqueueBulk.
func (q Queue[T]) EnqueueBulk(ctx context.Context, db DB, payloads []T, opts *Options) ([]int64, error) {
	return EnqueueBulk(ctx, db, q.Name, payloads, opts)
}

// New is a job of the queue for EnqueueMany.
func (q Queue[T]) New(payload T, opts Options) NewJob {
	return NewJob{Queue: q.Name, Payload: payload, Options: opts}
}

// check refuses what the driver could not even send; the rest is for the server to judge.
func (o *Options) check() error {
	if o.Priority != int(int32(o.Priority)) {
		return fmt.Errorf("%w: priority %d", ErrArgument, o.Priority)
	}
	if r := o.MaxRetries; r != nil && *r != int(int32(*r)) {
		return fmt.Errorf("%w: max_retries %d", ErrArgument, *r)
	}
	return nil
}

// encode is JSON without the escapes that are for HTML. A json.RawMessage comes out as it is, compacted.
func encode(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", fmt.Errorf("%w: %w", ErrArgument, err)
	}
	return string(bytes.TrimRight(b.Bytes(), "\n")), nil
}

// object is a map as JSON, or null where there is nothing in it.
func object[M ~map[string]any](m M) (any, error) {
	if len(m) == 0 {
		return nil, nil
	}
	return encode(m)
}

func nullable[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}
