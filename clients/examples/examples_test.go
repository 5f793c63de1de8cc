// Package examples runs the producers and workers of the languages that have no library.
package examples

import (
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestExamples(t *testing.T) {
	t.Parallel()
	const jar = "/usr/share/java/postgresql.jar"
	for name, l := range map[string]struct {
		producer, worker []string
		jdbc             bool
	}{
		"ruby": {producer: []string{"ruby", "producer.rb"}, worker: []string{"ruby", "worker.rb"}},
		"php":  {producer: []string{"php", "producer.php"}, worker: []string{"php", "worker.php"}},
		"java": {producer: []string{"java", "-cp", jar, "Producer.java"}, worker: []string{"java", "-cp", jar, "Worker.java"}, jdbc: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			address := db.URL
			if l.jdbc {
				u, err := url.Parse(db.URL)
				if err != nil {
					t.Fatal(err)
				}
				address = "jdbc:postgresql://" + u.Host + u.Path + "?user=" + u.User.Username()
				if password, ok := u.User.Password(); ok {
					address += "&password=" + url.QueryEscape(password)
				}
			}
			env := append(os.Environ(), "DATABASE_URL="+address, "LC_ALL=C.UTF-8")

			var said strings.Builder
			worker := exec.Command(l.worker[0], append(l.worker[1:], "texts")...)
			worker.Env, worker.Stdout, worker.Stderr = env, &said, &said
			if err := worker.Start(); err != nil {
				t.Fatalf("%s: tests/tools.sh installs it: %v", name, err)
			}
			ended := make(chan error, 1)
			go func() { ended <- worker.Wait() }()
			over := false
			defer func() {
				if !over {
					_ = worker.Process.Kill()
					<-ended
				}
			}()

			produce := func(texts ...string) {
				t.Helper()
				cmd := exec.Command(l.producer[0], append(append(l.producer[1:], "texts"), texts...)...)
				cmd.Env = env
				out, err := cmd.CombinedOutput()
				if err != nil || strings.Count(string(out), "\n") != len(texts) {
					t.Fatalf("producer: %v\n%s", err, out)
				}
			}
			until := func(sql, want string) {
				t.Helper()
				got := ""
				for deadline := time.Now().Add(30 * time.Second); got != want; time.Sleep(10 * time.Millisecond) {
					if got = db.Psql(t, "-c", sql); time.Now().After(deadline) {
						t.Fatalf("%s\nis %s, not %s\n%s", sql, got, want, said.String())
					}
				}
			}
			const results = `select string_agg(state || ' ' || coalesce(result->>'words', '-'), ', ' order by job_id) from oq_jobs`
			produce("one two", "zwölf Boxkämpfer 日本語 'quoted\"", "x")
			until(results, "completed 2, completed 4, completed 1")
			// By now it sleeps, and is woken; a job without a text fails.
			until(`select count(*) from pg_locks where locktype = 'advisory' and mode = 'ShareLock' and objsubid = 2
				and database = (select oid from pg_database where datname = current_database())`, "1")
			db.Psql(t, "-c", `select oq_enqueue('texts', '{"no": "text"}', max_retries => 0)`)
			produce("a b c")
			until(results, "completed 2, completed 4, completed 1, dead -, completed 3")
			if got := db.Psql(t, "-c", "select error <> '' from oq_dead"); got != "t" {
				t.Errorf("the failed job has no error")
			}

			if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				over = true
				// Java's status after its shutdown hook is that of the signal.
				if err != nil && worker.ProcessState.ExitCode() != 128+int(syscall.SIGTERM) {
					t.Errorf("it ends with %v\n%s", err, said.String())
				}
			case <-time.After(20 * time.Second):
				t.Errorf("it does not end on SIGTERM\n%s", said.String())
			}
		})
	}
}
