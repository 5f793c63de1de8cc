package contract

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
	"github.com/openqueue/openqueue/tests/wire"
)

const (
	patience = 30 * time.Second
	root     = "../.."
)

type contract struct {
	Clients   map[string]program
	Scenarios []scenario
}

type program struct{ Build, Run []string }

type scenario struct {
	Name, Proves, Through string
	Alone                 bool
	Queue                 json.RawMessage
	Steps                 []step
}

// step is a step of any kind: Raw is what the client is sent.
type step struct {
	Step, Client, Name, Through, Error string
	Event, How, Why, SQLState          string
	Count, Distinct, Times, Jobs       int
	Signal, SQL                        string
	Code                               *int
	Is                                 any
	WorkerID                           string  `json:"worker_id"`
	LeaseSeconds                       int     `json:"lease_seconds"`
	EveryMS                            int     `json:"every_ms"`
	P50MS                              float64 `json:"p50_ms"`
	Seconds, Statements                int
	Raw                                map[string]any `json:"-"`
}

func (s *step) UnmarshalJSON(raw []byte) error {
	if err := json.Unmarshal(raw, &s.Raw); err != nil {
		return err
	}
	type plain step
	if s.Raw["step"] == "enqueue" {
		// Its jobs are a list, which goes to the client as it is.
		rest := map[string]any{}
		for k, v := range s.Raw {
			if k != "jobs" {
				rest[k] = v
			}
		}
		var err error
		if raw, err = json.Marshal(rest); err != nil {
			return err
		}
	}
	keep := s.Raw
	if err := json.Unmarshal(raw, (*plain)(s)); err != nil {
		return err
	}
	s.Raw = keep
	return nil
}

// world is what all scenarios share.
type world struct {
	server *testdb.Server
	bounce string // address of PgBouncer
}

func TestContract(t *testing.T) {
	raw, err := os.ReadFile(root + "/clients/contract.json")
	if err != nil {
		t.Fatal(err)
	}
	var c contract
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	w := &world{server: testdb.StartServer(t, testdb.ServerOptions{})}
	startDaemon(t, w.server.URL("postgres"))
	w.bounce = startPgBouncer(t, w.server.Port())
	var languages []string
	for language := range c.Clients {
		if only := os.Getenv("OQ_CONTRACT"); only == "" || slices.Contains(strings.Split(only, ","), language) {
			languages = append(languages, language)
		}
	}
	if slices.Sort(languages); len(languages) == 0 {
		t.Fatalf("no such client: %s", os.Getenv("OQ_CONTRACT"))
	}
	for _, language := range languages {
		t.Run(language, func(t *testing.T) {
			run := build(t, c.Clients[language])
			for _, alone := range []bool{true, false} {
				for _, s := range c.Scenarios {
					if s.Alone != alone {
						continue
					}
					t.Run(s.Name, func(t *testing.T) {
						if !alone {
							t.Parallel()
						}
						play(t, w, language, run, s)
					})
				}
			}
		})
	}
	db := connect(t, w.server.URL("postgres"))
	for _, broken := range ask(t, db, "select law, violations, sample from oq_audit() where violations > 0") {
		t.Errorf("oq_audit: %s", broken)
	}
}

// build makes a client's program and gives its command line.
func build(t *testing.T, p program) []string {
	dir := t.TempDir()
	fill := func(words []string) (filled []string) {
		for _, w := range words {
			filled = append(filled, strings.ReplaceAll(w, "{dir}", dir))
		}
		return filled
	}
	if words := fill(p.Build); len(words) > 0 {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", words, err, out)
		}
	}
	return fill(p.Run)
}

func startDaemon(t *testing.T, url string) {
	bin := filepath.Join(t.TempDir(), "openqueued")
	if out, err := exec.Command("go", "build", "-o", bin, root+"/daemon/openqueued").CombinedOutput(); err != nil {
		t.Fatalf("build of the daemon: %v\n%s", err, out)
	}
	cmd := exec.Command(bin, "run")
	cmd.Env = append(os.Environ(), "OQ_DATABASE_URL="+url, "OQ_HTTP_ADDR=")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("openqueued: %v\n%s", err, out.String())
		}
	})
}

func connect(t testing.TB, url string) *pgconn.PgConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn.PgConn()
}

