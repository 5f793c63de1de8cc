package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
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

// Attach is the server that already runs on a data directory.
func Attach(dataDir string) (*Server, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return nil, ErrNotRunning
	}
	defer f.Close()
	var lines []string
	for scan := bufio.NewScanner(f); scan.Scan() && len(lines) < 4; {
		lines = append(lines, strings.TrimSpace(scan.Text()))
	}
	if len(lines) < 4 {
		return nil, ErrNotRunning
	}
	pid, err1 := strconv.Atoi(lines[0])
	port, err2 := strconv.Atoi(lines[3])
	if err1 != nil || err2 != nil || lines[1] != dir {
		return nil, ErrNotRunning
	}
	// The file stays behind after a kill, and its pid may be somebody else's by now.
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return nil, ErrNotRunning
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err != nil {
		return nil, ErrNotRunning
	}
	conn.Close()
	return &Server{dir: dir, port: port, pid: pid}, nil
}

// Start runs a server, with initdb where the data directory is empty. As root everything runs as an
// unprivileged user. The server outlives this process: Stop it, or Attach to it later.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return nil, err
	}
	if s, err := Attach(dir); err == nil {
		return nil, fmt.Errorf("a server is running on %s already (pid %d, port %d)", dir, s.pid, s.port)
	}
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return nil, err
		}
		if err := reachable(dir, cred); err != nil {
			return nil, err
		}
	}
	run := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(o.Install.Bin, name), args...)
		cmd.Dir = dir
		cmd.Stdout, cmd.Stderr = o.Log, o.Log
		cmd.Env = append(os.Environ(), "LC_ALL=C", "PGDATA="+dir)
		// Its own session: an interrupt in the terminal is ours to handle.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: cred}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); os.IsNotExist(err) {
		err := run("initdb", "-D", dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
			"--data-checksums")
		if err != nil {
			return nil, err
		}
	}
	port := o.Port
	if port == 0 {
		port, err = freePort(filepath.Join(dir, "openqueue.port"))
		if err != nil {
			return nil, err
		}
	}
	settings := map[string]string{
		"port": strconv.Itoa(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
		"logging_collector": "off",
	}
	for k, v := range o.Settings {
		settings[k] = v
	}
	var opts []string
	for k, v := range settings {
		opts = append(opts, fmt.Sprintf("-c %s='%s'", k, strings.ReplaceAll(v, "'", `'\''`)))
	}
	sort.Strings(opts)
	err = run("pg_ctl", "-D", dir, "-w", "-t", "60", "-l", filepath.Join(dir, "server.log"),
		"-o", strings.Join(opts, " "), "start")
	if err != nil {
		tail, _ := os.ReadFile(filepath.Join(dir, "server.log"))
		if len(tail) > 2000 {
			tail = tail[len(tail)-2000:]
		}
		return nil, fmt.Errorf("the server does not start: %w\n%s", err, tail)
	}
	s, err := Attach(dir)
	if err != nil {
		return nil, err
	}
	return s, s.ping(ctx)
}

func (s *Server) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return err
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
	for {
		if err := syscall.Kill(s.pid, 0); errors.Is(err, syscall.ESRCH) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unprivileged is whom a server runs as when we are root, which PostgreSQL refuses to be.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}

// reachable says early what initdb would say late: that its user can't get into the folder.
func reachable(dir string, cred *syscall.Credential) error {
	cmd := exec.Command("/bin/sh", "-c", `cd "$1"`, "sh", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Dir = "/"
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the server runs as user id %d, who can't get into %s: choose a data directory "+
			"elsewhere (OQ_DATA_DIR), or open the folders above it with chmod o+x", cred.Uid, dir)
	}
	return nil
}

// freePort is the port that the data directory used before, while it is free, else any free one.
func freePort(note string) (int, error) {
	if raw, err := os.ReadFile(note); err == nil {
		if port, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
			if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				return port, l.Close()
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, err
	}
	return port, os.WriteFile(note, []byte(strconv.Itoa(port)+"\n"), 0o644)
}
