package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/openqueue/openqueue/daemon/pgserver"
)

const devDatabase = "openqueue"

// dev is the main job from nothing: a server where none is given, the queue, the daemon.
func dev(ctx context.Context, cfg Config, log zerolog.Logger, out io.Writer) error {
	if cfg.DatabaseUrls != "" {
		return fmt.Errorf("%w: dev is for one database: use migrate and run with OQ_DATABASE_URLS", errConfig)
	}
	embedded := cfg.DatabaseURL == ""
	dataDir := filepath.Join(cfg.DataDir, "pgdata")
	if embedded {
		lock, holder, err := lockDir(cfg.DataDir)
		if err != nil {
			return err
		}
		if lock == nil {
			if server, err := pgserver.Attach(dataDir); err == nil {
				fmt.Fprintf(out, "OpenQueue is running already (process %s). Connect with\n\n    psql '%s'\n",
					holder, server.URL(devDatabase))
				return nil
			}
			return fmt.Errorf("OpenQueue is being started or stopped by process %s in %s", holder, cfg.DataDir)
		}
		defer lock.Close()
	}
	// First: a server that was made and is said to run must not be stopped because the address is taken.
	listener, err := listen(cfg)
	if err != nil {
		return err
	}
	if listener != nil {
		defer listener.Close()
	}
	if embedded {
		server, err := devServer(ctx, dataDir, out)
		if err != nil {
			return err
		}
		defer func() {
			stopCtx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := server.Stop(stopCtx, "fast"); err != nil {
				log.Error().Err(err).Msg("the server does not stop")
			}
		}()
		if err := createDatabase(ctx, server.URL("postgres")); err != nil {
			return err
		}
		cfg.DatabaseURL = server.URL(devDatabase)
	}
	if err := Migrate(ctx, cfg, -1, out); err != nil {
		return err
	}
	fmt.Fprintf(out, `
OpenQueue %s is running. In another terminal:

    psql '%s'

    select oq_enqueue('hello', '{"to": "world"}');
    select job_id, payload, oq_ack(job_id, lease_token, '"done"') from oq_lease('hello');
    select * from oq_jobs;

Stop it with ^C; the data stays.
`, Version, redact(cfg.DatabaseURL))
	c, err := newClock(cfg, log)
	if err != nil {
		return err
	}
	c.listener = listener
	return c.run(ctx)
}

// lockDir is nil, with the holder's process id, where another process has the folder.
func lockDir(dir string) (*os.File, string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, "", err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, string(holder), nil
		}
		return nil, "", err
	}
	if err := f.Truncate(0); err != nil {
		return nil, "", err
	}
	if _, err := f.WriteAt([]byte(fmt.Sprint(os.Getpid())), 0); err != nil {
		return nil, "", err
	}
	return f, "", nil
}

// devServer takes over a server that a killed process left running.
func devServer(ctx context.Context, dataDir string, out io.Writer) (*pgserver.Server, error) {
	if server, err := pgserver.Attach(dataDir); err == nil {
		return server, nil
	}
	in, err := pgserver.Ensure(ctx, 0, out)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "starting PostgreSQL %d from %s\n", in.Major, in.Bin)
	server, err := pgserver.Start(ctx, pgserver.Options{
		Install: in, DataDir: dataDir, Log: out,
		Settings: map[string]string{"shared_buffers": "256MB", "max_wal_size": "4GB"},
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "PostgreSQL listens on port %d\n", server.Port())
	return server, nil
}

func createDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var found bool
	err = conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, devDatabase).Scan(&found)
	if err != nil || found {
		return err
	}
	_, err = conn.Exec(ctx, `create database `+devDatabase)
	return err
}
