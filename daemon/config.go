package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/kelseyhightower/envconfig"
	"github.com/rs/zerolog"
)

// Version is the release. The daemon runs on a schema of the same major and minor version.
const Version = "0.1.0"

// Config is all that can be set, by the environment only.
type Config struct {
	// OQ_DATABASE_URL, else DATABASE_URL, else libpq's PG* variables.
	DatabaseURL string `envconfig:"DATABASE_URL"`
	// The others have the prefix only: by a name of its own envconfig looks for it without the prefix as well.
	DatabaseUrls string        `split_words:"true"`
	Schema       string        `split_words:"true" default:"oq"`
	APISchema    string        `split_words:"true" default:"public"`
	HTTPAddr     string        `split_words:"true" default:"127.0.0.1:7310"`
	LogLevel     string        `split_words:"true" default:"info"`
	LogFormat    string        `split_words:"true" default:"json"`
	TickMaxRows  int           `split_words:"true" default:"1000"`
	StatsEvery   time.Duration `split_words:"true" default:"15s"`
	DataDir      string        `split_words:"true" default:".openqueue"`
}

// As migration 001 has them.
var (
	plainSchema    = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,40}$`)
	plainAPISchema = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)
	systemSchema   = regexp.MustCompile(`^pg_|^information_schema$`)
)

func loadConfig() (Config, error) {
	var c Config
	if err := envconfig.Process("oq", &c); err != nil {
		return c, fmt.Errorf("%w: %v", errConfig, err)
	}
	// A variable that is empty, as compose files have them, is not set.
	c.DatabaseURL = cmp.Or(c.DatabaseURL, os.Getenv("DATABASE_URL"))
	bad := func(name, value, want string) (Config, error) {
		return c, fmt.Errorf("%w: OQ_%s=%s: want %s", errConfig, name, value, want)
	}
	sources, err := c.sources()
	if err != nil {
		return c, err
	}
	if len(sources) == 1 {
		c.DatabaseURL, c.DatabaseUrls = sources[0].url, ""
	}
	if !plainSchema.MatchString(c.Schema) || c.Schema == "public" || systemSchema.MatchString(c.Schema) {
		return bad("SCHEMA", c.Schema, "a plain lower-case name of at most 41 characters, of a schema of its own")
	}
	if !plainAPISchema.MatchString(c.APISchema) || c.APISchema == c.Schema || systemSchema.MatchString(c.APISchema) {
		return bad("API_SCHEMA", c.APISchema, "a plain lower-case name of at most 63 characters, and not OQ_SCHEMA")
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
		_, port, err := net.SplitHostPort(c.HTTPAddr)
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil {
			return bad("HTTP_ADDR", c.HTTPAddr, "host:port, or nothing for no HTTP")
		}
	}
	return c, nil
}

func (c Config) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	sources, err := c.sources()
	if err != nil {
		return err
	}
	switch {
	case c.DatabaseURL != "":
		fmt.Fprintf(t, "OQ_DATABASE_URL\t%s\n", redact(c.DatabaseURL))
	case c.DatabaseUrls == "":
		fmt.Fprintf(t, "PG*\t%s\n", sources[0].label)
	default:
		var urls []string
		for _, s := range sources {
			urls = append(urls, redact(s.url))
		}
		fmt.Fprintf(t, "OQ_DATABASE_URLS\t%s\n", strings.Join(urls, ","))
	}
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

// A source is a database to serve. Its label, host:port/name, is unique and holds no password.
type source struct{ url, label string }

// sources are the databases of OQ_DATABASE_URLS, else the one of OQ_DATABASE_URL. No error shows a URL.
func (c Config) sources() ([]source, error) {
	if c.DatabaseUrls == "" {
		label, err := labelOf(c.DatabaseURL)
		if err != nil {
			return nil, notAConnection("OQ_DATABASE_URL or DATABASE_URL: not a connection string")
		}
		return []source{{c.DatabaseURL, label}}, nil
	}
	bad := func(format string, args ...any) ([]source, error) {
		return nil, fmt.Errorf("%w: OQ_DATABASE_URLS: %s", errConfig, fmt.Sprintf(format, args...))
	}
	if c.DatabaseURL != "" {
		return bad("OQ_DATABASE_URL or DATABASE_URL is set as well: unset one of them")
	}
	urls, err := splitURLs(c.DatabaseUrls)
	if err != nil {
		return bad("%v", err)
	}
	var all []source
	for i, url := range urls {
		if strings.ContainsAny(url, " \t\r\n") {
			return bad("entry %d: a blank inside a URL is written %%20", i+1)
		}
		if commaInside(url) {
			return bad("entry %d: a comma inside a URL, except between hosts, is written %%2C", i+1)
		}
		label, err := labelOf(url)
		if err != nil {
			return nil, notAConnection(fmt.Sprintf("OQ_DATABASE_URLS: entry %d is not a connection string", i+1))
		}
		if j := slices.IndexFunc(all, func(s source) bool { return s.label == label }); j >= 0 {
			return bad("entries %d and %d are the same database, %s", j+1, i+1, label)
		}
		all = append(all, source{url, label})
	}
	return all, nil
}

// notAConnection blames libpq's variables where they are wrong by themselves.
func notAConnection(otherwise string) error {
	_, err := pgx.ParseConfig("")
	switch service := os.Getenv("PGSERVICE"); {
	case err == nil:
		return fmt.Errorf("%w: %s", errConfig, otherwise)
	case service != "":
		return fmt.Errorf("%w: PGSERVICE=%s: %v", errConfig, service, errors.Unwrap(err))
	}
	return fmt.Errorf("%w: the PG* variables: %v", errConfig, errors.Unwrap(err))
}

var urlStart = regexp.MustCompile(`(?:^|[\s,])postgres(?:ql)?://`)

