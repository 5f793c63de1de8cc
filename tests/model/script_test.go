package model

import (
	"cmp"
	"fmt"
)

// One step of a script is one atomic action on what processes share. A statement of which the result
// depends on its snapshot alone is one step; where it also looks at locks, the snapshot is a step of
// its own.
type step struct {
	op  op
	arg uint8 // a job
	to  int   // where a jump goes
}

type op uint8

const (
	opReadEpoch op = iota
	opLock
	opCheck
	opDraw
	opCommit // or roll back
	opRelease
	opReadMark
	opSnap
	opClaim
	opReadPosition
	opRaise
	opTake
	opRegister
	opRepair
	opOpen // or roll back behind it
	opRow
	opStuck
	opPass
	opDrop
	opBack
	opLeavers
	opList
	opTry
	opHold
	opSweep
	opLeft
	opGive
)

// A protocol is how the steps are done. The zero value is the one that is right; every field breaks one
// rule, so that the model can show that it would notice.
type protocol struct {
	positionAfterEpoch bool // advance opens the epoch, then reads the last position
	noCheck            bool // a writer doesn't read the epoch again
	checkOnce          bool // a writer that finds the epoch moved takes the new one and looks no more
	drawFirst          bool // a writer draws its position, then enters
	markAtClose        bool // resolve looks below the mark as it was when the epoch closed
	oldSnapshot        bool // resolve looks with a snapshot from before it tried the lock
	earlyRelease       bool // locks go before the commit can be seen
	noRepair           bool // a rolled-back advance leaves its epoch without a row
	noNotes            bool // passing over a locked row is not remembered
	dropLeft           bool // resolve drops an epoch although a row of it is locked, and notes nothing
	noHeld             bool // of the epochs that rolled back only the last gets a row, whoever holds another one
	openMark           bool // a lease raises over what may still commit, and its mark is seen much later
	openAdvance        bool // the lock of advance goes at the end of the call, before its commit
	ownEpoch           bool // a transaction resolves the epoch of which it is a member itself
	noCall             bool // two advances run at once
	noLeavers          bool // who leaves an epoch that others hold is not looked for
	ownRegister        bool // the register of the lowest epoch believes deletes that may roll back

	// These are not rules: nothing is lost by doing it so.
	holdExclusive bool // resolve keeps the lock that it tried until its end
	enterOnce     bool // a transaction that is a member of an epoch enters no other
	positionLate  bool // a mark reads the last position after its snapshot
	heed          bool // the marks of an advance stay below epochs that somebody holds
}

type script struct {
	name  string
	steps []step
	final bool // never rolls back: its choices are all the first
	tend  bool // its transaction goes on after the advance: capped marks
}

func (c *script) add(steps ...step) *script {
	c.steps = append(c.steps, steps...)
	return c
}

func (c *script) enter(b protocol) *script {
	c.add(step{op: opReadEpoch}, step{op: opLock})
	if !b.noCheck {
		c.add(step{op: opCheck})
	}
	return c
}

func (c *script) end(b protocol) *script {
	if b.earlyRelease {
		return c.add(step{op: opRelease, arg: 1}, step{op: opCommit}, step{op: opRelease})
	}
	return c.add(step{op: opCommit}, step{op: opRelease})
}

func (c *script) write(b protocol, jobs ...uint8) *script {
	if b.drawFirst {
		c.add(step{op: opDraw, arg: jobs[0]})
		jobs = jobs[1:]
	}
	c.enter(b)
	for _, j := range jobs {
		c.add(step{op: opDraw, arg: j})
	}
	return c
}

func (c *script) lease() *script {
	return c.add(step{op: opReadMark}, step{op: opSnap}, step{op: opClaim})
}

func (c *script) raise(b protocol) *script {
	if b.positionLate {
		return c.add(step{op: opSnap}, step{op: opReadPosition}, step{op: opRaise, arg: 1})
	}
	return c.add(step{op: opReadPosition}, step{op: opRaise, arg: 1})
}

