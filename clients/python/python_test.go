// Package python runs the tests of the Python library, with the Python and the psycopg of Debian.
package python

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

var testCase = regexp.MustCompile(`(?m)^class (\w+)\(.*Case\):$`)

// Each class of tests has a process and a database of its own.
func TestPython(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("tests/test_*.py")
	if err != nil || len(files) < 5 {
		t.Fatalf("tests: %v %v", files, err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		classes := testCase.FindAllSubmatch(source, -1)
		if err != nil || len(classes) == 0 {
			t.Fatalf("%s has no tests: %v", file, err)
		}
		for _, class := range classes {
			name := strings.TrimSuffix(filepath.Base(file), ".py") + "." + string(class[1])
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				cmd := exec.Command("/usr/bin/python3", "-B", "-W", "error", "-m", "unittest", "-v", "tests."+name)
				cmd.Env = append(os.Environ(), "DATABASE_URL="+testdb.New(t).URL, "LC_ALL=C.UTF-8")
				out, err := cmd.CombinedOutput()
				// What the interpreter can't raise, such as a connection that nobody closed, it prints.
				if err != nil || strings.Contains(string(out), "ResourceWarning") || !strings.Contains(string(out), "\nOK\n") {
					t.Errorf("%v (tests/tools.sh installs what is needed)\n%s", err, out)
				}
			})
		}
	}
}

// The library is typed, strictly, and so is what it is given: the mistakes in typed.py are found.
func TestTypes(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/usr/bin/mypy", "--cache-dir", t.TempDir(), "openqueue", "tests/typed.py", "contract_worker.py")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v (tests/tools.sh installs mypy)\n%s", err, out)
	}
}

// The package builds without a network, from what Debian has, and is whole without this tree.
func TestPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// pip builds in the tree: in a copy.
	source := filepath.Join(dir, "source")
	if err := os.CopyFS(source, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	run := func(env []string, name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	target := filepath.Join(dir, "target")
	run(nil, "/usr/bin/python3", "-m", "pip", "install", "--no-build-isolation", "--no-index", "--no-deps",
		"--disable-pip-version-check", "--root-user-action=ignore", "--no-compile", "--target", target, source)
	for _, file := range []string{"py.typed", "aio.py", "testing.py"} {
		if _, err := os.Stat(filepath.Join(target, "openqueue", file)); err != nil {
			t.Error(err)
		}
	}
	whole, err := os.ReadFile("../../LICENSE")
	if copied, err2 := os.ReadFile(target + "/openqueue-0.1.0.dist-info/LICENSE"); err != nil || err2 != nil || !bytes.Equal(whole, copied) {
		t.Errorf("the package's license is not the repository's: %v %v", err, err2)
	}
	if strays, _ := filepath.Glob(target + "/*"); len(strays) != 2 {
		t.Errorf("installed: %v", strays)
	}
	said := run([]string{"PYTHONPATH=" + target}, "/usr/bin/python3", "-B", "-c", `
from importlib import metadata
import openqueue, openqueue.aio, openqueue.testing
needs, = metadata.requires("openqueue")
print(openqueue.__file__, metadata.version("openqueue"), openqueue.__version__, needs.translate({ord(c): None for c in " ()"}))
`)
	if want := target + "/openqueue/__init__.py 0.1.0 0.1.0 psycopg>=3.1\n"; said != want {
		t.Errorf("it says %q, want %q", said, want)
	}
}
