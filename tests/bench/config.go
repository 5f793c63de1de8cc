package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is what one run of the benchmark needs.
type Config struct {
	URL      string // a superuser's; empty: a server of our own, gone afterwards
	Major    int    // of a server of our own; 0: whichever is there
	Pick     string // "B3,B5"; empty: every row
	Depth    bool   // the rows of depth and breadth
	Soak     bool   // no rows: steady load
	Holder   string // who holds back VACUUM in B6
	Peers    []string
	Library  []string          // client libraries of L1 to L3; none: all
	PeerSQL  map[string]string // a file that installs a peer, by name
	JSON     string            // where everything goes that the table leaves out; empty: nowhere
	Pictures string            // the folder of the pictures; empty: none
	Out      io.Writer
	Log      io.Writer
	size     sizes
	daemon   string // a built openqueued; empty: build it
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
	heldRounds int
	wakeJobs   int
	idle       time.Duration // L3, after a time to settle
	settling   time.Duration
	batches    []int // B4N
	queues     int64 // B9
	groups     int64
	written    int64 // B10: jobs one by one; ten times as many in batches
	deep       int64 // B11 and what else lies beside a queue
	dead       int64
	payloads   []int // B16, bytes
	payloadMB  int64 // a deep backlog of them, all together
	soakMinute time.Duration
	soakCount  int
	soakProbe  time.Duration // how long capacity is measured
	soakLater  time.Duration
}

var full = sizes{
	rounds: 3, warmup: 500 * time.Millisecond, window: 3 * time.Second,
	backlog: 100_000, bigBacklog: 1_000_000,
	heldSlice: 10 * time.Second, heldSlices: 6, heldRounds: 3, wakeJobs: 1000,
	idle: 10 * time.Second, settling: 2 * time.Second,
	batches: []int{1, 2, 5, 10, 20, 50, 100, 200, 500},
	queues:  1000, groups: 10_000, written: 10_000,
	deep: 1_000_000, dead: 100_000, payloads: []int{100, 1_000, 10_000, 100_000}, payloadMB: 800,
	soakMinute: time.Minute, soakCount: 20, soakProbe: 10 * time.Second, soakLater: time.Second,
}

var tiny = sizes{
	rounds: 1, warmup: 20 * time.Millisecond, window: 60 * time.Millisecond,
	backlog: 4_000, bigBacklog: 40_000,
	heldSlice: 100 * time.Millisecond, heldSlices: 2, heldRounds: 1, wakeJobs: 20,
	idle: 300 * time.Millisecond, settling: 100 * time.Millisecond,
	batches: []int{1, 10},
	queues:  20, groups: 200, written: 500,
	deep: 10_000, dead: 500, payloads: []int{100, 20_000}, payloadMB: 8,
	soakMinute: 500 * time.Millisecond, soakCount: 3, soakProbe: 300 * time.Millisecond, soakLater: 50 * time.Millisecond,
}

var holders = []string{"reader", "writer", "prepared", "slot", "standby"}

// configure reads the environment. A setting that makes no sense is refused before anything runs.
func configure(env func(string) string, size sizes) (Config, error) {
	cfg := Config{
		URL: env("BENCH_DATABASE_URL"), Pick: env("BENCH"), Holder: env("BENCH_HOLDER"),
		JSON: env("BENCH_OUT"), Pictures: env("BENCH_PICTURES"), PeerSQL: map[string]string{},
	}
	if cfg.Holder == "" {
		cfg.Holder = holders[0]
	}
	if !slices.Contains(holders, cfg.Holder) {
		return cfg, fmt.Errorf("BENCH_HOLDER=%s: want one of %s", cfg.Holder, strings.Join(holders, ", "))
	}
	if cfg.Pictures == "" {
		cfg.Pictures = "tests/bench"
	}
	number := func(name string, least, most int) (n int, set bool, err error) {
		text := env(name)
		if text == "" {
			return 0, false, nil
		}
		if n, err = strconv.Atoi(text); err != nil || n < least || n > most {
			return 0, false, fmt.Errorf("%s=%s: want a number from %d to %d", name, text, least, most)
		}
		return n, true, nil
	}
	if n, set, err := number("BENCH_SECONDS", 1, 600); err != nil {
		return cfg, err
	} else if set {
		size.window = time.Duration(n) * time.Second
	}
	if n, set, err := number("BENCH_B6_SECONDS", 20, 86400); err != nil {
		return cfg, err
	} else if set {
		if n%10 != 0 {
			return cfg, fmt.Errorf("BENCH_B6_SECONDS=%d: want a multiple of 10", n)
		}
		size.heldSlice, size.heldSlices = 10*time.Second, n/10
		if n > 120 {
			size.heldRounds = 1 // three of them only for who asks
		}
	}
	if n, set, err := number("BENCH_ROUNDS", 1, 100); err != nil {
		return cfg, err
	} else if set {
		size.rounds, size.heldRounds = n, n
	}
	if n, set, err := number("BENCH_PG_MAJOR", 14, 18); err != nil {
		return cfg, err
	} else if set {
		if cfg.URL != "" {
			return cfg, fmt.Errorf("BENCH_PG_MAJOR=%d: not beside BENCH_DATABASE_URL", n)
		}
		cfg.Major = n
	}
	if n, set, err := number("BENCH_DEPTH", 10_000, 100_000_000); err != nil {
		return cfg, err
	} else if set {
		size.deep = int64(n)
	}
	if n, set, err := number("SOAK_MINUTES", 2, 10_000); err != nil {
		return cfg, err
	} else if set {
		size.soakCount = n
	}
	if text := env("BENCH_PEERS"); text != "" {
		for name := range strings.SplitSeq(text, ",") {
			name = strings.ToLower(strings.TrimSpace(name))
			if !slices.Contains(peerNames, name) {
				return cfg, fmt.Errorf("BENCH_PEERS=%s: want some of %s", text, strings.Join(peerNames, ", "))
			}
			cfg.Peers = append(cfg.Peers, name)
			cfg.PeerSQL[name] = env("BENCH_" + strings.ToUpper(name) + "_SQL")
		}
	}
	for name := range strings.SplitSeq(env("BENCH_LIBRARIES"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			cfg.Library = append(cfg.Library, name)
		}
	}
	cfg.size = size
	return cfg, nil
}
