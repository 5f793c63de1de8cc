package main

import (
	"context"
	"io"
	"path/filepath"
	"time"

	"github.com/openqueue/openqueue/daemon/pgserver"
)

// startServer runs a PostgreSQL server for this run alone. It is durable; beyond that it is set as
// somebody who runs a queue would set it, for every contender alike. Checkpoints are far apart
// because the rows make their own between rounds. Only a logical slot gets wal_level = logical: it
// makes every deleted row's key part of the log, which no other row should pay.
func startServer(ctx context.Context, dir string, major int, holder string, log io.Writer) (stop func() error, url string, err error) {
	install, err := pgserver.Ensure(ctx, major, log)
	if err != nil {
		return nil, "", err
	}
	walLevel := "replica"
	if holder == "slot" {
		walLevel = "logical"
	}
	server, err := pgserver.Start(ctx, pgserver.Options{
		Install: install,
		DataDir: filepath.Join(dir, "data"),
		Log:     log,
		Settings: map[string]string{
			"fsync":              "on",
			"synchronous_commit": "on",
			"full_page_writes":   "on",
			"shared_buffers":     "1GB",
			"max_wal_size":       "8GB",
			"checkpoint_timeout": "30min",
			"autovacuum_naptime": "5s",
			"random_page_cost":   "1.1",
			"jit":                "off",
			"max_connections":    "100",
			"wal_level":          walLevel,

			"max_prepared_transactions": "10",
		},
	})
	if err != nil {
		return nil, "", err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return server.Stop(ctx, "fast")
	}, server.URL("postgres"), nil
}
