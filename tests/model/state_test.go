package model

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"
)

// Transactions are numbered from 1. Zero stands for one that everybody sees.
type row struct {
	pos, job uint8
	ins, del uint8
	lock     uint8 // for update, without a delete
	taken    uint8 // deleted by a lease, not by a move
}

type mark struct{ low, ins uint8 }

// departed is a further row, for members that have left while others hold the epoch; held are those who did when that was
// last looked for.
type epoch struct {
	num, lo, ins, del, lock, departed uint8
	held                              uint16
}

// order is where it stands among the others.
func (e epoch) order() uint64 {
	return uint64(e.num)<<48 | uint64(e.lo)<<40 | uint64(e.departed)<<32 | uint64(e.ins)<<24 | uint64(e.del)<<16 | uint64(e.held)
}

type note struct{ pos, ins, del uint8 }

// A process runs one script of steps, in one or more transactions.
type proc struct {
	snap, list   uint16 // snapshots of a statement and of the cursor over epochs
	locks, excl  uint16 // advisory locks by epoch
	own          uint16
	pc, tx       uint8
	e, p, n      uint8
	low, free    uint8
	num, lo      uint8 // the epoch row at which the cursor stands
	departed     uint8
	again, moved uint8
	ticked       uint8
}

// A state is comparable and has no pointers: its hash stands for it in the set of what was visited.
type state struct {
	committed    uint16
	born, leased uint16 // jobs
	procs        [4]proc
	rows         [10]row
	marks        [8]mark
	epochs       [14]epoch
	notes        [4]note
	closed       [10]uint8
	position     uint8
	epoch        uint8
	epochLow     uint8
	call         uint8 // who holds the lock of advance
}

func in(tx uint8, snap uint16, own uint8) bool {
	return tx == 0 || tx == own || snap>>tx&1 == 1
}

func visible(ins, del uint8, snap uint16, own uint8) bool {
	return in(ins, snap, own) && (del == 0 || !in(del, snap, own))
}

func (s *state) now() uint16 { return s.committed | 1 }

func (s *state) newest(snap uint16, own uint8) uint8 {
	low := uint8(0)
	for _, m := range s.marks {
		if m.low > low && in(m.ins, snap, own) {
			low = m.low
		}
	}
	return low
}

func (s *state) addRow(r row) {
	for i := range s.rows {
		if s.rows[i].pos == 0 {
			s.rows[i] = r
			return
		}
	}
	panic("no room for a row")
}

func (s *state) addMark(m mark) {
	for i := range s.marks {
		if s.marks[i].low == 0 {
			s.marks[i] = m
			return
		}
	}
	panic("no room for a mark")
}

func (s *state) addEpoch(e epoch) {
	for i := range s.epochs {
		if s.epochs[i].num == 0 {
			s.epochs[i] = e
			return
		}
	}
	panic("no room for an epoch")
}

func (s *state) addNote(n note) {
	for i := range s.notes {
		if s.notes[i].pos == 0 {
			s.notes[i] = n
			return
		}
	}
	panic("no room for a note")
}

// draw is nextval and the insert of the row: nobody else can tell when the row was written.
func (s *state) draw(job, tx uint8) uint8 {
	s.position++
	s.addRow(row{pos: s.position, job: job, ins: tx})
	return s.position
}

func (s *state) noted(pos uint8, snap uint16, own uint8) bool {
	for _, n := range s.notes {
		if n.pos == pos && visible(n.ins, n.del, snap, own) {
			return true
		}
	}
	return false
}

// minLo is the lowest lo of the epochs that are not resolved.
func (s *state) minLo(snap uint16, own uint8) uint8 {
	lo := uint8(255)
	for _, e := range s.epochs {
		if e.num > 0 && e.num >= s.epochLow && visible(e.ins, e.del, snap, own) && e.lo < lo {
			lo = e.lo
		}
	}
	return lo
}

// heldLo is the lowest lo of the closed epochs of which somebody else is a member.
func (s *state) heldLo(i int) uint8 {
	lo := uint8(254)
	for _, e := range s.epochs {
		if e.num == 0 || e.num >= s.procs[i].n || e.departed != 0 || !visible(e.ins, e.del, s.now(), s.procs[i].tx) {
			continue
		}
		for k := range s.procs {
			if k != i && (s.procs[k].locks|s.procs[k].excl)>>e.num&1 == 1 {
				lo = min(lo, e.lo)
			}
		}
	}
	return lo
}

