package contract

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/wire"
)

// event is a line that a contract worker printed.
type event struct {
	Event    string   `json:"event"`
	JobIDs   []string `json:"job_ids"`
	JobID    string   `json:"job_id"`
	Token    string   `json:"lease_token"`
	Attempt  int      `json:"attempt"`
	How      string   `json:"how"`
	Why      string   `json:"why"`
	SQLState string   `json:"sqlstate"`
	Message  string   `json:"message"`
	at       time.Time
}

// client is a contract worker.
type client struct {
	cmd         *exec.Cmd
	in          io.WriteCloser
	application string
	proxy       *wire.Proxy
	stderr      lockedBuffer
	done        chan struct{}

	mu     sync.Mutex
	events []event
	bad    error // a line that is no event
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startClient(t testing.TB, run, env []string) *client {
	c := &client{cmd: exec.Command(run[0], run[1:]...), done: make(chan struct{})}
	c.cmd.Dir, c.cmd.Env, c.cmd.Stderr = root, append(os.Environ(), env...), &c.stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("%v: %v", run, err)
	}
	go func() {
		defer close(c.done)
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				break
			}
			e := event{at: time.Now()}
			err = json.Unmarshal(line, &e)
			c.mu.Lock()
			if err != nil || e.Event == "" {
				c.bad = fmt.Errorf("not an event: %q", line)
			}
			c.events = append(c.events, e)
			c.mu.Unlock()
		}
		_ = c.cmd.Wait() // Its status is looked at by exit.
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
	})
	return c
}

func (c *client) all() []event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events[:len(c.events):len(c.events)]
}

func (c *client) said() string {
	events := c.all()
	raw, _ := json.Marshal(events[max(0, len(events)-30):])
	return string(raw)
}

// failed is what makes waiting for this client useless.
func (c *client) failed() error {
	c.mu.Lock()
	bad := c.bad
	c.mu.Unlock()
	if bad != nil {
		return bad
	}
	select {
	case <-c.done:
		if !c.cmd.ProcessState.Success() {
			return fmt.Errorf("the client ended: %s", c.cmd.ProcessState)
		}
	default:
	}
	return nil
}

func (c *client) exit(code *int) error {
	select {
	case <-c.done:
	case <-time.After(patience):
		return fmt.Errorf("it has not ended")
	}
	if code != nil && c.cmd.ProcessState.ExitCode() != *code {
		return fmt.Errorf("it ended with %s, want %d", c.cmd.ProcessState, *code)
	}
	return nil
}

// startPgBouncer runs PgBouncer in transaction mode and gives its address.
func startPgBouncer(t *testing.T, server int) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	ini := filepath.Join(t.TempDir(), "pgbouncer.ini")
	err = os.WriteFile(ini, []byte(fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_prepared_statements = 0
ignore_startup_parameters = extra_float_digits
`, server, port)), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		bin = "/usr/sbin/pgbouncer"
	}
	// Debian 12 has 1.18, which knows no prepared statements and refuses the word.
	if out, err := exec.Command(bin, "--version").Output(); err != nil {
		t.Fatalf("the contract needs pgbouncer: %v", err)
	} else if version := strings.Fields(string(out)); len(version) > 1 && strings.HasPrefix(version[1], "1.") {
		if minor, _ := strconv.Atoi(strings.Split(version[1], ".")[1]); minor < 21 {
			raw, _ := os.ReadFile(ini)
			_ = os.WriteFile(ini, []byte(strings.Replace(string(raw), "max_prepared_statements = 0\n", "", 1)), 0o644)
		}
	}
	cmd := exec.Command(bin, ini)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if os.Geteuid() == 0 {
		// It refuses to run as root.
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(nobody.Uid)
		gid, _ := strconv.Atoi(nobody.Gid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		for dir := filepath.Dir(ini); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			_ = os.Chmod(dir, 0o755)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("pgbouncer does not answer:\n%s", out.String())
		}
	}
}
