// Package psql holds the psql kit to its README.
package psql

import (
	"context"
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

func TestMain(m *testing.M) { testdb.Main(m) }

// psql is what psql with the kit's psqlrc prints for a script.
func psql(t *testing.T, url, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rc, err := filepath.Abs("psqlrc")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "psql", "-q", "-d", url)
	cmd.Env = append(os.Environ(), "PSQLRC="+rc, "PAGER=", "LC_ALL=C.UTF-8")
	cmd.Stdin = strings.NewReader("\\pset footer off\n\\set VERBOSITY terse\n" + script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
	return string(out)
}

var (
	blocks = regexp.MustCompile("(?ms)^<!-- setup\n(.*?)^-->$|^```sql\n(.*?)^```$|^```\n(.*?)^```$")
	noise  = regexp.MustCompile(`(?m)\s+$`)
)

// The blocks of the README, from first to last on one database: setup is run, sql is run, and what
// follows it is what it prints.
func TestRecipes(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	raw, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	said, checked := "", 0
	for _, b := range blocks.FindAllStringSubmatch(string(raw), -1) {
		switch {
		case b[1] != "":
			if out := psql(t, db.URL, b[1]); strings.Contains(out, "ERROR") {
				t.Fatalf("%s\n%s", b[1], out)
			}
		case b[2] != "":
			said = psql(t, db.URL, b[2])
		default:
			checked++
			if got, want := noise.ReplaceAllString(said, ""), noise.ReplaceAllString(b[3], ""); got != want {
				t.Errorf("printed:\n%s\nthe README says:\n%s", said, b[3])
			}
		}
	}
	if checked != strings.Count(string(raw), "```sql") || checked == 0 {
		t.Errorf("%d outputs of %d scripts were compared", checked, strings.Count(string(raw), "```sql"))
	}
}

func TestPsqlrc(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	db.Psql(t, "-c", `select oq_enqueue('a', '{}', max_retries => 0), oq_enqueue('a'), oq_enqueue('b', run_at => now() + interval '1 hour');
		select oq_nack(job_id, lease_token, e'it''s "bad"\nline two') from oq_lease('a', 'worker one', 60, 1);
		select job_id from oq_lease('a', 'worker two', 60, 1); select oq_enqueue('a')`)
	for word, want := range map[string]string{
		":queues":  `a +\| f +\| +1 \| +0 \| +0 \| +1 \| +1 \| +0\n b `,
		":jobs":    `(?s)leased .*1/4.*worker two.*scheduled.*ready`,
		":dead":    `a +\| retries_exhausted \| it's "bad" \| +1 \|`,
		":workers": `worker two \| a +\| +1 \| +0 \| 00:00:`,
		":lag":     `a +\| +1 \| +[\d.]+ \|`,
	} {
		if out := psql(t, db.URL, word+"\n"); !regexp.MustCompile(want).MatchString(out) || strings.Contains(out, "ERROR") {
			t.Errorf("%s prints\n%s\nwant %s", word, out, want)
		}
	}
	out := psql(t, db.URL, ":why(1);\n")
	if db.Psql(t, "-c", "select to_regprocedure('oq_explain(bigint)') is not null") == "t" {
		if !strings.Contains(out, "verdict") || strings.Contains(out, "ERROR") {
			t.Errorf(":why prints\n%s", out)
		}
	} else if !strings.Contains(out, "oq_explain(integer) does not exist") {
		t.Errorf(":why asks something else than oq_explain:\n%s", out)
	}
}

func TestWorkerInTwelveLines(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	raw, err := os.ReadFile("twelve.sh")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(raw), "\n"); n > 12 {
		t.Errorf("it has %d lines", n)
	}
	db.Psql(t, "-c", `select oq_enqueue('q', '{"text": "a|b \\ ''quoted'' $(id) %s"}'), oq_enqueue('q', '{"text": "FAIL it''s"}', max_retries => 0)`)
	seen := filepath.Join(t.TempDir(), "seen")
	// It says more than an argument of a program can hold.
	cmd := exec.Command("./twelve.sh", "q", "bash", "-c",
		`cat | tee -a "`+seen+`"; grep -q FAIL "`+seen+`" && exit 1; printf '%200000s' x`)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+db.URL)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	const want = `completed| dead|{"text": "FAIL it's"}`
	got := ""
	for deadline := time.Now().Add(30 * time.Second); got != want; time.Sleep(20 * time.Millisecond) {
		got = db.Psql(t, "-c", `select string_agg(state || '|' || coalesce(error, ''), ' ' order by job_id) from oq_jobs`)
		if time.Now().After(deadline) {
			t.Fatalf("the jobs are %s", got)
		}
	}
	if out, _ := os.ReadFile(seen); !strings.HasPrefix(string(out), `{"text": "a|b \\ 'quoted' $(id) %s"}`) {
		t.Errorf("the command read %s", out)
	}
}

// A command that fails without a word has failed: its job is not acked, with the result of the one before.
func TestWorkerWhoseCommandIsInterrupted(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	bin := t.TempDir()
	real, err := exec.LookPath("sha256sum")
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nread -r word\n[ \"$word\" != die ] || kill -INT $$\nexec " + real + "\n"
	for name, text := range map[string]string{"sha256sum": script, "fine": "live\n", "bad": "die\n"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	db.Psql(t, "-c", `select oq_enqueue('q', jsonb_build_object('path', '`+bin+`/' || name), max_retries => 0)
		from unnest('{fine,bad}'::text[]) name`)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "worker.sh", "q")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+db.URL, "IDLE_SECONDS=1", "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	got := db.Psql(t, "-c", "select string_agg(state || coalesce(' ' || error, ''), ', ' order by job_id) from oq_jobs")
	if err != nil || !strings.HasPrefix(got, "completed, dead failed without a word") {
		t.Errorf("the jobs are %s; %v\n%s", got, err, out)
	}
}