// tick is oq_advance as a part of a transaction.
func (c *script) tick(b protocol, pass bool) *script {
	take := len(c.steps)
	c.add(step{op: opTake}, step{op: opRegister}, step{op: opRepair})
	switch {
	case b.positionAfterEpoch:
		c.add(step{op: opOpen}, step{op: opReadPosition}, step{op: opRow})
	default:
		c.add(step{op: opReadPosition}, step{op: opOpen}, step{op: opRow})
	}
	if b.positionLate {
		c.add(step{op: opSnap}, step{op: opReadPosition})
	}
	c.add(step{op: opRaise})
	if pass {
		at := len(c.steps)
		c.add(step{op: opSnap}, step{op: opStuck}, step{op: opPass})
		c.steps[at+1].to = len(c.steps)
	}
	drop := len(c.steps)
	c.add(step{op: opDrop})
	c.enter(b)
	c.add(step{op: opSnap}, step{op: opBack})
	c.steps[drop].to = len(c.steps)
	c.add(step{op: opLeavers}, step{op: opList})
	try := len(c.steps)
	c.add(step{op: opTry}, step{op: opHold, to: try})
	c.enter(b)
	if !b.oldSnapshot {
		c.add(step{op: opSnap})
	}
	c.add(step{op: opSweep}, step{op: opLeft, to: try})
	c.steps[try].to = len(c.steps)
	c.add(step{op: opGive})
	c.steps[take].to = len(c.steps)
	return c
}

type model struct {
	protocol
	scripts []script
	tell    func(who int, format string, args ...any) // nil while searching
}

func (m *model) say(i int, format string, args ...any) {
	if m.tell != nil {
		m.tell(i, format, args...)
	}
}

func lockable(r *row, tx uint8) bool {
	return r.del == 0 && (r.lock == 0 || r.lock == tx)
}

// next does the next step of process i and calls emit with each state that it can lead to. Where the
// process has to wait it is not called. Steps on what nobody else sees follow at once.
func (m *model) next(s state, i int, emit func(state, error)) {
	c := &m.scripts[i]
	p := &s.procs[i]
	if int(p.pc) >= len(c.steps) {
		return
	}
	st := c.steps[p.pc]
	now := s.now()
	p.pc++
	switch st.op {
	case opReadEpoch:
		if m.enterOnce && p.locks != 0 {
			for p.pc++; c.steps[p.pc].op == opCheck; p.pc++ {
			}
			m.say(i, "is a member of an epoch already")
			break
		}
		p.e = s.epoch
		m.say(i, "reads the epoch: %d", p.e)
	case opLock:
		for k := range s.procs {
			if k != i && s.procs[k].excl>>p.e&1 == 1 {
				return
			}
		}
		p.locks |= 1 << p.e
		m.say(i, "locks epoch %d", p.e)
		if p.again == 1 {
			p.again, p.e = 0, 0
			p.pc++
		}
	case opCheck:
		m.say(i, "reads the epoch again: %d", s.epoch)
		if s.epoch != p.e {
			p.e = s.epoch
			p.pc -= 2
			if m.checkOnce {
				p.again = 1
			}
		} else {
			p.e = 0
		}
	case opDraw:
		m.say(i, "draws position %d for job %d", s.draw(st.arg, p.tx), st.arg)
	case opCommit:
		if !c.final {
			a := s
			a.abort(i)
			m.fork(i, m.over(a, i), emit, "rolls back")
		}
		err := s.commit(i)
		m.say(i, "commits:%s", s.where())
		emit(s, err)
		return
	case opRelease:
		if st.arg == 1 {
			p.locks = 0
			m.say(i, "releases its locks, before its commit")
			break
		}
		s.end(i)
		s = m.over(s, i)
		m.say(i, "has released its locks")
	case opReadMark:
		p.low = s.newest(now, p.tx)
		m.say(i, "reads the mark: %d", p.low)
	case opSnap:
		p.snap = now
		m.say(i, "takes a snapshot")
	case opClaim:
		m.claim(&s, i)
	case opReadPosition:
		p.p = s.position
		m.say(i, "reads the last position: %d", p.p)
	case opRaise:
		m.raise(&s, i, st.arg == 1)
	case opTake:
		if s.call != 0 && !m.noCall {
			p.pc = uint8(st.to)
			m.say(i, "leaves the advance to another")
			break
		}
		s.call = uint8(i + 1)
		m.say(i, "begins to advance")
	case opRegister:
		first := uint8(255)
		for _, e := range s.epochs {
			if e.num >= s.epochLow && e.num > 0 && e.num < first && visible(e.ins, e.del, now, p.tx) {
				first = e.num
			}
		}
		if first != 255 && (p.ticked == 0 || m.ownRegister) {
			s.epochLow = first
		}
		p.n = s.epoch
		m.say(i, "sets the lowest open epoch to %d", s.epochLow)
	case opRepair:
		m.repair(&s, i)
	case opOpen:
		s.epoch++
		p.n, p.ticked = s.epoch, 1
		if !c.final && !c.tend {
			a := s
			a.abort(i)
			m.fork(i, m.over(a, i), emit, "opens epoch %d and rolls back", s.epoch)
		}
		m.say(i, "opens epoch %d", s.epoch)
	case opRow:
		s.addEpoch(epoch{num: p.n, lo: p.p, ins: p.tx})
		m.say(i, "writes epoch %d, lo %d", p.n, p.p)
	case opStuck:
		if !m.stuck(&s, i, st.to) {
			break
		}
		a := s // the row has not been there for long
		ap := &a.procs[i]
		ap.pc, ap.snap, ap.free, ap.low, ap.moved = uint8(st.to), 0, 0, 0, 0
		for k := range a.rows {
			if a.rows[k].lock == p.tx {
				a.rows[k].lock = 0
			}
		}
		m.fork(i, a, emit, "waits for the locked row")
		m.say(i, "has waited long enough: the free rows begin at %d", p.free)
	case opPass:
		m.pass(&s, i)
	case opDrop:
		m.drop(&s, i, st.to)
	case opBack:
		m.back(&s, i)
	case opLeavers:
		m.leavers(&s, i)
	case opList:
		p.list, p.own, p.num, p.lo, p.departed = now, p.locks, 0, 0, 0
		m.say(i, "lists the open epochs")
	case opTry:
		m.try(&s, i, st.to)
	case opHold:
		m.hold(&s, i, st.to)
	case opSweep:
		m.sweep(&s, i)
	case opLeft:
		m.left(&s, i, st.to)
	case opGive:
		p.p, p.n, p.own = 0, 0, 0
		if (c.tend || m.openAdvance) && int(s.call) == i+1 {
			s.call = 0
			m.say(i, "ends its advance; the transaction goes on")
		}
	default:
		panic(fmt.Sprint("no such step ", st.op))
	}
	if int(p.pc) < len(c.steps) && c.steps[p.pc].op == opRow {
		m.next(s, i, emit)
		return
	}
	emit(s, nil)
}