func (s *state) abort(i int) {
	tx := s.procs[i].tx
	for k := range s.rows {
		r := &s.rows[k]
		if r.ins == tx {
			*r = row{}
			continue
		}
		if r.del == tx {
			r.del, r.taken = 0, 0
		}
		if r.lock == tx {
			r.lock = 0
		}
	}
	for k := range s.marks {
		if s.marks[k].ins == tx {
			s.marks[k] = mark{}
		}
	}
	for k := range s.epochs {
		e := &s.epochs[k]
		if e.ins == tx {
			*e = epoch{}
			continue
		}
		if e.del == tx {
			e.del = 0
		}
		if e.lock == tx {
			e.lock = 0
		}
	}
	for k := range s.notes {
		n := &s.notes[k]
		if n.ins == tx {
			*n = note{}
		} else if n.del == tx {
			n.del = 0
		}
	}
	s.end(i)
}

func (s *state) commit(i int) error {
	tx := s.procs[i].tx
	s.committed |= 1 << tx
	for k := range s.rows {
		r := &s.rows[k]
		if r.lock == tx {
			r.lock = 0
		}
		if r.ins == tx {
			s.born |= 1 << r.job
		}
		if r.del == tx && r.taken == 1 {
			if s.leased>>r.job&1 == 1 {
				return fmt.Errorf("job %d was leased twice", r.job)
			}
			s.leased |= 1 << r.job
		}
	}
	for k := range s.epochs {
		if s.epochs[k].lock == tx {
			s.epochs[k].lock = 0
		}
	}
	return nil
}

// end releases the locks of a transaction; the next one of the process remembers nothing.
func (s *state) end(i int) {
	p := &s.procs[i]
	if int(s.call) == i+1 {
		s.call = 0
	}
	*p = proc{pc: p.pc, tx: p.tx + 1}
}

// normalize makes states equal that nobody can tell apart: transactions that every snapshot sees become
// zero, what they deleted is gone, and a superseded mark as well.
func (s *state) normalize() {
	frozen := s.committed
	for _, p := range s.procs {
		if p.snap != 0 {
			frozen &= p.snap
		}
		if p.list != 0 {
			frozen &= p.list
		}
	}
	frozen &^= 1
	if frozen != 0 {
		s.committed &^= frozen
		for k := range s.procs {
			s.procs[k].snap &^= frozen
			s.procs[k].list &^= frozen
		}
		gone := func(tx uint8) bool { return tx != 0 && frozen>>tx&1 == 1 }
		for k := range s.rows {
			r := &s.rows[k]
			if gone(r.del) {
				*r = row{}
			} else if gone(r.ins) {
				r.ins = 0
			}
		}
		for k := range s.epochs {
			e := &s.epochs[k]
			if gone(e.del) {
				*e = epoch{}
			} else if gone(e.ins) {
				e.ins = 0
			}
		}
		for k := range s.notes {
			n := &s.notes[k]
			if gone(n.del) {
				*n = note{}
			} else if gone(n.ins) {
				n.ins = 0
			}
		}
		top := uint8(0)
		for k := range s.marks {
			if gone(s.marks[k].ins) {
				s.marks[k].ins = 0
			}
			if s.marks[k].ins == 0 {
				top = max(top, s.marks[k].low)
			}
		}
		for k := range s.marks {
			if s.marks[k].ins == 0 {
				s.marks[k] = mark{}
			}
		}
		if top > 0 {
			s.addMark(mark{low: top})
		}
	}
	slices.SortFunc(s.rows[:], func(a, b row) int { return int(a.pos) - int(b.pos) })
	slices.SortFunc(s.marks[:], func(a, b mark) int {
		return (int(a.low)-int(b.low))<<8 + int(a.ins) - int(b.ins)
	})
	slices.SortFunc(s.epochs[:], func(a, b epoch) int { return cmp.Compare(a.order(), b.order()) })
	slices.SortFunc(s.notes[:], func(a, b note) int {
		return (int(a.pos)-int(b.pos))<<8 + int(a.ins) - int(b.ins)
	})
}

