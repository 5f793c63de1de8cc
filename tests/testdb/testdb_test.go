package testdb

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openqueue/openqueue/daemon/pgserver"
)

func TestMain(m *testing.M) {
	if os.Getenv("OQ_TEST_HANG") != "" {
		hang()
	}
	Main(m)
}

// hang is a test process that starts a server and never comes to its end.
func hang() {
	start()
	if shared.err != nil {
		os.Exit(1)
	}
	dir := New(&testing.T{}).Psql(&testing.T{}, "-c", "show data_directory")
	os.Stdout.WriteString(dir + "\n")
	select {}
}

func TestServerEndsWithAKilledTest(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "OQ_TEST_HANG=1", "OQ_TEST_DATABASE_URL=")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	dir := strings.TrimSpace(line)
	if err == nil {
		_, err = pgserver.Attach(dir)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatalf("server of the other process on %q: %v", dir, err)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		_, err := os.Stat(dir)
		if os.IsNotExist(err) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there: %v", dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestClonesAreApart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := New(t), New(t)
	if _, err := a.Pool.Exec(ctx, `select oq_enqueue('x')`); err != nil {
		t.Fatal(err)
	}
	for db, want := range map[*DB]string{a: "1", b: "0"} {
		if got := db.Psql(t, "-c", `select count(*) from oq_jobs`); got != want {
			t.Errorf("%s jobs, want %s", got, want)
		}
	}
	if got := Empty(t).Psql(t, "-c", `select count(*) from pg_proc where proname like 'oq\_%'`); got != "0" {
		t.Errorf("%s functions in an empty database", got)
	}
}

func TestDatabaseGoesWithItsTest(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("inner", func(t *testing.T) {
		db := New(t)
		db.Conn(t)
		name = db.Psql(t, "-c", `select current_database()`)
	})
	if got := New(t).Psql(t, "-c", `select count(*) from pg_database where datname = '`+name+`'`); got != "0" {
		t.Errorf("database %s is still there", name)
	}
}

func TestWaitBlocked(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := New(t)
	a, b := db.Conn(t), db.Conn(t)
	if _, err := a.Exec(ctx, `select pg_advisory_lock(1)`); err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		_, err := b.Exec(ctx, `select pg_advisory_lock(1)`)
		got <- err
	}()
	db.WaitBlocked(t, b.PgConn().PID())
	select {
	case err := <-got:
		t.Fatalf("not blocked: %v", err)
	default:
	}
	if _, err := a.Exec(ctx, `select pg_advisory_unlock(1)`); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestServerSurvivesKill(t *testing.T) {
	t.Parallel()
	s := StartServer(t, ServerOptions{Settings: map[string]string{"shared_buffers": "16MB"}})
	db := DB{URL: s.URL("postgres")}
	if got := db.Psql(t, "-c", `show fsync`); got != "on" {
		t.Errorf("fsync %s", got)
	}
	id := db.Psql(t, "-c", `select oq_enqueue('x')`)
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	db = DB{URL: s.URL("postgres")}
	if got := db.Psql(t, "-c", `select job_id from oq_lease('x')`); got != id {
		t.Errorf("leased %q after the kill, want %s", got, id)
	}
}

func TestConnectionStrings(t *testing.T) {
	was := shared.admin
	defer func() { shared.admin = was }()
	for admin, want := range map[string]string{
		"postgres://u:p%40s@h:1/a?sslmode=disable": "postgres://u:p%40s@h:1/db?sslmode=disable",
		"host=/tmp port=2 dbname=a":                "host=/tmp port=2 dbname=a dbname=db",
	} {
		if shared.admin = admin; urlOf("db") != want {
			t.Errorf("%s: %s, want %s", admin, urlOf("db"), want)
		}
	}
}

func TestMigrateRefusesNoServer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := Migrate(ctx, "postgres://postgres@127.0.0.1:1/postgres?sslmode=disable", "oq", "public", -1)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("migrated nothing: %v", err)
	}
}
