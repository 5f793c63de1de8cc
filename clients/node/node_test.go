// Package node runs the tests of the library for Node against a real server.
package node

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestNode(t *testing.T) {
	t.Parallel()
	// Files that the test has read are what makes go test run it again.
	for _, pattern := range []string{"*", "lib/*", "test/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
				if _, err := os.ReadFile(file); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tests, _ := filepath.Glob("test/*.test.js")
	run := func(t *testing.T, words ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+testdb.New(t).URL)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", words[0], err, out)
		}
		t.Logf("%s", out)
	}
	run(t, "./install.sh")
	for _, file := range tests {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			run(t, "node", "--test", "--test-reporter=spec", file)
		})
	}
}
