package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// processes are child processes, each with a goroutine that waits for it, and a guard that outlives this
// one: when this is killed it asks them to end. It leads their process group, so that a number that has
// come to be somebody else's is never signalled.
type processes struct {
	env   []string
	all   []*process
	guard *exec.Cmd
	alive io.WriteCloser // the guard reads it
}

const guardScript = `trap '' TERM; read -r end || kill -TERM 0`

type process struct {
	name   string
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // after done
	killed bool  // by us: its end is no failure
}

func (p *processes) run(ctx context.Context, bin string, args ...string) error {
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env, cmd.Stderr = p.env, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %v: %w", bin, args, err)
	}
	return nil
}

func (p *processes) start(name, bin string, args ...string) (*process, error) {
	w := &process{name: name, cmd: exec.Command(bin, args...), done: make(chan struct{})}
	w.cmd.Env = append(slices.Clip(p.env), "PGAPPNAME="+session(name))
	w.cmd.Stdout, w.cmd.Stderr = os.Stdout, os.Stderr
	if err := p.guarded(); err != nil {
		return nil, err
	}
	// An interrupt in the terminal is for the demo, which ends them in order.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: p.guard.Process.Pid}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		w.err = w.cmd.Wait()
		close(w.done)
	}()
	p.all = append(p.all, w)
	return w, nil
}

func (p *processes) guarded() error {
	if p.guard != nil {
		return nil
	}
	cmd := exec.Command("/bin/sh", "-c", guardScript)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	alive, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("the guard of the processes: %w", err)
	}
	p.guard, p.alive = cmd, alive
	return nil
}

// session is the application_name of a process, by which the server's list tells it.
func session(name string) string { return "openqueue demo: " + name }

func (w *process) kill() error {
	if err := w.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing %s: %w", w.name, err)
	}
	w.killed = true
	<-w.done
	return nil
}

// failed is the first that failed without our doing.
func (p *processes) failed() error {
	for _, w := range p.all {
		select {
		case <-w.done:
			if w.err != nil && !w.killed {
				return fmt.Errorf("%s ended: %w", w.name, w.err)
			}
		default:
		}
	}
	return nil
}

// stop asks all of them to end, and kills who has not after the grace.
func (p *processes) stop(grace time.Duration) {
	for _, w := range p.all {
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
	}
	over := time.NewTimer(grace)
	defer over.Stop()
	late := false
	for _, w := range p.all {
		if !late {
			select {
			case <-w.done:
			case <-over.C:
				late = true
			}
		}
		if late {
			_ = w.cmd.Process.Kill()
			<-w.done
		}
	}
	p.all = nil
	if p.guard != nil {
		_, _ = io.WriteString(p.alive, "end\n")
		_ = p.guard.Wait()
		p.guard = nil
	}
}
