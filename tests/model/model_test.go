// Package model walks every interleaving of the low marks and epochs (sql/DESIGN.md) in small scenarios.
// A race that needs five processes to stop at the right step in turn does not show up in a load test;
// here it is a path like any other. The model knows of PostgreSQL what the protocol rests on: snapshots,
// row locks that are skipped, rollback, sequences and advisory locks that everybody sees at once.
package model

import "testing"

func writer(b protocol, jobs ...uint8) script {
	c := script{name: "writer"}
	c.write(b, jobs...).end(b)
	return c
}

func daemon(b protocol, ticks int, pass bool) script {
	c := script{name: "daemon"}
	for range ticks {
		c.tick(b, pass).end(b)
	}
	return c
}

func lease(b protocol, raise bool) script {
	c := script{name: "lease"}
	c.lease()
	if raise {
		c.raise(b)
	}
	c.end(b)
	return c
}

func TestScratch(t *testing.T) {
	b := protocol{}
	for _, c := range []struct{ name string; s search }{
		{"w2", search{model: model{protocol: b, scripts: []script{writer(b, 1), daemon(b, 2, false)}}}},
		{"w22", search{model: model{protocol: b, scripts: []script{writer(b, 1,2), writer(b,3), daemon(b, 2, false)}}}},
		{"dd", search{model: model{protocol: b, scripts: []script{writer(b, 1), daemon(b, 1, false), daemon(b, 1, false)}}}},
		{"lease", search{jobs:1,model: model{protocol: b, scripts: []script{writer(b, 2), lease(b, true), daemon(b, 2, false)}}}},
		{"pass", search{jobs:1,model: model{protocol: b, scripts: []script{writer(b, 2), lease(b, true), daemon(b, 2, true)}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.anywhere = true
			n, tr := c.s.run()
			t.Log(n)
			if tr != "" { t.Fatal(tr) }
		})
	}
}
