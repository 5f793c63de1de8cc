package openqueue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Shard is one of several databases that share the work. Job ids are a database's own: keep Name beside
// them.
type Shard struct {
	Name  string        // chosen once and kept: it decides which keys belong here, the address does not
	Pool  *pgxpool.Pool // with a connect_timeout: so long a producer waits where the server does not answer
	Drain bool          // gets no key any more; its workers go on until it is empty
}

// Shards choose a database for each key. The zero value has none: see NewShards. What happens between
// jobs (order and limits of a group, unique keys, dependencies, batches, priorities) holds in one database: let
// the key be what keeps such jobs together, the name of the queue or a customer.
type Shards struct{ all []Shard }

// NewShards is a set of databases, in any order. Producers with different sets, as while a new one is
// brought in, enqueue some keys in different places, and no job is lost. ErrArgument without a shard that
// takes keys, where a name is empty or there twice, or a Pool nil.
func NewShards(shards ...Shard) (*Shards, error) {
	open, seen := false, map[string]bool{}
	for _, s := range shards {
		if s.Name == "" || seen[s.Name] || s.Pool == nil {
			return nil, fmt.Errorf("%w: shard %q needs a name of its own and a pool", ErrArgument, s.Name)
		}
		seen[s.Name] = true
		open = open || !s.Drain
	}
	if !open {
		return nil, fmt.Errorf("%w: no shard takes keys", ErrArgument)
	}
	return &Shards{append([]Shard(nil), shards...)}, nil
}

// For is the shard of a key: of those that do not drain the one for which sha256(name || '/' || key) is
// greatest. A shard that is added takes over its share of the keys, one that leaves gives away its own, and no
// other key moves. It asks no server, so it is no other shard when that one is down. A job whose enqueue
// failed with its outcome unknown must be tried again in the same shard.
func (s *Shards) For(key string) Shard {
	var best Shard
	var most [sha256.Size]byte
	text := make([]byte, 0, 128)
	for _, shard := range s.all {
		if shard.Drain {
			continue
		}
		text = append(append(append(text[:0], shard.Name...), '/'), key...)
		if sum := sha256.Sum256(text); best.Pool == nil || bytes.Compare(sum[:], most[:]) > 0 {
			best, most = shard, sum
		}
	}
	return best
}

// Get is the shard of that name, for what is done by job id.
func (s *Shards) Get(name string) (shard Shard, known bool) {
	for _, shard := range s.all {
		if shard.Name == name {
			return shard, true
		}
	}
	return Shard{}, false
}

// Run runs a worker a shard, those that drain too, until ctx ends and all have drained. The function makes
// the worker of a shard, whose Pool is set if it is nil. A shard that is away or refuses its worker
// keeps nobody from the others: it is tried again after at most 5 s, with a new worker. The error is that of
// those that were refused last, or at once ErrArgument where a worker makes no sense.
func (s *Shards) Run(ctx context.Context, worker func(Shard) *Worker) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(s.all))
	var wait sync.WaitGroup
	for i, shard := range s.all {
		wait.Go(func() {
			for tries := 0; tries == 0 || ctx.Err() == nil; tries++ {
				w := worker(shard)
				if w.Pool == nil {
					w.Pool = shard.Pool
				}
				err := w.Run(ctx)
				if err == nil {
					errs[i] = nil
					return
				}
				errs[i] = fmt.Errorf("shard %s: %w", shard.Name, err)
				if errors.Is(err, ErrArgument) {
					stop() // It is no better next time, nor elsewhere.
				}
				if ctx.Err() != nil {
					return
				}
				w.Logger.Error("the worker was refused", "shard", shard.Name, "error", err)
				sleep(ctx, backoff(tries))
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}
