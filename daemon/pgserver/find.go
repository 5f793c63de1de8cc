// Package pgserver finds, gets and runs a PostgreSQL server for people and tests that have none at hand.
package pgserver

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	oldest = 14
	newest = 18
)

// ErrNotFound says that no server of a supported version is on this machine.
var ErrNotFound = errors.New("no PostgreSQL server found")

// Install is a PostgreSQL installation: the folder of initdb, pg_ctl and postgres.
type Install struct {
	Bin   string
	Major int
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// Find looks for a server: on the PATH, where pg_config says, and in the usual places of Debian,
// RPM packages, Homebrew and Postgres.app. major 0 means the newest that is supported.
func Find(major int) (Install, error) {
	var dirs []string
	if p, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	if in, err := pick(dirs, major); err == nil {
		return in, nil
	}
	// What Ensure once got counts only where the machine has none of its own.
	cached, _ := filepath.Glob(filepath.Join(cacheDir(), "pg*", "bin"))
	return pick(cached, major)
}

func pick(dirs []string, major int) (Install, error) {
	var all []Install
	for _, dir := range dirs {
		if in, err := inspect(dir); err == nil && (major == 0 || in.Major == major) {
			all = append(all, in)
		}
	}
	if len(all) == 0 {
		return Install{}, ErrNotFound
	}
	// The first of the newest.
	return slices.MaxFunc(all, func(a, b Install) int { return cmp.Compare(a.Major, b.Major) }), nil
}

// inspect asks the server itself, as the user that would run it: a server in root's own folders is
// of no use to anybody else.
func inspect(dir string) (Install, error) {
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode()&0o111 == 0 {
			return Install{}, ErrNotFound
		}
	}
	cred, err := unprivileged()
	if err != nil {
		return Install{}, err
	}
	cmd := exec.Command(filepath.Join(dir, "postgres"), "--version")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.Output()
	if err != nil {
		return Install{}, err
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return Install{}, ErrNotFound
	}
	major, err := strconv.Atoi(string(m[1]))
	if err != nil || major < oldest || major > newest {
		return Install{}, ErrNotFound
	}
	return Install{Bin: dir, Major: major}, nil
}
