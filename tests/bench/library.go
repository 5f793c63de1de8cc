package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openqueue/openqueue/tests/wire"
)

// libraryPatience is how long a library's program may take for anything that is not measured.
const libraryPatience = 30 * time.Second

// library is a client library, by its program in clients/contract.json: what that understands is
// described in clients/README.md.
type library struct {
	name string
	root string
	run  []string
}

// findLibraries builds the programs of all libraries and tries each out. What this machine can't run is
// named below the table, and is an error where the rows were picked by name; so is Go's in any case.
func (b *bench) findLibraries(ctx context.Context, t *target) ([]library, error) {
	if b.libraries != nil {
		return b.libraries, nil
	}
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	raw, err := os.ReadFile(cmp.Or(b.contract, filepath.Join(root, "clients", "contract.json")))
	if err != nil {
		return nil, err
	}
	var contract struct {
		Clients map[string]struct{ Build, Run []string }
	}
	if err := json.Unmarshal(raw, &contract); err != nil {
		return nil, fmt.Errorf("contract.json: %w", err)
	}
	names := slices.Sorted(maps.Keys(contract.Clients))
	for _, name := range b.only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("BENCH_LIBRARIES: there is no library %q, but %s", name, strings.Join(names, ", "))
		}
	}
	if len(b.only) > 0 {
		names = b.only
	}
	for _, name := range names {
		c := contract.Clients[name]
		l := library{name: name, root: root}
		dir := filepath.Join(b.dir, "library-"+name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		for _, word := range c.Run {
			l.run = append(l.run, strings.ReplaceAll(word, "{dir}", dir))
		}
		for i := range c.Build {
			c.Build[i] = strings.ReplaceAll(c.Build[i], "{dir}", dir)
		}
		b.progress("trying out the library %s", name)
		switch err := l.tryOut(ctx, c.Build, t.url); {
		case err == nil:
			b.libraries = append(b.libraries, l)
		case ctx.Err() != nil || b.chosen || len(b.only) > 0 || name == "go":
			return nil, fmt.Errorf("the library %s does not run here: %w", name, err)
		default:
			b.progress("WITHOUT the library %s, which does not run here: %v", name, err)
			b.note(fmt.Sprintf("NOT MEASURED: the library %s does not run on this machine: %s", name, lastLine(err.Error())))
		}
	}
	return b.libraries, nil
}

// tryOut builds the program, starts it and lets it end.
func (l library) tryOut(ctx context.Context, build []string, databaseURL string) error {
	if len(build) > 0 {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, build[0], build[1:]...)
		cmd.Dir = l.root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(build, " "), err, out)
		}
	}
	p, err := l.start(databaseURL)
	if err != nil {
		return err
	}
	return p.stop()
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndex(text, "\n")+1:]
}

// url is the target's for a library, in the role of a worker.
func (t *target) workerURL() (string, error) {
	u, err := url.Parse(t.url)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("application_name", "openqueue bench")
	if t.consumer != "" {
		q.Set("options", "-c role="+t.consumer)
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	return u.String(), nil
}

// program is a library's, running.
type program struct {
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	events chan event // closed when the program has closed its output
	errs   tail
}

// event is a line that a program printed, and when it was read.
type event struct {
	Event   string
	JobID   string `json:"job_id"`
	Attempt int
	How     string
	Jobs    int64
	Seconds float64
	at      time.Time
}

// tail keeps the last of what a program says.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-4000):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

func (l library) start(databaseURL string) (*program, error) {
	p := &program{name: l.name, cmd: exec.Command(l.run[0], l.run[1:]...), events: make(chan event, 1000)}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stderr = l.root, append(os.Environ(), "DATABASE_URL="+databaseURL), &p.errs
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.events)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			e := event{at: time.Now()}
			if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e) != nil {
				fmt.Fprintf(&p.errs, "not an event: %s\n", lines.Bytes())
				continue
			}
			p.events <- e
		}
	}()
	return p, nil
}

// stop ends the program, which must say so and exit with 0.
func (p *program) stop() error {
	p.in.Close()
	said := false
	for end := time.After(libraryPatience); ; {
		select {
		case e, ok := <-p.events:
			if ok {
				said = said || e.Event == "stopped"
				continue
			}
			err := p.cmd.Wait()
			if err == nil && !said {
				err = errors.New("it did not say that it stopped")
			}
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", p.name, err, p.errs.String())
			}
			return nil
		case <-end:
			p.kill()
			return fmt.Errorf("%s does not end\n%s", p.name, p.errs.String())
		}
	}
}

// kill ends the program where something went wrong; after stop it does nothing.
func (p *program) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Kill()
	for range p.events {
	}
	p.cmd.Wait()
}

func (p *program) send(command map[string]any) error {
	line, err := json.Marshal(command)
	if err == nil {
		_, err = p.in.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, err, p.errs.String())
	}
	return nil
}

// next is the next event of a kind, which may take so long.
func (p *program) next(ctx context.Context, kind string, patience time.Duration) (event, error) {
	for end := time.After(patience); ; {
		select {
		case e, ok := <-p.events:
			if !ok {
				return e, fmt.Errorf("%s ended without %q\n%s", p.name, kind, p.errs.String())
			}
			if e.Event == kind {
				return e, nil
			}
		case <-ctx.Done():
			return event{}, ctx.Err()
		case <-end:
			return event{}, fmt.Errorf("%s: no %q in %v\n%s", p.name, kind, patience, p.errs.String())
		}
	}
}

// cpu is how much of the processors the program has used; 0 where the system does not say.
func (p *program) cpu() time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), ") ") // the name before may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // a tick is 10 ms on every Linux that runs Go
}

// startBehind starts the program with a proxy before its server.
func (l library) startBehind(databaseURL string) (*program, *wire.Proxy, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return nil, nil, err
	}
	proxy, err := wire.Start(u.Host)
	if err != nil {
		return nil, nil, err
	}
	u.Host = proxy.Addr()
	p, err := l.start(u.String())
	if err != nil {
		proxy.Close()
		return nil, nil, err
	}
	return p, proxy, nil
}
