// Command bench is `make bench`: rows B1 to B8 of the benchmark, every one on the same durable
// server, in interleaved rounds beside baselines that live in this folder, and one table at the
// end. It fails when a job was lost, doubled or stands wrong, never because something was slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
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
	if err := flags.Parse(args); err != nil {
		return err
	}
	size := full
	if *smoke {
		size = tiny
	}
	if s := os.Getenv("B6_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 20 || n%10 != 0 {
			return fmt.Errorf("B6_SECONDS=%s: want a multiple of 10, at least 20", s)
		}
		size.heldSlice, size.heldSlices = 10*time.Second, n/10
	}
	return Run(ctx, Config{
		URL: os.Getenv("BENCH_DATABASE_URL"), Pick: os.Getenv("BENCH"), size: size,
		Out: os.Stdout, Log: os.Stderr,
	})
}

// Config is what one run of the benchmark needs.
type Config struct {
	URL  string // a superuser's; empty: a server of our own, gone afterwards
	Pick string // "B3,B5"; empty: every row
	Out  io.Writer
	Log  io.Writer
	size sizes
}

// sizes are all numbers that differ between a benchmark and a check of the benchmark.
type sizes struct {
	rounds     int
	warmup     time.Duration
	window     time.Duration
	backlog    int64 // B3, and what B8 calls small
	bigBacklog int64 // B4 and B8
	heldSlice  time.Duration
	heldSlices int
	wakeJobs   int
}

var full = sizes{
	rounds: 3, warmup: 500 * time.Millisecond, window: 3 * time.Second,
	backlog: 100_000, bigBacklog: 1_000_000,
	heldSlice: 10 * time.Second, heldSlices: 6, wakeJobs: 1000,
}

var tiny = sizes{
	rounds: 1, warmup: 100 * time.Millisecond, window: 300 * time.Millisecond,
	backlog: 10_000, bigBacklog: 100_000,
	heldSlice: 300 * time.Millisecond, heldSlices: 2, wakeJobs: 50,
}
