package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/daemon"
	"github.com/openqueue/openqueue/daemon/pgserver"
)

const sqlVersion = `select oq_version()`

func moduleRoot(ctx context.Context) (string, error) {
	raw, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(raw))), nil
}

// serve has the queue on a server with a daemon, and returns the connection string. Without one it
// does what `make run` does, by the same command: a `make run` that is there already is used, one that
// comes later finds the folder taken, and none has its server stopped under it.
func serve(ctx context.Context, p *processes, root, tmp, url string) (string, error) {
	bin := filepath.Join(tmp, "openqueued")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "./daemon/openqueued")
	build.Dir, build.Stderr = root, os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("building the daemon: %w", err)
	}
	p.env = append(os.Environ(), "OQ_HTTP_ADDR=", "OQ_LOG_LEVEL=warn")
	if url != "" {
		p.env = append(p.env, "OQ_DATABASE_URL="+url)
		if err := p.run(ctx, bin, "migrate"); err != nil {
			return "", err
		}
		_, err := p.start("openqueued run", bin, "run")
		return url, err
	}
	dir, err := filepath.Abs(cmp.Or(os.Getenv("OQ_DATA_DIR"), filepath.Join(root, ".openqueue")))
	if err != nil {
		return "", err
	}
	p.env = append(p.env, "OQ_DATA_DIR="+dir)
	if _, err := p.start("openqueued dev", bin, "dev"); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		url, err := ready(ctx, filepath.Join(dir, "pgdata"))
		if err == nil {
			return url, nil
		}
		if err := p.failed(); err != nil {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no queue on the server of %s: %w", dir, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ready is the server of `openqueued dev` once the queue is in it.
func ready(ctx context.Context, dataDir string) (string, error) {
	server, err := pgserver.Attach(dataDir)
	if err != nil {
		return "", err
	}
	url := server.URL("openqueue")
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var version string
	if err := conn.QueryRow(ctx, sqlVersion).Scan(&version); err != nil {
		return "", err
	}
	if version != daemon.Version {
		return "", fmt.Errorf("it is of version %s, this is %s", version, daemon.Version)
	}
	return url, nil
}