// splitURLs cuts where a URL begins and not at each comma: h1,h2 is one URL's list of hosts.
func splitURLs(list string) ([]string, error) {
	starts := urlStart.FindAllStringIndex(list, -1)
	if len(starts) == 0 || strings.Trim(list[:starts[0][0]], ", \t\r\n") != "" {
		return nil, errors.New("want URLs, postgres://…, with commas or blanks between them")
	}
	var urls []string
	for i, at := range starts {
		end := len(list)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		urls = append(urls, strings.Trim(list[at[0]:end], ", \t\r\n"))
	}
	return urls, nil
}

// commaInside finds a forgotten scheme (postgres://a/x,b/y) and a comma in a password alike.
func commaInside(url string) bool {
	_, rest, _ := strings.Cut(url, "://")
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	user := authority[:strings.LastIndex(authority, "@")+1]
	return strings.Contains(user, ",") || strings.Contains(path, ",")
}

func labelOf(url string) (string, error) {
	pg, err := pgx.ParseConfig(url)
	if err != nil {
		return "", err
	}
	var hosts []string
	add := func(host string, port uint16) {
		at := net.JoinHostPort(strings.ToLower(host), strconv.Itoa(int(port)))
		if strings.HasPrefix(host, "/") {
			at = fmt.Sprintf("%s:%d", host, port)
		}
		// A host is there twice when TLS is only preferred.
		if !slices.Contains(hosts, at) {
			hosts = append(hosts, at)
		}
	}
	add(pg.Host, pg.Port)
	for _, f := range pg.Fallbacks {
		add(f.Host, f.Port)
	}
	name := pg.Database
	if name == "" {
		name = pg.User
	}
	label := strings.Join(hosts, ",") + "/" + name
	if !utf8.ValidString(label) || strings.ContainsFunc(label, unicode.IsControl) {
		return "", errors.New("control characters")
	}
	return label, nil
}

var (
	passwordPair = regexp.MustCompile(`(?s)(password\s*=\s*)('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)+)`)
	passwordUser = regexp.MustCompile(`(?s)^([a-z]+://[^:/?#@]*:).*@`)
	queryPair    = regexp.MustCompile(`([?&])([^=&]*)=[^&]*`)
)

// redact takes the password out of a connection string of either form. It does not parse a URL: pgx
// accepts passwords that net/url does not. What a name of a parameter means is known when it is decoded.
func redact(s string) string {
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		s = passwordUser.ReplaceAllString(s, "${1}xxxxx@")
		return queryPair.ReplaceAllStringFunc(s, func(pair string) string {
			m := queryPair.FindStringSubmatch(pair)
			name, err := url.QueryUnescape(m[2])
			if err == nil && name != "password" && name != "sslpassword" {
				return pair
			}
			return m[1] + m[2] + "=xxxxx"
		})
	}
	return passwordPair.ReplaceAllString(s, "${1}xxxxx")
}