// tryAsk gives the rows as psql prints them.
func tryAsk(conn *pgconn.PgConn, sql string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sql, err)
	}
	var rows []string
	for _, row := range results[len(results)-1].Rows {
		var columns []string
		for _, v := range row {
			columns = append(columns, string(v))
		}
		rows = append(rows, strings.Join(columns, "|"))
	}
	return rows, nil
}

func ask(t testing.TB, conn *pgconn.PgConn, sql string) []string {
	t.Helper()
	rows, err := tryAsk(conn, sql)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// stage is one scenario of one language.
type stage struct {
	*testing.T
	*world
	language string
	run      []string
	name     string
	through  string
	db       *pgconn.PgConn
	tx       *pgconn.PgConn // in an open transaction
	queue    string
	ids      []int64 // all that were enqueued
	first    int64   // of the latest enqueue
	leased   []string
	clients  map[string]*client
}

func play(t *testing.T, w *world, language string, run []string, s scenario) {
	st := &stage{T: t, world: w, language: language, run: run, name: s.Name, through: s.Through,
		db: connect(t, w.server.URL("postgres")), queue: "contract." + language + "." + s.Name,
		clients: map[string]*client{}}
	options := "{}"
	if s.Queue != nil {
		options = string(s.Queue)
	}
	ask(t, st.db, fmt.Sprintf("select oq_create_queue(%s, %s)", quote(st.queue), quote(options)))
	for i, step := range s.Steps {
		began := time.Now()
		if err := st.step(step); err != nil {
			for name, c := range st.clients {
				t.Logf("%s said: %s\n%s", name, c.said(), c.stderr.String())
			}
			state, _ := tryAsk(st.db, "select job_id, state, attempt, lost_leases, worker_id, error from oq_jobs where queue_name = "+
				quote(st.queue)+" order by job_id limit 20")
			t.Fatalf("%s: step %d, %s, after %s: %v\nIt proves: %s\njobs: %s", s.Name, i+1, step.Step,
				time.Since(began).Round(time.Millisecond), err, s.Proves, strings.Join(state, "\n"))
		}
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// fill puts the scenario's names into a text.
func (st *stage) fill(s string) string {
	ids := make([]string, len(st.ids))
	for i, id := range st.ids {
		ids[i] = strconv.FormatInt(id, 10)
	}
	return strings.NewReplacer("{q}", st.queue, "{q2}", st.queue+".2", "{id}", strconv.FormatInt(st.first, 10),
		"{ids}", "{"+strings.Join(ids, ",")+"}").Replace(s)
}

func (st *stage) step(s step) error {
	c := st.clients[s.Client]
	if s.Client != "" && c == nil {
		return fmt.Errorf("no client %s", s.Client)
	}
	switch s.Step {
	case "client":
		through := s.Through
		if through == "" {
			through = st.through
		}
		st.clients[s.Name] = st.start(s.Name, through)
		return nil
	case "work":
		return st.work(c, s)
	case "enqueue":
		return st.enqueue(c, s)
	case "events":
		return st.events(s)
	case "signal":
		signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
			"KILL": syscall.SIGKILL}
		return c.cmd.Process.Signal(signals[s.Signal])
	case "exit":
		return c.exit(s.Code)
	case "stop":
		c.in.Close()
		zero := 0
		return c.exit(&zero)
	case "check":
		got, err := tryAsk(st.db, st.fill(s.SQL))
		if err == nil && !st.matches(got, s.Is) {
			err = fmt.Errorf("%s\n is %q, not %q", st.fill(s.SQL), got, s.Is)
		}
		return err
	case "until":
		var got []string
		return st.wait(func() (bool, error) {
			var err error
			got, err = tryAsk(st.db, st.fill(s.SQL))
			return st.matches(got, s.Is), err
		}, func() error { return fmt.Errorf("%s\n stays %q, not %q", st.fill(s.SQL), got, s.Is) })
	case "hold":
		st.tx = connect(st.T, st.server.URL("postgres"))
		_, err := tryAsk(st.tx, "begin; "+st.fill(s.SQL))
		return err
	case "rollback":
		_, err := tryAsk(st.tx, "rollback")
		return err
	case "lease":
		st.leased = nil
		return st.wait(func() (bool, error) {
			rows, err := tryAsk(st.db, fmt.Sprintf("select job_id, lease_token from oq_lease(%s, %s, %d, %d)",
				quote(st.queue), quote(s.WorkerID), s.LeaseSeconds, s.Jobs-len(st.leased)))
			st.leased = append(st.leased, rows...)
			return len(st.leased) == s.Jobs, err
		}, func() error { return fmt.Errorf("leased %q", st.leased) })
	case "ack":
		for _, l := range st.leased {
			got, err := tryAsk(st.db, "select oq_ack("+strings.Replace(l, "|", ", ", 1)+")")
			if err != nil || got[0] != "t" {
				return fmt.Errorf("ack of %s: %q %w", l, got, err)
			}
		}
		return nil
	case "latency":
		return st.latency(c, s)
	case "idle":
		// What it takes to begin is over when nothing came for two seconds.
		before, since := int64(0), time.Now()
		err := st.wait(func() (bool, error) {
			if n := c.proxy.Statements(); n != before {
				before, since = n, time.Now()
			}
			return before > 0 && time.Since(since) > 2*time.Second, c.failed()
		}, func() error { return fmt.Errorf("it does not come to rest: %d statements", before) })
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(s.Seconds) * time.Second)
		if n := c.proxy.Statements() - before; n > int64(s.Statements) {
			return fmt.Errorf("%d statements in %d s, %d before", n, s.Seconds, before)
		}
		return nil
	case "mute":
		c.proxy.Mute()
		return nil
	case "end_sessions":
		got, err := tryAsk(st.db, "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = "+
			quote(c.application))
		if err == nil && got[0] == "0" {
			err = fmt.Errorf("%s has no session", c.application)
		}
		return err
	case "restart":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := st.server.Stop(ctx, "fast"); err != nil {
			return err
		}
		st.server.Restart(st.T)
		st.db = connect(st.T, st.server.URL("postgres"))
		return nil
	}
	return fmt.Errorf("no such step: %s", s.Step)
}

func (st *stage) matches(got []string, is any) bool {
	if len(got) != 1 {
		return false
	}
	switch is := is.(type) {
	case string:
		return got[0] == st.fill(is)
	case []any:
		return slices.Contains(is, any(got[0]))
	}
	return false
}

// wait is for what other sessions and processes do; a client that has ended can't.
func (st *stage) wait(done func() (bool, error), otherwise func() error) error {
	deadline := time.Now().Add(patience)
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return otherwise()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (st *stage) send(c *client, s step, do string, answers ...string) (event, error) {
	command := map[string]any{"do": do}
	for k, v := range s.Raw {
		if k != "step" && k != "client" && k != "error" {
			command[k] = v
		}
	}
	if do == "work" {
		command["queue"] = st.queue
		if command["worker_id"] == nil {
			command["worker_id"] = st.language + "-" + s.Client
		}
	}
	line, err := json.Marshal(command)
	if err != nil {
		return event{}, err
	}
	n := len(c.all())
	if _, err := c.in.Write([]byte(st.fill(string(line)) + "\n")); err != nil {
		return event{}, err
	}
	var answer event
	err = st.wait(func() (bool, error) {
		for _, e := range c.all()[n:] {
			if slices.Contains(answers, e.Event) {
				answer = e
				return true, nil
			}
		}
		return false, c.failed()
	}, func() error { return fmt.Errorf("no answer to %s", do) })
	return answer, err
}

func (st *stage) work(c *client, s step) error {
	_, err := st.send(c, s, "work", "working")
	return err
}

func (st *stage) enqueue(c *client, s step) error {
	// Copies: the next language plays the same steps.
	var jobs []any
	for _, j := range s.Raw["jobs"].([]any) {
		j := maps.Clone(j.(map[string]any))
		if j["queue_name"] == nil {
			j["queue_name"] = st.queue
		}
		jobs = append(jobs, j)
	}
	s.Raw = maps.Clone(s.Raw)
	s.Raw["jobs"] = jobs
	var ids []string
	if c == nil {
		var all []any
		for range max(s.Times, 1) {
			all = append(all, jobs...)
		}
		raw, err := json.Marshal(all)
		if err != nil {
			return err
		}
		if ids, err = tryAsk(st.db, "select job_id from oq_enqueue_many("+quote(st.fill(string(raw)))+") order by idx"); err != nil {
			return err
		}
	} else {
		answer, err := st.send(c, s, "enqueue", "enqueued", "error")
		if err != nil {
			return err
		}
		if answer.Event == "error" || s.Error != "" {
			if answer.SQLState != s.Error || s.Error == "" {
				return fmt.Errorf("%s: %s %s, want an error %q", answer.Event, answer.SQLState, answer.Message, s.Error)
			}
			return nil
		}
		ids = answer.JobIDs
	}
	if len(ids) != len(jobs)*max(s.Times, 1) {
		return fmt.Errorf("%d ids of %d jobs", len(ids), len(jobs)*max(s.Times, 1))
	}
	for i, text := range ids {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		if i == 0 {
			st.first = id
		}
		st.ids = append(st.ids, id)
	}
	return nil
}

func (st *stage) events(s step) error {
	var matching []event
	err := st.wait(func() (bool, error) {
		matching = nil
		for name, c := range st.clients {
			if s.Client != "" && s.Client != name {
				continue
			}
			for _, e := range c.all() {
				if e.Event == s.Event && (s.How == "" || e.How == s.How) && (s.Why == "" || e.Why == s.Why) &&
					(s.SQLState == "" || e.SQLState == s.SQLState) {
					matching = append(matching, e)
				}
			}
			if err := c.failed(); err != nil {
				return false, err
			}
		}
		return len(matching) >= s.Count, nil
	}, func() error { return fmt.Errorf("%d events, want %d", len(matching), s.Count) })
	if err != nil {
		return err
	}
	jobs := map[string]bool{}
	for _, e := range matching {
		jobs[e.JobID] = true
	}
	// A count that others may pass while we look is a lower bound only where the work goes on.
	if s.Distinct > 0 && (len(jobs) != s.Distinct || len(matching) != s.Count) {
		return fmt.Errorf("%d events of %d jobs, want %d of %d", len(matching), len(jobs), s.Count, s.Distinct)
	}
	return nil
}

// latency measures from the commit of single jobs to the event of their handler, one after the other: what keeps
// the client for a moment delays one of them.
func (st *stage) latency(c *client, s step) error {
	var got []string
	err := st.wait(func() (bool, error) {
		var err error
		got, err = tryAsk(st.db, `select exists (select from pg_locks join pg_stat_activity using (pid)
			where locktype = 'advisory' and mode = 'ShareLock' and application_name = `+quote(c.application)+")")
		return st.matches(got, "t"), err
	}, func() error { return fmt.Errorf("%s does not sleep", c.application) })
	if err != nil {
		return err
	}
	var took []time.Duration
	for began := time.Now(); len(took) < s.Jobs; {
		if time.Since(began) > patience {
			return fmt.Errorf("%d of %d jobs were started: %v", len(took), s.Jobs, took)
		}
		time.Sleep(time.Duration(s.EveryMS) * time.Millisecond)
		ids, err := tryAsk(st.db, "select oq_enqueue("+quote(st.queue)+`, '{"do": "return"}')`)
		if err != nil {
			return err
		}
		committed := time.Now()
		err = st.wait(func() (bool, error) {
			for _, e := range c.all() {
				if e.Event == "started" && e.JobID == ids[0] {
					took = append(took, e.at.Sub(committed))
					return true, nil
				}
			}
			return false, c.failed()
		}, func() error { return fmt.Errorf("job %s was not started, after %v", ids[0], took) })
		if err != nil {
			return err
		}
	}
	slices.Sort(took)
	p50 := took[len(took)/2]
	st.Logf("from commit to handler: p50 %s, max %s", p50.Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond))
	if p50 > time.Duration(s.P50MS*float64(time.Millisecond)) {
		return fmt.Errorf("p50 is %s: %v", p50, took)
	}
	return nil
}

func (st *stage) start(name, through string) *client {
	application := "contract " + st.language + " " + st.name + " " + name
	u, err := url.Parse(st.server.URL("postgres"))
	if err != nil {
		st.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", application)
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	var env []string
	var p *wire.Proxy
	switch through {
	case "pgbouncer":
		u.Host = st.bounce
		env = []string{"CONTRACT_POOLER=transaction"}
	case "proxy":
		if p, err = wire.Start(u.Host); err != nil {
			st.Fatal(err)
		}
		st.Cleanup(p.Close)
		u.Host = p.Addr()
	}
	c := startClient(st.T, st.run, append(env, "DATABASE_URL="+u.String()))
	c.application, c.proxy = application, p
	return c
}
