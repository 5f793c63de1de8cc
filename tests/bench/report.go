package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// report is bench.json: what the table shows and what it has no room for.
type report struct {
	When    time.Time      `json:"when"`
	Seconds float64        `json:"seconds"`
	Server  reportServer   `json:"server"`
	Machine reportMachine  `json:"machine"`
	Sizes   map[string]any `json:"sizes"`
	Rows    []reportRow    `json:"rows"`
	Series  []record       `json:"series,omitempty"`
	Notes   []string       `json:"notes,omitempty"`
}

type reportServer struct {
	Version  string            `json:"version"`
	Settings map[string]string `json:"settings"` // those that differ from PostgreSQL's own, and durability's
}

type reportMachine struct {
	Cores int    `json:"cores"`
	OS    string `json:"os"`
	Arch  string `json:"arch"`
}

type reportRow struct {
	ID      string    `json:"id"`
	Work    string    `json:"work"`
	Who     string    `json:"who"`
	Unit    string    `json:"unit"`
	Values  []float64 `json:"values"` // one a round
	Summary *summary  `json:"summary,omitempty"`
	Against string    `json:"against,omitempty"`
	Ratios  []float64 `json:"ratios,omitempty"`
	Ratio   *summary  `json:"ratio,omitempty"`
	Goal    string    `json:"goal,omitempty"`
	Met     *bool     `json:"met,omitempty"`
	Client  []float64 `json:"client_cores,omitempty"`
}

type summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// record is what a row saw slice by slice.
type record struct {
	Row     string             `json:"row"`
	Who     string             `json:"who"`
	Round   int                `json:"round"`
	Seconds float64            `json:"slice_seconds"`
	Rates   []float64          `json:"jobs_per_second"`
	Bytes   map[string][]int64 `json:"table_bytes,omitempty"`
	Delays  map[string]float64 `json:"commit_to_lease_ms,omitempty"`
}

func (b *bench) record(r record) { b.records = append(b.records, r) }

func summarize(values []float64) *summary {
	if len(values) == 0 {
		return nil
	}
	return &summary{median(values), slices.Min(values), slices.Max(values)}
}

func reportOf(r row) reportRow {
	out := reportRow{ID: r.id, Work: r.work, Who: r.who, Unit: r.unit, Values: r.values, Summary: summarize(r.values),
		Against: r.against, Ratios: r.ratios, Ratio: summarize(r.ratios), Client: r.cpu}
	if r.goal.set {
		met := r.goal.met(median(r.judged()))
		out.Goal, out.Met = r.goal.String(), &met
	}
	return out
}

// writeFiles leaves the JSON and the pictures where the configuration wants them.
func (b *bench) writeFiles(ctx context.Context, cfg Config, rows []row) error {
	if cfg.Pictures != "" {
		for _, c := range b.charts {
			if err := os.WriteFile(filepath.Join(cfg.Pictures, c.file), []byte(c.svg()), 0o644); err != nil {
				return err
			}
		}
	}
	if cfg.JSON == "" {
		return nil
	}
	rep := report{When: b.start.UTC().Round(time.Second), Seconds: time.Since(b.start).Seconds(),
		Machine: reportMachine{runtime.NumCPU(), runtime.GOOS, runtime.GOARCH},
		Sizes: map[string]any{"rounds": b.size.rounds, "window_seconds": b.size.window.Seconds(),
			"backlog": b.size.backlog, "big_backlog": b.size.bigBacklog, "held_rounds": b.size.heldRounds,
			"held_seconds": b.size.heldSlice.Seconds() * float64(b.size.heldSlices), "holder": b.holder,
			"queues": b.size.queues, "groups": b.size.groups, "deep": b.size.deep, "payload": payload},
		Series: b.records, Notes: b.notes}
	var err error
	if rep.Server, err = b.serverSettings(ctx); err != nil {
		return err
	}
	for _, r := range rows {
		rep.Rows = append(rep.Rows, reportOf(r))
	}
	text, err := json.MarshalIndent(rep, "", " ")
	if err != nil {
		return fmt.Errorf("bench.json: %w", err)
	}
	return os.WriteFile(cfg.JSON, append(text, '\n'), 0o644)
}

func (b *bench) serverSettings(ctx context.Context) (s reportServer, err error) {
	s.Settings = map[string]string{}
	if err = b.admin.QueryRow(ctx, "select version()").Scan(&s.Version); err != nil {
		return s, err
	}
	rows, err := b.admin.Query(ctx, `
		select name, current_setting(name) from pg_settings
		 where setting is distinct from boot_val and source <> 'client' and category not like 'File Locations%'
		   and name not like '%directory%' and name not like '%directories' and name not like '%file'
		    or name in ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'wal_compression', 'autovacuum')`)
	if err != nil {
		return s, err
	}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		s.Settings[name] = value
		return nil
	})
	return s, err
}
