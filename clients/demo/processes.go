package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// processes are the daemon and the workers. Each has a goroutine that waits for it.
type processes struct {
	env []string
	all []*process
}

type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // after done
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
	w.cmd.Env, w.cmd.Stderr = p.env, os.Stderr
	// An interrupt in the terminal is for the demo, which ends them in order.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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

// failed is the first that ended by itself; the one that was killed is meant to.
func (p *processes) failed() error {
	for _, w := range p.all {
		select {
		case <-w.done:
			if w.name != victim {
				return fmt.Errorf("%s ended: %v", w.name, w.err)
			}
		default:
		}
	}
	return nil
}

// stopAll ends what is left, the last started first.
func (p *processes) stopAll() {
	for i := len(p.all) - 1; i >= 0; i-- {
		w := p.all[i]
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-w.done:
		case <-time.After(10 * time.Second):
			_ = w.cmd.Process.Kill()
			<-w.done
		}
	}
	p.all = nil
}
