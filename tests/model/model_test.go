// Package model walks every interleaving of the low marks and epochs (sql/DESIGN.md) in small scenarios.
// A race that needs four processes to stop at the right step in turn does not show up in a load test;
// here it is a path like any other. The model knows of PostgreSQL what the protocol rests on: snapshots,
// row locks that are skipped, rollback, sequences and advisory locks that everybody sees at once.
package model

import "testing"

// writer is whatever puts jobs into a lane: enqueue, nack, release, promote.
func writer(b protocol, jobs ...uint8) script {
	c := script{name: "writer"}
	c.write(b, jobs...).end(b)
	return c
}

// daemon ticks, each tick a transaction.
func daemon(b protocol, ticks int) script {
	c := script{name: "daemon"}
	for range ticks {
		c.tick(b, false).end(b)
	}
	return c
}

// passer is a daemon whose marks pass over rows that are locked for long.
func passer(b protocol, ticks int) script {
	c := script{name: "passer"}
	for range ticks {
		c.tick(b, true).end(b)
	}
	return c
}

func lease(b protocol) script {
	c := script{name: "lease"}
	c.lease().end(b)
	return c
}

// raiser leases and raises the mark itself. It enters no epoch, which is less than oq_lease does and so
// the harder case.
func raiser(b protocol) script {
	c := script{name: "raiser"}
	c.lease().raise(b).end(b)
	return c
}

// member is a raiser that enters the epoch first, as oq_lease does.
func member(b protocol) script {
	c := script{name: "member"}
	c.enter(b).lease().raise(b).end(b)
	return c
}

// alone is a worker without a daemon: it leases, raises, and advances in its own transaction.
func alone(b protocol, ticks int) script {
	c := script{name: "alone", tend: true}
	c.enter(b).lease().raise(b)
	for range ticks {
		c.tick(b, false)
	}
	c.end(b)
	return c
}

// both puts a job into the lane and advances in one transaction.
func both(b protocol, job uint8, ticks int) script {
	c := script{name: "both", tend: true}
	c.write(b, job)
	for range ticks {
		c.tick(b, false)
	}
	c.end(b)
	return c
}

// keeper advances and keeps its transaction open.
func keeper(b protocol) script {
	c := script{name: "keeper", tend: true}
	c.tick(b, false).end(b)
	return c
}

type scenario struct {
	name    string
	jobs    uint8
	scripts func(b protocol) []script
}

func (c scenario) search(b protocol, anywhere, open bool) (int, string) {
	s := search{model: model{protocol: b, scripts: c.scripts(b)}, jobs: c.jobs, anywhere: anywhere, open: open}
	return s.run()
}

var (
	oneWriter = scenario{"one writer, three ticks", 0, func(b protocol) []script {
		return []script{writer(b, 1), daemon(b, 3)}
	}}
	fourTicks = scenario{"one writer, four ticks", 0, func(b protocol) []script {
		return []script{writer(b, 1), daemon(b, 4)}
	}}
	twoWriters = scenario{"two writers of two rows, two ticks", 0, func(b protocol) []script {
		return []script{writer(b, 1, 2), writer(b, 3, 4), daemon(b, 2)}
	}}
	twoDaemons = scenario{"two daemons", 0, func(b protocol) []script {
		return []script{writer(b, 1, 2), daemon(b, 2), daemon(b, 1)}
	}}
	twoTicks = scenario{"two daemons, one tick each", 0, func(b protocol) []script {
		return []script{writer(b, 1), daemon(b, 1), daemon(b, 1)}
	}}
	staleLease = scenario{"a lease with an old mark", 0, func(b protocol) []script {
		return []script{writer(b, 1, 2), lease(b), daemon(b, 2)}
	}}
	twoLeases = scenario{"two leases", 2, func(b protocol) []script {
		return []script{writer(b, 3), lease(b), raiser(b), daemon(b, 1)}
	}}
	openRaise = scenario{"a lease raises and stays open", 1, func(b protocol) []script {
		return []script{writer(b, 2), raiser(b), daemon(b, 2)}
	}}
	openMember = scenario{"a lease enters, raises and stays open", 1, func(b protocol) []script {
		return []script{writer(b, 2), member(b), daemon(b, 2)}
	}}
	openLease = scenario{"marks pass over an open lease", 2, func(b protocol) []script {
		return []script{writer(b, 3), lease(b), passer(b, 2)}
	}}
	twoPassers = scenario{"two daemons pass over an open lease", 1, func(b protocol) []script {
		return []script{lease(b), lease(b), passer(b, 2), passer(b, 1)}
	}}
	noDaemon = scenario{"workers without a daemon", 1, func(b protocol) []script {
		return []script{writer(b, 2), alone(b, 1), alone(b, 1)}
	}}
	daemonBack = scenario{"the daemon comes back while a worker advances", 1, func(b protocol) []script {
		return []script{writer(b, 2), alone(b, 1), daemon(b, 2)}
	}}
	openAdvance = scenario{"an advance stays open", 0, func(b protocol) []script {
		return []script{writer(b, 1), keeper(b), daemon(b, 2)}
	}}
	ownWork = scenario{"a writer advances in its own transaction", 1, func(b protocol) []script {
		return []script{both(b, 2, 1), raiser(b), daemon(b, 1)}
	}}
	twiceInOne = scenario{"two advances in one transaction", 0, func(b protocol) []script {
		return []script{writer(b, 1), both(b, 2, 2), daemon(b, 1)}
	}}
)

