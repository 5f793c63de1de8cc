// Package docs runs what the repository's Markdown shows. A block of code that nobody runs is an error:
// a new one is run here as its language says, or named below with the reason.
package docs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

const root = "../.."

func TestMain(m *testing.M) { testdb.Main(m) }

// elsewhere are the pages whose blocks are run, and their outputs compared, by the tests of a folder.
var elsewhere = map[string]string{
	"clients/go/README.md":     "clients/go",
	"clients/node/README.md":   "clients/node",
	"clients/psql/README.md":   "clients/psql",
	"clients/python/README.md": "clients/python",
	"sql/EXAMPLES.md":          "tests/sql",
}

// notRun are blocks, by how they begin, that are no code or can't be run, with the reason.
var notRun = map[string]map[string]string{
	"README.md": {
		"git clone https:": "takes the network; make run is daemon's test of openqueued dev",
		"make demo ":       "minutes; the tests of clients/demo and tests/bench run small ones",
		"sql/       the ":  "the tree",
		"server_version=":  "what make bench printed",
	},
	"clients/README.md": {
		"loop\n": "pseudocode",
		"DATABASE_URL=postgres://… clients/psql/worker.sh ": "the tests of clients/demo run it",
	},
	"clients/examples/README.md": {
		"DATABASE_URL=postgres://… ruby ": "the tests of clients/examples run all of them",
	},
	"daemon/README.md": {
		"OQ_DATABASE_URLS=": "made-up hosts; daemon's tests run several databases",
		"db1:5432/app: ":    "an answer",
	},
	"sql/README.md": {
		"2\n":               "tests/watches compares it",
		"oq_watch_1_insert": "tests/watches compares it",
	},
	"tests/bench/README.md": {
		"make bench ":             "half an hour; the tests of tests/bench run all rows",
		"    workload ":           "an answer",
		"BENCH_PEERS=pgmq,pgque ": "takes files from the network",
	},
}

// signature is the head of a function in the reference, which tests/catalog holds against the catalog.
var signature = regexp.MustCompile(`\Aoq_\w+\(`)

type block struct {
	line    int
	section int    // how many headings of the second level stand before it
	kind    string // setup, or the language after the fence
	code    string
}

func (b block) String() string { return fmt.Sprintf("line %d:\n%s", b.line, b.code) }

var fence = regexp.MustCompile("(?ms)^<!-- setup\n(.*?)^-->$|^ *```(\\w*)\n(.*?)^ *```$")

func blocksOf(page string) (all []block) {
	for _, at := range fence.FindAllStringSubmatchIndex(page, -1) {
		before := page[:at[0]]
		b := block{line: 1 + strings.Count(before, "\n"), section: strings.Count(before, "\n## "), kind: "setup"}
		if at[2] >= 0 {
			b.code = page[at[2]:at[3]]
		} else {
			b.kind, b.code = page[at[4]:at[5]], page[at[6]:at[7]]
		}
		all = append(all, b)
	}
	return all
}