// over moves a process whose transaction has ended behind its last step.
func (m *model) over(s state, i int) state {
	p := &s.procs[i]
	steps := m.scripts[i].steps
	for steps[p.pc-1] != (step{op: opRelease}) {
		p.pc++
	}
	if int(p.pc) == len(steps) {
		p.tx = 0
	}
	return s
}

// fork emits a second outcome with words of its own.
func (m *model) fork(i int, s state, emit func(state, error), format string, args ...any) {
	m.say(i, format, args...)
	emit(s, nil)
}

func (m *model) claim(s *state, i int) {
	p := &s.procs[i]
	found := false
	for k := range s.rows {
		r := &s.rows[k]
		if r.pos > 0 && r.pos >= p.low && visible(r.ins, r.del, p.snap, p.tx) && lockable(r, p.tx) {
			r.del, r.taken = p.tx, 1
			m.say(i, "leases job %d @%d", r.job, r.pos)
			found = true
			break
		}
	}
	if !found {
		m.say(i, "finds nothing to lease")
	}
	p.snap, p.low = 0, 0
}

// raise is also that of a lease. A mark that is seen long after its snapshot (of a lease, or of an
// advance whose transaction goes on) stays where no open epoch can still commit a row below it.
func (m *model) raise(s *state, i int, lease bool) {
	p := &s.procs[i]
	snap := s.now()
	if p.snap != 0 {
		snap, p.snap = p.snap, 0
	}
	low := s.newest(snap, p.tx)
	to := p.p + 1
	for _, r := range s.rows {
		if r.pos > 0 && r.pos >= low && r.pos < to && visible(r.ins, r.del, snap, p.tx) {
			to = r.pos
		}
	}
	if m.capped(i, lease) {
		to = min(to, s.minLo(snap, p.tx)+1)
	} else if m.heed && !lease {
		to = min(to, s.heldLo(i)+1)
	}
	p.moved = 0
	if to > low {
		s.addMark(mark{low: to, ins: p.tx})
		p.moved = 1
		m.say(i, "raises the mark from %d to %d", low, to)
	} else {
		m.say(i, "leaves the mark at %d", low)
	}
	if lease {
		p.p, p.moved = 0, 0
	} else if m.markAtClose {
		s.closed[p.n-1] = max(low, to)
	}
}

func (m *model) capped(i int, lease bool) bool {
	return (lease || m.scripts[i].tend) && !m.openMark
}