// The protocol as it is, at every step and at the end.
func TestNothingIsLost(t *testing.T) {
	holds := func(c scenario, name string, p protocol, open bool) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, trace := c.search(p, true, open)
			if trace != "" {
				t.Fatalf("after %d states:\n%s", n, trace)
			}
			t.Logf("%d states", n)
		})
	}
	// In these nobody waits either for those who stay open, wherever they do for an hour: two ticks later what is committed can
	// be leased.
	for _, c := range []scenario{oneWriter, twoWriters, staleLease, openRaise, openMember} {
		holds(c, c.name, protocol{}, true)
		holds(c, c.name+", within 100 ms", protocol{noLeavers: true}, false)
	}
	for _, c := range []scenario{
		fourTicks, twoDaemons, twoLeases, openLease, twoPassers, noDaemon, daemonBack, openAdvance, ownWork, twiceInOne,
	} {
		holds(c, c.name, protocol{}, false)
		holds(c, c.name+", within 100 ms", protocol{noLeavers: true}, false)
	}
}

// Unless who leaves is not looked for.
func TestWhoLeavesMatters(t *testing.T) {
	t.Parallel()
	n, trace := twoWriters.search(protocol{noLeavers: true}, false, true)
	if trace == "" {
		t.Fatalf("nobody waits in %d states", n)
	}
	t.Logf("after %d states:\n%s", n, trace)
}

// Each of these breaks one rule, and a job is lost by it at the end, when all is quiet.
func TestEveryRuleMatters(t *testing.T) {
	for _, c := range []struct {
		name     string
		protocol protocol
		scenario scenario
	}{
		{"the epoch is opened before the last position is read", protocol{positionAfterEpoch: true}, oneWriter},
		{"the epoch is not read again", protocol{noCheck: true}, oneWriter},
		{"the epoch is read again but once", protocol{checkOnce: true}, oneWriter},
		{"as before, where resolve keeps its lock", protocol{checkOnce: true, holdExclusive: true}, oneWriter},
		{"a position is drawn before the lock", protocol{drawFirst: true}, oneWriter},
		{"resolve looks below the mark of the time", protocol{markAtClose: true}, oneWriter},
		{"resolve looks with an older snapshot", protocol{oldSnapshot: true}, oneWriter},
		{"locks are released before the commit", protocol{earlyRelease: true}, oneWriter},
		{"an advance that rolled back leaves a gap", protocol{noRepair: true}, oneWriter},
		{"a missing epoch has a member and no row", protocol{noHeld: true}, fourTicks},
		{"a passed row is not noted", protocol{noNotes: true}, openLease},
		{"an epoch is dropped though a row is left", protocol{dropLeft: true}, staleLease},
		{"a lease raises over what may still commit", protocol{openMark: true}, openRaise},
		{"the same, and it is a member of an epoch", protocol{openMark: true}, openMember},
		{"an advance gives its lock back before its commit", protocol{openAdvance: true}, twoTicks},
		{"an open advance raises over what may still commit", protocol{openMark: true}, openAdvance},
		{"two advances at once", protocol{noCall: true}, twoTicks},
		{"a member enters no other epoch and resolves its own", protocol{ownEpoch: true, enterOnce: true}, ownWork},
		{"the register believes its own deletes", protocol{ownRegister: true}, twiceInOne},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// Who leaves an epoch is not looked for in its first 100 ms.
			c.protocol.noLeavers = true
			n, trace := c.scenario.search(c.protocol, false, false)
			if trace == "" {
				t.Fatalf("no job was lost in %d states", n)
			}
			t.Logf("after %d states:\n%s", n, trace)
		})
	}
}