// pages are all Markdown files, by their paths in the repository.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules"):
			return fs.SkipDir
		case d.Type().IsRegular() && filepath.Ext(path) == ".md":
			raw, err := os.ReadFile(path)
			name, relErr := filepath.Rel(root, path)
			all[filepath.ToSlash(name)] = string(raw)
			return errors.Join(err, relErr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPages(t *testing.T) {
	t.Parallel()
	all := pages(t)
	if len(all) < 10 {
		t.Fatalf("only %d pages", len(all))
	}
	for name := range notRun {
		if _, there := all[name]; !there {
			t.Errorf("there is no page %s", name)
		}
	}
	for name, text := range all {
		if folder, ok := elsewhere[name]; ok {
			if !readBy(t, folder, filepath.Base(name)) {
				t.Errorf("no test in %s reads %s", folder, name)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sql := map[int][]block{}
			found := map[string]bool{}
			for _, b := range blocksOf(text) {
				if begins := exempt(name, b); begins != "" {
					found[begins] = true
					continue
				}
				switch b.kind {
				case "sql", "setup":
					sql[b.section] = append(sql[b.section], b)
				case "go", "python", "js":
					t.Run(fmt.Sprint(b.kind, " at line ", b.line), func(t *testing.T) {
						t.Parallel()
						runProgram(t, b)
					})
				case "sh":
					t.Run(fmt.Sprint("sh at line ", b.line), func(t *testing.T) {
						t.Parallel()
						runShell(t, b)
					})
				default:
					if !signature.MatchString(b.code) {
						t.Errorf("a block that nothing runs, at %v", b)
					}
				}
			}
			for begins := range notRun[name] {
				if !found[begins] {
					t.Errorf("no block begins with %q", begins)
				}
			}
			for _, section := range sql {
				runSQL(t, section)
			}
		})
	}
}

// exempt gives the entry of notRun that is the block's.
func exempt(page string, b block) string {
	for begins := range notRun[page] {
		if strings.HasPrefix(strings.TrimSpace(b.code)+"\n", strings.TrimLeft(begins, " ")) {
			return begins
		}
	}
	return ""
}

// readBy says whether a test in the folder names the file.
func readBy(t *testing.T, folder, file string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "node_modules":
			return fs.SkipDir
		}
		if d.Type().IsRegular() && strings.Contains(path[len(root+folder):], "test") {
			raw, err := os.ReadFile(path)
			found = found || bytes.Contains(raw, []byte(file))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// runSQL gives a section's SQL to one psql on a database of its own, in its order. An error ends it.
func runSQL(t *testing.T, blocks []block) {
	t.Helper()
	var script strings.Builder
	for _, b := range blocks {
		fmt.Fprintf(&script, "\\echo -- line %d\n%s\n", b.line, b.code)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", testdb.New(t).URL)
	cmd.Env = append(os.Environ(), "PAGER=", "LC_ALL=C.UTF-8")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("psql: %v\n%s", err, out[max(0, len(out)-3000):])
	}
}

// The programs of the Quickstart print this, and have at most so many lines: imports, closing brackets
// and blank lines aside.
const (
	printed   = "mail to ann@example.org"
	mostLines = 15
)

var (
	goImports = regexp.MustCompile(`(?s)\A(package main\n+)?import \(.*?\n\)\n`)
	counts    = regexp.MustCompile(`(?m)^.*[A-Za-z].*$`)
	imports   = regexp.MustCompile(`(?m)^(import|from) .*$`)
)

func lines(code string) int {
	return len(counts.FindAllString(imports.ReplaceAllString(goImports.ReplaceAllString(code, ""), ""), -1))
}

// runProgram runs a program until it has printed what it is to print, then asks it to end: with status 0
// and no job left.
func runProgram(t *testing.T, b block) {
	if n := lines(b.code); n > mostLines || n < 5 {
		t.Errorf("it has %d lines, at most %d are allowed, at %v", n, mostLines, b)
	}
	db := testdb.New(t)
	dir := t.TempDir()
	var cmd *exec.Cmd
	switch b.kind {
	case "go":
		bin := filepath.Join(dir, "program")
		if out, err := exec.Command("go", "build", "-o", bin, write(t, dir, "main.go", b.code)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd = exec.Command(bin)
	case "python":
		cmd = exec.Command("/usr/bin/python3", "-u", write(t, dir, "program.py", b.code))
		cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH="+absolute(t, "clients/python"))
	case "js":
		node := absolute(t, "clients/node")
		if out, err := exec.Command(filepath.Join(node, "install.sh")).CombinedOutput(); err != nil {
			t.Fatalf("install.sh: %v\n%s", err, out)
		}
		modules := filepath.Join(dir, "node_modules")
		err := errors.Join(os.Mkdir(modules, 0o755), os.Symlink(node, filepath.Join(modules, "openqueue")),
			os.Symlink(filepath.Join(node, "node_modules", "pg"), filepath.Join(modules, "pg")))
		if err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command("node", write(t, dir, "program.mjs", b.code))
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "DATABASE_URL="+db.URL)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer late.Stop()
	r := bufio.NewReader(out)
	said, _ := r.ReadString('\n')
	cmd.Process.Signal(syscall.SIGTERM)
	rest, _ := io.ReadAll(r)
	if err := cmd.Wait(); err != nil || said != printed+"\n" || len(rest) > 0 {
		t.Errorf("it prints %q and ends with %v, at %v\n%s", said+string(rest), err, b, errs.String())
	}
	if got := db.Psql(t, "-c", "select string_agg(state || ' ' || attempt, ', ') from oq_jobs"); got != "completed 1" {
		t.Errorf("its jobs: %s", got)
	}
}

// runShell runs commands on an empty database, whose URL they get for postgres://…. The last is a daemon:
// once it leads it is asked to end.
func runShell(t *testing.T, b block) {
	db := testdb.Empty(t)
	cmd := exec.Command("sh", "-e", "-c", strings.ReplaceAll(b.code, "postgres://…", "'"+db.URL+"'"))
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "OQ_HTTP_ADDR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	const leads = `select exists (select from pg_locks l join pg_stat_activity a using (pid)
		where l.locktype = 'advisory' and a.datname = current_database() and a.application_name like 'openqueued%')`
	for end := time.Now().Add(5 * time.Minute); db.Psql(t, "-c", leads) != "t"; time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("ended: %v, at %v\n%s", err, b, out.String())
		default:
		}
		if time.Now().After(end) {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
			t.Fatalf("no daemon leads, at %v\n%s", b, out.String())
		}
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-ended: // the shell by the signal
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		t.Errorf("it does not end, at %v\n%s", b, out.String())
	}
	if got := db.Psql(t, "-c", "select oq_version() is not null"); got != "t" {
		t.Errorf("oq_version: %s", got)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
