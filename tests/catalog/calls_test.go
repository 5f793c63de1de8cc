package catalog

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// What is no code: a comment, a string, a template's comment. The first to begin counts.
	noCode   = regexp.MustCompile(`--[^\n]*|'(?:[^']|'')*'|\{\{-? /\*(?s:.*?)\*/ -?\}\}`)
	included = regexp.MustCompile(`\{\{-?\s*template "([^"]+)"[^}]*\}\}`)
	defined  = regexp.MustCompile(`create or replace (function|view) \{\{\.(?:api_)?schema\}\}\.(\w+)`)
	// What makes or describes an object calls nothing.
	making  = regexp.MustCompile(`(create or replace (function|view)|comment on (function|view|column)|drop function|execute function) \S+?\.\w+`)
	calling = regexp.MustCompile(`([.\w]*\{\{\.(?:api_)?schema\}\}\.)?([.\w]*?)\b(\w+)\s*\(`)
	reading = regexp.MustCompile(`\b(?:from|join)\s+(?:\{\{\.(?:api_)?schema\}\}\.)?(\w+)\b`)
	listed  = regexp.MustCompile(`(?s)\bCalls: (.*?)\.(\s|$)`)
	aside   = regexp.MustCompile(`\([^)]*\)`)
)

// A header's list Calls: has the functions and views of ours that the body names, templates included, and no
// other. fail, by which each check raises, goes without saying.
func TestCalls(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, "sql/code/*/*.sql"))
	if err != nil || len(files) < 50 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	texts, kinds := map[string]string{}, map[string]string{}
	for _, path := range files {
		rel, err := filepath.Rel(filepath.Join(root, "sql/code"), path)
		if err != nil {
			t.Fatal(err)
		}
		texts[rel] = read(t, filepath.Join("sql/code", rel))
		if m := defined.FindStringSubmatch(texts[rel]); m != nil {
			kinds[m[2]] = m[1]
		}
	}
	delete(kinds, "fail")
	for rel, text := range texts {
		m := defined.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		code := text
		for included.MatchString(code) {
			code = included.ReplaceAllStringFunc(code, func(s string) string {
				return texts[included.FindStringSubmatch(s)[1]]
			})
		}
		named := map[string]bool{}
		code = making.ReplaceAllString(noCode.ReplaceAllString(code, " "), "")
		for _, c := range calling.FindAllStringSubmatch(code, -1) {
			if c[2] == "" && kinds[c[3]] == "function" {
				named[c[3]] = true
			}
		}
		for _, c := range reading.FindAllStringSubmatch(code, -1) {
			if kinds[c[1]] == "view" {
				named[c[1]] = true
			}
		}
		header := ""
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "--") {
				break
			}
			header += strings.TrimPrefix(strings.TrimRight(line, "\n"), "--")
		}
		said := map[string]bool{}
		if l := listed.FindStringSubmatch(header); l != nil {
			for _, name := range strings.FieldsFunc(aside.ReplaceAllString(l[1], ""), func(r rune) bool { return r == ',' || r == ';' }) {
				said[strings.TrimSpace(name)] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(named)) {
			if !said[name] {
				t.Errorf("%s: Calls: lacks %s", rel, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(said)) {
			if !named[name] {
				t.Errorf("%s: Calls: has %q, which the body does not name", rel, name)
			}
		}
	}
}
