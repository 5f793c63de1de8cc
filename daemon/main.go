// Package daemon is the clock: it calls the duties of the queue in time and knows no table.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitConfig = 2
	exitSchema = 3
)

var (
	errConfig = errors.New("bad configuration")
	errSchema = errors.New("schema does not fit")
)

const usage = `openqueued is the clock of OpenQueue, a job queue in PostgreSQL.

usage: openqueued <command>

  run             run the duties until a signal
  migrate         install or upgrade the queue [--to N; 0 removes it]
  dev             a server, the queue and the daemon in one, from nothing
  health          is the daemon on OQ_HTTP_ADDR ready?
  config          print the settings in force
  version         print the version

Settings are environment variables: see daemon/README.md.
`

// The library's own format has whole seconds.
func init() { zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00" }

// Main runs a command line and returns its exit code.
func Main(args []string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	signals, hangups := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if !signal.Ignored(syscall.SIGHUP) { // as by nohup
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
	}
	// Who is told of it gets an error of the write instead of dying.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go stopOn(signals, hangups, done, time.Now, cancel, func() { os.Exit(exitFailed) })
	err := command(ctx, args, os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	fmt.Fprintln(os.Stderr, "openqueued:", err)
	switch {
	case errors.Is(err, errConfig):
		return exitConfig
	case errors.Is(err, errSchema):
		return exitSchema
	}
	return exitFailed
}

// A process group is told twice: by who stops it, and by the make or shell in it that passes it on.
const sameSignal = 500 * time.Millisecond

// stopOn ends the program in order at the first signal, at once at the second. A terminal that is closed says
// so more than once: a hangup is never the second, or dev would leave its server behind.
func stopOn(signals, hangups <-chan os.Signal, done <-chan struct{}, now func() time.Time, stop, kill func()) {
	var first time.Time
	for {
		select {
		case <-signals:
			switch at := now(); {
			case first.IsZero():
				first = at
			case at.Sub(first) > sameSignal:
				kill()
			}
		case <-hangups:
		case <-done:
			return
		}
		stop()
	}
}

func command(ctx context.Context, args []string, out, errOut io.Writer) error {
	if len(args) < 2 {
		fmt.Fprint(errOut, usage)
		return fmt.Errorf("%w: no command", errConfig)
	}
	name := args[1]
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(errOut)
	to := -1
	if name == "migrate" {
		flags.IntVar(&to, "to", -1, "migrate to this version; 0 removes everything")
	}
	switch name {
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return nil
	case "run", "migrate", "dev", "health", "config", "version":
	default:
		fmt.Fprint(errOut, usage)
		return fmt.Errorf("%w: unknown command %q", errConfig, name)
	}
	if err := flags.Parse(args[2:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %v", errConfig, err)
	}
	negative := false
	flags.Visit(func(f *flag.Flag) { negative = f.Name == "to" && to < 0 })
	if negative {
		return fmt.Errorf("%w: --to %d: want 0 or more", errConfig, to)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errConfig, flags.Arg(0))
	}
	if name == "version" {
		fmt.Fprintln(out, Version)
		return nil
	}
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	log := newLogger(cfg, errOut)
	switch name {
	case "run":
		return run(ctx, cfg, log)
	case "migrate":
		return migrateAll(ctx, cfg, to, out)
	case "dev":
		return dev(ctx, cfg, log, out)
	case "health":
		return health(ctx, cfg, out)
	default:
		return cfg.print(out)
	}
}

func newLogger(cfg Config, w io.Writer) zerolog.Logger {
	if cfg.LogFormat == "console" {
		terminal := false
		if f, ok := w.(*os.File); ok {
			info, err := f.Stat()
			terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
		}
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05.000", NoColor: !terminal}
	}
	level, _ := zerolog.ParseLevel(cfg.LogLevel) // loadConfig has parsed it already.
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
