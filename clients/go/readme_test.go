package openqueue

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Fragments are compiled in a function that has what they speak of.
const around = `package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	openqueue "github.com/openqueue/openqueue/clients/go"
	"github.com/openqueue/openqueue/clients/go/openqueuetest"
)

type Mail struct{ To string }

var (
	mails = openqueue.Queue[Mail]{Name: "mail"}
	_     = []any{errors.New, fmt.Println, slog.Default, os.Getenv, signal.Notify, syscall.SIGTERM, time.Second,
		openqueuetest.Jobs, pgx.ErrNoRows}
)

func send(context.Context, *openqueue.Job, Mail) error { return nil }

func main() {
	pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	if err == nil {
		err = use(context.Background(), pool, nil, nil)
	}
	if err != nil {
		fmt.Println(err)
	}
}

func use(ctx context.Context, pool *pgxpool.Pool, t *testing.T, handler openqueue.Handler) error {
	{
`

var goBlocks = regexp.MustCompile("(?ms)^```go\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?")

// runProgram gives what the program prints. One that waits for a signal gets it when only its last line is missing.
func runProgram(program, url, want string, signalled bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var all []byte
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		all = append(append(all, lines.Bytes()...), '\n')
		if signalled && bytes.Count(all, []byte("\n")) == strings.Count(want, "\n")-1 {
			err = cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	return all, errors.Join(err, lines.Err(), cmd.Wait())
}

// The README's programs, and its fragments that print something, run and print what it says; the other fragments compile.
func TestReadme(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	db := testdb.New(t)
	ran := 0
	for _, b := range goBlocks.FindAllStringSubmatch(string(raw), -1) {
		source, want := b[1], b[2]
		runs := want != ""
		if !strings.HasPrefix(source, "package main") {
			end := "\n\t}\n\treturn nil\n}\n"
			if strings.Contains(source, "\nreturn ") {
				end = "\n\t}\n}\n"
			}
			if strings.HasPrefix(source, "handler :=") {
				source += "_ = handler"
			}
			source = around + source + end
		}
		dir := t.TempDir()
		file, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
		if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("go", "build", "-o", program, file).CombinedOutput()
		if err == nil && runs {
			ran++
			out, err = runProgram(program, db.URL, want, strings.Contains(source, "signal.NotifyContext(context.Background()"))
		}
		if err != nil || string(out) != want {
			t.Errorf("%s\nends with %v and prints\n%s\nwant\n%s", b[1], err, out, want)
		}
	}
	if ran == 0 {
		t.Error("no program was run")
	}
}
