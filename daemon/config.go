package daemon

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/kelseyhightower/envconfig"
	"github.com/rs/zerolog"
)

// Version is the release. The daemon runs on a schema of the same major and minor version.
const Version = "0.1.0"

// Config is all that can be set, by the environment only.
type Config struct {
	// OQ_DATABASE_URL, else DATABASE_URL, else libpq's PG* variables.
	DatabaseURL string        `envconfig:"DATABASE_URL"`
	Schema      string        `split_words:"true" default:"oq"`
	APISchema   string        `envconfig:"API_SCHEMA" default:"public"`
	HTTPAddr    string        `envconfig:"HTTP_ADDR" default:"127.0.0.1:7310"`
	LogLevel    string        `split_words:"true" default:"info"`
	LogFormat   string        `split_words:"true" default:"json"`
	TickMaxRows int           `split_words:"true" default:"1000"`
	StatsEvery  time.Duration `split_words:"true" default:"15s"`
	DataDir     string        `split_words:"true" default:".openqueue"`
}

var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,40}$`)

func loadConfig() (Config, error) {
	var c Config
	if err := envconfig.Process("oq", &c); err != nil {
		return c, fmt.Errorf("%w: %v", errConfig, err)
	}
	bad := func(name, value, want string) (Config, error) {
		return c, fmt.Errorf("%w: OQ_%s=%s: want %s", errConfig, name, value, want)
	}
	if _, err := pgx.ParseConfig(c.DatabaseURL); err != nil {
		return c, fmt.Errorf("%w: OQ_DATABASE_URL or DATABASE_URL: not a connection string", errConfig)
	}
	if !plainName.MatchString(c.Schema) {
		return bad("SCHEMA", c.Schema, "a plain lower-case name")
	}
	if !plainName.MatchString(c.APISchema) {
		return bad("API_SCHEMA", c.APISchema, "a plain lower-case name")
	}
	if level, err := zerolog.ParseLevel(c.LogLevel); err != nil || level == zerolog.NoLevel {
		return bad("LOG_LEVEL", c.LogLevel, "trace, debug, info, warn or error")
	}
	if c.LogFormat != "json" && c.LogFormat != "console" {
		return bad("LOG_FORMAT", c.LogFormat, "json or console")
	}
	if c.TickMaxRows < 1 || c.TickMaxRows > 100000 {
		return bad("TICK_MAX_ROWS", fmt.Sprint(c.TickMaxRows), "1 to 100000")
	}
	if c.StatsEvery < time.Second {
		return bad("STATS_EVERY", c.StatsEvery.String(), "1s or more")
	}
	if c.HTTPAddr != "" {
		if _, _, err := net.SplitHostPort(c.HTTPAddr); err != nil {
			return bad("HTTP_ADDR", c.HTTPAddr, "host:port, or nothing for no HTTP")
		}
	}
	return c, nil
}

func (c Config) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "OQ_DATABASE_URL\t%s\n", redact(c.DatabaseURL))
	fmt.Fprintf(t, "OQ_SCHEMA\t%s\n", c.Schema)
	fmt.Fprintf(t, "OQ_API_SCHEMA\t%s\n", c.APISchema)
	fmt.Fprintf(t, "OQ_HTTP_ADDR\t%s\n", c.HTTPAddr)
	fmt.Fprintf(t, "OQ_LOG_LEVEL\t%s\n", c.LogLevel)
	fmt.Fprintf(t, "OQ_LOG_FORMAT\t%s\n", c.LogFormat)
	fmt.Fprintf(t, "OQ_TICK_MAX_ROWS\t%d\n", c.TickMaxRows)
	fmt.Fprintf(t, "OQ_STATS_EVERY\t%s\n", c.StatsEvery)
	fmt.Fprintf(t, "OQ_DATA_DIR\t%s\n", c.DataDir)
	return t.Flush()
}

var passwordPair = regexp.MustCompile(`(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)`)

// redact takes the password out of a connection string of either form.
func redact(s string) string {
	if u, err := url.Parse(s); err == nil && u.Scheme != "" {
		q := u.Query()
		for _, key := range []string{"password", "sslpassword"} {
			if q.Has(key) {
				q.Set(key, "xxxxx")
			}
		}
		u.RawQuery = q.Encode()
		return u.Redacted()
	}
	return passwordPair.ReplaceAllString(s, "${1}xxxxx")
}
