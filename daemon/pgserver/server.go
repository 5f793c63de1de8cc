package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNotRunning says that no server runs on a data directory.
var ErrNotRunning = errors.New("no server is running on that data directory")

// Options say how to run a server. Port 0 takes a free one, which the data directory remembers.
type Options struct {
	Install  Install
	DataDir  string
	Port     int
	Settings map[string]string
	Log      io.Writer
}

// Server is a running PostgreSQL server with the superuser postgres, on 127.0.0.1 only.
type Server struct {
	dir  string
	port int
	pid  int
}

// Port is where it listens.
func (s *Server) Port() int { return s.port }

// PID is its postmaster's.
func (s *Server) PID() int { return s.pid }

// URL is the connection string of a database.
func (s *Server) URL(db string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, db)
}

// Attach is the server that already runs on a data directory; it waits for one that is recovering.
func Attach(dataDir string) (*Server, error) {
	dir, err := resolve(dataDir)
	if err != nil {
		return nil, err
	}
	s, err := readPID(dir)
	if err != nil {
		return nil, err
	}
	// The file stays behind after a kill, and its pid and port may be somebody else's by now.
	if !alive(s.pid) {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return s, s.ping(ctx)
}

// Start runs a server, with initdb where the data directory is empty. As root everything runs as an
// unprivileged user. The server outlives this process: Stop it, or Attach to it later.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	dir, err := resolve(o.DataDir)
	if err != nil {
		return nil, err
	}
	s, err := Attach(dir)
	if err == nil {
		return nil, fmt.Errorf("a server is running on %s already (pid %d, port %d)", dir, s.pid, s.port)
	}
	if !errors.Is(err, ErrNotRunning) {
		return nil, err
	}
	cred, err := owner(dir)
	if err != nil {
		return nil, err
	}
	major, err := dataMajor(dir)
	if err != nil {
		return nil, err
	}
	if major != 0 && major != o.Install.Major {
		// The machine has got another version since; the data stays what it is.
		if o.Install, err = Ensure(ctx, major, o.Log); err != nil {
			return nil, fmt.Errorf("%s holds data of PostgreSQL %d: %w", dir, major, err)
		}
	}
	if major == 0 {
		if dir, err = initialize(ctx, o, dir, cred); err != nil {
			return nil, err
		}
	} else if !reachable(dir, cred) {
		return nil, fmt.Errorf("the server would run as user id %d, who can't get into %s: open the folders "+
			"above it with chmod o+x, or choose another (OQ_DATA_DIR)", cred.Uid, dir)
	}
	port := o.Port
	if port == 0 {
		if port, err = rememberedPort(dir); err != nil {
			return nil, err
		}
	}
	if err := launch(ctx, o, dir, port, cred); err != nil {
		return nil, err
	}
	return Attach(dir)
}

// initialize makes the cluster beside its place, so that a kill leaves all of it or nothing.
func initialize(ctx context.Context, o Options, dir string, cred *syscall.Credential) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if !reachable(dir, cred) {
		var err error
		if dir, err = elsewhere(dir); err != nil {
			return "", err
		}
		fmt.Fprintf(o.Log, "the server runs as user id %d, who can't get into %s: its data is in %s\n",
			cred.Uid, o.DataDir, dir)
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return "", err
	}
	if cred != nil {
		if err := os.Chown(fresh, int(cred.Uid), int(cred.Gid)); err != nil {
			return "", err
		}
	}
	err := run(ctx, o, fresh, cred, "initdb", "-D", fresh, "-U", "postgres", "-A", "trust", "-E", "UTF8",
		"--no-instructions", "--locale=C", "--data-checksums")
	if err != nil {
		return "", err
	}
	if err := os.Remove(dir); err != nil {
		return "", err
	}
	return dir, os.Rename(fresh, dir)
}

func launch(ctx context.Context, o Options, dir string, port int, cred *syscall.Credential) error {
	settings := map[string]string{
		"port": strconv.Itoa(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
		"logging_collector": "off",
	}
	maps.Copy(settings, o.Settings)
	var opts []string
	for k, v := range settings {
		opts = append(opts, fmt.Sprintf("-c %s='%s'", k, strings.ReplaceAll(v, "'", `'\''`)))
	}
	slices.Sort(opts)
	logFile := filepath.Join(dir, "server.log")
	for end := time.Now().Add(time.Minute); ; {
		if err := disownDeadPID(dir); err != nil {
			return err
		}
		var before int64
		if info, err := os.Stat(logFile); err == nil {
			before = info.Size()
		}
		err := run(ctx, o, dir, cred, "pg_ctl", "-D", dir, "-s", "-w", "-t", "300", "-l", logFile,
			"-o", strings.Join(opts, " "), "start")
		if err == nil {
			return nil
		}
		said, _ := os.ReadFile(logFile)
		said = said[min(before, int64(len(said))):]
		// A killed server takes a moment to be gone, and its backends one to notice and let go.
		dying := strings.Contains(string(said), "still in use") || strings.Contains(string(said), "already exists")
		if !dying || time.Now().After(end) {
			return fmt.Errorf("the server does not start: %w\n%s", err, said[max(0, len(said)-2000):])
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func run(ctx context.Context, o Options, dir string, cred *syscall.Credential, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(o.Install.Bin, name), args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = o.Log, o.Log
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGDATA="+dir)
	// A session of its own: an interrupt in the terminal is ours to handle, and both programs clean
	// up when we hand it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: cred}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// ping waits until the server accepts, and makes sure that it is ours.
func (s *Server) ping(ctx context.Context) error {
	for {
		var dir string
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			err = conn.QueryRow(ctx, `select current_setting('data_directory')`).Scan(&dir)
			conn.Close(ctx)
		}
		var refused *pgconn.PgError
		switch {
		case err == nil && dir == s.dir:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("the server on %s (pid %d, port %d) does not accept: %w", s.dir, s.pid, s.port, err)
		case errors.As(err, &refused) && (refused.Code == "57P03" || refused.Code == "53300"):
			// Starting, stopping, or full.
		case err == nil:
			return fmt.Errorf("%w: port %d is that of %s", ErrNotRunning, s.port, dir)
		default:
			return fmt.Errorf("%w: %v", ErrNotRunning, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Stop ends the server: fast rolls open transactions back, immediate is a crash.
func (s *Server) Stop(ctx context.Context, mode string) error {
	sig, ok := map[string]syscall.Signal{"fast": syscall.SIGINT, "immediate": syscall.SIGQUIT}[mode]
	if !ok {
		return fmt.Errorf("mode %q: want fast or immediate", mode)
	}
	if err := syscall.Kill(s.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for alive(s.pid) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server on %s (pid %d) does not stop: %w", s.dir, s.pid, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
