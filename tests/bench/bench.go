package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// bench is one run: a server, the databases made on it, and what the table needs.
type bench struct {
	size       sizes
	log        io.Writer
	start      time.Time
	dir        string // binaries and logs
	openqueued string
	admin      *pgx.Conn
	url        *url.URL
	prefix     string // of every database's name
	databases  []string
	templates  map[string]bool
	open       []*target
	chosen     bool // rows were picked by name
	holder     string
	peers      []contender
	river      string   // its program
	contract   string   // what lists the client libraries; empty: clients/contract.json
	only       []string // of them
	libraries  []library

	notes   []string // below the table
	charts  []*chart
	records []record
}

type work struct {
	id    string
	run   func(*bench, context.Context) ([]row, error)
	depth bool // part of bench-depth, not of the whole table
}

// The rows in the order in which they run and stand in the table.
var works = []work{
	{id: "B1", run: (*bench).enqueue},
	{id: "B2", run: (*bench).bulk},
	{id: "B3", run: (*bench).oneByOne},
	{id: "B4", run: (*bench).batches},
	{id: "B4N", run: (*bench).batchSizes},
	{id: "B5", run: (*bench).steadyState},
	{id: "B6", run: (*bench).heldSnapshot},
	{id: "B7", run: (*bench).wakeUp},
	{id: "B7N", run: (*bench).besideASleeper},
	{id: "B8", run: (*bench).deepBacklog},
	{id: "B9", run: (*bench).manyQueues},
	{id: "B10", run: (*bench).bytesPerJob},
	{id: "L1", run: (*bench).libraryThroughput},
	{id: "L2", run: (*bench).libraryLatency},
	{id: "L3", run: (*bench).libraryIdle},
	{id: "C", run: (*bench).calls},
	{id: "B11", run: (*bench).manyReady, depth: true},
	{id: "B12", run: (*bench).manyScheduled, depth: true},
	{id: "B13", run: (*bench).manyDead, depth: true},
	{id: "B14", run: (*bench).otherQueues, depth: true},
	{id: "B15", run: (*bench).manyPriorities, depth: true},
	{id: "B16", run: (*bench).payloads, depth: true},
}

// runs tells apart the databases of several runs of one process, which tests make.
var runs atomic.Int32

// Run measures the picked rows and prints the table.
func Run(ctx context.Context, cfg Config) (err error) {
	picked, err := pick(cfg.Pick, cfg.Depth)
	if err != nil {
		return err
	}
	b := &bench{size: cfg.size, log: cfg.Log, start: time.Now(), templates: map[string]bool{},
		chosen: cfg.Pick != "", holder: cfg.Holder, only: cfg.Library, prefix: fmt.Sprintf("oq_bench_%d_%d", os.Getpid(), runs.Add(1))}
	if b.dir, err = os.MkdirTemp("", "oq-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	// As root the server runs as somebody else, who has to get to its folder in here.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}

	if b.openqueued = cfg.daemon; b.openqueued == "" {
		b.progress("building openqueued")
		if b.openqueued, err = buildDaemon(ctx, b.dir); err != nil {
			return err
		}
	}

	if cfg.URL == "" {
		stop, serverURL, startErr := startServer(ctx, b.dir, cfg.Major, cfg.Holder, cfg.Log)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, stop()) }()
		cfg.URL = serverURL
	}
	if err := b.connect(ctx, cfg.URL); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cleanUp()) }()

	about, err := b.about(ctx)
	if err != nil {
		return err
	}
	if err := b.findPeers(ctx, cfg); err != nil {
		return err
	}
	if cfg.Soak {
		fmt.Fprintln(cfg.Out, about)
		rows, err := b.soak(ctx, cfg.Out)
		return errors.Join(err, b.writeFiles(ctx, cfg, rows))
	}
	var rows []row
	for _, w := range picked {
		got, runErr := w.run(b, ctx)
		rows = append(rows, got...)
		if runErr = errors.Join(runErr, b.dropOpen(ctx)); runErr != nil {
			// What was measured before it is printed all the same.
			err = fmt.Errorf("%s: %w", w.id, runErr)
			break
		}
	}
	fmt.Fprintln(cfg.Out, about)
	printTable(cfg.Out, rows, b.notes)
	if err != nil {
		return err
	}
	if err := b.writeFiles(ctx, cfg, rows); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "client: cores used by the load generator itself. Took %v.\n",
		time.Since(b.start).Round(time.Second))
	return nil
}