var seed = maphash.MakeSeed()

func (s *state) hash() uint64 { return maphash.Comparable(seed, *s) }

// where shows the jobs, marks and epochs that a new session would see, for a trace.
func (s *state) where() string {
	var b strings.Builder
	snap := s.now()
	for _, r := range s.rows {
		if r.pos > 0 && visible(r.ins, r.del, snap, 0) {
			fmt.Fprintf(&b, " job %d @%d", r.job, r.pos)
		}
	}
	fmt.Fprintf(&b, " | mark %d | epochs", s.newest(snap, 0))
	for _, e := range s.epochs {
		if e.num > 0 && visible(e.ins, e.del, snap, 0) {
			fmt.Fprintf(&b, " %d(lo %d)", e.num, e.lo)
		}
	}
	for _, n := range s.notes {
		if n.pos > 0 && visible(n.ins, n.del, snap, 0) {
			fmt.Fprintf(&b, " | noted @%d", n.pos)
		}
	}
	return b.String()
}

// whole: every committed job that nobody leased stands in one place, and no other.
func (s *state) whole() error {
	var live, twice uint16
	for _, r := range s.rows {
		if r.pos > 0 && visible(r.ins, r.del, s.now(), 0) {
			twice |= live & (1 << r.job)
			live |= 1 << r.job
		}
	}
	switch {
	case twice != 0:
		return fmt.Errorf("job %d stands in two places", bits.TrailingZeros16(twice))
	case live&s.leased != 0:
		return fmt.Errorf("job %d was leased and is ready", bits.TrailingZeros16(live&s.leased))
	case s.born&^(live|s.leased) != 0:
		return fmt.Errorf("job %d is nowhere", bits.TrailingZeros16(s.born&^(live|s.leased)))
	}
	return nil
}

// reachable: no committed row stands below the mark, noted or not. Beside others who are open, but for what they have under
// their hands.
func (s *state) reachable(beside bool) error {
	low := s.newest(s.now(), 0)
	for _, r := range s.rows {
		if beside && (r.del != 0 || r.lock != 0) {
			continue
		}
		if r.pos > 0 && r.pos < low && visible(r.ins, r.del, s.now(), 0) {
			return fmt.Errorf("job %d is lost: it stands @%d below the mark %d", r.job, r.pos, low)
		}
	}
	return nil
}

// covered is what holds at every moment. A position that was drawn and can't be seen belongs to an
// epoch that is locked, not resolved, and begins below it. A row that can be seen below the mark is
// noted, or above the beginning of an epoch that is not resolved.
func (s *state) covered() error {
	snap := s.now()
	top, topLo := uint8(0), uint8(0)
	for _, e := range s.epochs {
		if e.num > top && visible(e.ins, e.del, snap, 0) {
			top, topLo = e.num, e.lo
		}
	}
	low, minLo := s.newest(snap, 0), s.minLo(snap, 0)
	for _, r := range s.rows {
		if r.pos == 0 {
			continue
		}
		if visible(r.ins, r.del, snap, 0) {
			if r.pos < low && r.pos <= minLo && !s.noted(r.pos, snap, 0) {
				return fmt.Errorf("job %d @%d stands below the mark %d in no epoch", r.job, r.pos, low)
			}
			continue
		}
		if in(r.ins, snap, 0) {
			continue
		}
		ok := false
		for _, p := range s.procs {
			if p.tx != r.ins {
				continue
			}
			for e := uint8(1); e <= s.epoch && !ok; e++ {
				if p.locks>>e&1 == 0 {
					continue
				}
				if e > top {
					ok = topLo < r.pos
					continue
				}
				for _, x := range s.epochs {
					if x.num == e && x.departed == 0 && e >= s.epochLow && x.lo < r.pos && visible(x.ins, x.del, snap, 0) {
						ok = true
					}
				}
			}
		}
		if !ok {
			return fmt.Errorf("position %d was drawn, can't be seen, and is in no epoch", r.pos)
		}
	}
	return nil
}
