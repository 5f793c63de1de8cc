package model

import (
	"fmt"
	"slices"
	"strings"
)

type node struct {
	parent int32
	who    uint8
	choice uint8
}

// A search walks every interleaving of a scenario, each state once, in breadth: the first trace that
// it finds is one of the shortest.
type search struct {
	model
	jobs     uint8 // ready at the beginning
	anywhere bool  // check what holds at every moment, not at the end only
	open     bool  // and that nobody waits for those who stay open there
	last     uint8 // transaction of the scripts
	nodes    []node
}

// start: the jobs have the positions from 1, the first epoch is open.
func (c *search) start() state {
	s := state{position: c.jobs, epoch: 1, epochLow: 1}
	s.addEpoch(epoch{num: 1})
	for k := range c.jobs {
		s.addRow(row{pos: k + 1, job: k + 1})
		s.born |= 1 << (k + 1)
	}
	tx := uint8(1)
	for i := range c.scripts {
		if i > 0 && c.scripts[i].name == c.scripts[i-1].name {
			c.scripts[i].name += "'"
		}
		s.procs[i].tx = tx
		for _, st := range c.scripts[i].steps {
			if st.op == opCommit {
				tx++
			}
		}
	}
	if tx > 16 || c.open && tx > 14 {
		panic("too many transactions")
	}
	c.last = tx - 1
	s.normalize()
	return s
}

func (c *search) done(s *state) bool {
	for i := range c.scripts {
		if int(s.procs[i].pc) < len(c.scripts[i].steps) {
			return false
		}
	}
	return true
}

// run returns how many states there are and the trace of a broken rule, if any.
func (c *search) run() (int, string) {
	first := c.start()
	visited := map[uint64]struct{}{first.hash(): {}}
	c.nodes = []node{{parent: -1}}
	level, ids := []state{first}, []int32{0}
	for len(level) > 0 {
		var below []state
		var belowIDs []int32
		for k := range level {
			moved := false
			for i := range c.scripts {
				choice := uint8(0)
				broken := error(nil)
				c.next(level[k], i, func(s state, err error) {
					moved = true
					n := node{parent: ids[k], who: uint8(i), choice: choice}
					choice++
					if broken != nil {
						return
					}
					if err == nil {
						err = s.whole()
					}
					if err == nil && c.anywhere {
						err = s.covered()
					}
					if err == nil && c.open && c.rests(&s) {
						err = c.beside(s)
					}
					if err != nil {
						c.nodes = append(c.nodes, n)
						broken = err
						return
					}
					s.normalize()
					h := s.hash()
					if _, ok := visited[h]; ok {
						return
					}
					visited[h] = struct{}{}
					c.nodes = append(c.nodes, n)
					below = append(below, s)
					belowIDs = append(belowIDs, int32(len(c.nodes)-1))
				})
				if broken != nil {
					return len(visited), c.trace(int32(len(c.nodes)-1), broken)
				}
			}
			if moved {
				continue
			}
			err := fmt.Errorf("everybody waits")
			if c.done(&level[k]) {
				err = c.quiet(level[k], nil)
			}
			if err != nil {
				return len(visited), c.trace(ids[k], err)
			}
		}
		level, ids = below, belowIDs
	}
	return len(visited), ""
}

// quiet runs two ticks alone and looks at what is left.
func (c *search) quiet(s state, tell func(int, string, ...any)) error {
	s.procs = [4]proc{{tx: 1}}
	if err := c.ticks(&s, 0, tell); err != nil {
		return err
	}
	if err := s.whole(); err != nil {
		return err
	}
	return s.reachable(false)
}

// rests: nobody advances, or is within his commit.
func (c *search) rests(s *state) bool {
	for i := range c.scripts {
		pc := int(s.procs[i].pc)
		if pc < len(c.scripts[i].steps) && c.scripts[i].steps[pc].op == opRelease {
			return false
		}
	}
	return s.call == 0
}

// beside runs two ticks while all others stay where they are.
func (c *search) beside(s state) error {
	i := len(c.scripts)
	s.procs[i] = proc{tx: c.last + 1}
	s.normalize()
	if err := c.ticks(&s, i, nil); err != nil {
		return err
	}
	return s.reachable(true)
}

// ticks runs two of them in process i.
func (c *search) ticks(s *state, i int, tell func(int, string, ...any)) error {
	p := c.protocol
	m := model{protocol: p, tell: tell, scripts: slices.Clone(c.scripts[:i])}
	t := script{final: true}
	t.tick(p, true).end(p).tick(p, true).end(p)
	m.scripts = append(m.scripts, t)
	for int(s.procs[i].pc) < len(t.steps) {
		var failed error
		moved := false
		m.next(*s, i, func(n state, err error) {
			if !moved {
				*s, failed, moved = n, err, true
			}
		})
		if failed != nil {
			return failed
		}
		if !moved {
			return fmt.Errorf("the last tick waits")
		}
		s.normalize()
	}
	return nil
}

// trace does the steps to a state once more, telling of each.
func (c *search) trace(id int32, broken error) string {
	var path []node
	for n := c.nodes[id]; n.parent >= 0; n = c.nodes[n.parent] {
		path = append(path, n)
	}
	var b strings.Builder
	s := c.start()
	fmt.Fprintf(&b, "%-9s%s\n", "start", s.where())
	for k := len(path) - 1; k >= 0; k-- {
		n := path[k]
		var said []string
		m := c.model
		m.tell = func(_ int, format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
		choice, after, words := uint8(0), state{}, []string(nil)
		m.next(s, int(n.who), func(x state, _ error) {
			if choice == n.choice {
				after, words = x, said
			}
			choice++
			said = nil
		})
		for _, w := range words {
			fmt.Fprintf(&b, "%-9s%s\n", c.scripts[n.who].name, w)
		}
		s = after
		s.normalize()
	}
	if c.done(&s) {
		_ = c.quiet(s, func(_ int, format string, args ...any) {
			if strings.HasPrefix(format, "commits") || strings.HasPrefix(format, "moves") {
				fmt.Fprintf(&b, "%-9s%s\n", "at last", fmt.Sprintf(format, args...))
			}
		})
	}
	fmt.Fprintf(&b, "=> %v", broken)
	return b.String()
}
