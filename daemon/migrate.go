package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"

	"github.com/openqueue/openqueue/sql"
)

// migrateAll does it in each database. One that fails does not keep the others from theirs. It is one
// after the other: the roles belong to the server, which several databases may share.
func migrateAll(ctx context.Context, cfg Config, to int, out io.Writer) error {
	sources, err := cfg.sources()
	if err != nil {
		return err
	}
	if len(sources) == 1 {
		return Migrate(ctx, cfg, to, out)
	}
	if to >= 0 {
		return fmt.Errorf("%w: --to is for one database, and OQ_DATABASE_URLS names %d", errConfig, len(sources))
	}
	var failed []error
	for _, s := range sources {
		one := cfg
		one.DatabaseURL, one.DatabaseUrls = s.url, ""
		var said strings.Builder
		if err := Migrate(ctx, one, to, &said); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.label, err))
			continue
		}
		fmt.Fprintf(out, "%s: %s", s.label, said.String())
	}
	return errors.Join(failed...)
}

// Migrate installs the queue or brings it to a version; to < 0 is the newest, 0 removes it.
func Migrate(ctx context.Context, cfg Config, to int, out io.Writer) error {
	connectCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pg, err := parseURL(cfg.DatabaseURL)
	if err != nil {
		return err
	}
	// A migration down names what of others goes with it; all else is noise.
	pg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if strings.HasPrefix(n.Message, "drops with it: ") {
			fmt.Fprintln(out, n.Message)
		}
	}
	conn, err := pgx.ConnectConfig(connectCtx, pg)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// The same table as tern.conf names; a second installation has one of its own.
	versions := "public.openqueue_version"
	if cfg.Schema != "oq" {
		versions = "public." + cfg.Schema + "_version"
	}
	if err := checkSchemaIsFree(ctx, conn, cfg.Schema, versions); err != nil {
		return err
	}
	m, err := migrate.NewMigrator(ctx, conn, versions)
	if err != nil {
		return err
	}
	m.Data = map[string]any{"schema": cfg.Schema, "api_schema": cfg.APISchema}
	files, err := fs.Sub(sql.Migrations, "migrations")
	if err != nil {
		return err
	}
	if err := m.LoadMigrations(files); err != nil {
		return err
	}
	newest := int32(len(m.Migrations))
	from, err := m.GetCurrentVersion(ctx)
	if err != nil {
		return err
	}
	if from > newest {
		return fmt.Errorf("%w: the database is at migration %d, this program knows %d", errSchema, from, newest)
	}
	target := newest
	if to >= 0 {
		if int32(to) > newest {
			return fmt.Errorf("%w: --to %d: the newest migration is %d", errConfig, to, newest)
		}
		target = int32(to)
	}
	if from >= 2 {
		if err := checkAPISchema(ctx, conn, cfg, target >= from); err != nil {
			return err
		}
	}
	if err := m.MigrateTo(ctx, target); err != nil {
		return err
	}
	fmt.Fprintf(out, "schema %s: migration %d, was %d\n", cfg.Schema, target, from)
	return nil
}

// checkSchemaIsFree comes before the version table is made, which would stay.
func checkSchemaIsFree(ctx context.Context, conn *pgx.Conn, schema, versions string) error {
	var taken bool
	err := conn.QueryRow(ctx, `select pg_catalog.to_regclass($1) is null and exists (
		select from pg_catalog.pg_namespace where nspname = $2)`, versions, schema).Scan(&taken)
	if err == nil && taken {
		return fmt.Errorf("%w: OQ_SCHEMA=%s: that schema is there already, without %s", errConfig, schema, versions)
	}
	return err
}

// checkAPISchema finds where the functions of an installation are: under another name the migrations would leave them.
// Where they are nowhere only going down helps.
func checkAPISchema(ctx context.Context, conn *pgx.Conn, cfg Config, up bool) error {
	rows, err := conn.Query(ctx, `select n.nspname::text
		from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
		where p.proname = 'oq_version' and 'search_path=pg_catalog, ' || $1 || ', pg_temp' = any (p.proconfig)
		order by n.nspname = $2 desc`, cfg.Schema, cfg.APISchema)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	switch {
	case len(found) > 0 && found[0] != cfg.APISchema:
		return fmt.Errorf("%w: OQ_API_SCHEMA=%s: the functions of schema %s are in schema %s", errConfig, cfg.APISchema,
			cfg.Schema, found[0])
	case len(found) == 0 && up:
		return fmt.Errorf("%w: schema %s is at a migration that has functions, and they are gone: openqueued migrate --to 1, "+
			"which keeps the jobs, and openqueued migrate make them again", errSchema, cfg.Schema)
	}
	return nil
}

// checkVersion tells a schema that is missing, too old or too new from a database that is away. By its whole name:
// a path passes over a schema that the login may not use yet.
func checkVersion(ctx context.Context, conn *pgx.Conn, apiSchema string) error {
	var version string
	err := conn.QueryRow(ctx, fmt.Sprintf(`select %s.oq_version()`, pgx.Identifier{apiSchema}.Sanitize())).Scan(&version)
	if code := sqlstate(err); code == "42883" || code == "3F000" {
		return fmt.Errorf("%w: OpenQueue is not installed here: run openqueued migrate", errSchema)
	}
	if err != nil {
		return err
	}
	want := Version[:strings.LastIndex(Version, ".")+1]
	if !strings.HasPrefix(version, want) {
		return fmt.Errorf("%w: the database has version %s, this daemon is %s", errSchema, version, Version)
	}
	return nil
}

// hideURL keeps a connection string, and so a password, out of an error.
func hideURL(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return notAConnection("OQ_DATABASE_URL or DATABASE_URL: not a connection string")
	}
	return err
}
