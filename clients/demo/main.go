// Command demo does real work on the queue, end to end: every .go file of the standard library becomes
// a job, Go and bash workers compute its checksum, one worker is killed with its leases in hand, and
// at the end every result is held against its file.
package main

import (
	"cmp"
	"context"
	"errors"
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
	defer stop()
	// A second signal ends it at once.
	context.AfterFunc(ctx, stop)
	var err error
	if isWorker() {
		err = worker(ctx, os.Args[2:])
	} else {
		err = fromEnv(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// isWorker: the demo starts its Go workers by running itself.
func isWorker() bool { return len(os.Args) > 1 && os.Args[1] == "worker" }

func fromEnv(ctx context.Context, out io.Writer) error {
	files := 0
	if v := os.Getenv("DEMO_FILES"); v != "" {
		var err error
		if files, err = strconv.Atoi(v); err != nil || files < minFiles {
			return fmt.Errorf("DEMO_FILES=%s: want a number of %d or more", v, minFiles)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the demo took more than ten minutes"))
	defer cancel()
	err := demo(ctx, cmp.Or(os.Getenv("OQ_DATABASE_URL"), os.Getenv("DATABASE_URL")), files, out)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("%w (%v)", err, cause)
	}
	return err
}