func (m *model) repair(s *state, i int) {
	p := &s.procs[i]
	var top epoch
	for _, e := range s.epochs {
		if e.num >= s.epochLow && visible(e.ins, e.del, s.now(), p.tx) &&
			(e.num > top.num || e.num == top.num && e.lo < top.lo) {
			top = e
		}
	}
	if m.noRepair || top.num == 0 || top.num >= p.n {
		m.say(i, "finds no epoch without a row")
		return
	}
	for g := top.num + 1; g <= p.n; g++ {
		// A closed one that nobody holds has no members: what it had is above the lo of the last as well.
		held := g == p.n
		for k := range s.procs {
			held = held || !m.noHeld && (s.procs[k].locks|s.procs[k].excl)>>g&1 == 1
		}
		if !held {
			continue
		}
		s.addEpoch(epoch{num: g, lo: top.lo, ins: p.tx})
		m.say(i, "writes the missing epoch %d, lo %d", g, top.lo)
	}
}

// stuck looks for the first row that is not locked, and locks it, where the first of all is.
func (m *model) stuck(s *state, i, to int) bool {
	p := &s.procs[i]
	low := s.newest(p.snap, p.tx)
	first, free := (*row)(nil), (*row)(nil)
	for k := range s.rows {
		r := &s.rows[k]
		if r.pos == 0 || r.pos < low || !visible(r.ins, r.del, p.snap, p.tx) {
			continue
		}
		if first == nil {
			first = r
		}
		if free == nil && lockable(r, p.tx) {
			free = r
		}
	}
	p.snap = 0
	if p.moved == 1 || first == nil || first == free {
		p.moved = 0
		p.pc = uint8(to)
		m.say(i, "has no locked row to pass over")
		return false
	}
	p.low, p.free = low, p.p+1
	if free != nil {
		free.lock = p.tx
		p.free = min(p.free, free.pos)
	}
	return true
}

func (m *model) pass(s *state, i int) {
	p := &s.procs[i]
	to := p.free
	if m.capped(i, false) {
		to = min(to, s.minLo(s.now(), p.tx)+1)
	}
	any := false
	for _, r := range s.rows {
		if r.pos == 0 || r.pos < p.low || r.pos >= to || !visible(r.ins, r.del, s.now(), p.tx) {
			continue
		}
		any = true
		if !m.noNotes {
			s.addNote(note{pos: r.pos, ins: p.tx})
		}
	}
	if any {
		s.addMark(mark{low: to, ins: p.tx})
		m.say(i, "passes over what is locked: mark %d", to)
	} else {
		m.say(i, "has nothing to pass over any more")
	}
	p.low, p.free = 0, 0
}

func (m *model) drop(s *state, i, to int) {
	p := &s.procs[i]
	any := false
	for k := range s.notes {
		n := &s.notes[k]
		if n.pos == 0 || !visible(n.ins, n.del, s.now(), p.tx) {
			continue
		}
		any = true
		there := false
		for _, r := range s.rows {
			there = there || r.pos == n.pos && visible(r.ins, r.del, s.now(), p.tx)
		}
		if !there && n.del == 0 {
			n.del = p.tx
		}
	}
	if !any {
		p.pc = uint8(to)
	}
	m.say(i, "drops the notes of what is gone")
}

func (m *model) back(s *state, i int) {
	p := &s.procs[i]
	for k := range s.notes {
		n := &s.notes[k]
		if n.pos == 0 || !visible(n.ins, n.del, p.snap, p.tx) {
			continue
		}
		for x := range s.rows {
			r := &s.rows[x]
			if r.pos != n.pos || !visible(r.ins, r.del, p.snap, p.tx) || !lockable(r, p.tx) {
				continue
			}
			if n.del != 0 && n.del != p.tx {
				panic("a note would be waited for")
			}
			r.del, n.del = p.tx, p.tx
			m.say(i, "moves job %d, which came back, from @%d to @%d", r.job, r.pos, s.position+1)
			s.draw(r.job, p.tx)
		}
	}
	p.snap = 0
}

