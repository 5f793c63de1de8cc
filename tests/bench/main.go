// Command bench is `make bench`: the rows of the benchmark, every one on the same durable server,
// in interleaved rounds beside baselines that live in this folder, and one table at the end. It
// fails when a job was lost, doubled or stands wrong, never because something was slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func main() {
	// The load generator's loops wait for the server almost all the time: one scheduler thread for
	// all of them wakes faster and takes less from the server's two cores than several do (5 to 20 %).
	runtime.GOMAXPROCS(1)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := realMain(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func realMain(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	smoke := flags.Bool("smoke", false, "tiny sizes: checks that everything runs and is right; the numbers mean nothing")
	depth := flags.Bool("depth", false, "the rows of depth and breadth, B11 to B16")
	soak := flags.Bool("soak", false, "steady load for SOAK_MINUTES instead of the rows")
	if err := flags.Parse(args); err != nil {
		return err
	}
	size := full
	if *smoke {
		size = tiny
	}
	cfg, err := configure(os.Getenv, size)
	if err != nil {
		return err
	}
	cfg.Depth, cfg.Soak, cfg.Out, cfg.Log = *depth, *soak, os.Stdout, os.Stderr
	switch {
	case *smoke: // nobody wants a picture of these
		cfg.Pictures = ""
	case cfg.JSON != "":
	case cfg.Soak:
		cfg.JSON = "soak.json"
	case cfg.Depth:
		cfg.JSON = "bench-depth.json"
	default:
		cfg.JSON = "bench.json"
	}
	return Run(ctx, cfg)
}
