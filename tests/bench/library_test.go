package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Programs that speak like a library's. This one has no connection, and says that it did what it was told.
const (
	liar = `while read -r line; do case $line in *bench*) echo '{"event": "benched", "jobs": 100, "seconds": 1}';; esac; done
		echo '{"event": "stopped"}'`
	broken = `echo 'Traceback' >&2; echo 'ModuleNotFoundError: psycopg' >&2; exit 1`
	silent = `cat >/dev/null`
)

// withLibraries is a bench whose libraries are shell scripts.
func withLibraries(t *testing.T, scripts map[string]string) *bench {
	t.Helper()
	type program struct{ Run []string }
	clients := map[string]program{}
	for name, script := range scripts {
		clients[name] = program{[]string{"sh", "-c", script}}
	}
	raw, err := json.Marshal(map[string]any{"clients": clients})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "contract.json")
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return &bench{contract: file, dir: dir, log: io.Discard, start: time.Now()}
}

// A library that can't run here is told of, and is an error for who asked for it.
func TestMissingLibraries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		scripts map[string]string
		chosen  bool
		only    []string
		found   string
		noted   string
		err     string
	}{
		"all there":          {scripts: map[string]string{"go": liar, "a": liar}, chosen: true, found: "a go"},
		"one missing":        {scripts: map[string]string{"go": liar, "a": broken}, found: "go", noted: "a does not run on this machine: ModuleNotFoundError: psycopg"},
		"missing, picked":    {scripts: map[string]string{"go": liar, "a": broken}, chosen: true, err: "a does not run here"},
		"missing, named":     {scripts: map[string]string{"go": liar, "a": broken}, only: []string{"a"}, err: "a does not run here"},
		"missing, not asked": {scripts: map[string]string{"go": liar, "a": broken}, chosen: true, only: []string{"go"}, found: "go"},
		"Go missing":         {scripts: map[string]string{"go": broken, "a": liar}, err: "go does not run here"},
		"no such library":    {scripts: map[string]string{"go": liar}, only: []string{"cobol"}, err: `no library "cobol"`},
		"ends without word":  {scripts: map[string]string{"go": silent}, err: "did not say that it stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := withLibraries(t, c.scripts)
			b.chosen, b.only = c.chosen, c.only
			_, err := b.findLibraries(t.Context(), &target{})
			wantError(t, err, c.err)
			if err != nil {
				return
			}
			var found []string
			for _, l := range b.libraries {
				found = append(found, l.name)
			}
			if slices.Sort(found); strings.Join(found, " ") != c.found {
				t.Errorf("found %v, want %s", found, c.found)
			}
			if notes := strings.Join(b.notes, "\n"); !strings.Contains(notes, c.noted) || c.noted == "" && notes != "" {
				t.Errorf("the table says %q, want %q", notes, c.noted)
			}
		})
	}
}

// What a library says that it did is held against the database.
func TestLibraryThatLies(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	b := withLibraries(t, map[string]string{"go": liar})
	target := newTarget(ours, "openqueue", db.URL)
	target.conn = db.Conn(t)
	if err := target.fill(t.Context(), 2000, 1); err != nil {
		t.Fatal(err)
	}
	libraries, err := b.findLibraries(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	_, err = libraries[0].workOff(t.Context(), target, time.Millisecond, time.Millisecond)
	wantError(t, err, "says that it acked 400 jobs; 0 are finished")
}
