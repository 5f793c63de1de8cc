package openqueue

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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
	if err := use(context.Background(), nil, nil, nil); err != nil {
		fmt.Println(err)
	}
}

func use(ctx context.Context, pool *pgxpool.Pool, t *testing.T, handler openqueue.Handler) error {
	{
`

var goBlocks = regexp.MustCompile("(?ms)^```go\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?")

// The README's programs run and print what it says; its fragments compile.
func TestReadme(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	db := testdb.New(t)
	ran := 0
	for _, b := range goBlocks.FindAllStringSubmatch(string(raw), -1) {
		source, args := b[1], []string{"run"}
		if !strings.HasPrefix(source, "package main") {
			end := "\n\t}\n\treturn nil\n}\n"
			if strings.Contains(source, "\nreturn ") {
				end = "\n\t}\n}\n"
			}
			if strings.HasPrefix(source, "handler :=") {
				source += "_ = handler"
			}
			source, args = around+source+end, []string{"build", "-o", os.DevNull}
		}
		file := filepath.Join(t.TempDir(), "main.go")
		if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", append(args, file)...)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+db.URL)
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != b[2] {
			t.Errorf("%s\nends with %v and prints\n%s\nwant\n%s", b[1], err, out, b[2])
		}
		if args[0] == "run" {
			ran++
		}
	}
	if ran == 0 {
		t.Error("no program was run")
	}
}