// leavers adds a row without members where the holders of closed epochs are others than before: one for all, from where
// the lowest begins.
func (m *model) leavers(s *state, i int) {
	p := &s.procs[i]
	num, lo := uint8(255), uint8(255)
	for k := range s.epochs {
		e := s.epochs[k]
		if m.noLeavers || e.num == 0 || e.num >= p.n || e.num < s.epochLow || e.departed == 1 ||
			!visible(e.ins, e.del, s.now(), p.tx) || e.del != 0 || e.lock != 0 && e.lock != p.tx ||
			p.locks>>e.num&1 == 1 {
			continue
		}
		held := uint16(0)
		for _, x := range s.procs {
			if (x.locks|x.excl)>>e.num&1 == 1 {
				held |= 1 << x.tx
			}
		}
		if held == 0 || held == e.held {
			continue
		}
		s.epochs[k].del = p.tx
		s.addEpoch(epoch{num: e.num, lo: e.lo, ins: p.tx, held: held})
		num, lo = min(num, e.num), min(lo, e.lo)
	}
	if num < 255 {
		s.addEpoch(epoch{num: num, lo: lo, ins: p.tx, departed: 1})
		m.say(i, "looks for who has left epoch %d", num)
	}
}

// try goes on to the next closed epoch and tries its lock.
func (m *model) try(s *state, i, to int) {
	p := &s.procs[i]
	for _, e := range s.epochs {
		if e.num == 0 || e.num >= p.n || e.num < s.epochLow || !visible(e.ins, e.del, p.list, p.tx) {
			continue
		}
		if p.num > 0 && cmp.Or(cmp.Compare(e.num, p.num), cmp.Compare(e.lo, p.lo), cmp.Compare(e.departed, p.departed)) <= 0 {
			continue
		}
		if p.own>>e.num&1 == 1 && !m.ownEpoch && e.departed == 0 {
			continue
		}
		p.num, p.lo, p.departed = e.num, e.lo, e.departed
		for k := range s.procs {
			if k != i && e.departed == 0 && (s.procs[k].locks|s.procs[k].excl)>>e.num&1 == 1 {
				m.say(i, "finds epoch %d locked", e.num)
				p.pc--
				return
			}
		}
		if m.holdExclusive && e.departed == 0 {
			p.excl |= 1 << e.num
		}
		m.say(i, "finds epoch %d free", e.num)
		return
	}
	p.list, p.num, p.lo, p.departed = 0, 0, 0, 0
	p.pc = uint8(to)
	m.say(i, "has no more epochs to try")
}

func (m *model) hold(s *state, i, to int) {
	p := &s.procs[i]
	for k := range s.epochs {
		e := &s.epochs[k]
		if e.num == p.num && e.lo == p.lo && e.departed == p.departed && visible(e.ins, e.del, s.now(), p.tx) &&
			e.del == 0 && (e.lock == 0 || e.lock == p.tx) {
			e.lock = p.tx
			m.say(i, "locks the row of epoch %d", e.num)
			return
		}
	}
	p.pc = uint8(to)
	m.say(i, "finds the row of epoch %d taken", p.num)
}

func (m *model) sweep(s *state, i int) {
	p := &s.procs[i]
	snap := p.snap
	if m.oldSnapshot {
		snap = p.list
	}
	low := s.newest(snap, p.tx)
	if m.markAtClose {
		low = s.closed[p.num]
	}
	m.say(i, "looks from %d to the mark %d", p.lo+1, low)
	for k := range s.rows {
		r := &s.rows[k]
		if r.pos > p.lo && r.pos < low && visible(r.ins, r.del, snap, p.tx) && lockable(r, p.tx) &&
			!s.noted(r.pos, snap, p.tx) {
			r.del = p.tx
			m.say(i, "moves the late job %d from @%d to @%d", r.job, r.pos, s.position+1)
			s.draw(r.job, p.tx)
		}
	}
	p.snap = 0
}

// left notes what could not be moved and resolves the epoch.
func (m *model) left(s *state, i, to int) {
	p := &s.procs[i]
	p.pc = uint8(to)
	snap := s.now()
	low := s.newest(snap, p.tx)
	if m.oldSnapshot {
		snap, low = p.list, s.newest(p.list, p.tx)
	}
	if m.markAtClose {
		low = s.closed[p.num]
	}
	for _, r := range s.rows {
		if r.pos > p.lo && r.pos < low && visible(r.ins, r.del, snap, p.tx) &&
			!s.noted(r.pos, snap, p.tx) && !m.dropLeft {
			m.say(i, "notes @%d, which is locked", r.pos)
			s.addNote(note{pos: r.pos, ins: p.tx})
		}
	}
	for k := range s.epochs {
		e := &s.epochs[k]
		if e.num == p.num && e.lo == p.lo && e.departed == p.departed && e.lock == p.tx && e.del == 0 {
			e.lock, e.del = 0, p.tx
			m.say(i, "resolves epoch %d", e.num)
			return
		}
	}
	panic("the row of the epoch is gone")
}