func buildDaemon(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "openqueued")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/openqueue/openqueue/daemon/openqueued")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build openqueued: %w\n%s", err, out)
	}
	return path, nil
}

// connect takes a server to work on.
func (b *bench) connect(ctx context.Context, serverURL string) (err error) {
	if b.url, err = url.Parse(serverURL); err != nil || b.url.Scheme == "" {
		return errors.New("BENCH_DATABASE_URL must be a postgres:// URL")
	}
	b.admin, err = pgx.Connect(ctx, serverURL)
	return err
}

// pick finds rows by name; without names it takes the whole table, or that of depth and breadth.
func pick(names string, depth bool) ([]work, error) {
	var picked []work
	if names == "" {
		for _, w := range works {
			if w.depth == depth {
				picked = append(picked, w)
			}
		}
		return picked, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(works, func(w work) bool { return strings.EqualFold(w.id, strings.TrimSpace(name)) })
		if i < 0 {
			return nil, fmt.Errorf("BENCH=%s: there is no row %q", names, name)
		}
		picked = append(picked, works[i])
	}
	return picked, nil
}

// note adds a line below the table, once.
func (b *bench) note(text string) {
	if !slices.Contains(b.notes, text) {
		b.notes = append(b.notes, text)
	}
}

func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(b.log, "%6.1fs  %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// about names what the numbers belong to.
func (b *bench) about(ctx context.Context) (string, error) {
	text := ""
	for _, name := range []string{"server_version", "fsync", "synchronous_commit", "full_page_writes",
		"shared_buffers", "max_wal_size", "autovacuum_naptime"} {
		var value string
		if err := b.admin.QueryRow(ctx, "select current_setting($1)", name).Scan(&value); err != nil {
			return "", err
		}
		text += fmt.Sprintf("%s=%s ", name, value)
		if (name == "fsync" || name == "synchronous_commit" || name == "full_page_writes") && value == "off" {
			b.notes = append(b.notes, "This server is not durable ("+name+" is off): the goals are not for it.")
		}
	}
	return fmt.Sprintf("%s%d cores, %s", text, runtime.NumCPU(), runtime.GOARCH), nil
}

func (b *bench) databaseURL(name string) string {
	u := *b.url
	u.Path = "/" + name
	return u.String()
}

func (b *bench) createDatabase(ctx context.Context, name, template string) error {
	_, err := b.admin.Exec(ctx, fmt.Sprintf("create database %s template %s",
		pgx.Identifier{name}.Sanitize(), pgx.Identifier{template}.Sanitize()))
	if err == nil {
		b.databases = append(b.databases, name)
	}
	return err
}

// drop ends a target before its row is over.
func (b *bench) drop(ctx context.Context, t *target) error {
	b.open = slices.DeleteFunc(b.open, func(o *target) bool { return o == t })
	b.databases = slices.DeleteFunc(b.databases, func(name string) bool { return name == t.name })
	err := t.close(ctx)
	_, dropErr := b.admin.Exec(ctx, "drop database "+pgx.Identifier{t.name}.Sanitize()+" with (force)")
	return errors.Join(err, dropErr)
}

func (b *bench) dropOpen(ctx context.Context) error {
	var err error
	for len(b.open) > 0 {
		err = errors.Join(err, b.drop(ctx, b.open[0]))
	}
	return err
}

// cleanUp leaves the server as it was, also after an interrupt.
func (b *bench) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := b.dropOpen(ctx)
	for _, name := range b.databases {
		_, dropErr := b.admin.Exec(ctx, "drop database if exists "+pgx.Identifier{name}.Sanitize()+" with (force)")
		err = errors.Join(err, dropErr)
	}
	return errors.Join(err, b.admin.Close(ctx))
}
