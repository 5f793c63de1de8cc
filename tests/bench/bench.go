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
	notes      []string
	chosen     bool // rows were picked by name
}

type work struct {
	id  string
	run func(*bench, context.Context) ([]row, error)
}

// The rows in the order in which they run and stand in the table.
var works = []work{
	{"B1", (*bench).enqueue},
	{"B2", (*bench).bulk},
	{"B3", (*bench).oneByOne},
	{"B4", (*bench).batches},
	{"B5", (*bench).steadyState},
	{"B6", (*bench).heldSnapshot},
	{"B7", (*bench).wakeUp},
	{"B8", (*bench).deepBacklog},
}

// Run measures the picked rows and prints the table.
func Run(ctx context.Context, cfg Config) (err error) {
	picked, err := pick(cfg.Pick)
	if err != nil {
		return err
	}
	b := &bench{size: cfg.size, log: cfg.Log, start: time.Now(), templates: map[string]bool{}, chosen: cfg.Pick != "",
		prefix: fmt.Sprintf("oq_bench_%d", os.Getpid())}
	if b.dir, err = os.MkdirTemp("", "oq-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	// As root the server runs as somebody else, who has to get to its folder in here.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}

	b.openqueued = filepath.Join(b.dir, "openqueued")
	b.progress("building openqueued")
	build := exec.CommandContext(ctx, "go", "build", "-o", b.openqueued,
		"github.com/openqueue/openqueue/daemon/openqueued")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build openqueued: %w\n%s", err, out)
	}

	if cfg.URL == "" {
		stop, serverURL, startErr := startServer(ctx, b.dir, cfg.Log)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, stop()) }()
		cfg.URL = serverURL
	}
	if b.url, err = url.Parse(cfg.URL); err != nil || b.url.Scheme == "" {
		return fmt.Errorf("BENCH_DATABASE_URL must be a postgres:// URL")
	}
	if b.admin, err = pgx.Connect(ctx, cfg.URL); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cleanUp()) }()

	about, err := b.about(ctx)
	if err != nil {
		return err
	}
	var rows []row
	for _, w := range picked {
		got, err := w.run(b, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", w.id, err)
		}
		rows = append(rows, got...)
		if err := b.dropOpen(ctx); err != nil {
			return fmt.Errorf("%s: %w", w.id, err)
		}
	}
	fmt.Fprintln(cfg.Out, about)
	printTable(cfg.Out, rows, b.notes)
	fmt.Fprintf(cfg.Out, "client: cores used by the load generator itself. Took %v.\n",
		time.Since(b.start).Round(time.Second))
	return nil
}

func pick(names string) ([]work, error) {
	if names == "" {
		return works, nil
	}
	var picked []work
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(works, func(w work) bool { return strings.EqualFold(w.id, strings.TrimSpace(name)) })
		if i < 0 {
			return nil, fmt.Errorf("BENCH=%s: there is no row %q", names, name)
		}
		picked = append(picked, works[i])
	}
	return picked, nil
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
